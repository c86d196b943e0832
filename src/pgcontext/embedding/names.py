"""What the name of an embedding model may be: it is kept with each of its vectors."""

from __future__ import annotations

from pgcontext.errors import ConfigError
from pgcontext.settings import MODEL_NAME, MODEL_NAME_RULE


def model_name(value: object) -> str:
    """Return the name.

    Raises:
        ConfigError: it is none.
    """
    if isinstance(value, str) and MODEL_NAME.fullmatch(value):
        return value
    raise ConfigError(f"An embedding model's name is text of {MODEL_NAME_RULE}.")
