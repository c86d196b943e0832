"""How good search is: three corpora, two embedding models, each mode of the store.

Questions of one conversation, task or book have much in common. So the intervals are of a
bootstrap over these: how much the mean would move had other ones been recorded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias
from uuid import UUID

import msgspec
import numpy as np

from benchmarks.processes import RECORDED as RUNS
from benchmarks.report import aligned
from benchmarks.search.loading import fresh
from benchmarks.search.models import MINILM, local, minilm
from benchmarks.search.questions import TALKS, Corpus, books, locomo, tau
from benchmarks.search.vectors import DIMENSIONS
from benchmarks.timing import Comparison
from pgcontext import ContextStore
from pgcontext.embedding import CallableEmbedder
from pgcontext.embedding.local import MODEL
from pgcontext.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from benchmarks.search.models import Vectors
    from benchmarks.search.questions import Conversation, Question

    Values: TypeAlias = NDArray[np.float64]

Mode: TypeAlias = Literal["text", "vector", "hybrid"]

DATABASE: Final = "quality"
MODES: Final[tuple[Mode, ...]] = ("text", "vector", "hybrid")
HITS: Final = 10
LOCOMO_TARGET: Final = 0.65
RESAMPLES: Final = 10_000
SEED: Final = 11
INTERVAL_PERCENT: Final = (2.5, 97.5)
APPENDED: Final = 500
HEADER: Final = (
    *("corpus", "model", "questions", "number", *MODES),
    "hybrid beyond the better of both",
)
FIRST_HEADER: Final = ("corpus", "model", *MODES)


class Asked(msgspec.Struct, frozen=True):
    """What the store answered to the questions of a corpus.

    Attributes:
        corpus: with its questions.
        model: of the embeddings.
        shares: of each question's answers that a mode found, by mode; 0 or 1 of `hit@10`.
        places: one over the place of the first answer among the hits, else 0, by mode.
    """

    corpus: Corpus
    model: str
    shares: dict[str, Values]
    places: dict[str, Values]

    @property
    def better(self) -> str:
        """The better of the modes that hybrid is made of."""
        return max(("text", "vector"), key=lambda mode: self.shares[mode].mean())


async def measure(url: str, *, quick: bool) -> tuple[list[Comparison], str]:
    """Ask every question in every mode, with both models.

    Args:
        url: of the server; the database is made and removed.
        quick: only the corpus that comes with the project, and the model that does.

    Returns:
        What has a target, and tables in Markdown.
    """
    corpora = [books()]
    if not quick:
        corpora += [locomo()] if TALKS.exists() else []
        corpora += [tau()] if RUNS.exists() else []
    answers: list[Asked] = []
    async with fresh(url, DATABASE) as there:
        for corpus in corpora:
            embedded = {MODEL: await local(corpus.texts())}
            if not quick and (others := minilm(corpus)) is not None:
                embedded[MINILM] = others
            for model, vectors in embedded.items():
                first = 10 * len(answers)  # tenants of their own
                answers.append(await _asked(there, corpus, model, vectors, first))
    return compare(answers), f"{table(answers)}\n{first_places(answers)}"


async def _asked(
    url: str, corpus: Corpus, model: str, vectors: dict[str, Vectors], first: int
) -> Asked:
    embedder = CallableEmbedder(model, lambda texts: [vectors[text] for text in texts])
    settings = Settings.from_env({}, url=url, dimensions=DIMENSIONS)
    async with ContextStore(embedder=embedder, settings=settings) as store:
        tenants = {
            number: store.for_tenant(UUID(int=first + number + 1))
            for number in {conversation.tenant for conversation in corpus.conversations}
        }
        stored = [await _store(tenants, each) for each in corpus.conversations]
        found = {
            mode: [
                await _found(tenants[question.tenant], question, stored, mode)
                for question in corpus.questions
            ]
            for mode in MODES
        }
    return Asked(
        corpus=corpus,
        model=model,
        shares={mode: _shares(corpus, hits) for mode, hits in found.items()},
        places={mode: np.array([_first(hits) for hits in found[mode]]) for mode in MODES},
    )


async def _store(tenants: dict[int, ContextStore], conversation: Conversation) -> UUID:
    store = tenants[conversation.tenant]
    context = await store.create()
    messages = conversation.messages
    for start in range(0, len(messages), APPENDED):
        await store.append(context.id, messages[start : start + APPENDED])
    return context.id


async def _found(
    store: ContextStore, question: Question, stored: Sequence[UUID], mode: Mode
) -> tuple[list[bool], int]:
    """Return which of the hits are answers, best first, and how many answers there are."""
    within = None if question.conversation is None else stored[question.conversation]
    hits = await store.search(question.text, context_id=within, mode=mode, limit=HITS)
    answers = {(stored[conversation], version) for conversation, version in question.answers}
    which = [(hit.message.context_id, hit.message.version) in answers for hit in hits]
    return which, len(answers)


def _shares(corpus: Corpus, found: list[tuple[list[bool], int]]) -> Values:
    if corpus.measure == "hit@10":
        return np.array([float(any(which)) for which, _ in found])
    return np.array([sum(which) / answers for which, answers in found])


def _first(found: tuple[list[bool], int]) -> float:
    which, _ = found
    return 1 / (which.index(True) + 1) if True in which else 0.0


def compare(answers: Sequence[Asked]) -> list[Comparison]:
    """Hold hybrid against its target, and everywhere against what it is made of."""
    return [
        Comparison(
            what=f"hybrid on LoCoMo, {asked.model}: recall@10",
            against="all of the evidence",
            ours=float(asked.shares["hybrid"].mean()),
            theirs=1,
            floor=LOCOMO_TARGET,
            unit="",
        )
        for asked in answers
        if (asked.corpus.name, asked.model) == ("LoCoMo", MINILM)
    ] + [
        Comparison(
            what=f"hybrid on {asked.corpus.name}, {asked.model}: {asked.corpus.measure}",
            against=f"the better of text and vector: {asked.better}",
            ours=float(asked.shares["hybrid"].mean()),
            theirs=float(asked.shares[asked.better].mean()),
            floor=1,
            unit="",
        )
        for asked in answers
    ]


def table(answers: Sequence[Asked]) -> str:
    """Return the shares found, by corpus, model and category, with their intervals."""
    rows = [HEADER]
    for asked in answers:
        categories = [question.category for question in asked.corpus.questions]
        for category in ["all", *sorted(set(categories))]:
            chosen = np.array([category in {"all", each} for each in categories])
            rows.append(_row(asked, category, chosen))
    return aligned(rows)


def _row(asked: Asked, category: str, chosen: NDArray[np.bool_]) -> tuple[str, ...]:
    groups = np.array([question.group for question in asked.corpus.questions])[chosen]
    shares = {mode: asked.shares[mode][chosen] for mode in MODES}
    beyond = shares["hybrid"] - max(shares["text"], shares["vector"], key=np.mean)
    named = asked.corpus.name if category == "all" else ""
    return (
        f"{named}, {asked.corpus.measure}" if named else "",
        *(asked.model if named else "", category, f"{chosen.sum():,}"),
        *(f"{shares[mode].mean():.3f} ({interval(shares[mode], groups)})" for mode in MODES),
        f"{beyond.mean():+.3f} ({interval(beyond, groups)})",
    )


def interval(values: Values, groups: NDArray[np.str_]) -> str:
    """Return where 95% of the means lie when whole groups are drawn anew."""
    _, of = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(of, values), np.bincount(of)
    rng = np.random.default_rng(SEED)
    drawn = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), RESAMPLES)
    least, most = np.percentile((drawn @ sums) / (drawn @ counts), INTERVAL_PERCENT)
    return f"{least:.2f} to {most:.2f}"


def first_places(answers: Sequence[Asked]) -> str:
    """Return the mean of one over the place of the first answer, 0 where it isn't among ten."""
    return aligned(
        [
            FIRST_HEADER,
            *(
                (
                    f"{asked.corpus.name}, MRR@10",
                    asked.model,
                    *(f"{asked.places[mode].mean():.3f}" for mode in MODES),
                )
                for asked in answers
            ),
        ]
    )
