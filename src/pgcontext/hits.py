"""From the rows of a search to hits, and the thinning of those that say the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pgcontext import rows
from pgcontext.errors import InvalidInputError
from pgcontext.models import Hit

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
    best: list[Any] = []
    around: dict[int, list[Any]] = {}
    for row in found:
        if row["step"]:
            around.setdefault(row["place"], []).append(row)
        else:
            best.append(row)
    chosen = best[:limit]
    if diversity is not None:
        chosen = [best[index] for index in _diverse(best, limit, diversity)]
    # Only now, since of those that are thinned out there may be many more.
    return [_hit(row, around.get(row["place"], []), tenant_id) for row in chosen]


def _hit(row: Any, around: list[Any], tenant_id: UUID) -> Hit:  # noqa: ANN401 (a row)
    by = (("vector", row["by_vector"]), ("text", row["by_text"]))
    return Hit(
        message=rows.message(row, tenant_id),
        distance=row["distance"],
        text_score=row["text_score"],
        score=row["score"],
        found_by=tuple(name for name, found in by if found),
        neighbors=[rows.message(each, tenant_id) for each in around],
    )


def _diverse(hits: list[Any], limit: int, diversity: float) -> list[int]:
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
    embeddings = [row["embedding"] for row in hits]
    width = max((text.count(",") + 1 for text in embeddings if text), default=1)
    vectors = np.zeros((len(hits), width))
    for index, text in enumerate(embeddings):
        if text:
            vectors[index] = np.fromstring(text[1:-1], sep=",")
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    relevance = np.array([row["score"] for row in hits])
    if hits[0]["distance"] is None:
        relevance /= relevance.max() or 1.0
    models = np.array([row["embedding_model"] or "" for row in hits])
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
