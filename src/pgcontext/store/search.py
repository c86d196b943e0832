"""Search: by meaning or by words, in one context or over the tenant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, LiteralString, TypeAlias, cast, get_args

from pgcontext import hits, inputs, limits, statements
from pgcontext.errors import InvalidInputError
from pgcontext.store.base import cap_of, metadata_json
from pgcontext.store.contexts import ContextMethods

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime
    from uuid import UUID

    from pgcontext.models import Hit

Mode: TypeAlias = Literal["auto", "vector", "text", "hybrid"]
MODES: Final[tuple[Mode, ...]] = get_args(Mode)
# Thinning needs more to choose from.
DIVERSITY_CANDIDATES: Final = 4

_SEARCHES: Final[dict[tuple[bool, bool, bool, bool], LiteralString]] = {
    # (within a context, by vector, by text, with the messages around)
    (True, True, False, False): statements.SEARCH_CONTEXT_VECTOR,
    (True, True, False, True): statements.SEARCH_CONTEXT_VECTOR_AROUND,
    (True, False, True, False): statements.SEARCH_CONTEXT_TEXT,
    (True, False, True, True): statements.SEARCH_CONTEXT_TEXT_AROUND,
    (True, True, True, False): statements.SEARCH_CONTEXT_HYBRID,
    (True, True, True, True): statements.SEARCH_CONTEXT_HYBRID_AROUND,
    (False, True, False, False): statements.SEARCH_TENANT_VECTOR,
    (False, True, False, True): statements.SEARCH_TENANT_VECTOR_AROUND,
    (False, False, True, False): statements.SEARCH_TENANT_TEXT,
    (False, False, True, True): statements.SEARCH_TENANT_TEXT_AROUND,
    (False, True, True, False): statements.SEARCH_TENANT_HYBRID,
    (False, True, True, True): statements.SEARCH_TENANT_HYBRID_AROUND,
}


class SearchMethods(ContextMethods):
    """The store's search."""

    async def search(
        self,
        query: str | Iterable[float],
        *,
        context_id: UUID | str | None = None,
        limit: int = 10,
        mode: Mode = "auto",
        roles: Iterable[str] | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        metadata: Mapping[str, Any] | None = None,
        model: str | None = None,
        max_distance: float | None = None,
        neighbors: int = 0,
        diversity: float | None = None,
        at_version: int | None = None,
    ) -> list[Hit]:
        """Find messages, best first. One statement; the query is embedded before it.

        Args:
            query: words, or an embedding `float[dimensions]`, numpy included.
            context_id: search exactly what `history` of this context shows, inherited messages
                included; None searches the tenant's live messages.
            limit: hits at most, up to `SEARCH_HITS_MAX`.
            mode: by "vector", by "text", or "hybrid", by both; "auto" is vector for an embedding,
                and for words hybrid if the store has an embedder, else text.
            roles: only these roles.
            since: only messages stored at or after this moment.
            until: only messages stored before this moment.
            metadata: only contexts whose metadata contains this.
            model: only messages written by this model.
            max_distance: only hits at most this cosine distance (0 to 2) away.
            neighbors: messages to give with each hit, on each side, up to `SEARCH_NEIGHBORS_MAX`.
            diversity: thin hits that say the same: 0 not at all, 1 as much as possible.
            at_version: with `context_id`: only up to this version.

        Raises:
            DimensionMismatchError: the embedding has another length than the database's.
            EmbeddingError: the query could not be embedded.
        """
        limit = inputs.integer(limit, "limit", least=1, most=limits.SEARCH_HITS_MAX)
        if at_version is not None and context_id is None:
            msg = "at_version needs a context_id: a version is a place in one context."
            raise InvalidInputError(msg)
        scope = None if context_id is None else inputs.uuid(context_id, "context_id")
        thinning = _optional(diversity, "diversity", most=1)
        arguments = (
            limit if thinning is None else limit * DIVERSITY_CANDIDATES,
            inputs.roles(roles),
            inputs.moment(since, "since"),
            inputs.moment(until, "until"),
            metadata_json(metadata),
            inputs.optional_text(model, "model", chars_max=limits.MODEL_CHARS_MAX),
            _optional(max_distance, "max_distance", most=2),
            self._embedding_model(),
            inputs.integer(neighbors, "neighbors", least=0, most=limits.SEARCH_NEIGHBORS_MAX),
            thinning is not None,
            scope,
            cap_of(at_version),
            self._settings.exact_rows,
        )
        vector, words = await self._query(query, mode, by_distance=max_distance is not None)
        chosen = scope is not None, vector is not None, words is not None, neighbors > 0
        found, _ = await self._fetch(_SEARCHES[chosen], vector, words, *arguments)
        if not found and scope is not None:
            # Nothing found in it, or no such context: that takes another look.
            await self.get(scope)
        return hits.assemble(found, self._tenant_id, limit=limit, diversity=thinning)

    async def _query(
        self, query: str | Iterable[float], mode: str, *, by_distance: bool
    ) -> tuple[str | None, str | None]:
        """Return what to search by, as the statement takes it: an embedding, words, or both."""
        if not isinstance(cast("object", mode), str) or mode not in MODES:
            msg = f"mode must be one of: {', '.join(MODES)}."
            raise InvalidInputError(msg)
        if not isinstance(query, str):
            if mode not in {"auto", "vector"}:
                msg = f"mode {mode} needs a query of words, not an embedding."
                raise InvalidInputError(msg)
            dimensions = self._settings.dimensions
            return inputs.embedding(query, dimensions=dimensions, name="query"), None
        words = inputs.text(query, "query", chars_max=limits.QUERY_CHARS_MAX)
        if not words.strip():
            msg = "query must not be empty."
            raise InvalidInputError(msg)
        if mode == "text" or (mode == "auto" and self._embedder is None):
            if by_distance:
                msg = "max_distance needs a search by vector."
                raise InvalidInputError(msg)
            return None, words
        if self._embedder is None:
            msg = f"A search for words by {mode} needs a store with an embedder."
            raise InvalidInputError(msg)
        [vector] = await self._embedded(self._embedder, [words])
        return vector, None if mode == "vector" else words


def _optional(value: float | None, name: str, *, most: float) -> float | None:
    return None if value is None else inputs.number(value, name, least=0, most=most)
