"""All commands, under one `typer` application."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from pgcontext.cli import (
    contexts,
    db,
    demo,
    doctor,
    embedding,
    exporting,
    importing,
    keys,
    searching,
    serve,
    trees,
)
from pgcontext.cli.output import Output

app = typer.Typer(
    name="pgcontext",
    help="Store, fork, search and window LLM conversations in your own PostgreSQL.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:  # noqa: FBT001 (typer's callback)
    if asked:
        print(f"pgcontext {version('pgcontext')}")
        raise typer.Exit


@app.callback()
def _main(
    *,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an unexpected failure.")
    ] = False,
    _: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    Output.show_traceback = debug


CONVERSATIONS = "Conversations"
FILES = "In and out"
DATABASE = "Database"
SERVICE = "Over HTTP"

app.command(rich_help_panel="First")(demo.demo)
app.command("list", rich_help_panel=CONVERSATIONS)(contexts.list_contexts)
app.command(rich_help_panel=CONVERSATIONS)(contexts.show)
app.command(rich_help_panel=CONVERSATIONS)(trees.tree)
app.command(rich_help_panel=CONVERSATIONS)(searching.search)
app.command(rich_help_panel=CONVERSATIONS)(contexts.fork)
app.command(rich_help_panel=CONVERSATIONS)(contexts.delete)
app.command(rich_help_panel=CONVERSATIONS)(contexts.restore)
app.command("import", rich_help_panel=FILES)(importing.import_file)
app.command(rich_help_panel=FILES)(exporting.export)
app.command(rich_help_panel=DATABASE)(doctor.doctor)
app.command(rich_help_panel=DATABASE)(embedding.embed)

app.add_typer(db.app, name="db", rich_help_panel=DATABASE)

app.command("serve", rich_help_panel=SERVICE)(serve.serve)
app.add_typer(keys.app, name="keys", rich_help_panel=SERVICE)
