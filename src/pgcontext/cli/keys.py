"""The commands under `pgcontext keys`: who may come in over HTTP."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar, cast
from uuid import UUID

import msgspec
import typer

from pgcontext.cli.output import CommandError, Exit, JsonOption, Output, TenantOption, opened
from pgcontext.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from rich.console import RenderableType

    from pgcontext.keys import ApiKey, Keys, NewKey
    from pgcontext.settings import Scope

T = TypeVar("T")

DAYS_MAX: Final = 36_500

app: Final = typer.Typer(
    help="Make, list, rotate and revoke the API keys of the HTTP application.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

KeyArgument = Annotated[
    UUID, typer.Argument(metavar="ID", help="The key's id, as `list` shows it.")
]


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the key is for.")],
    *,
    scope: Annotated[
        str, typer.Option("--scope", metavar="SCOPE", help="read, write or admin.")
    ] = "read",
    days: Annotated[
        float | None,
        typer.Option("--days", metavar="DAYS", help="How long it lives; without end if left out."),
    ] = None,
    tenant: TenantOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key and print it, this one time."""
    out = Output(as_json=as_json)
    with out.reported():
        expires_at = None if days is None else _days_ahead(days)
    made = out.run(
        _with_keys(
            tenant,
            lambda keys: keys.create(name, scope=cast("Scope", scope), expires_at=expires_at),
        )
    )
    _show(out, made)


@app.command("list")
def list_keys(*, tenant: TenantOption = None, as_json: JsonOption = False) -> None:
    """List a tenant's keys, newest first, revoked and expired ones too."""
    out = Output(as_json=as_json)
    found = out.run(_with_keys(tenant, lambda keys: keys.list()))
    out.emit([_value(key) for key in found], text=lambda: _table(found))


@app.command()
def rotate(
    key: KeyArgument,
    *,
    grace: Annotated[
        float,
        typer.Option("--grace", metavar="SECONDS", help="How long the old key goes on."),
    ] = 0,
    tenant: TenantOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key like this one, print it this one time, and end this one."""
    out = Output(as_json=as_json)
    _show(out, out.run(_with_keys(tenant, lambda keys: keys.rotate(key, grace_seconds=grace))))


@app.command()
def revoke(key: KeyArgument, *, tenant: TenantOption = None, as_json: JsonOption = False) -> None:
    """End a key. Servers that remember it let it in for PGCONTEXT_KEY_CACHE_SECONDS more."""
    out = Output(as_json=as_json)
    revoked = out.run(_with_keys(tenant, lambda keys: keys.revoke(key)))
    out.emit(_value(revoked), text=f"Revoked {revoked.id}.")


async def _with_keys(tenant: UUID | None, work: Callable[[Keys], Awaitable[T]]) -> T:
    from pgcontext.keys import KeyNotFoundError, Keys

    async with opened(tenant) as store:
        try:
            return await work(Keys.of(store))
        except KeyNotFoundError as error:
            raise CommandError(str(error), Exit.NOT_FOUND) from None


def _days_ahead(days: float) -> datetime:
    if 0 < days <= DAYS_MAX:
        return datetime.now(UTC) + timedelta(days=days)
    msg = f"--days must be above 0 and at most {DAYS_MAX:,}."
    raise InvalidInputError(msg)


def _show(out: Output, made: NewKey) -> None:
    """Print a new key: its text alone to stdout, so that it can be piped to where it belongs."""
    out.note(f"Key {made.key.id} ({made.key.scope}). It is not shown again:")
    out.emit({**_value(made.key), "text": made.text}, text=made.text)


def _value(key: ApiKey) -> dict[str, Any]:
    value: dict[str, Any] = msgspec.to_builtins(key)
    return {**value, "state": _state(key)}


def _state(key: ApiKey) -> str:
    now = datetime.now(UTC)
    if key.revoked_at is not None:
        return "revoked" if key.revoked_at <= now else "ending"
    return "expired" if key.expires_at is not None and key.expires_at <= now else "live"


def _table(found: list[ApiKey]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    if not found:
        return "There are no keys; nobody comes in. Make one: pgcontext keys create NAME"
    table = Table(box=None, pad_edge=False)
    for title in ("id", "name", "scope", "state", "made", "ends"):
        table.add_column(title, no_wrap=title == "id")
    for key in found:
        table.add_row(*(Text(cell) for cell in _cells(key)))
    return table


def _cells(key: ApiKey) -> list[str]:
    from pgcontext.cli.output import printable
    from pgcontext.cli.words import ago

    end = key.revoked_at or key.expires_at
    ends = "" if end is None else f"{end.astimezone():%Y-%m-%d %H:%M}"
    return [str(key.id), printable(key.name), key.scope, _state(key), ago(key.created_at), ends]
