"""The store of one tenant in plain Python: no SQL, no bounds; a fork copies what it is shown."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from pgcontext import errors

Key = tuple[int, UUID]  # a message: its version, and the context that wrote it


@dataclass
class Chat:
    lineage: list[UUID]  # root … self
    fork_version: int = 0
    latest: int = 0
    view: dict[Key, bool] = field(default_factory=dict)  # False: hidden
    deleted: bool = False


class Model(dict[UUID, Chat]):
    def __init__(self) -> None:
        self.said: dict[Key, dict[str, Any]] = {}  # what was appended and is not purged or erased

    def find(self, id: UUID, versions: Collection[int] = (), *, deleted: bool = False) -> set[Key]:
        if id not in self or (self[id].deleted and not deleted):
            raise errors.ContextNotFoundError(id)
        keys = {key for key in self[id].view if key[0] in versions and key in self.said}
        if len(keys) < len(set(versions)):
            raise errors.MessageNotFoundError(id, tuple(versions))
        return keys

    def history(self, id: UUID, at: int = 2**63) -> list[Key]:
        self.find(id)
        return sorted(k for k, v in self[id].view.items() if v and k[0] <= at and k in self.said)

    def append(self, id: UUID, batch: Iterable[dict[str, Any]]) -> None:
        self.find(id)
        for version, mapping in enumerate(batch, self[id].latest + 1):
            self[id].view[version, id] = True
            self[id].latest = version
            self.said[version, id] = mapping

    def fork(self, id: UUID, new: UUID, at: int) -> None:
        inherited = dict.fromkeys(self.history(id, at), True)
        if not 0 <= at <= self[id].latest:
            raise errors.InvalidInputError("beyond the end")
        self[new] = Chat([*self[id].lineage, new], at, at, inherited)

    def diff(self, a: UUID, b: UUID) -> tuple[UUID | None, int, list[Key], list[Key]]:
        one, two = set(self.history(a)), set(self.history(b))
        shared = [x for x in self[a].lineage if x in self[b].lineage]
        forks = [self[x].fork_version for x in {*self[a].lineage} ^ {*self[b].lineage}]
        version = min(self[a].latest, self[b].latest, *forks) if shared else 0
        return shared[-1] if shared else None, version, sorted(one - two), sorted(two - one)

    def merge(self, source: UUID, into: UUID, *, rebase: bool) -> None:
        ancestor, version, _, _ = self.diff(source, into)
        if ancestor is None:
            raise errors.InvalidInputError("unrelated")
        batch = [self.said[key] for key in self.history(source) if key[0] > version]
        if batch and self[into].latest > version and not rebase:
            raise errors.VersionConflictError(version, self[into].latest)
        self.append(into, batch)

    def purge(self) -> None:
        living = [x for x, chat in self.items() if not chat.deleted]
        needed = {ancestor for x in living for ancestor in self[x].lineage}
        self.said = {key: self.said[key] for x in living for key in self.history(x)}
        for x in self.keys() - needed:
            del self[x]

    def erase(self, id: UUID, versions: Collection[int] = ()) -> None:
        gone = self.find(id, versions, deleted=True) or {key for key in self.said if key[1] == id}
        self.said = {key: mapping for key, mapping in self.said.items() if key not in gone}
        self[id].deleted |= not versions

    def window(self, id: UUID, max_tokens: int, at: int = 2**63) -> tuple[list[Key], bool]:
        def calls(group: list[Key]) -> set[str]:
            return {call["id"] for call in self.said[group[0]].get("tool_calls", ())}

        def answers(group: list[Key]) -> set[str]:
            return {self.said[key]["tool_call_id"] for key in group[1:]}

        shown, groups, taken = self.history(id, at), list[list[Key]](), list[Key]()
        pinned = [key for key in shown if self.said[key]["role"] in {"system", "developer"}]
        tokens = {key: self.said[key]["token_count"] for key in shown}
        if sum(tokens[key] for key in pinned) > max_tokens:
            raise errors.LimitExceededError("the pinned messages alone")
        for key in (key for key in shown if key not in pinned):
            if self.said[key]["role"] != "tool":
                groups.append([key])
            elif groups and self.said[key]["tool_call_id"] in calls(groups[-1]):
                groups[-1].append(key)
        whole = [one for one in groups if calls(one) == answers(one) or one is groups[-1]]
        while whole and sum(tokens[key] for key in pinned + whole[-1] + taken) <= max_tokens:
            taken = [*whole.pop(), *taken]
        return [*pinned, *taken], bool(whole)
