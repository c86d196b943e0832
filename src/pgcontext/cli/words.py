"""Turn values into the words and marks that people read in a terminal."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec
from rich.console import Group
from rich.style import Style
from rich.table import Table
from rich.text import Text

from pgcontext.cli.output import printable
from pgcontext.cli.references import short

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pgcontext import Context, Message, Window

ROLE_STYLES: Final = {
    "system": "magenta",
    "developer": "magenta",
    "user": "green",
    "assistant": "cyan",
    "tool": "yellow",
}
MINUTE: Final = 60
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR
ARGUMENT_CHARS_MAX: Final = 60


def ago(moment: datetime, now: datetime | None = None) -> str:
    """Say how long ago a moment was, or its date."""
    seconds = ((now or datetime.now(UTC)) - moment).total_seconds()
    if seconds < MINUTE:
        return "just now"
    if seconds < HOUR:
        return f"{seconds // MINUTE:.0f} min ago"
    if seconds < DAY:
        return f"{seconds // HOUR:.0f} h ago"
    return f"{moment.astimezone():%Y-%m-%d}"


def count(number: int, noun: str) -> str:
    """Say how many there are: 1 message, 2 messages."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def context_label(context: Context) -> Text:
    """Name a context in one line: its name, the end of its id, what it shows."""
    gone = context.deleted_at is not None
    name = printable(context.name) if context.name else "(no name)"
    label = Text(name, style="dim strike" if gone else "bold")
    label.append(f"  {short(context.id)}", Style(bold=False, dim=True, strike=False))
    sizes = f"  {count(context.message_count, 'message')}, {count(context.total_tokens, 'token')}"
    label.append(sizes, Style(bold=False, dim=gone, strike=False))
    if gone:
        label.append("  deleted", "red not strike")
    return label


def message_body(message: Message, *, chars_max: int | None = None) -> Text:
    """Return what a message says: its text, then the calls it makes."""
    body = Text()
    if message.content:
        text = printable(message.content)
        if chars_max is not None and len(text) > chars_max:
            text = shortened(" ".join(text.split()), chars_max)
        body.append(text, "dim" if message.role == "tool" else "")
    for call in tool_calls(message):
        body.append("\n" if body else "")
        body.append_text(call)
    return body


def tool_calls(message: Message) -> list[Text]:
    """Return the calls of a message as they would be written in code."""
    try:
        calls = msgspec.convert((message.payload or {}).get("tool_calls") or [], list[_ToolCall])
    except msgspec.ValidationError:
        return [Text("-> a call of another form", "dim")]
    return [_call(call.function) for call in calls if call.function is not None]


class _Function(msgspec.Struct):
    name: str = "?"
    arguments: str = ""


class _ToolCall(msgspec.Struct):
    function: _Function | None = None


def _call(function: _Function) -> Text:
    text = Text("-> ", style="dim")
    text.append(printable(function.name), "bold yellow not dim")
    return text.append(f"({_arguments(function.arguments)})", "yellow not dim")


def _arguments(written: str) -> str:
    """Write arguments as Python would; what is no JSON object stays as it is."""
    try:
        arguments = msgspec.json.decode(written, type=dict[str, Any])
    except msgspec.DecodeError:
        return shortened(printable(written), ARGUMENT_CHARS_MAX)
    return ", ".join(
        f"{printable(key)}={shortened(_compact(value), ARGUMENT_CHARS_MAX)}"
        for key, value in arguments.items()
    )


def _compact(value: Any) -> str:  # noqa: ANN401 (parsed JSON)
    return printable(json.dumps(value, ensure_ascii=False))


def shortened(text: str, chars_max: int | None) -> str:
    """Cut a text that is longer, and say so by an ellipsis."""
    if chars_max is None or len(text) <= chars_max:
        return text
    return text[: chars_max - 1].rstrip() + "…"


def conversation(
    context: Context,
    messages: list[Message],
    window: Window | None = None,
    *,
    chars_max: int | None = None,
) -> RenderableType:
    """Lay a conversation out to be read.

    Args:
        context: whose view it is.
        messages: of it, in the order to show them.
        window: what they were fitted into, for the closing line.
        chars_max: of a tool's result; None for all of it.
    """
    talk = transcript(context, messages, tool_chars_max=chars_max)
    return Group(*_heading(context), talk, *_closing(window))


def transcript(
    context: Context,
    messages: list[Message],
    *,
    chars_max: int | None = None,
    tool_chars_max: int | None = None,
) -> RenderableType:
    """Lay messages out: which version, who, what; cut where they are longer than asked for."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(justify="right", style="dim", no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    inherited = False
    for message in messages:
        own = message.context_id == context.id
        if own and inherited:
            grid.add_row("", "", Text(f"forked here, at version {context.fork_version}", "dim"))
        inherited = not own
        gone = "dim strike" if message.deleted_at is not None else ""
        cut = tool_chars_max or chars_max if message.role == "tool" else chars_max
        body = message_body(message, chars_max=cut)
        body.stylize(gone)
        speaker = Text(_speaker(message), f"{ROLE_STYLES[message.role]} {gone}")
        grid.add_row(str(message.version), speaker, body)
    return grid


def _speaker(message: Message) -> str:
    if message.role == "tool" and message.tool_name:
        return shortened(printable(message.tool_name), 16)
    return message.role


def _heading(context: Context) -> list[RenderableType]:
    lines = [context_label(context), Text(str(context.id), "dim")]
    if context.parent_id:
        lines.append(Text(f"fork of {context.parent_id} at version {context.fork_version}", "dim"))
    if context.metadata:
        pairs = (f"{printable(key)}={_compact(value)}" for key, value in context.metadata.items())
        lines.append(Text(" ".join(pairs), "dim", no_wrap=True, overflow="ellipsis"))
    return [*lines, Text()]


def _closing(window: Window | None) -> list[RenderableType]:
    if window is None:
        return []
    rest = "; older messages did not fit" if window.truncated else "; all of it"
    return [Text(), Text(f"{count(window.total_tokens, 'token')}{rest}", "dim")]
