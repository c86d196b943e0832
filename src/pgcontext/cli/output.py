"""How every command speaks: results to stdout, everything else to stderr, errors in one sentence.

A command makes one `Output`, runs its work inside it and emits its result once:

    out = Output(as_json=as_json)
    context = out.run(_fork(...))
    out.emit(context, text=f"Forked into {context.id}.")
"""

from __future__ import annotations

import asyncio
import enum
import os
import re
import sys
import traceback
from contextlib import asynccontextmanager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn, TypeVar
from uuid import UUID

import msgspec
import typer

from pgcontext.errors import (
    ConfigError,
    ContextNotFoundError,
    ContextStoreError,
    DimensionMismatchError,
    EmbeddingError,
    IdempotencyConflictError,
    InvalidInputError,
    MessageNotFoundError,
    PoolTimeoutError,
    SchemaMismatchError,
    UnavailableError,
    VersionConflictError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Generator

    from rich.console import Console, RenderableType

    from pgcontext import ContextStore
    from pgcontext.settings import Settings

T = TypeVar("T")

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
TenantOption = Annotated[
    UUID | None,
    typer.Option(
        "--tenant", metavar="UUID", help="Whose contexts; the default tenant if left out."
    ),
]


class Exit(enum.IntEnum):
    """What the exit code says; the table in docs/cli.md."""

    OK = 0
    CHECK_FAILED = 1
    INVALID_INPUT = 2
    NOT_FOUND = 3
    CONFLICT = 4
    CONFIG = 5
    UNAVAILABLE = 6
    NOT_MIGRATED = 7
    UNEXPECTED = 70
    INTERRUPTED = 130


class CommandError(ContextStoreError):
    """A command cannot do what it was asked for; carries the exit code that says why."""

    def __init__(self, message: str, code: Exit) -> None:
        super().__init__(message)
        self.code = code


# The first class that fits decides.
EXIT_CODES: Final[tuple[tuple[type[ContextStoreError], Exit], ...]] = (
    (InvalidInputError, Exit.INVALID_INPUT),
    (ContextNotFoundError, Exit.NOT_FOUND),
    (MessageNotFoundError, Exit.NOT_FOUND),
    (VersionConflictError, Exit.CONFLICT),
    (IdempotencyConflictError, Exit.CONFLICT),
    (ConfigError, Exit.CONFIG),
    (SchemaMismatchError, Exit.NOT_MIGRATED),
    (EmbeddingError, Exit.UNAVAILABLE),
    (PoolTimeoutError, Exit.UNAVAILABLE),
    (UnavailableError, Exit.UNAVAILABLE),
)

# What a terminal would obey instead of showing; a tab and a newline are fine.
CONTROL_CHARACTERS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class Output:
    """Where one command's result and its failure go.

    Attributes:
        as_json: print JSON, for programs; else rich text, for people.
        show_traceback: of an unexpected failure; set by `pgcontext --debug`.
    """

    show_traceback = False

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json

    @cached_property
    def console(self) -> Console:
        """The console for results: stdout."""
        from rich.console import Console

        return Console(highlight=False, emoji=False)

    @cached_property
    def stderr(self) -> Console:
        """The console for all that is not a result: stderr."""
        from rich.console import Console

        return Console(stderr=True, highlight=False, emoji=False)

    def emit(
        self,
        value: Any,  # noqa: ANN401 (anything JSON)
        *,
        text: str | Callable[[], RenderableType],
    ) -> None:
        """Print the result: `value` as one JSON document with --json, else `text`."""
        with self.reported():
            if self.as_json:
                print(to_json(value))
                return
            laid_out = text if isinstance(text, str) else text()
            # A sentence is cut by the terminal, not by us: it may hold a path to be copied.
            sentence = isinstance(laid_out, str)
            self.console.print(laid_out, markup=False, soft_wrap=sentence)

    def note(self, text: str) -> None:
        """Say something to a person that is not part of the result."""
        if not self.as_json:
            self.stderr.print(text, markup=False, soft_wrap=True)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` to its end and return its result; report what goes wrong."""
        with self.reported():
            return asyncio.run(work)

    @contextmanager
    def reported(self) -> Generator[None]:
        """Turn any failure inside into one sentence on stderr and its exit code."""
        try:
            yield
        except ContextStoreError as error:
            self.fail(str(error), code=exit_code(error), kind=type(error).__name__)
        except (KeyboardInterrupt, asyncio.CancelledError):
            self.fail("Interrupted.", code=Exit.INTERRUPTED, kind="Interrupted")
        except BrokenPipeError:  # `pgcontext list | head`: the reader has what it wanted
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(Exit.OK)
        except Exception as error:  # noqa: BLE001 (the last resort, so that no traceback is shown)
            if self.show_traceback:
                traceback.print_exc()
            # Its text may quote anything, so only its class is named.
            self.fail(
                f"Unexpected {type(error).__name__}; "
                "run it as 'pgcontext --debug ...' for the details.",
                code=Exit.UNEXPECTED,
                kind="Unexpected",
            )

    def fail(self, sentence: str, *, code: Exit, kind: str) -> NoReturn:
        """Print the sentence to stderr and end the command.

        Raises:
            SystemExit: with `code`, always.
        """
        if self.as_json:
            print(to_json({"error": {"type": kind, "detail": sentence}}), file=sys.stderr)
        else:
            from rich.text import Text

            mark = Text("pgcontext: ", style="bold red")
            self.stderr.print(mark + Text(printable(sentence)), soft_wrap=True)
        sys.exit(code)


@asynccontextmanager
async def opened(tenant: UUID | None) -> AsyncGenerator[ContextStore]:
    """Open the store that the environment names, as one tenant; closed afterwards."""
    from pgcontext import ContextStore

    async with ContextStore.from_env(tenant_id=tenant) as store:
        if store.settings.url is None:
            await embedded_started(store.settings)
        yield store


async def embedded_started(settings: Settings) -> None:
    """Start the embedded PostgreSQL unless it runs; on a terminal, show that this takes a while."""
    from rich.console import Console

    from pgcontext import embedded

    directory = Path(settings.data_dir) if settings.data_dir else None
    with Console(stderr=True).status("Starting PostgreSQL ..."):
        await embedded.start(directory, dimensions=settings.dimensions)


def exit_code(error: ContextStoreError) -> Exit:
    """Tell the exit code that stands for an error."""
    if isinstance(error, DimensionMismatchError) and error.sqlstate:
        return Exit.CONFIG  # the database has another length than the settings say
    if isinstance(error, CommandError):
        return error.code
    return next((code for kind, code in EXIT_CODES if isinstance(error, kind)), Exit.UNEXPECTED)


def to_json(value: Any) -> str:  # noqa: ANN401 (anything JSON)
    """Encode a result; models, UUIDs and times included."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def printable(text: str) -> str:
    """Replace what would steer the terminal; stored text is anybody's."""
    return CONTROL_CHARACTERS.sub("\N{REPLACEMENT CHARACTER}", text)
