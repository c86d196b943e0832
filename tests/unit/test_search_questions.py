import json
import re
from collections import Counter

import numpy as np
import pytest

from benchmarks.search.quality import Asked, compare, first_places, interval, table
from benchmarks.search.questions import BOOKS, Corpus, books

NAME = re.compile(r"[A-Z]+-?\d+|[\w/-]{5,}")


def answers_of(found: dict[str, float]) -> Asked:
    corpus = books()
    count = len(corpus.questions)
    shares = {mode: np.full(count, share) for mode, share in found.items()}
    return Asked(corpus=corpus, model="a model", shares=shares, places=shares)


def passage(corpus: Corpus, answer: tuple[int, int]) -> str:
    conversation, version = answer
    content: str = corpus.conversations[conversation].messages[version - 1]["content"]
    return content


def test_every_question_about_the_books_has_its_passage() -> None:
    """Each question is asked once, of one passage, which is one of a book's messages."""
    corpus = books()
    assert len({question.text for question in corpus.questions}) == len(corpus.questions)
    asked = {answer for question in corpus.questions for answer in question.answers}
    assert all(passage(corpus, answer) for answer in asked)
    assert len(asked) == sum(len(each.messages) for each in corpus.conversations)
    assert min(Counter(question.category for question in corpus.questions).values()) >= 40


def test_an_identifier_that_is_asked_for_stands_in_its_passage() -> None:
    """A question by identifier shares a code, a name or a long word with what answers it."""
    corpus = books()
    asked = [question for question in corpus.questions if question.category == "identifier"]
    for question in asked:
        (answer,) = question.answers
        words = set(NAME.findall(passage(corpus, answer)))
        assert words & set(NAME.findall(question.text)), question.text


def test_passages_are_long_and_no_two_are_alike() -> None:
    """A passage has at least 150 words, and few of its runs of five words stand in another."""
    texts = [
        each["text"] for book in json.loads(BOOKS.read_text("utf-8")) for each in book["passages"]
    ]
    seen: set[tuple[str, ...]] = set()
    for text in texts:
        words = text.split()
        assert len(words) >= 150
        runs = set(zip(*(words[start:] for start in range(5)), strict=False))
        assert len(runs & seen) <= 3
        seen |= runs


def test_an_interval_counts_groups_not_questions() -> None:
    """Many questions of two conversations that differ say no more than two questions do."""
    values = np.repeat([0.0, 1.0], 500)
    assert interval(values, np.repeat(["a", "b"], 500)) == "0.00 to 1.00"
    least, most = map(float, interval(values, np.arange(1_000).astype(str)).split(" to "))
    assert 0.46 <= least < 0.5 < most <= 0.54


@pytest.mark.parametrize(("hybrid", "missed"), [(0.9, False), (0.8, False), (0.79, True)])
def test_hybrid_has_to_reach_the_better_of_both(hybrid: float, *, missed: bool) -> None:
    """Hybrid is held against text where text is better, and may not fall below it."""
    (held,) = compare([answers_of({"text": 0.8, "vector": 0.6, "hybrid": hybrid})])
    assert held.missed is missed
    assert held.against == "the better of text and vector: text"


def test_the_tables_say_what_was_found_by_category() -> None:
    """There is a row for all questions and for each category, with the gain of hybrid."""
    asked = answers_of({"text": 0.8, "vector": 0.6, "hybrid": 0.9})
    rows = table([asked]).splitlines()[2:]
    assert len(rows) == 5
    assert all("0.900 (0.90 to 0.90)" in row and "+0.100 (0.10 to 0.10)" in row for row in rows)
    assert "| 0.800 | 0.600  | 0.900" in first_places([asked])
