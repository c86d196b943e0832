"""What turns text into embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from pgcontext.embedding.functions import CallableEmbedder
from pgcontext.embedding.http import HttpEmbedder
from pgcontext.embedding.local import LocalEmbedder

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pgcontext.settings import Settings

__all__ = ["CallableEmbedder", "Embedder", "HttpEmbedder", "LocalEmbedder", "embedder_of"]


class Embedder(Protocol):
    """Any object with these two members plugs into `ContextStore`."""

    @property
    def model(self) -> str:
        """The name kept with each vector; vectors of different models are never compared.

        Text of 1 to `MODEL_CHARS_MAX` characters, the same for as long as the embedder lives.
        """
        ...

    async def embed(self, texts: list[str]) -> Sequence[Iterable[float]]:
        """Return one `float[dimensions]` for each text, in order.

        Called without any database connection held, and cancelled after
        `Settings.embedding_seconds`.
        """
        ...


def embedder_of(settings: Settings) -> HttpEmbedder | LocalEmbedder | None:
    """Make the embedder that the settings name, if any. No I/O, and no model loaded.

    Raises:
        ConfigError: it is not installed, or its address or key cannot be used.
    """
    if settings.embedder == "local":
        return LocalEmbedder()
    if settings.embedder == "none":
        return None
    return HttpEmbedder(
        settings.embedding_model or "",  # which is refused; `Settings.checked` says more
        url=settings.embedding_url,
        key=settings.embedding_key.value if settings.embedding_key is not None else None,
        dimensions=settings.dimensions if settings.embedding_send_dimensions else None,
        seconds=settings.embedding_seconds,
    )
