"""`pgcontext embed`: what it embeds, what it moves, and what it says about it."""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import pytest

from pgcontext import ContextStore, limits
from pgcontext.cli import embedding
from pgcontext.cli.output import Exit
from tests.support.chats import axis, user, users
from tests.support.cli import Cli
from tests.support.embedders import Words
from tests.support.migrations import execute, fetch

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from uuid import UUID

TENANT: Final = "00000000-0000-0000-0000-000000000007"
SECONDS: Final = re.compile(r"in [\d.]+ s \([\d,]+ a second\)")


@pytest.fixture
def cli(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The command line on a migrated database."""
    return Cli(monkeypatch, database_url)


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[Words], Words]:
    """Give the command an embedder."""

    def with_embedder(embedder: Words) -> Words:
        @asynccontextmanager
        async def opened(tenant: UUID | None) -> AsyncGenerator[ContextStore]:
            async with ContextStore.from_env(tenant_id=tenant, embedder=embedder) as store:
                yield store

        monkeypatch.setattr(embedding, "opened", opened)
        return embedder

    return with_embedder


def append(url: str, messages: list[Any] | dict[str, Any], **how: Any) -> None:
    """Append messages to a new context."""

    async def work() -> None:
        given = {name: how.pop(name) for name in ("embedder", "tenant_id") if name in how}
        async with ContextStore.from_env(url=url, **given) as store:
            await store.append((await store.create()).id, messages, **how)

    asyncio.run(work())


def said(text: str) -> str:
    """What is printed, but for the time it took."""
    return SECONDS.sub("in some time", text)


def models(url: str) -> dict[str | None, int]:
    """How many embeddings there are of each model."""
    found = fetch(
        url,
        "SELECT embedding_model, count(*) FROM messages WHERE embedding IS NOT NULL GROUP BY 1",
    )
    return {row[0]: row[1] for row in found}


def test_what_is_owed_is_embedded(
    cli: Cli, database_url: str, use: Callable[[Words], Words]
) -> None:
    """It says how many, with which model, and that there is nothing the second time."""
    embedder = use(Words())
    append(database_url, users(450), embedder=embedder, embed="later")
    assert said(cli.ok("embed").out) == "Embedded 450 messages with words in some time.\n"
    assert models(database_url) == {"words": 450}
    assert cli.ok("embed").out == "Nothing to embed: no embedding is due.\n"
    done = cli.json("embed")
    assert done.pop("seconds") >= 0
    assert done == {"model": "words", "embedded": 0, "moved": 0, "refused": 0, "later": 0}


def test_what_another_model_embedded_is_moved_when_asked_for(
    cli: Cli, database_url: str, use: Callable[[Words], Words]
) -> None:
    """Without --move it stays; with it both is done; without a name only when that is said too."""
    append(database_url, users(3), embedder=Words("old"))
    append(database_url, user("given", embedding=axis(0)))
    embedder = use(Words("new"))
    append(database_url, user("later"), embedder=embedder, embed="later")
    assert said(cli.ok("embed").out) == "Embedded 1 message with new in some time.\n"
    assert models(database_url) == {"old": 3, "new": 1, None: 1}
    append(database_url, users(2), embedder=embedder, embed="later")
    assert (
        said(cli.ok("embed", "--move").out)
        == "Embedded 2 messages and moved 3 messages with new in some time.\n"
    )
    assert models(database_url) == {"new": 6, None: 1}
    assert cli.ok("embed", "--move").out == (
        "Nothing to embed: no embedding is due, and all embeddings are of new.\n"
    )
    assert cli.json("embed", "--move", "--unnamed")["moved"] == 1
    assert models(database_url) == {"new": 7}
    refused = cli("embed", "--unnamed")
    assert (refused.code, "needs --move" in refused.err) == (Exit.INVALID_INPUT, True)


def test_what_is_refused_or_claimed_is_spoken_of(
    cli: Cli, database_url: str, use: Callable[[Words], Words]
) -> None:
    """On stderr, by number, without what it says; on stdout stands what was done."""
    append(database_url, [user("poison"), user("a")], embedder=Words("old"))
    use(Words("new", refuses={"poison", "claimed"}))
    append(database_url, [user("claimed"), user("b")], embedder=Words(), embed="later")
    done = cli.ok("embed", "--move")
    assert said(done.out) == "Embedded 1 message and moved 1 message with new in some time.\n"
    assert "the old embedding stays: 1." in done.err
    assert "refused and put off: 1." in done.err
    assert "poison" not in done.out + done.err
    again = cli.json("embed", "--move")
    assert (again["embedded"], again["moved"], again["refused"], again["later"]) == (0, 0, 1, 1)


def test_a_failure_in_the_middle_says_what_was_done(
    cli: Cli, database_url: str, use: Callable[[Words], Words]
) -> None:
    """The rest is for the next run; the exit code is that of something that isn't there."""
    embedder = use(Words())
    append(
        database_url,
        users(limits.EMBED_BATCH_MESSAGES_MAX + 50),
        embedder=embedder,
        embed="later",
    )

    def fail_from_the_second_on() -> None:
        if len(embedder.asked) >= 2:
            raise ConnectionError

    embedder.before = fail_from_the_second_on
    failed = cli("embed")
    assert (failed.code, failed.out) == (Exit.UNAVAILABLE, "")
    assert f"Before it failed: {limits.EMBED_BATCH_MESSAGES_MAX} embedded." in failed.err
    embedder.before = lambda: None
    execute(database_url, "UPDATE messages SET embed_after = now() WHERE embed_after > now()")
    assert cli.json("embed")["embedded"] == 50


def test_it_works_as_a_tenant(cli: Cli, database_url: str, use: Callable[[Words], Words]) -> None:
    """With --tenant, of which the others' messages are none."""
    embedder = use(Words())
    append(database_url, users(2), embedder=embedder, embed="later")
    append(database_url, users(3), embedder=embedder, tenant_id=TENANT, embed="later")
    assert cli.json("embed", "--tenant", TENANT)["embedded"] == 3
    assert cli.json("embed")["embedded"] == 2


def test_without_an_embedder_it_says_what_to_set(cli: Cli) -> None:
    """One sentence, and nothing was tried."""
    refused = cli("embed")
    assert (refused.code, refused.out) == (Exit.INVALID_INPUT, "")
    assert "PGCONTEXT_EMBEDDER" in refused.err
    assert refused.err.count("\n") == 1


def test_progress_is_shown_on_a_terminal(
    cli: Cli, database_url: str, use: Callable[[Words], Words], monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many, at what rate, and how long it takes still; on stderr."""
    embedder = use(Words(seconds=0.2))
    append(database_url, users(600), embedder=embedder, embed="later")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    done = cli.ok("embed")
    assert re.search(r"400 messages, [\d,]+ messages/s", done.err)
    assert re.search(r"\d:\d\d:\d\d", done.err)
    assert "messages/s" not in done.out
