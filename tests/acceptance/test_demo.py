"""The demo, as somebody watches it for the first time and again."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from pgcontext import ContextStore, embedded
from pgcontext.cli.conversations import conversations
from pgcontext.cli.demo import TENANT, Demo
from pgcontext.cli.json_values import JsonValues
from tests.support.cli import FERRY, SAMPLE, SHARED, Cli, command, jsonl

if TYPE_CHECKING:
    from collections.abc import Iterator

STEPS = {
    "A PostgreSQL of its own": 0,
    "Conversations come in": 24,
    "A message is appended": 1,
    "A fork from the middle": 1,
    "Both go on": 2,
    "The tree": 2,
    "What fits the model: a token window": 1,
    "Search": 1,
    "Deleted, and restored": 4,
}


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cli]:
    """The command line without a database; the embedded one lives in the run's own folder."""
    yield Cli(monkeypatch, None)
    embedded.stop()


def test_the_demo_runs_through_at_80_columns_without_a_terminal(cli: Cli) -> None:
    """Every step in its order, no line wider than a log, no colours, nothing on stderr."""
    result = cli.process("demo")
    assert (result.code, result.err) == (0, "")
    assert max(map(len, result.out.splitlines())) <= 80
    assert "\x1b" not in result.out
    headings = re.findall(r"(?m)^([0-9])  (.+?) ─+$", result.out)
    assert headings == [(str(number), title) for number, title in enumerate(STEPS, 1)]
    for line in (
        "└── at 10: What if the waves win?  ",
        "█·············████████  ",
        "One message less here. The fork still shows it",
        "15 messages, 783 tokens  deleted",
    ):
        assert line in result.out
    call = re.escape("> fork = await store.fork(context.id, at_version=10)")
    assert re.search(rf"(?m)^{call} +1 statement, [0-9,.]+ ms$", result.out)
    assert "Booked: GULL-4502, SK-211" in result.out


def test_the_demo_counts_what_it_really_sends(cli: Cli) -> None:
    """Statements and milliseconds of each step, the same number each time; and the tree it made."""
    told = cli.json("demo")
    assert {step["step"]: step["statements"] for step in told["steps"]} == STEPS
    assert all(0 < step["milliseconds"] < 60_000 for step in told["steps"])
    [root] = told["tree"]
    assert (root["id"], root["message_count"]) == (FERRY, 22)
    assert [fork["message_count"] for fork in root["forks"]] == [15]


def searched(out: str) -> tuple[str, str]:
    """What the demo shows of its search by words, and of that by both; layout doesn't count."""
    shown = " ".join(out[out.index('> query = "') : out.index("Deleted, and restored")].split())
    by_words, by_both = shown.split("By words and meaning together")
    return by_words, by_both


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With nothing set: a database of its own, and the local model."""
    monkeypatch.delenv("PGCONTEXT_DIMENSIONS")
    monkeypatch.setenv("PGCONTEXT_DATA_DIR", str(tmp_path))


@pytest.mark.usefixtures("offline")
def test_the_demo_searches_by_words_and_meaning_offline(cli: Cli) -> None:
    """Words alone find an accident; together with meaning, the answer, between its neighbors."""
    result = cli.process("demo")
    assert (result.code, result.err) == (0, "")
    assert max(map(len, result.out.splitlines())) <= 80
    assert "embedded as it comes, by wordllama-l2-supercat-256" in result.out
    by_words, by_both = searched(result.out)
    answer = "That smells of a slipped decimal point rather than of a sale."
    assert "week 9 != week 8" in by_words
    assert answer not in by_words
    assert re.search(
        r"by text and vector · score 0\.\d+ · text score 0\.\d+ · distance 0\.", by_both
    )
    places = [
        by_both.index(text)
        for text in (
            "9 tool",
            "> 10 assistant",
            answer,
            "11 user Oh dear.",
            "decimal point cost us?",
        )
    ]
    assert places == sorted(places)


def test_the_statements_are_those_that_the_driver_sends(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted once more, below the pool, in the driver itself: no fewer and no more."""
    sent: list[str] = []
    wire: Counter[str] = Counter()
    fetch, call = asyncpg.Connection.fetch, Demo.call

    async def counted(self: Any, query: str, *args: Any, **kwargs: Any) -> Any:
        sent.append(query.partition("\n")[0])
        return await fetch(self, query, *args, **kwargs)

    async def noted(self: Any, line: str, work: Any) -> Any:
        before = len(sent)
        result: Any = await call(self, line, work)
        wire[self.meter.costs[-1].step] += len(sent) - before
        return result

    monkeypatch.setattr(asyncpg.Connection, "fetch", counted)
    monkeypatch.setattr(Demo, "call", noted)
    told = cli.json("demo")
    assert {step["step"]: step["statements"] for step in told["steps"]} == dict(wire)
    assert sent.count("-- pgcontext.append") == 11 == 8 + 1 + 2
    assert sent.count("-- pgcontext.window") == 1


def test_a_second_demo_starts_afresh_and_touches_nobody_else(cli: Cli) -> None:
    """The same again; what others keep in the embedded database stays as it was."""
    line = json.dumps({"id": "mine", "messages": [{"role": "user", "content": "mine"}]}).encode()
    assert cli.process("import", "-", stdin=line).code == 0
    before = cli.json("list")
    first, second = cli.json("demo"), cli.json("demo")
    assert [s["statements"] for s in first["steps"]] == [s["statements"] for s in second["steps"]]
    assert cli.json("list") == before
    assert len(cli.json("list", "--tenant", TENANT)["items"]) == 9
    assert "What the last demo left, 9 contexts" in cli.ok("demo").out


def test_the_demo_never_touches_the_database_that_is_named(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DATABASE_URL names one: not a row comes there."""
    cli = Cli(monkeypatch, database_url)
    try:
        cli.ok("demo")
    finally:
        embedded.stop()

    async def contexts() -> int:
        async with ContextStore(database_url, tenant_id=TENANT) as store:
            return len((await store.list(include_deleted=True)).items)

    assert asyncio.run(contexts()) == 0


def test_your_own_conversations(cli: Cli, tmp_path: Path) -> None:
    """One short conversation is enough; none at all is refused in a sentence."""
    one = jsonl(tmp_path / "one", [{"role": "user", "content": "Only this."}])
    told = cli.json("demo", "--input", one)
    assert told["tree"][0]["message_count"] == 3
    assert max(map(len, cli.ok("demo", "--input", one).out.splitlines())) <= 80
    empty = tmp_path / "empty"
    empty.write_text("[]", "utf-8")
    result = cli("demo", "--input", empty)
    assert result.code == 2
    assert "no messages" in result.err
    assert cli("demo", "--input", tmp_path / "missing").code == 2


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not there")
@pytest.mark.parametrize("name", ["tau_airline_public.json", "locomo_public.json"])
def test_real_conversations(cli: Cli, name: str) -> None:
    """Hundreds of messages in one conversation: shown in part, windowed, searched."""
    out = cli.ok("demo", "--input", SHARED / name).out
    assert re.search(r"\.\.\. [0-9,]+ more \.\.\.", out)
    assert re.search(r"(?m)^[█·]+·[█·]*  [0-9,]+ tokens$", out)
    assert re.search(r"(?m)^ 1  (tau-bench|LoCoMo) .* version", out)
    assert len(out.splitlines()) < 200


@pytest.mark.usefixtures("offline")
def test_of_conversations_it_does_not_know_it_asks_what_they_come_nearest_to(
    cli: Cli, tmp_path: Path
) -> None:
    """One of its everyday matters, in other words than those of the file."""
    said = ["Good morning!", "I don't remember my user ID.", "The invoice is due on Monday."]
    talk = jsonl(tmp_path / "talk", [{"role": "user", "content": content} for content in said])
    out = cli.ok("demo", "--input", talk).out
    by_words, by_both = searched(out)
    assert 'query = "forgot my password"' in by_words
    assert "Nothing: no message has any of them." in by_words
    assert "1 user Good morning! > 2 user I don't remember my user ID. 3 user The" in by_both


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not there")
@pytest.mark.usefixtures("offline")
def test_real_conversations_are_found_in_other_words(cli: Cli) -> None:
    """Nobody says password there; the passenger who forgot what the agent asks for is found."""
    out = cli.ok("demo", "--input", SHARED / "tau_airline_public.json").out
    assert max(map(len, out.splitlines())) <= 80
    by_words, by_both = searched(out)
    assert 'query = "forgot my password"' in by_words
    assert by_words.strip().endswith("Nothing: no message has any of them.")
    assert re.search(r"by vector · score 0\.300 · distance 0\.\d+", by_both)
    assert "> 6 user I'm sorry, but I don't remember my user ID at the moment." in by_both


def test_make_demo_runs_it(tmp_path: Path) -> None:
    """`make demo` and `make demo INPUT=file` are this command."""
    root = Path(__file__).parents[2]
    for arguments, expected in (
        ([], ".venv/bin/pgcontext demo"),
        ([f"INPUT={tmp_path}/a b"], f".venv/bin/pgcontext demo --input '{tmp_path}/a b'"),
    ):
        done = subprocess.run(
            ["/usr/bin/env", "make", "--dry-run", "demo", *arguments],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.splitlines()[-1].strip() == expected


def test_on_a_terminal_it_is_drawn_in_colour_and_pauses(cli: Cli) -> None:
    """A terminal gets colours and a moment to read after each step; Ctrl-C ends it in one word."""
    leader, follower = os.openpty()
    environment = dict(os.environ, TERM="xterm-256color", COLUMNS="80")
    running = subprocess.Popen(
        command("demo"), env=environment, stdout=follower, stderr=follower, stdin=follower
    )
    os.close(follower)
    drawn = b""
    while b"A message is appended" not in drawn:
        drawn += os.read(leader, 4096)
    assert b"\x1b[" in drawn
    running.send_signal(2)
    rest = b""
    while True:
        try:
            rest += os.read(leader, 4096)
        except OSError:
            break
    os.close(leader)
    assert running.wait() == 130
    assert b"Interrupted." in rest
    assert b"Traceback" not in rest


def test_the_sample_is_ours_and_well_formed() -> None:
    """Eight conversations, each call answered, each with a name and where it comes from."""
    with SAMPLE.open("rb") as file:
        told = list(conversations(JsonValues(file)))
    assert len(told) == 8
    for conversation in told:
        assert conversation.name
        assert conversation.metadata["product"]
        called = [
            call["id"]
            for message in conversation.messages
            for call in message.get("tool_calls", [])
        ]
        answered = [m["tool_call_id"] for m in conversation.messages if m["role"] == "tool"]
        assert called == answered
        assert len(set(called)) == len(called)
        for message in conversation.messages:
            for call in message.get("tool_calls", []):
                assert isinstance(json.loads(call["function"]["arguments"]), dict)


def test_the_sample_ships_with_the_package() -> None:
    """It is found where the package is, not where the checkout is."""
    code = (
        "from importlib.resources import files; "
        "print(files('pgcontext').joinpath('samples', 'conversations.jsonl').is_file())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, check=True)
    assert done.stdout == b"True\n"
