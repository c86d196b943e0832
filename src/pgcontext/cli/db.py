"""The commands under `pgcontext db`: the schema of the database, over the direct URL."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import typer

from pgcontext.cli.output import Exit, JsonOption, Output
from pgcontext.errors import ConfigError
from pgcontext.settings import Settings
from pgcontext.url import parse

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from rich.console import RenderableType

    from pgcontext.migrate import DimensionsPlan, MigrationStatus
    from pgcontext.url import DatabaseUrl

app: Final = typer.Typer(
    help="Make, migrate and check the tables.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")]
NotLocalOption = Annotated[
    bool, typer.Option("--not-local", help="Also where the database is on another machine.")
]


@app.command()
def migrate(*, as_json: JsonOption = False) -> None:
    """Bring the database to this version's schema; one that is there stays as it is."""
    out = Output(as_json=as_json)
    with out.reported():
        from pgcontext.migrate import status, upgrade

        settings, _ = _target()
        before = status(settings=settings).revision
        revision = upgrade(settings=settings)
    if before == revision:
        text = f"The database is at revision {revision} already."
    else:
        text = f"Migrated the database from revision {before or 'none'} to {revision}."
    out.emit({"before": before, "revision": revision}, text=text)


@app.command()
def status(*, as_json: JsonOption = False) -> None:
    """Show which migrations are applied, and which are to come."""
    out = Output(as_json=as_json)
    with out.reported():
        from pgcontext.migrate import status as look

        settings, url = _target()
        found = look(settings=settings)
    value: dict[str, Any] = {"url": url.masked(), **msgspec.to_builtins(found)}
    out.emit(value, text=lambda: _status_table(url, found))


@app.command()
def check(*, as_json: JsonOption = False) -> None:
    """Compare the tables and all about them with this version's; exit 1 where they differ."""
    out = Output(as_json=as_json)
    with out.reported():
        from pgcontext.migrate import check as compare

        settings, _ = _target()
        differences = compare(settings=settings)
    text = "\n".join(differences) or "The database is as described."
    out.emit({"differences": differences}, text=text)
    if differences:
        raise typer.Exit(Exit.CHECK_FAILED)


@app.command()
def generate(
    *,
    message: Annotated[str, typer.Option("--message", "-m", help="What the migration does.")],
    empty: Annotated[
        bool, typer.Option("--empty", help="To be filled by hand: also without a difference.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write the migration from the newest one to what schema.py describes. In a checkout only."""
    out = Output(as_json=as_json)
    with out.reported():
        from pgcontext.migrate import generate as write

        settings, _ = _target()
        path = write(message, empty=empty, settings=settings)
    text = "Nothing to write: the migrations make what schema.py describes."
    if path is not None:
        text = f"Wrote {path}. Read it and mend it: functions, policies and data are beyond it."
    out.emit({"file": None if path is None else str(path)}, text=text)


@app.command()
def rollback(
    steps: Annotated[int, typer.Argument(metavar="[N]", help="How many migrations.")] = 1,
    *,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Undo the newest migrations. What their tables and columns hold is lost."""
    out = Output(as_json=as_json)
    with out.reported():
        from pgcontext.migrate import downgrade

        settings, url = _target()
    what = "the newest migration" if steps == 1 else f"the newest {steps} migrations"
    _ask(out, f"Undo {what} of {url.masked()}, with all that is stored in them?", yes=yes)
    with out.reported():
        revision = downgrade(steps=steps, settings=settings)
    text = f"The database is at revision {revision}."
    if revision is None:
        text = "Every migration is undone; the extension pgvector was left."
    out.emit({"revision": revision}, text=text)


@app.command()
def dimensions(
    length: Annotated[int, typer.Argument(metavar="N", help="How many numbers an embedding has.")],
    *,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Give embeddings another length. Those that are there are lost, and to be made anew."""
    out = Output(as_json=as_json)
    with out.reported():
        from pgcontext.migrate import change_dimensions, plan_dimensions

        settings, url = _target(migrated=False)  # which is refused where the lengths differ
        plan = plan_dimensions(length, settings=settings)
    if plan.before == length and not plan.indexes:
        out.emit(plan, text=f"The database's embeddings have {length:,} dimensions already.")
        return
    for line in _consequences(plan):
        out.note(line)
    _ask(out, f"Change {url.masked()}?", yes=yes)
    with out.reported(), _steps(out) as report:
        change_dimensions(length, settings=settings, report=report)
    text = (
        f"The database's embeddings have {length:,} dimensions. Set PGCONTEXT_DIMENSIONS={length} "
        "wherever pgcontext runs, then run: pgcontext embed"
    )
    out.emit(plan, text=text)


@app.command()
def language(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Such as german, or simple.")],
    *,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Take the texts to be in another language; again, it goes on where it was interrupted."""
    out = Output(as_json=as_json)
    with out.reported():
        from pgcontext.cli.progress import bar
        from pgcontext.cli.words import count
        from pgcontext.migrate import change_language, plan_language

        settings, url = _target()
        plan = plan_language(name, settings=settings)
    question = (
        f"Make the words of {count(plan.messages, 'message')} in {url.masked()} anew, in {name} "
        f"instead of {plan.before}?"
    )
    if plan.before == name:
        question = f"Look through {count(plan.messages, 'message')} in {url.masked()} for the rest?"
    _ask(out, question, yes=yes)
    with out.reported(), bar(out, plan.messages, "making the words anew") as report:
        changed = change_language(
            name,
            settings=settings,
            report=lambda seen: report(seen, f"{seen:,} of {count(plan.messages, 'message')}"),
        )
    value = {"before": plan.before, "language": name, "changed": changed}
    text = f"The database's language is {name}; {count(changed, 'message')} got other words."
    out.emit(value, text=text)


@app.command()
def push(*, as_json: JsonOption = False) -> None:
    """Bring a development database on this machine to schema.py without a migration file."""
    out = Output(as_json=as_json)
    with out.reported():
        from pgcontext.migrate import push as bring

        settings, _ = _target()
        changes = bring(settings=settings)
    text = "\n".join([*changes, "The database is as described."])
    out.emit({"changes": changes}, text=text)


@app.command()
def drop(
    *, yes: YesOption = False, not_local: NotLocalOption = False, as_json: JsonOption = False
) -> None:
    """Remove pgcontext's tables and functions and all they hold. On this machine, unless told."""
    out = Output(as_json=as_json)
    with out.reported():
        from pgcontext.migrate import drop as remove

        settings, url = _target()
        if not (url.is_local or (yes and not_local)):
            raise ConfigError(
                "The database is on another machine: dropping pgcontext's tables there needs both "
                "--yes and --not-local."
            )
    _ask(out, f"Remove pgcontext's tables from {url.masked()}, and all they hold?", yes=yes)
    with out.reported():
        names = remove(not_local=not_local, settings=settings)
    text = f"Removed: {', '.join(names)}." if names else "There was nothing to remove."
    out.emit({"removed": names}, text=text)


@app.command()
def seed(*, not_local: NotLocalOption = False, as_json: JsonOption = False) -> None:
    """Put in example conversations of two tenants, for development; again, nothing doubles."""
    out = Output(as_json=as_json)
    with out.reported():
        from pgcontext.cli.seeds import plant

        url = Settings.from_env().url
        if url is not None and not (url.is_local or not_local):
            raise ConfigError(
                "The database is on another machine: example data there needs --not-local."
            )
    planted = out.run(plant())
    text = (
        f"{planted.contexts} contexts of two tenants are there, {planted.made} of them new; "
        f"see: pgcontext tree, and the same with --tenant {planted.tenants[1]}"
    )
    out.emit(planted, text=text)


def _consequences(plan: DimensionsPlan) -> Iterator[str]:
    """Say beforehand what a change of the dimensions does."""
    if plan.before == plan.after:
        yield (
            f"The embeddings have {plan.after:,} dimensions already; what is yet to be built: "
            f"{', '.join(plan.indexes)}."
        )
        return
    yield (
        f"From {plan.before:,} to {plan.after:,} dimensions: the {plan.messages:,} messages "
        f"({plan.table_bytes / 1024**2:,.0f} MB with vectors and indexes) are rewritten, and "
        "nobody reads or writes them meanwhile; then their text index is built, and search by "
        "words is slow until it is there."
    )
    yield (
        f"{plan.embedded:,} embeddings are lost, and made anew by 'pgcontext embed'; until then "
        "those messages are found by words only."
    )
    if plan.lost:
        yield (
            f"{plan.lost:,} embeddings are lost for good: they were given with messages that have "
            "no text, or only blanks."
        )


@contextmanager
def _steps(out: Output) -> Generator[Callable[[str, float | None], None]]:
    """Show what is being done, and for how long, on a terminal; else say it line by line."""
    from pgcontext.cli.progress import bar

    with bar(out, None, "looking") as report:
        last = ""

        def follow(step: str, part: float | None) -> None:
            nonlocal last
            if step != last and not out.stderr.is_terminal:
                out.note(f"{step} ...")
            last = step
            report(100 * (part or 0), step, total=None if part is None else 100)

        yield follow


def _target(*, migrated: bool = True) -> tuple[Settings, DatabaseUrl]:
    """Return the settings with the direct URL: the environment's, else the embedded PostgreSQL's.

    Args:
        migrated: bring the embedded one to this version's schema first.

    Raises:
        ConfigError: what the environment names is a transaction pooler.
    """
    settings = Settings.from_env()
    url = settings.direct_url
    if url is None:
        from pgcontext import embedded

        url = parse(embedded.start_sync(migrated=migrated))
        settings = msgspec.structs.replace(settings, unpooled_url=url)
    return settings, url


def _ask(out: Output, question: str, *, yes: bool) -> None:
    """Go on when the answer is yes; end the command otherwise."""
    if yes:
        return
    if out.as_json:
        out.fail("With --json nothing is asked: say --yes.", code=Exit.INVALID_INPUT, kind="Usage")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        out.fail("Nothing was changed.", code=Exit.CHECK_FAILED, kind="Declined")


def _status_table(url: DatabaseUrl, found: MigrationStatus) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    states = {
        "current": ("current", "green"),
        "behind": (f"behind; run: pgcontext db migrate ({', '.join(found.pending)})", "yellow"),
        "newer": ("from a newer pgcontext; upgrade this one", "red"),
    }
    state, style = states[found.state]
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    table.add_row("database", Text(url.masked()))
    table.add_row("schema", found.schema)
    table.add_row("revision", Text(found.revision or "none").append(f"  {state}", style))
    table.add_row("dimensions", str(found.dimensions or "fixed by the first migration"))
    table.add_row("language", found.language or "fixed by the first migration")
    table.add_row("PostgreSQL", found.server_version)
    table.add_row("pgvector", found.pgvector_version or "made by the first migration")
    return table
