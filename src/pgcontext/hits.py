"""From the rows of a search to hits, and the thinning of those that say the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pgcontext import rows
from pgcontext.errors import InvalidInputError
from pgcontext.models import Hit, Message

if TYPE_CHECKING:
    from uuid import UUID


def assemble(
    found: list[Any], tenant_id: UUID, *, limit: int, diversity: float | None
) -> list[Hit]:
    """Make hits of the rows of a SEARCH statement, best first.

    Args:
        found: rows ordered by place and step; `step` 0 is the hit, the others its neighbors.
        tenant_id: whose they are.
        limit: hits at most.
        diversity: None, or how much weight being different from better hits has, 0 to 1.
    """
    hits: list[Hit] = []
    embeddings: list[str | None] = []
    neighbors: dict[int, list[Message]] = {}
    for row in found:
        message = rows.message(row, tenant_id)
        if row["step"]:
            neighbors.setdefault(row["place"], []).append(message)
            continue
        hits.append(_hit(row, message, neighbors.setdefault(row["place"], [])))
        embeddings.append(row["embedding"])
    if diversity is not None:
        return [hits[index] for index in _diverse(hits, embeddings, limit, diversity)]
    return hits[:limit]


def _hit(row: Any, message: Message, neighbors: list[Message]) -> Hit:  # noqa: ANN401 (a row)
    by = (("vector", row["by_vector"]), ("text", row["by_text"]))
    return Hit(
        message=message,
        distance=row["distance"],
        text_score=row["text_score"],
        score=row["score"],
        found_by=tuple(name for name, found in by if found),
        neighbors=neighbors,
    )


def _diverse(
    hits: list[Hit], embeddings: list[str | None], limit: int, diversity: float
) -> list[int]:
    """Choose hits by maximal marginal relevance.

    Relevance is the cosine to the query, or the text score as a part of the best one; likeness
    is the cosine to the nearest hit chosen already. A hit without an embedding is like nothing, nor
    is one like what another model embedded.

    Source: Carbonell and Goldstein, "The use of MMR", SIGIR 1998.
    """
    try:
        import numpy as np
    except ImportError:  # a function's bundle leaves it out
        msg = "diversity needs numpy, which is not installed here."
        raise InvalidInputError(msg) from None

    if not hits:
        return []
    width = max((text.count(",") + 1 for text in embeddings if text), default=1)
    vectors = np.zeros((len(hits), width))
    for index, text in enumerate(embeddings):
        if text:
            vectors[index] = np.fromstring(text[1:-1], sep=",")
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    relevance = np.array([hit.score for hit in hits])
    if hits[0].distance is None:
        relevance /= relevance.max() or 1.0
    models = np.array([hit.message.embedding_model or "" for hit in hits])
    likeness = np.zeros(len(hits))
    left = np.ones(len(hits), dtype=bool)
    chosen: list[int] = []
    while left.any() and len(chosen) < limit:
        value = (1 - diversity) * relevance - diversity * likeness
        best = int(np.argmax(np.where(left, value, -np.inf)))
        chosen.append(best)
        left[best] = False
        alike = np.where(models == models[best], vectors @ vectors[best], 0)
        likeness = np.maximum(likeness, alike)
    return chosen
