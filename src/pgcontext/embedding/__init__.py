"""What turns text into embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Embedder(Protocol):
    """Any object with these two members plugs into `ContextStore`."""

    @property
    def model(self) -> str:
        """The name kept with each vector; vectors of different models are never compared."""
        ...

    async def embed(self, texts: list[str]) -> Sequence[Iterable[float]]:
        """Return one `float[dimensions]` for each text, in order.

        Called without any database connection held.
        """
        ...
