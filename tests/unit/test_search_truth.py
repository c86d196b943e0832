import numpy as np
import pytest

from benchmarks.search.corpus import (
    KINDS,
    SHARES,
    K,
    Sized,
    Sliced,
    Truth,
    message_id,
    queries,
    row_of,
)
from benchmarks.search.loading import binary
from benchmarks.search.vectors import Hard, RealLike, Space, made_up

SPACES: list[Space] = [RealLike(), Hard()]


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
def test_the_truth_sees_what_a_search_missed(space: Space) -> None:
    """The nearest rows have recall 1; each that is missing or far instead takes a tenth."""
    corpus = Sliced(space, 1_000)
    part = next(part for part in corpus.slices() if part.share == "20%")
    asked = queries(corpus, part, 1, on_topic=True)
    nearest = part.rows[np.argsort(1 - corpus.vectors()[part.rows] @ asked[0])]
    truth = Truth(corpus, part.rows, asked)
    assert truth.recall(0, nearest[:K]) == 1
    assert truth.recall(0, nearest[: K - 1]) == 0.9
    assert truth.recall(0, [*nearest[: K - 2], *nearest[-2:]]) == 0.8
    assert truth.recall(0, []) == 0


def test_the_truth_refuses_what_the_filter_hides() -> None:
    """A hit from outside the slice, or one that comes twice, is no recall but an error."""
    corpus = Sliced(SPACES[0], 1_000)
    part = next(part for part in corpus.slices() if part.kind == "role")
    truth = Truth(corpus, part.rows, queries(corpus, part, 1, on_topic=True))
    outside = next(row for row in range(corpus.rows) if row not in set(part.rows))
    with pytest.raises(ValueError, match="hides"):
        truth.recall(0, [outside])
    with pytest.raises(ValueError, match="twice"):
        truth.recall(0, [part.rows[0], part.rows[0]])


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
def test_off_topic_queries_are_near_to_others_and_far_from_the_slice(space: Space) -> None:
    """What is asked off topic has its neighbors in the table outside of what the filter allows."""
    corpus = Sliced(space, 20_000)
    for part in corpus.slices():
        off, on = (queries(corpus, part, 5, on_topic=topic) for topic in (False, True))
        own = corpus.vectors()[part.rows]
        assert (off @ corpus.vectors().T).max() > (off @ own.T).max()
        assert (on @ own.T).max(axis=1).min() > (off @ own.T).max(axis=1).mean()


def test_each_filter_lets_its_share_through() -> None:
    """At 100,000 rows there is a slice for each share, as large as it says; roles have four."""
    parts = Sliced(SPACES[1], 100_000).slices()
    assert {(part.kind, part.share) for part in parts} == {
        (kind, share) for kind in KINDS for share in SHARES
    } - {("role", "0.01%")}
    assert all(len(part.rows) == SHARES[part.share] * 100_000 for part in parts)


def test_tenants_have_the_sizes_asked_for() -> None:
    """Each tenant owns as many rows as its size, and none is owned twice."""
    corpus = Sized(SPACES[0], [1_000, 3_000], "sizes")
    rows = [corpus.whole(tenant).rows for tenant in corpus.tenants]
    assert [len(some) for some in rows] == [1_000, 3_000]
    assert len(np.unique(np.concatenate(rows))) == 4_000


def test_hard_embeddings_are_hard() -> None:
    """Their cosine to the mean is about 0.9, and about every fifth has an equal."""
    vectors = Sliced(SPACES[1], 100_000).vectors()
    mean = vectors.mean(axis=0)
    assert (vectors @ mean / np.linalg.norm(mean)).mean() == pytest.approx(0.9, abs=0.02)
    assert 1 - len(np.unique(vectors, axis=0)) / len(vectors) == pytest.approx(0.18, abs=0.03)


def test_made_up_embeddings_are_like_recorded_ones() -> None:
    """Without recordings, the vectors to start from lie about as far from each other."""
    vectors = made_up()
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    assert 0.2 < (vectors @ vectors.T).mean() < 0.36


def test_an_embedding_is_copied_as_the_server_reads_it() -> None:
    """Length, two bytes unused, then big-endian floats of single precision."""
    (encoded,) = binary(np.array([[1.0, -2.0]], np.float32))
    assert encoded == b"\x00\x02\x00\x00\x3f\x80\x00\x00\xc0\x00\x00\x00"


def test_an_id_leads_back_to_its_row() -> None:
    """Ids are in the order of rows, look like version 7, and say which row they are."""
    ids = [message_id(row) for row in (0, 1, 999_999)]
    assert [row_of(id) for id in ids] == [0, 1, 999_999]
    assert ids == sorted(ids)
    assert all(id.version == 7 for id in ids)
