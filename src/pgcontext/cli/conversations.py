"""The shapes of conversations that people have in files, made into one.

Accepted: a list of chat-completions messages; an object with `messages` and, if it likes, `id`,
`name` and `metadata`; a run of tau-bench (`traj`); a sample of LoCoMo (`conversation`); any number
of these in an array or as JSON lines; messages themselves as JSON lines; and what `pgcontext
export` writes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn, TypeGuard, cast
from uuid import UUID, uuid5

import msgspec

from pgcontext.cli.json_values import FileFormatError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pgcontext.cli.json_values import Value
    from pgcontext.models import Json

# Ids of imported conversations are made in this namespace: the same conversation, the same id.
NAMESPACE: Final = UUID("6d0c4d0e-8d7c-5c59-9a3c-3f0b0c7e5d11")
FORMAT: Final = "pgcontext"
FORMAT_VERSION: Final = 1
LOCOMO_SESSION: Final = re.compile(r"session_([0-9]+)")


class Lineage(msgspec.Struct, frozen=True, kw_only=True):
    """What an export says about a fork.

    Attributes:
        parent: the context it was forked from.
        version: the last version it inherits.
        hidden: the versions that the parent hid at that moment.
    """

    parent: UUID
    version: int
    hidden: tuple[int, ...] = ()


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """One conversation of a file.

    Attributes:
        place: where it stands in the file, for people: "Conversation 3 (line 7)".
        id: its context's id; None when it is found by what it says.
        origin: tells it apart from others that begin with the same words.
        name: its context's name.
        metadata: its context's metadata.
        messages: the mappings to append, oldest first.
        lineage: of a fork.
        gaps: versions of its own whose message is gone.
        hidden: versions that its view hides.
        expires_at: as in `Context`.
        deleted: whether its context is soft-deleted.
        exported: it is a line of a backup.
        after: of a later line about the same context, the version that it goes on from.
    """

    place: str
    id: UUID | None = None
    origin: str = ""
    name: str | None = None
    metadata: dict[str, Any] = {}
    messages: list[dict[str, Any]]
    lineage: Lineage | None = None
    gaps: tuple[int, ...] = ()
    hidden: tuple[int, ...] = ()
    expires_at: datetime | None = None
    deleted: bool = False
    exported: bool = False
    after: int | None = None

    @property
    def start(self) -> int:
        """The version before the first one here."""
        if self.after is not None:
            return self.after
        return self.lineage.version if self.lineage else 0

    def candidate(self, ordinal: int) -> UUID:
        """Return the id its context has; `ordinal` goes on past others that begin alike."""
        if self.id is not None:
            return self.id
        opening = _opening(self.messages)
        text = json.dumps([self.origin, opening], sort_keys=True, ensure_ascii=False)
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        return uuid5(NAMESPACE, f"{digest}#{ordinal}" if ordinal else digest)

    def versions(self) -> Iterator[tuple[int, Json | None]]:
        """Yield its own versions with their messages; None for a gap."""
        gaps = set(self.gaps)
        messages = iter(self.messages)
        for version in itertools.count(self.start + 1):
            if version in gaps:
                yield version, None
                continue
            message = next(messages, None)
            if message is None:
                return
            yield version, message


def conversations(values: Iterable[Value]) -> Iterator[Conversation]:
    """Make conversations of what a file holds, one at a time.

    Raises:
        FileFormatError: something is not of an accepted shape; names the conversation and the
            message by their number, from 1.
    """
    number = itertools.count(1)
    by_group = itertools.groupby(values, key=lambda value: (value.group, _is_message(value.parsed)))
    for (_, are_messages), group in by_group:
        if are_messages:
            first = next(group)
            place = f"Conversation {next(number)} (line {first.line})"
            messages = [first.parsed, *(value.parsed for value in group)]
            yield Conversation(place=place, messages=_messages(messages, place))
        else:
            for value in group:
                place = f"Conversation {next(number)} (line {value.line})"
                yield _conversation(value.parsed, place)


def _is_message(parsed: Any) -> bool:  # noqa: ANN401 (parsed JSON)
    return isinstance(parsed, dict) and "role" in parsed and "messages" not in parsed


def _conversation(parsed: Any, place: str) -> Conversation:  # noqa: ANN401 (parsed JSON)
    if isinstance(parsed, list):
        return Conversation(place=place, messages=_messages(parsed, place))
    if FORMAT in parsed:
        return _exported(parsed, place)
    if isinstance(parsed.get("traj"), list):
        return _tau_bench(parsed, place)
    if isinstance(parsed.get("conversation"), dict):
        return _locomo(parsed, place)
    if "messages" not in parsed:
        _refuse(
            place, "has no messages; a list of them, or an object with 'messages', was expected"
        )
    return _plain(parsed, place)


def _plain(parsed: Json, place: str) -> Conversation:
    known = {"id", "name", "metadata", "messages"}
    metadata = parsed.get("metadata")
    if not isinstance(metadata, dict | None):
        _refuse(place, "has metadata that is not an object")
    if not isinstance(parsed.get("name"), str | None):
        _refuse(place, "has a name that is not text")
    identity = parsed.get("id")
    return Conversation(
        place=place,
        id=None if identity is None else _context_id(identity, place),
        name=parsed.get("name"),
        # What else its object says is kept where it can be found by.
        metadata={key: parsed[key] for key in parsed if key not in known} | (metadata or {}),
        messages=_messages(parsed["messages"], place),
    )


def _tau_bench(parsed: Json, place: str) -> Conversation:
    task, trial = parsed.get("task_id"), parsed.get("trial")
    kept: Json = {key: parsed[key] for key in ("task_id", "trial", "reward") if key in parsed}
    return Conversation(
        place=place,
        origin=f"tau-bench {task} {trial}",
        name=f"tau-bench task {task}, trial {trial}",
        metadata={"source": "tau-bench", **kept},
        messages=_messages(parsed["traj"], place),
    )


def _locomo(parsed: Json, place: str) -> Conversation:
    """Make one conversation of all sessions; the first speaker is the user."""
    spoken = parsed["conversation"]
    speakers = [spoken.get("speaker_a"), spoken.get("speaker_b")]
    sample = parsed.get("sample_id")
    sessions = sorted(int(found[1]) for key in spoken if (found := LOCOMO_SESSION.fullmatch(key)))
    messages: list[Json] = []
    for session in sessions:
        extra = {"session": session, "date_time": spoken.get(f"session_{session}_date_time")}
        for turn in spoken[f"session_{session}"]:
            if not _is_object(turn) or turn.get("speaker") not in speakers:
                _refuse(place, f"has a turn in session {session} by neither of its two speakers")
            rest = {key: turn[key] for key in turn if key not in {"speaker", "text"}}
            role = "user" if turn["speaker"] == speakers[0] else "assistant"
            spoken_by = {"role": role, "content": turn.get("text"), "name": turn["speaker"]}
            messages.append(extra | rest | spoken_by)
    return Conversation(
        place=place,
        origin=f"LoCoMo {sample}",
        name=f"LoCoMo {sample}: {' and '.join(map(str, speakers))}",
        metadata={"source": "LoCoMo", "sample_id": sample, "speakers": speakers},
        messages=_messages(messages, place),
    )


class _Export(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A line that `pgcontext export` writes; see docs/cli.md."""

    pgcontext: int
    id: UUID
    messages: list[dict[str, Any]]
    name: str | None = None
    metadata: dict[str, Any] = {}
    created_at: str | None = None
    expires_at: datetime | None = None
    deleted_at: str | None = None
    parent: UUID | None = None
    fork_version: Annotated[int, msgspec.Meta(ge=0)] = 0
    hidden_at_fork: tuple[int, ...] = ()
    hidden: tuple[int, ...] = ()
    gaps: tuple[int, ...] = ()
    after: Annotated[int, msgspec.Meta(ge=0)] | None = None


def _exported(parsed: Json, place: str) -> Conversation:
    if parsed[FORMAT] != FORMAT_VERSION:
        _refuse(place, "was exported by a newer pgcontext; update pgcontext to import it")
    try:
        line = msgspec.convert(parsed, _Export)
    except msgspec.ValidationError:
        _refuse(place, f"says it is an export ('{FORMAT}': {FORMAT_VERSION}) but is not like one")
    lineage = (
        Lineage(parent=line.parent, version=line.fork_version, hidden=line.hidden_at_fork)
        if line.parent
        else None
    )
    return Conversation(
        place=place,
        id=line.id,
        name=line.name,
        metadata=line.metadata,
        messages=line.messages,
        lineage=lineage,
        gaps=line.gaps,
        hidden=line.hidden,
        expires_at=line.expires_at,
        deleted=line.deleted_at is not None,
        exported=True,
        after=line.after,
    )


def _context_id(identity: Any, place: str) -> UUID:  # noqa: ANN401 (parsed JSON)
    """Return the UUID it is, or one made of it: the same for the same."""
    if not isinstance(identity, str | int) or isinstance(identity, bool):
        _refuse(place, "has an id that is neither text nor a whole number")
    try:
        return UUID(str(identity))
    except ValueError:
        return uuid5(NAMESPACE, json.dumps(identity))


def _messages(parsed: Any, place: str) -> list[Json]:  # noqa: ANN401 (parsed JSON)
    if not isinstance(parsed, list):
        _refuse(place, "has 'messages' that are not a list")
    messages: list[Json] = []
    for number, message in enumerate(cast("list[object]", parsed), 1):
        if not _is_object(message):
            _refuse(place, f"has a message {number} that is not an object")
        # Other programs' message ids are theirs: not always UUIDs, nor unique in a tenant.
        messages.append({("source_id" if key == "id" else key): message[key] for key in message})
    return messages


def _is_object(parsed: object) -> TypeGuard[Json]:
    return isinstance(parsed, dict)


def _opening(messages: list[Json]) -> list[Json]:
    """Return the messages up to the first that is no instruction: they stay as it goes on."""
    spoken = (n for n, m in enumerate(messages, 1) if m.get("role") not in {"system", "developer"})
    return messages[: next(spoken, len(messages))]


def _refuse(place: str, why: str) -> NoReturn:
    msg = f"{place} {why}."
    raise FileFormatError(msg)
