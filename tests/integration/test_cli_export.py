"""The command `export`: what goes out comes back, plainly or as a backup."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from pgcontext import ContextStore
from tests.support.cli import FERRY, SAMPLE, Cli
from tests.support.promises import view

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from uuid import UUID

Json = dict[str, Any]


@pytest.fixture
def cli(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The command line on the test's database."""
    return Cli(monkeypatch, database_url)


def user(content: str, **fields: Any) -> Json:
    """Make a user's message."""
    return {"role": "user", "content": content, **fields}


def lines(text: str) -> list[Json]:
    """Parse JSON lines."""
    return [json.loads(line) for line in text.splitlines()]


async def everything(url: str) -> list[Json]:
    """Describe all that a backup promises to bring back, context by context."""
    async with ContextStore(url) as store:
        contexts = []
        cursor = None
        while True:
            page = await store.list(limit=200, cursor=cursor, include_deleted=True)
            contexts += page.items
            cursor = page.next_cursor
            if cursor is None:
                break
        told: list[Json] = []
        for context in sorted(contexts, key=lambda c: c.id):
            if context.deleted_at is not None:
                await store.restore(context.id)
            told.append(
                await _told(store, context.id) | {"deleted": context.deleted_at is not None}
            )
            if context.deleted_at is not None:
                await store.delete(context.id)
        return told


async def _told(store: ContextStore, context_id: UUID) -> Json:
    context = await store.get(context_id)
    kept = ("id", "name", "metadata", "parent_id", "fork_version", "latest_version")
    counters = ("message_count", "total_tokens", "expires_at")
    shown = await store.history(context_id, limit=1_000, include_deleted=True)
    found = await store.search([1.0] * 8, context_id=context_id, limit=200)
    return {
        **{name: getattr(context, name) for name in kept + counters},
        "messages": [
            (m.id, m.context_id, m.version, m.as_dict(), m.token_count, m.model, m.embedding_model)
            for m in shown
        ],
        "hidden": [m.version for m in shown if m.deleted_at is not None],
        "view": [m.version for m in await view(store, context_id)],
        "distances": sorted((hit.message.version, round(hit.distance or 0, 6)) for hit in found),
    }


async def _lively(url: str) -> None:
    """Fill a database with everything that a backup has to keep."""
    async with ContextStore(url) as store:
        root = await store.create(name="root", metadata={"a": [1, {"b": None}], "c": 1e300})
        await store.append(root.id, [user(f"root {n}", token_count=n) for n in range(1, 9)])
        await store.append(
            root.id,
            [
                user("near", embedding=[1.0] * 8, embedding_model="m-1", model="gpt"),
                user("far", embedding=[1.0, -1.0] * 4, extra={"x": 12345678901234567890123}),
                {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
                {"role": "tool", "content": "12", "tool_call_id": "1", "name": "look"},
            ],
        )
        await store.delete_messages(root.id, [2, 3])
        early = await store.fork(
            root.id, at_version=6, name="early: 2 and 3 are hidden at its fork"
        )
        await store.restore_messages(root.id, [3])
        await store.delete_messages(root.id, [5])
        late = await store.fork(root.id, name="late: 2 and 5 are")
        await store.append(late.id, [user("late 1"), user("late 2")])
        await store.delete_messages(late.id, [1, 14])
        await store.delete_messages(root.id, [8])
        await store.restore_messages(root.id, [2])
        leaf = await store.fork(late.id, at_version=13, name="leaf")
        await store.append(leaf.id, [user(f"leaf {n}") for n in range(5)])
        await store.erase(leaf.id, [15, 18])
        await store.erase(root.id, [4])
        gone = await store.create(name="gone", metadata={"deleted": True})
        await store.append(gone.id, [user("gone 1"), user("gone 2")])
        alive = await store.fork(gone.id, at_version=1, name="alive, of a deleted one")
        await store.append(alive.id, [user("alive")])
        await store.delete_messages(gone.id, [2])
        await store.delete(gone.id)
        await store.fork(early.id, at_version=0, name="empty fork")
        await store.create(name=None)
        lost = await store.create(name="erased as a whole")
        await store.append(lost.id, [user("lost")])
        await store.erase(lost.id)


def test_a_backup_makes_the_same_contexts_again(
    cli: Cli, make_database: Callable[..., str], tmp_path: Path, database_url: str
) -> None:
    """Ids, lineage, versions, mappings, tokens, models, embeddings, and all that is deleted."""
    asyncio.run(_lively(database_url))
    file = tmp_path / "backup.jsonl"
    sums = cli.json("export", "--backup", "--output", file)
    assert sums["conversations"] == 9
    before = asyncio.run(everything(database_url))

    other = make_database()
    restored = Cli(cli.patch, other)
    assert restored.json("import", file)["created"] == 9
    assert asyncio.run(everything(other)) == before
    assert restored.json("import", file)["messages"] == 0
    assert asyncio.run(everything(other)) == before

    again = tmp_path / "again.jsonl"
    restored.ok("export", "--backup", "-o", again)
    created = ("created_at", "deleted_at")
    # In the same order, too.
    assert [
        {key: line[key] for key in line if key not in created} for line in lines(again.read_text())
    ] == [
        {key: line[key] for key in line if key not in created} for line in lines(file.read_text())
    ]


def test_a_backup_comes_back_also_when_the_import_is_cut_off(
    cli: Cli, make_database: Callable[..., str], tmp_path: Path, database_url: str
) -> None:
    """After any number of its lines; the run after it brings the rest."""
    asyncio.run(_lively(database_url))
    file = tmp_path / "backup.jsonl"
    cli.ok("export", "--backup", "--output", file)
    before = asyncio.run(everything(database_url))
    whole = file.read_text("utf-8").splitlines(keepends=True)
    other = make_database()
    restored = Cli(cli.patch, other)
    for count in range(1, len(whole) + 1, 3):
        (tmp_path / "part").write_text("".join(whole[:count]), "utf-8")
        restored.ok("import", tmp_path / "part")
    restored.ok("import", file)
    assert asyncio.run(everything(other)) == before


def test_embeddings_can_be_left_out(cli: Cli, tmp_path: Path, database_url: str) -> None:
    """For a database with another dimension; the messages are the same."""
    asyncio.run(_lively(database_url))
    assert '"embedding":[1,1,1,1,1,1,1,1]' in cli.ok("export", "--backup").out
    bare = cli.ok("export", "--backup", "--no-embeddings").out
    assert '"embedding' not in bare
    assert '"near"' in bare


def test_a_plain_export_is_what_each_conversation_shows(cli: Cli, database_url: str) -> None:
    """Chat-completions messages, inherited ones included; nothing deleted, nothing of ours."""
    asyncio.run(_lively(database_url))
    told = {line.get("name"): line for line in lines(cli.ok("export").out)}
    assert "gone" not in told
    assert [m["content"] for m in told["alive, of a deleted one"]["messages"]] == [
        "gone 1",
        "alive",
    ]
    assert [m["content"] for m in told["early: 2 and 3 are hidden at its fork"]["messages"]] == [
        "root 1",
        "root 5",
        "root 6",
    ]
    assert set(told["root"]) == {"id", "name", "metadata", "messages"}
    assert told["root"]["messages"][-1] == {
        "role": "tool",
        "content": "12",
        "tool_call_id": "1",
        "name": "look",
    }


def test_a_plain_export_comes_back_as_it_was(
    cli: Cli, make_database: Callable[..., str], tmp_path: Path
) -> None:
    """The sample out, in and out again is the same text; into the same store it changes nothing."""
    cli.ok("import", SAMPLE)
    first = tmp_path / "first.jsonl"
    cli.ok("export", "-o", first)
    assert cli.json("import", first)["unchanged"] == 8
    other = Cli(cli.patch, make_database())
    other.ok("import", first)
    assert sorted(other.ok("export").out.splitlines()) == sorted(first.read_text().splitlines())
    assert {line["name"]: line["messages"] for line in lines(first.read_text())} == {
        line["name"]: line["messages"] for line in lines(SAMPLE.read_text("utf-8"))
    }


def test_named_contexts_are_exported_with_what_they_need(cli: Cli) -> None:
    """A backup of a fork takes its ancestors along, before it; a plain export doesn't."""
    cli.ok("import", SAMPLE)
    fork = cli.json("fork", FERRY, "--at", 3)["id"]
    assert [line["id"] for line in lines(cli.ok("export", fork).out)] == [fork]
    assert len(lines(cli.ok("export", fork[-8:]).out)[0]["messages"]) == 3
    told = lines(cli.ok("export", fork, "--backup").out)
    assert [line["id"] for line in told] == [FERRY, fork]
    assert told[1]["messages"] == []
    assert (told[1]["parent"], told[1]["fork_version"]) == (FERRY, 3)


def test_a_fork_needs_its_parent_first(cli: Cli, tmp_path: Path, make_database: Any) -> None:
    """A backup without the parent is refused, and says which."""
    cli.ok("import", SAMPLE)
    fork = cli.json("fork", FERRY, "--at", 3)["id"]
    only = cli.ok("export", fork, "--backup").out.splitlines()[1]
    (tmp_path / "file").write_text(only, "utf-8")
    result = Cli(cli.patch, make_database())("import", tmp_path / "file")
    assert result.code == 2
    assert FERRY in result.err


def test_a_file_gets_its_name_only_when_it_is_whole(cli: Cli, tmp_path: Path) -> None:
    """A failed export leaves neither a half file nor the old one changed."""
    cli.ok("import", SAMPLE)
    file = tmp_path / "out.jsonl"
    file.write_text("old")
    assert cli("export", "00000000-0000-0000-0000-000000000009", "-o", file).code == 3
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]
    result = cli("export", "-o", tmp_path / "missing" / "out.jsonl")
    assert result.code == 2
    assert "cannot be written" in result.err
    assert cli.ok("export", "-o", file).out == f"8 conversations, 120 messages in {file}.\n"


def test_long_conversations_are_paged(cli: Cli, tmp_path: Path) -> None:
    """More messages than one statement returns, in order, both ways."""
    many = [user(str(number), token_count=1) for number in range(2_100)]
    (tmp_path / "in").write_text(json.dumps(many), "utf-8")
    cli.ok("import", tmp_path / "in")
    [line] = lines(cli.ok("export").out)
    assert [m["content"] for m in line["messages"]] == [m["content"] for m in many]


def test_a_backup_of_a_long_context_has_lines_of_bounded_length(
    cli: Cli, make_database: Callable[..., str], tmp_path: Path
) -> None:
    """Each goes on where the one before ended; together, in order, they make the context again."""
    many = [user(str(number), token_count=1) for number in range(1_200)]
    (tmp_path / "in").write_text(json.dumps(many), "utf-8")
    cli.ok("import", tmp_path / "in")
    context_id = cli.json("list")["items"][0]["id"]
    cli.ok("delete", context_id, 7, 800)
    cli.ok("fork", context_id, "--at", 900)
    cli.ok("delete", context_id)
    file = tmp_path / "backup"
    sums = cli.json("export", "--backup", "--output", file)
    assert (sums["conversations"], sums["messages"]) == (2, 1_200)
    told = lines(file.read_text("utf-8"))
    assert [line.get("after") for line in told] == [None, 500, 1_000, None]
    assert [("name" in line, "hidden" in line) for line in told[1:3]] == [
        (False, False),
        (False, True),
    ]

    other = Cli(cli.patch, make_database())
    whole = file.read_text("utf-8").splitlines(keepends=True)
    (tmp_path / "middle").write_text(whole[1], "utf-8")
    assert "what stands before it first" in other("import", tmp_path / "middle").err
    (tmp_path / "first").write_text(whole[0], "utf-8")
    other.ok("import", tmp_path / "first")
    (tmp_path / "last").write_text(whole[2], "utf-8")
    assert "after version 1000" in other("import", tmp_path / "last").err
    tally = other.json("import", file)
    assert (tally["conversations"], tally["messages"]) == (2, 700)
    assert other.json("import", file)["messages"] == 0
    other.ok("restore", context_id)
    shown = other.json("show", context_id, "-n", 1_000, "--deleted")["messages"]
    assert [m["version"] for m in shown if m["deleted_at"]] == [800]
    assert other.json("show", context_id)["context"]["message_count"] == 1_198
