"""Embeddings to search: like real ones, and hard ones. The same in every run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

    Vectors: TypeAlias = NDArray[np.float32]
    Topics: TypeAlias = NDArray[np.int64]

DIMENSIONS: Final = 384
TOPICS: Final = 40
SEED: Final = 384
# all-MiniLM-L6-v2's vectors of recorded conversations, if they lie beside the project.
RECORDED: Final = Path(__file__).parents[3] / "shared" / "data" / "locomo_public_minilm.npz"
# How far a made vector may lie from the real one that it starts from, in differences of two others.
STEP_MIN: Final = 0.2
STEP_MAX: Final = 0.8
MADE_UP_ROWS: Final = 3_000
# About the spectrum of the recorded vectors, whose deviations fall like a power.
SPECTRUM_EXPONENT: Final = 0.55
SPECTRUM_MEAN_COSINE: Final = 0.28
ROUNDS_OF_K_MEANS: Final = 10

HARD_PROTOTYPES: Final = 50  # of each topic
HARD_DUPLICATES: Final = 0.2  # the share of rows that equal others
HARD_MEAN_COSINE: Final = 0.9


class Space(Protocol):
    """Where embeddings lie: in topics, each somewhere else."""

    name: str

    def draw(self, rng: Generator, topics: Topics) -> Vectors:
        """Return a vector of unit length of each of these topics."""
        ...

    def near(self, rng: Generator, vectors: Vectors) -> Vectors:
        """Return what somebody would ask who looks for these."""
        ...


class RealLike:
    """Real vectors, each moved by differences of other real ones, so that the spectrum stays."""

    name = "real-like"

    def __init__(self) -> None:
        pool = recorded() if RECORDED.exists() else made_up()
        topic = k_means(pool, TOPICS)
        self._pool = pool[np.argsort(topic, kind="stable")]
        self._counts = np.bincount(topic, minlength=TOPICS)
        self._starts = np.cumsum(self._counts) - self._counts

    def draw(self, rng: Generator, topics: Topics) -> Vectors:
        """Start from a real vector of the topic."""
        place = (rng.random(len(topics)) * self._counts[topics]).astype(np.int64)
        return self._moved(rng, self._pool[self._starts[topics] + place])

    def near(self, rng: Generator, vectors: Vectors) -> Vectors:
        """Move as far again."""
        return self._moved(rng, vectors)

    def _moved(self, rng: Generator, vectors: Vectors) -> Vectors:
        one, other = rng.integers(len(self._pool), size=(2, len(vectors)))
        step = rng.uniform(STEP_MIN, STEP_MAX, size=(len(vectors), 1)).astype(np.float32)
        return unit(vectors + step * (self._pool[one] - self._pool[other]))


class Hard:
    """Tight clusters far from the origin, with many duplicates: what quantising suffers from."""

    name = "hard"

    def __init__(self) -> None:
        rng = np.random.default_rng([SEED, 1])
        centres = _gaussian(rng, TOPICS)
        spread = _gaussian(rng, TOPICS * HARD_PROTOTYPES).reshape(TOPICS, HARD_PROTOTYPES, -1)
        self._prototypes = unit(centres[:, None, :] + 0.5 * spread)
        # Whatever is at right angles to the mean has this length beside it.
        length = HARD_MEAN_COSINE / np.sqrt(1 - HARD_MEAN_COSINE**2)
        self._mean = (length * _gaussian(rng, 1)).astype(np.float32)

    def draw(self, rng: Generator, topics: Topics) -> Vectors:
        """Take a prototype of the topic as it is, or something near it."""
        rows = self._prototypes[topics, rng.integers(HARD_PROTOTYPES, size=len(topics))]
        noise = 0.3 * _gaussian(rng, len(topics))
        noise[rng.random(len(topics)) < HARD_DUPLICATES] = 0
        return unit(unit(rows + noise) + self._mean)

    def near(self, rng: Generator, vectors: Vectors) -> Vectors:
        """Move a little."""
        return unit(vectors + 0.1 * _gaussian(rng, len(vectors)))


def recorded() -> Vectors:
    """Return what a real model made of real conversations, turns and questions."""
    with np.load(RECORDED) as file:
        return unit(np.concatenate([file["turn_vecs"], file["question_vecs"]]).astype(np.float32))


def made_up() -> Vectors:
    """Return vectors with about the spectrum, the mean and the clusters of recorded ones."""
    rng = np.random.default_rng(SEED)
    deviation = np.arange(1, DIMENSIONS + 1, dtype=np.float32) ** -SPECTRUM_EXPONENT
    topics, rows = (
        unit(rng.standard_normal((count, DIMENSIONS), dtype=np.float32) * deviation)
        for count in (TOPICS, MADE_UP_ROWS)
    )
    clustered = unit(rows + topics[rng.integers(TOPICS, size=MADE_UP_ROWS)])
    length = np.sqrt(SPECTRUM_MEAN_COSINE / (1 - SPECTRUM_MEAN_COSINE))
    return unit(clustered + length * _gaussian(rng, 1))


def k_means(vectors: Vectors, count: int) -> Topics:
    """Return for each vector which of so many topics it belongs to; none is empty."""
    rng = np.random.default_rng(SEED)
    centres = vectors[rng.choice(len(vectors), count, replace=False)]
    for _ in range(ROUNDS_OF_K_MEANS):
        nearest: Topics = np.argmax(vectors @ centres.T, axis=1)
        nearest[rng.choice(len(vectors), count, replace=False)] = np.arange(count)
        centres = unit(np.stack([vectors[nearest == topic].mean(axis=0) for topic in range(count)]))
    return nearest


def unit(vectors: Vectors) -> Vectors:
    """Return the vectors at length 1."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / lengths, np.float32)


def _gaussian(rng: Generator, count: int) -> Vectors:
    """Return random directions of about unit length."""
    rows = rng.standard_normal((count, DIMENSIONS), dtype=np.float32)
    return np.asarray(rows / np.sqrt(DIMENSIONS), np.float32)
