"""What counts as a word: identifiers, numbers, phrases, accents, scripts without spaces."""
# ruff: noqa: RUF001 (letters that look like others are what is tested)

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pgcontext.functions.text import TEXT_PHRASE_CHARS_MAX
from tests.support.chats import user

if TYPE_CHECKING:
    import asyncpg

    from pgcontext import ContextStore


async def found(store: ContextStore, query: str, *contents: str) -> list[str | None]:
    """Store these messages, search for words, and say what was found, best first."""
    context = await store.create()
    if contents:
        await store.append(context.id, [user(content) for content in contents])
    hits = await store.search(query, mode="text", context_id=context.id, limit=50)
    return [hit.message.content for hit in hits]


@pytest.mark.parametrize(
    ("text", "queries"),
    [
        ("call `get_user_details(x)` now", ["get_user_details", "user details", "getUserDetails"]),
        ("self.getUserDetails();", ["getUserDetails", "getuserdetails", "details", "user"]),
        ("std::vector<int> rows;", ["std::vector", "vector", "int"]),
        ("use store->get-it", ["get-it", "getit"]),
        ("flight HAT136 is late", ["HAT136", "hat136", "hat-136", "HAT_136"]),
        ("flight hat-136 is late", ["HAT136", "hat-136", "136"]),
        ("ann.lee+news@mail.example.com wrote", [
            "ann.lee+news@mail.example.com", "mail.example.com", "example", "ANN.LEE@elsewhere.org",
        ]),
        ("see https://example.com/a/b-c.html?x=1#top", [
            "https://example.com/a/b-c.html?x=1", "example.com", "b-c.html", "html",
        ]),
        ("in src/app/main.py:12", ["src/app/main.py", "main.py", "main", "app"]),
        (r"in C:\Users\ann\notes.txt", ["notes.txt", "ann"]),
        ("id 550e8400-e29b-41d4-a716-446655440000.", [
            "550e8400-e29b-41d4-a716-446655440000", "550E8400-E29B-41D4-A716-446655440000", "a716",
        ]),
        ("since v1.2.3-beta", ["v1.2.3", "1.2.3", "v1.2.3-beta", "beta"]),
        ("we write C++ here", ["C++", "c++"]),
        ("we write C# here", ["C#", "c#"]),
        ("it costs $1,200.50 now", ["$1,200.50", "1200.50", "1,200.50", "$1200"]),
        ("it costs 1200 now", ["$1,200"]),
        ("on 2024-01-15 at noon", ["2024-01-15", "2024/01/15", "2024.01.15", "2024"]),
        ("from -5 to +7 degrees", ["5", "+7"]),
        ("a List<String> of <b>apples</b> &amp; pears", ["string", "apples", "pears", "list"]),
        ("getHTTPResponseCode(), parseJSONBody()", ["http response", "response code", "json body"]),
        ("all userIDs of an XMLHttpRequest", ["user ids", "xml", "http request", "userIDs"]),
        ("raise HTTPError from it", ["http", "http error", "HTTPError"]),
        ("class JSONDecoder here", ["json decoder", "decoder"]),
        ("a Node.js server", ["nodejs", "node.js", "node"]),
    ],
)  # fmt: skip
async def test_identifiers_are_found(store: ContextStore, text: str, queries: list[str]) -> None:
    """Whole, as it is written in other places, and by its parts; not by what it isn't."""
    for query in queries:
        assert await found(store, query, text, "nothing of the kind") == [text], query


@pytest.mark.parametrize(
    ("query", "whole", "scattered"),
    [
        ("get_user_details", "calls get_user_details(x)", "details: get the user, and the user"),
        ("src/app/main.py", "wrote src/app/main.py", "the main app is written in src, by py"),
        ("ann.lee@example.com", "ask ann.lee@example.com", "com, example: lee and ann"),
        ("2024-01-15", "on 2024-01-15", "15 of 01, in 2024"),
        ("1.2.3", "it is 1.2.3 now", "3 2 1"),
        ("C++", "use C++ here", "use C here, C is C"),
    ],
)
async def test_a_whole_identifier_is_better_than_its_parts(
    store: ContextStore, query: str, whole: str, scattered: str
) -> None:
    """Parts are found too, below it."""
    assert await found(store, query, scattered, whole, scattered) == [whole, scattered, scattered]


async def test_signs_between_digits_mean_something(store: ContextStore) -> None:
    """1.5 is not 15, and a version is not a number."""
    assert await found(store, "15", "1.5 litres", "15 litres") == ["15 litres"]
    assert await found(store, "123", "version 1.2.3") == []


@pytest.mark.parametrize(
    ("query", "hits"),
    [
        ('"red apples"', ["ripe red apples", "red apple trees and pears"]),
        ("“red apples”", ["ripe red apples", "red apple trees and pears"]),
        ('pears "red apples"', ["red apple trees and pears", "ripe red apples"]),
        ('"red apples" "pears"', ["red apple trees and pears"]),
        ('"red apples", "pears".', ["red apple trees and pears"]),
        ('"the red apples" "of the"', ["ripe red apples", "red apple trees and pears"]),
        ('"red" "pears"', ["red apple trees and pears"]),
    ],
)  # fmt: skip
async def test_what_is_in_quotes_has_to_be_there(
    store: ContextStore, query: str, hits: list[str]
) -> None:
    """As a phrase, stemmed; the other words only say what is better."""
    texts = ("ripe red apples", "red and green apples", "red apple trees and pears", "pears")
    assert sorted(map(str, await found(store, query, *texts))) == sorted(hits)
    if query.startswith("pears"):
        assert await found(store, query, *texts) == hits


@pytest.mark.parametrize("query", ['"red apples', 'red apples"', 'a 5"red apples"2', '""', '" "'])
async def test_other_quotes_are_ordinary_characters(store: ContextStore, query: str) -> None:
    """One alone, one within a word, and nothing between two."""
    texts = ("red roses", "green apples")
    expected = set(texts) if "red" in query else set()
    assert set(await found(store, query, *texts)) == expected


async def test_a_very_long_quotation_is_ordinary_words(store: ContextStore) -> None:
    """Nobody quotes more than a paragraph to say that it must be there to the letter."""
    quotation = "red apples " * (TEXT_PHRASE_CHARS_MAX // 11)
    assert await found(store, f'"{quotation}"', "red roses") == []
    assert await found(store, f'"{quotation} and much more"', "red roses") == ["red roses"]


@pytest.mark.parametrize("one", ["café", "cafe", "CAFÉ", "CAFE", "cafe\u0301", "ＣＡＦＥ"])
async def test_accents_make_no_difference(store: ContextStore, one: str) -> None:
    """In the query, in the text, in small and large letters, composed and decomposed."""
    for other in ("café", "cafe", "CAFÉ", "Cafe\u0301"):
        text = f"the {other} at the corner"
        assert await found(store, one, text, "the inn") == [text]


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("Łódź, Ålesund und Søren", "lodz"),
        ("Łódź, Ålesund und Søren", "alesund"),
        ("Łódź, Ålesund und Søren", "Soren"),
        ("dün ve ışık", "isik"),
        ("Việt Nam", "viet"),
        ("die Straße, STRASSE", "strasse"),
        ("GROẞE Straße", "grosse"),
        ("un cœur, des Œuvres", "coeur"),
        ("un cœur, des Œuvres", "oeuvres"),
        ("Ærø og Ǽgir", "aero"),
        ("заказ №12345", "12345"),
        ("ёлка", "елка"),
        ("Αθήνα", "Αθηνα"),
        ("Java™ and ﬁles of 10 m²", "java files"),
    ],
)
async def test_letters_are_found_by_their_plain_forms(
    store: ContextStore, text: str, query: str
) -> None:
    """As people without these keys type them."""
    assert await found(store, query, text, "nothing") == [text]
    assert await found(store, text, query, "nothing") == [query]


async def test_letters_that_are_others_stay_apart(store: ContextStore) -> None:
    """The mark on a Cyrillic short i or on voiced kana is no accent."""
    assert await found(store, "мои", "мой дом") == []
    assert await found(store, "はは", "ばば") == []
    assert await found(store, "은", "은행") == ["은행"]


@pytest.mark.parametrize(
    ("text", "queries"),
    [
        (
            "東京都に住んでいます。",
            ["東京", "京都", "東京都", "住んで", "都", "す", "東京都に住んで"],
        ),
        ("退款需要多长时间？", ["退款", "时间", "多长时间", "款"]),
        ("私はコーヒーとｺｰﾋｰが好き", ["コーヒー", "ｺｰﾋｰ", "ヒー"]),
        ("학교에서 만나요", ["학교", "학교에서", "만나"]),
        ("ภาษาไทยไม่ยาก", ["ภาษา", "ไทย"]),
        ("iPhone15を買いました", ["iPhone15", "買い"]),
        ("𠮷野家で食べた", ["𠮷野", "野家"]),
    ],
)
async def test_pieces_of_scripts_without_spaces_are_found(
    store: ContextStore, text: str, queries: list[str]
) -> None:
    """A run of characters is found by any piece of it, in quotes and without."""
    for query in queries:
        assert await found(store, query, text, "something else") == [text], query
        assert await found(store, f'"{query}"', text, "something else") == [text], query


async def test_more_of_a_run_is_better(store: ContextStore) -> None:
    """Any pair of characters is enough, and all rank first; in quotes nothing less will do."""
    texts = ("京都の寺", "東京都の地図")
    assert await found(store, "東京都", *texts) == ["東京都の地図", "京都の寺"]
    assert await found(store, '"東京都"', *texts) == ["東京都の地図"]
    assert await found(store, "大阪", *texts) == []


async def test_a_word_is_found_beside_other_scripts(connection: asyncpg.Connection) -> None:
    """Letters and ideographs that touch are words of their own."""
    matches = await connection.fetchval(
        "SELECT pgcontext_text_vector('用Python写的SQL查询') @@ pgcontext_text_query('python sql')"
    )
    assert matches is True


@pytest.mark.parametrize(
    "content",
    [
        " ".join(f"word{number}" for number in range(20_000)),
        " ".join(f"a{number}.b_{number}-c/{number}" for number in range(9_000)),
        "".join(chr(0x4E00 + number % 20_000) for number in range(150_000)),
        "".join(chr(0x20000 + number % 40_000) for number in range(150_000)),
        " ".join(chr(0x10330 + a) + chr(0x10330 + b) for a in range(26) for b in range(26)) * 60,
        "\ufdfa" * 150_000,
        "aB" * 60_000,
        "a.b_c-" * 20_000,
        "1.2,345-" * 15_000,
        "é" + "\u0301" * 100_000,
        " ".join(f"é{number}" for number in range(20_000)),
    ],
    ids=lambda content: ascii(content[:8]),
)
@pytest.mark.parametrize("language", ["english", "french"])
async def test_the_words_of_any_text_fit(
    connection: asyncpg.Connection, content: str, language: str
) -> None:
    """However long a text is, what is made of it is below the bound of 1 MiB, and soon made."""
    await connection.execute(
        "CREATE OR REPLACE FUNCTION pgcontext_text_language() RETURNS regconfig LANGUAGE sql "
        f"IMMUTABLE PARALLEL SAFE RETURN 'pg_catalog.{language}'::regconfig"
    )
    await connection.execute("SET statement_timeout = '10s'")
    size = await connection.fetchval("SELECT pg_column_size(pgcontext_text_vector($1))", content)
    assert 0 < size < 2**20
