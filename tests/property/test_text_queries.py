"""Whatever people type is words: it fails nothing, means no operator, and finds what says it."""
# ruff: noqa: RUF001 (letters that look like others are what is tested)

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support.migrations import VERSIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EXAMPLES: Final = settings(
    max_examples=300,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
# What the parser of texts, of tsquery and of SQL read something into, and letters of many kinds.
SIGNS: Final = '\\\'"""&|!:*()<>@./-_~#?=%+,;$^`[]{} \t\n“”„«»™'
LETTERS: Final = "abcAEXéßøİıñ019٣яйЁαΏ字京猫かガｶﾞ한글ไทยहि🙂👩‍💻ﬁ½²\u0301\u0308\u200b\ufeff𠮷"
WORDS: Final = (
    *("a.b@c.de", "http://x.y/z?q=1", "get_user_details", "getUserDetails", "C++", "1,200.50"),
    *(" & ", " | ", "<->", ":*", "!", "''", '" ', ' "', "東京都", "the", "cafe\u0301", "x" * 300),
)
pieces = st.sampled_from([*SIGNS, *LETTERS, *WORDS]) | st.characters(
    exclude_characters="\x00", exclude_categories=["Cs"]
)
texts = st.lists(pieces, max_size=40).map("".join)
# A lexeme in quotes, with those within it doubled.
LEXEME: Final = re.compile(r"'(?:[^'\\]|''|\\\\)*'(?::\*)?")


@pytest.fixture(params=VERSIONS)
def ask(
    request: pytest.FixtureRequest, make_database: Callable[..., str]
) -> Iterator[Callable[..., Any]]:
    """Ask a server for one value."""
    with asyncio.Runner() as runner:
        connection = runner.run(asyncpg.connect(make_database(version=request.param)))
        yield lambda query, *arguments: runner.run(connection.fetchval(query, *arguments))
        runner.run(connection.close())


def test_any_text_is_found_by_itself(ask: Callable[..., Any]) -> None:
    """If it has a word at all; quotes, operators and escapes in it change nothing."""

    @EXAMPLES
    @given(texts)
    @example('"a" & "b')
    @example("'\\'' \\ \\\\ ''")
    @example('"' + "東京 " * 300 + '"')
    @example("a:* | !b <-> (c")
    def hold(text: str) -> None:
        found = ask(
            "SELECT v @@ pgcontext_text_query($1) FROM pgcontext_text_vector($1) AS v"
            " WHERE length(v) > 0",
            text,
        )
        assert found is not False
        assert found is True or ask("SELECT pgcontext_text_query($1)::text", text) is None

    hold()


def test_without_quotes_any_word_is_enough(ask: Callable[..., Any]) -> None:
    """The query is words with OR between them, however it was typed."""

    @EXAMPLES
    @given(texts)
    def hold(text: str) -> None:
        words = re.sub('["“”„‟«»]', " ", text) + " apples"
        query = ask("SELECT pgcontext_text_query($1)::text", words)
        assert set(LEXEME.sub("", query).split(" | ")) <= {""}
        assert ask("SELECT pgcontext_text_vector('apples') @@ $1::text::tsquery", query)

    hold()


def test_a_phrase_is_asked_for_whatever_stands_around_it(ask: Callable[..., Any]) -> None:
    """Nothing that is typed beside it can make it optional."""

    @EXAMPLES
    @given(texts, texts)
    @example('"', "")
    def hold(before: str, after: str) -> None:
        balanced = (re.sub('["“”„‟«»]', "'", text) for text in (before, after))
        query = '{} "red apples" {}'.format(*balanced)
        matches = "SELECT pgcontext_text_vector($1) @@ pgcontext_text_query($2)"
        assert ask(matches, f"ripe red apples {after}", query)
        assert not ask(matches, "apples red, not green, " + " ".join("abcde"), query)

    hold()
