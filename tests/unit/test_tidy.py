"""The rules of the house that prose can't hold: each of them is a failing test when broken."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import typer
from packaging.requirements import Requirement

from pgcontext import statements
from pgcontext.cli.app import app
from pgcontext.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parents[2]
SOURCE: Final = ROOT / "src" / "pgcontext"
MODULES: Final = sorted(SOURCE.rglob("*.py"))
PROJECT: Final[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))

FUNCTION_LINES_MAX: Final = 70
DECISION_LINES_MAX: Final = 70
SAID_IN_NAMES: Final = {"common", "data", "helper", "helpers", "info", "manager", "misc", "utils"}

# The beginning of a line of SQL, as people write it; prose in messages doesn't look like this.
SQL: Final = re.compile(
    r"^\s*(?:SELECT\s|INSERT INTO\s|UPDATE \S+\s+SET\s|DELETE FROM\s|WITH (?:RECURSIVE )?\w+ AS\b"
    r"|(?:CREATE|ALTER|DROP) (?:\w+ )?(?:TABLE|INDEX|SCHEMA|EXTENSION|FUNCTION|POLICY|DATABASE)\s"
    r"|SET (?:LOCAL )?\w+\s*(?:=|TO)|SHOW \w|BEGIN\b|COMMIT\b|LOCK TABLE\s|TRUNCATE\s)",
    re.MULTILINE,
)
# The statements, and the side branch that the request path never imports.
SQL_ROOMS: Final = {
    *("statements", "schema", "functions", "migrate"),
}


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def texts(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every string of a module but its docstrings, with its line."""
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node.lineno, node.value


def names(pattern: str, text: str) -> set[str]:
    return set(re.findall(pattern, text))


def commands(group: Any, prefix: str = "pgcontext") -> Iterator[str]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}"


def test_functions_fit_on_a_screen() -> None:
    """No function of the package is longer than 70 lines, its docstring included."""
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1}"
        for path in MODULES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > FUNCTION_LINES_MAX
    ]
    assert not long, long


@pytest.mark.parametrize(
    "text",
    ["SELECT 1", "-- a tag\nWITH c AS (SELECT 1)", "  UPDATE contexts SET a = 1", "CREATE TABLE a"],
)
def test_sql_is_recognised(text: str) -> None:
    """The pattern that looks for stray SQL finds each way in which a statement begins."""
    assert SQL.search(text)


def test_sql_lives_in_its_room() -> None:
    """SQL text stands in `statements`, or in the side branch that makes the schema."""
    stray = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in MODULES
        if path.relative_to(SOURCE).with_suffix("").parts[0] not in SQL_ROOMS
        for line, text in texts(parsed(path))
        if SQL.search(text)
    ]
    assert not stray, stray


STATEMENTS: Final = [name for name in statements.__all__ if name.isupper()]


@pytest.mark.parametrize("name", STATEMENTS)
def test_statements_name_themselves_and_their_tenant(name: str) -> None:
    """A statement's first line is its tag, which pg_stat_activity shows, and $1 is the tenant."""
    text: str = getattr(statements, name)
    assert re.match(r"-- pgcontext\.[a-z_]+\n", text)
    assert re.search(r"tenant_id(?: = |, .*?VALUES \()\$1\b", text, re.DOTALL)


def test_statements_are_never_formatted() -> None:
    """No f-string, format() or % stands in `statements`: no value becomes part of a text."""
    formatted = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted((SOURCE / "statements").rglob("*.py"))
        if path.name != "__init__.py"  # in_schema puts the schema's name in, which is a setting
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.JoinedStr)
        or (isinstance(node, ast.Attribute) and node.attr in {"format", "format_map"})
        or (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod))
    ]
    assert not formatted, formatted


def test_only_settings_reads_the_environment() -> None:
    """`os.environ` and `os.getenv` are read in one module."""
    readers = {
        path.name
        for path in MODULES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "environb", "getenv"}
    }
    assert readers == {"settings.py"}


def test_env_example_lists_every_setting() -> None:
    """`.env.example` and `settings` know the same variables, none missing and none left over."""
    pattern = r"\b(?:PGCONTEXT|DATABASE|POSTGRES)_[A-Z_]+\b"
    read = {
        name
        for _, text in texts(parsed(SOURCE / "settings.py"))
        for name in names(rf"^{pattern}$", text)
    }
    example = (ROOT / ".env.example").read_text("utf-8")
    assert read == names(rf"(?m)^#? ?({pattern})=", example)


def test_env_example_shows_the_defaults() -> None:
    """Setting every variable to what `.env.example` shows changes nothing."""
    example = (ROOT / ".env.example").read_text("utf-8")
    shown = dict(re.findall(r"(?m)^#([A-Z_]+)=(.*)$", example))
    assert any(shown.values())
    assert Settings.from_env(shown) == Settings.from_env({})


def test_noqa_never_hides_made_up_sql_or_a_useless_comparison() -> None:
    """S608 and B015 are switched off nowhere, neither on a line nor for a folder."""
    lint = PROJECT["tool"]["ruff"]["lint"]
    ignored = set(lint["ignore"]).union(*lint["per-file-ignores"].values())
    assert not {code for code in ignored if "S608".startswith(code) or "B015".startswith(code)}
    folders = ("src", "tests", "handlers", "migrations", "examples", "benchmarks")
    pattern = re.compile(r"#\s*(?:ruff:\s*)?noqa:[^(#]*\b(?:S608|B015)\b")
    hidden = [
        str(path.relative_to(ROOT))
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        if pattern.search(path.read_text("utf-8"))
    ]
    assert not hidden, hidden


def test_names_say_something() -> None:
    """No module is called utils, helpers or the like: what it holds has a name."""
    assert not {path.stem for path in MODULES} & SAID_IN_NAMES


def test_public_modules_say_what_they_are() -> None:
    """Every module of the package starts with a docstring."""
    assert not [str(path) for path in MODULES if not ast.get_docstring(parsed(path))]


def test_every_test_says_its_sentence() -> None:
    """Each test's docstring starts with a sentence, so that a failure reads as a broken promise."""
    silent = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not re.match(r"\S+ [^\0]*?[.:!?](\n\n|$)", ast.get_docstring(node) or "")
    ]
    assert not silent, silent


def test_cli_documentation_knows_every_command() -> None:
    """Each command has a heading in docs/cli.md, and nothing else has."""
    documented = names(r"(?m)^#+ `(pgcontext [a-z -]+?)(?: [A-Z\[<-].*)?`$", read_doc("cli.md"))
    assert documented == set(commands(typer.main.get_command(app)))


def read_doc(name: str) -> str:
    return (ROOT / "docs" / name).read_text("utf-8")


def test_decisions_are_listed_and_have_their_sections() -> None:
    """Each record in docs/adr is in the index, has three sections, and takes at most a page."""
    records = sorted((ROOT / "docs" / "adr").glob("[0-9]*.md"))
    assert records
    index = read_doc("adr/README.md")
    for record in records:
        text = record.read_text("utf-8")
        assert f"({record.name})" in index, f"{record.name} is not in docs/adr/README.md"
        assert re.findall(r"(?m)^## (.+)$", text) == ["Context", "Decision", "Consequences"], record
        assert text.count("\n") <= DECISION_LINES_MAX, record


def test_links_in_the_documentation_lead_somewhere() -> None:
    """Every relative link in a Markdown file names a file that exists."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages
        for target in names(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text("utf-8"))
        if not (page.parent / target).exists()
    ]
    assert not broken, broken


def test_every_requirement_is_pinned_within_its_range() -> None:
    """All that pyproject.toml asks for has a version in constraints.txt, and one it accepts."""
    project, groups = PROJECT["project"], PROJECT["dependency-groups"]
    asked = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
        *(line for group in groups.values() for line in group if isinstance(line, str)),
    ]
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = dict(line.lower().replace("_", "-").split("==") for line in lines if "==" in line)
    for requirement in map(Requirement, asked):
        if requirement.name != "pgcontext":
            pin = pins.get(requirement.name.lower())
            assert pin is not None, f"{requirement.name} is not in constraints.txt: make pins"
            assert requirement.specifier.contains(pin), f"{requirement} is pinned at {pin}"
