"""The command `import`: every shape, each conversation once, whatever happens in between."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from pgcontext import ContextStore, limits
from tests.support.cli import SAMPLE, SHARED, Cli, jsonl
from tests.support.promises import living, view

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Json = dict[str, Any]
TAU = SHARED / "tau_airline_public.json"
LOCOMO = SHARED / "locomo_public.json"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not there")


@pytest.fixture
def cli(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The command line on the test's database."""
    return Cli(monkeypatch, database_url)


@pytest.fixture
def stored(database_url: str) -> Callable[[], list[tuple[str | None, Json, list[Json]]]]:
    """Read back everything: name, metadata and messages of each context, oldest first."""

    async def read() -> list[tuple[str | None, Json, list[Json]]]:
        async with ContextStore(database_url) as store:
            contexts = sorted(await living(store), key=lambda c: (c.created_at, c.id))
            return [
                (c.name, c.metadata, [m.as_dict() for m in await view(store, c.id)])
                for c in contexts
            ]

    return lambda: asyncio.run(read())


def talk(*contents: str) -> list[Json]:
    """Make a conversation that alternates between user and assistant."""
    roles = ("user", "assistant")
    return [
        {"role": roles[number % 2], "content": content} for number, content in enumerate(contents)
    ]


A, B = talk("a 1", "a 2", "a 3"), talk("b 1", "b 2")
PRETTY = json.dumps([{"messages": A}, {"messages": B}], indent=4)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(json.dumps(A), [A], id="one-list"),
        pytest.param(json.dumps({"messages": A}), [A], id="one-object"),
        pytest.param(PRETTY, [A, B], id="array-of-objects"),
        pytest.param(json.dumps([A, B]), [A, B], id="array-of-lists"),
        pytest.param("\n".join(map(json.dumps, A)), [A], id="messages-as-lines"),
        pytest.param(
            f"{json.dumps({'messages': A})}\n\n{json.dumps({'messages': B})}\n",
            [A, B],
            id="objects-as-lines",
        ),
        pytest.param(f"{json.dumps(A)}\r\n{json.dumps(B)}", [A, B], id="lists-as-lines"),
        pytest.param(f"\ufeff{json.dumps(A)}", [A], id="byte-order-mark"),
        pytest.param("", [], id="nothing"),
        pytest.param(" [ ] ", [], id="empty-array"),
    ],
)
def test_every_shape_of_a_file_is_understood(
    cli: Cli, tmp_path: Path, stored: Any, text: str, expected: list[list[Json]]
) -> None:
    """One conversation or many, as an array or as lines, pretty or compact."""
    (tmp_path / "file").write_text(text, "utf-8", newline="")
    tally = cli.json("import", tmp_path / "file")
    assert (tally["created"], tally["messages"]) == (len(expected), sum(map(len, expected)))
    assert [messages for _, _, messages in stored()] == expected
    assert cli.json("import", tmp_path / "file")["messages"] == 0


def test_values_come_back_exactly(cli: Cli, tmp_path: Path, stored: Any) -> None:
    """Large integers, exponents, escapes, brackets in strings, astral characters, parts, null."""
    message = {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": "]}"}'}}
        ],
        "big": 123456789012345678901234567890,
        "float": 1e300,
        "small": -0.0000001,
        "text": 'quote " backslash \\ slash / newline \n emoji 🦭 nested "[{" ]',
        "deep": [[{"a": [None, True, False]}]],
    }
    parts = {"role": "user", "content": [{"type": "text", "text": "see"}, {"type": "image_url"}]}
    (tmp_path / "file").write_text(json.dumps([parts, message]), "utf-8")
    cli.ok("import", tmp_path / "file")
    assert stored()[0][2] == [parts, message]


def test_ids_names_and_metadata_are_kept(cli: Cli, tmp_path: Path) -> None:
    """A UUID is the context's id; another id makes one; unknown keys go to the metadata."""
    uuid = "01a1f932-eb37-7fdb-a6ac-1bfaa8e19ccd"
    cli.ok(
        "import",
        jsonl(
            tmp_path / "file",
            {"id": uuid, "name": "Mine", "metadata": {"a": 1}, "tools": [], "messages": A},
            {"id": "chat-17", "messages": [{**m, "id": "msg_1", "model": "m-1"} for m in B]},
            {"id": 17, "messages": B},
        ),
    )
    contexts = {c["message_count"]: c for c in cli.json("list")["items"]}
    assert len(cli.json("list")["items"]) == 3
    assert (contexts[3]["id"], contexts[3]["name"]) == (uuid, "Mine")
    assert contexts[3]["metadata"] == {"a": 1, "tools": []}
    messages = [m for c in cli.json("list")["items"] for m in cli.json("show", c["id"])["messages"]]
    assert [m["payload"] for m in messages if m["model"] == "m-1"] == [{"source_id": "msg_1"}] * 2


def test_a_second_run_changes_nothing(cli: Cli, stored: Any) -> None:
    """Not a message, not a timestamp; and it says so."""
    cli.ok("import", SAMPLE)
    before = cli.json("list")["items"]
    assert cli.json("import", SAMPLE) | {"seconds": 0} == {
        "conversations": 8,
        "created": 0,
        "continued": 0,
        "unchanged": 8,
        "deleted": 0,
        "messages": 0,
        "seconds": 0,
    }
    assert cli.json("list")["items"] == before
    assert len(stored()) == 8


def test_a_conversation_that_has_grown_is_continued(cli: Cli, tmp_path: Path, stored: Any) -> None:
    """With an id or without; an older file afterwards takes nothing away."""
    for suffix in ({}, {"id": "x"}):
        short = jsonl(tmp_path / "short", {"messages": A[:1], **suffix})
        long = jsonl(tmp_path / "long", {"messages": A, **suffix})
        assert cli.json("import", short)["created"] == 1
        tally = cli.json("import", long)
        assert (tally["continued"], tally["messages"]) == (1, 2)
        assert cli.json("import", short)["unchanged"] == 1
    assert [messages for _, _, messages in stored()] == [A, A]


def test_conversations_that_begin_alike_stay_apart(cli: Cli, tmp_path: Path, stored: Any) -> None:
    """The same opening, different ways on: as many contexts, in any order, again and again."""
    alike = [talk("hello", f"answer {number}", f"thanks {number}") for number in range(6)]
    cli.ok("import", jsonl(tmp_path / "one", *alike))
    cli.ok("import", jsonl(tmp_path / "two", *alike[::-1]))
    found = stored()
    assert len(found) == 6
    assert sorted(messages[1]["content"] for _, _, messages in found) == sorted(
        messages[1]["content"] for messages in alike
    )


def test_another_conversation_under_the_same_id_is_a_conflict(
    cli: Cli, tmp_path: Path, stored: Any
) -> None:
    """Exit code 4, naming the conversation; the store's one stays as it is."""
    cli.ok("import", jsonl(tmp_path / "one", {"id": "x", "messages": A}))
    result = cli("import", jsonl(tmp_path / "two", {"id": "x", "messages": B}))
    assert result.code == 4
    assert "Conversation 1 (line 1)" in result.err
    assert [messages for _, _, messages in stored()] == [A]


def test_what_was_deleted_since_stays_deleted(cli: Cli, tmp_path: Path) -> None:
    """A deleted context is not brought back, hidden messages are not doubled."""
    file = jsonl(tmp_path / "file", {"id": "x", "messages": A}, {"id": "y", "messages": B})
    cli.ok("import", file)
    one, two = (context["id"] for context in cli.json("list")["items"])
    cli.ok("delete", one)
    cli.ok("delete", two, 1)
    tally = cli.json("import", file)
    assert (tally["deleted"], tally["unchanged"], tally["messages"]) == (1, 1, 0)
    assert [c["id"] for c in cli.json("list")["items"]] == [two]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[{"role": "user", "content": "s3cret"}, {"role": "alien"}]', "1 (line 1): message 2:"),
        ('{"messages": [{"role": "user"}, "s3cret"]}', "Conversation 1 (line 1) has a message 2"),
        ('{"messages": []}\n{"messages": {"s3cret": 1}}', "Conversation 2 (line 2)"),
        ('{"messages": []}\n\n{"s3cret": 1}', "Conversation 2 (line 3) has no messages"),
        ('{"id": ["s3cret"], "messages": []}', "neither text nor a whole number"),
        ('{"metadata": "s3cret", "messages": []}', "metadata"),
        ('{"name": 5, "messages": []}', "name"),
        ('{"messages": [{"role": "user", "content": "s3cret"', "the file ends inside it"),
        ('[{"role": "user"} "s3cret"]', "a comma or the array's end"),
        ('[{"role": "user", "x": NaN}]', "not valid JSON"),
        ('[{"role": "user", "x": s3cret}]', "not valid JSON"),
        ('[{"role": "user", "content": "\\u0000"}]', "NUL"),
        ('[{"role": "user", "content": "\\ud800"}]', "surrogate"),
        ('[{"role": "user", "x": 1e999}]', "not finite"),
        ("s3cret", "an object or an array"),
        ('"s3cret"', "an object or an array"),
        ("[1]", "an object or a list"),
        ('{"pgcontext": 1}', "says it is an export"),
        ('{"pgcontext": 2, "messages": []}', "newer"),
        ('{"conversation": {"session_1": [{"speaker": "s3cret"}]}}', "neither of its two speakers"),
    ],
)
def test_bad_input_is_named_by_its_place_and_never_quoted(
    cli: Cli, tmp_path: Path, text: str, said: str
) -> None:
    """One sentence, exit code 2: which conversation, which message, what was wrong."""
    (tmp_path / "file").write_text(text, "utf-8")
    result = cli("import", tmp_path / "file")
    assert (result.code, result.out) == (2, "")
    assert said in result.err
    assert "s3cret" not in result.err
    assert result.err.count("\n") == 1


def test_nesting_without_end_is_refused(cli: Cli, tmp_path: Path) -> None:
    """A file of a million brackets ends in a sentence, not in a crash."""
    (tmp_path / "file").write_text('[{"role": "user", "x": ' + "[" * 10**6 + "]" * 10**6 + "}]")
    assert cli("import", tmp_path / "file").code == 2


def test_what_stands_before_the_bad_place_is_kept(cli: Cli, tmp_path: Path, stored: Any) -> None:
    """So that mending the file and running again goes on from there."""
    good = [{"messages": talk(f"good {number}")} for number in range(5)]
    bad = jsonl(tmp_path / "file", *good, {"messages": [{"role": "alien"}]}, {"messages": A})
    assert "Conversation 6 (line 6)" in cli("import", bad).err
    # The one behind it may have been on its way already; of the bad one itself there is no trace.
    found = [messages for _, _, messages in stored()]
    assert [line["messages"] for line in good] == [messages for messages in found if messages != A]
    cli.ok("import", jsonl(tmp_path / "file", *good, {"messages": A}))
    assert len(stored()) == 6


def test_a_bad_message_keeps_its_whole_conversation_out(
    cli: Cli, tmp_path: Path, stored: Any
) -> None:
    """Also when it comes a thousand messages later, and another batch would be over by then."""
    lines = [*_lines(1, 1_200)[0]["messages"], {"role": "user", "content": "x", "tool_calls": 1}]
    (tmp_path / "file").write_text(json.dumps(lines), "utf-8")
    assert "message 1201: tool_calls" in cli("import", tmp_path / "file").err
    assert stored() == []


def test_files_that_cannot_be_read(cli: Cli, tmp_path: Path) -> None:
    """Missing, a folder, not UTF-8: a sentence each."""
    assert "No such file" in cli("import", tmp_path / "missing").err
    assert "Is a directory" in cli("import", tmp_path).err
    (tmp_path / "file").write_bytes(json.dumps(A).encode("utf-16"))
    assert cli("import", tmp_path / "file").code == 2
    (tmp_path / "file").write_bytes(b'[{"role": "user", "content": "\xff"}]')
    assert "UTF-8" in cli("import", tmp_path / "file").err


def test_stdin_is_a_file_too(cli: Cli, stored: Any) -> None:
    """`-` reads a pipe."""
    result = cli.process("import", "-", stdin=json.dumps(A).encode())
    assert (result.code, result.err) == (0, "")
    assert stored()[0][2] == A


def test_large_conversations_go_in_batches(cli: Cli, tmp_path: Path, database_url: str) -> None:
    """More messages than one append takes, and more bytes; each version in its place."""
    many = [{"role": "user", "content": str(number), "token_count": 1} for number in range(2_500)]
    large = [{"role": "user", "content": "x" * 700_000, "token_count": 1}] * 4
    tally = cli.json("import", jsonl(tmp_path / "file", {"messages": many + large}))
    assert tally["messages"] == 2_504

    async def versions() -> list[int]:
        async with ContextStore(database_url) as store:
            [context] = await living(store)
            return [message.version for message in await view(store, context.id)]

    assert asyncio.run(versions()) == list(range(1, 2_505))


def _lines(conversations: int, messages: int) -> list[Json]:
    return [
        {
            "id": f"chat {number}",
            "messages": [
                {"role": "user", "content": f"{number} says {ordinal}", "token_count": 3}
                for ordinal in range(messages)
            ],
        }
        for number in range(conversations)
    ]


def test_killed_half_way_and_run_again_nothing_is_missing_and_nothing_doubles(
    cli: Cli, tmp_path: Path, stored: Any, database_url: str
) -> None:
    """SIGKILL at three moments; the run after it brings in exactly the rest."""
    lines = _lines(conversations=40, messages=700)
    file = jsonl(tmp_path / "file", *lines)
    total = sum(len(line["messages"]) for line in lines)

    async def written() -> int:
        async with ContextStore(database_url) as store:
            return sum(context.message_count for context in await living(store))

    seen = [0]
    for _ in range(3):
        running = cli.start("import", file, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while asyncio.run(written()) <= seen[-1] + 1_500 and time.monotonic() < deadline:
            assert running.poll() is None, "it was too fast to be killed"
        os.kill(running.pid, signal.SIGKILL)
        assert running.wait() == -signal.SIGKILL
        time.sleep(0.1)  # a statement that was on its way ends on the server
        seen.append(asyncio.run(written()))
    assert 0 < seen[1] < seen[2] < seen[3] < total
    assert cli.json("import", file)["messages"] == total - seen[3]
    assert Counter(messages[0]["content"] for _, _, messages in stored()) == Counter(
        line["messages"][0]["content"] for line in lines
    )
    assert all(messages in [_plain(line) for line in lines] for _, _, messages in stored()[::10])
    assert cli.json("import", file)["messages"] == 0


def _plain(line: Json) -> list[Json]:
    return [{key: message[key] for key in ("role", "content")} for message in line["messages"]]


def test_two_imports_of_one_file_at_once_do_it_once(cli: Cli, tmp_path: Path, stored: Any) -> None:
    """Each conversation is there once, whoever was faster; both succeed."""
    lines: list[object] = [*_lines(conversations=20, messages=8)]
    lines += [talk("hello", f"answer {number}") for number in range(20)]
    file = jsonl(tmp_path / "file", *lines)
    running = [cli.start("import", file, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    found = stored()
    assert len(found) == 40
    assert Counter(len(messages) for _, _, messages in found) == {8: 20, 2: 20}
    assert cli.json("import", file)["messages"] == 0


def test_ctrl_c_ends_in_one_word_and_the_next_run_goes_on(
    cli: Cli, tmp_path: Path, database_url: str
) -> None:
    """SIGINT: exit code 130, no traceback, nothing lost."""
    file = jsonl(tmp_path / "file", *_lines(conversations=60, messages=700))
    running = cli.start("import", file, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)

    async def begun() -> bool:
        async with ContextStore(database_url) as store:
            return bool((await store.list(limit=1)).items)

    while not asyncio.run(begun()):
        assert running.poll() is None
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=30)
    assert (running.returncode, err) == (130, b"pgcontext: Interrupted.\n")
    cli.ok("import", file)
    assert cli.json("import", file)["unchanged"] == 60


def test_memory_is_flat_in_the_number_of_conversations(cli: Cli, tmp_path: Path) -> None:
    """Ten times the conversations, the same peak; the file alone would be larger than that."""

    def peak_kilobytes(conversations: int) -> int:
        file = tmp_path / f"{conversations}.json"
        with file.open("w", encoding="utf-8") as lines:
            lines.write("[")
            for number in range(conversations):
                message = {"role": "user", "content": f"{number} " + "x" * 60_000, "token_count": 1}
                lines.write(("," if number else "") + json.dumps({"messages": [message] * 2}))
            lines.write("]")
        code = (
            "import resource, sys; from pgcontext.cli import main\n"
            "try: main()\n"
            "finally: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, "import", str(file)],
            capture_output=True,
            check=True,
        )
        return int(done.stderr)

    few, many = peak_kilobytes(60), peak_kilobytes(600)
    assert many - few < 12 * 1024, (few, many)


def test_a_value_without_end_is_refused_before_it_fills_the_memory(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One conversation has a bound, however long the file."""
    monkeypatch.setattr(limits, "IMPORT_CONVERSATION_BYTES_MAX", 1 << 20)
    (tmp_path / "file").write_text('{"messages": [' + '{"role": "user"},' * 10**6, "utf-8")
    assert "does not end within 1 MiB" in cli("import", tmp_path / "file").err


def test_contexts_are_made_in_the_order_of_the_file(cli: Cli, tmp_path: Path, stored: Any) -> None:
    """Though a few are written at once; the list shows the file from its end."""
    talks = [talk(*(f"{number} says {n}" for n in range(1 + number % 7))) for number in range(60)]
    cli.ok("import", jsonl(tmp_path / "some", *talks[:9:2]))
    cli.ok("import", jsonl(tmp_path / "all", *talks))
    assert [messages for _, _, messages in stored()] == [
        *talks[:9:2],
        *talks[1:9:2],
        *talks[9:],
    ]


@needs_shared
def test_tau_bench_runs_come_in_exactly(cli: Cli, stored: Any) -> None:
    """Every run, told apart by task and trial; every message as it stands in the file."""
    runs = json.loads(TAU.read_text("utf-8"))
    assert cli.json("import", TAU)["created"] == len(runs) == 100
    found = {(m["task_id"], m["trial"]): messages for _, m, messages in stored()}
    assert found == {(run["task_id"], run["trial"]): run["traj"] for run in runs}
    assert cli.json("import", TAU)["unchanged"] == 100


@needs_shared
def test_locomo_conversations_come_in_turn_by_turn(cli: Cli, stored: Any) -> None:
    """Sessions in their order, speakers as user and assistant, the turns' keys kept."""
    samples = json.loads(LOCOMO.read_text("utf-8"))
    assert cli.json("import", LOCOMO)["created"] == len(samples) == 5
    found = {metadata["sample_id"]: messages for _, metadata, messages in stored()}
    for sample in samples:
        spoken = sample["conversation"]
        numbers = sorted(
            int(key.split("_")[1]) for key in spoken if key[-1].isdigit() and "_" in key
        )
        turns = [turn for number in numbers for turn in spoken[f"session_{number}"]]
        messages = found[sample["sample_id"]]
        assert [m["content"] for m in messages] == [turn["text"] for turn in turns]
        assert [m["dia_id"] for m in messages] == [turn["dia_id"] for turn in turns]
        assert [m["name"] for m in messages] == [turn["speaker"] for turn in turns]
        assert {m["role"] for m in messages if m["name"] == spoken["speaker_a"]} == {"user"}
    assert cli.json("import", LOCOMO)["unchanged"] == 5


def test_progress_shows_rate_and_remaining_time_on_a_terminal(cli: Cli, tmp_path: Path) -> None:
    """Drawn on stderr while it runs; gone at the end; nothing of it where there is no terminal."""
    file = jsonl(tmp_path / "file", *_lines(conversations=40, messages=700))
    leader, follower = os.openpty()
    os.environ["TERM"] = "xterm"
    try:
        running = cli.start("import", file, stderr=follower, stdout=subprocess.PIPE)
    finally:
        del os.environ["TERM"]
        os.close(follower)
    drawn = b""
    while True:
        try:
            drawn += os.read(leader, 4096)
        except OSError:  # the other end is closed
            break
    os.close(leader)
    out, _ = running.communicate()
    assert running.returncode == 0
    assert b"messages/s" in drawn
    assert b"0:00:0" in drawn
    assert out.startswith(b"40 conversations (40 created), 28,000 messages written in ")
    assert cli.process("import", file).err == ""


def test_an_unreachable_database_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 6, one sentence, no password."""
    cli = Cli(monkeypatch, "postgresql://somebody:hunter2@127.0.0.1:1/nothing?sslmode=disable")
    result = cli("import", SAMPLE)
    assert result.code == 6
    assert result.err.startswith("pgcontext: The connection to the database failed")
    assert "hunter2" not in result.err
