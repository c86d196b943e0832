"""What the name of an embedding model may be: it is kept with each of its vectors."""

from __future__ import annotations

from pgcontext import limits
from pgcontext.errors import ConfigError
from pgcontext.settings import MODEL_NAME


def model_name(value: object) -> str:
    """Return the name.

    Raises:
        ConfigError: it is none.
    """
    if isinstance(value, str) and MODEL_NAME.fullmatch(value):
        return value
    msg = (
        f"An embedding model's name is text of 1 to {limits.MODEL_CHARS_MAX} characters that are "
        "valid Unicode, and no NUL."
    )
    raise ConfigError(msg)
