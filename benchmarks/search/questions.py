"""Three corpora with questions of which it is known what answers them.

LoCoMo: two people talk for months, in short messages; asked is what somebody said, in the
conversation where it was said. tau: agents serve customers; asked is for another run of the same
task, over all runs of a tenant. Books: long passages of our own writing, close to each other in
their topics; asked, over all of them, in other words, by keywords or by identifiers.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

import msgspec

from benchmarks.processes import RECORDED as RUNS
from benchmarks.search.vectors import RECORDED as EMBEDDED

BOOKS: Final = Path(__file__).with_name("corpora") / "books.json"
TALKS: Final = EMBEDDED.with_name("locomo_public.json")
# In LoCoMo: what is asked of whom was never said. No message answers it.
ADVERSARIAL: Final = 5
CATEGORIES: Final = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop"}
# A customer's or a reservation's name, as the airline gives them.
IDENTIFIER: Final = re.compile(r"\b[a-z]+_[a-z]+_\d{4}\b|\b(?=[A-Z]*\d)[A-Z0-9]{6}\b|\b[A-Z]{6}\b")


class Conversation(msgspec.Struct, frozen=True):
    """What is stored as one context.

    Attributes:
        tenant: its number.
        messages: in the chat-completions form.
    """

    tenant: int
    messages: list[dict[str, Any]]


class Question(msgspec.Struct, frozen=True):
    """What is searched for.

    Attributes:
        name: of the question, one of its kind.
        text: the query.
        category: of question.
        group: what it shares with other questions, which are therefore no independent evidence.
        tenant: searched in.
        conversation: searched in; None over the tenant.
        answers: messages that count, as (number of the conversation, version).
    """

    name: str
    text: str
    category: str
    group: str
    tenant: int
    conversation: int | None
    answers: frozenset[tuple[int, int]]


class Corpus(msgspec.Struct, frozen=True):
    """Conversations and questions.

    Attributes:
        name: for the tables.
        measure: how a question is counted: the share of its answers among the first ten hits
            (`recall@10`), or whether any is among them (`hit@10`).
        groups: what the questions' groups are.
        conversations: what is stored.
        questions: what is asked.
    """

    name: str
    measure: str
    groups: str
    conversations: list[Conversation]
    questions: list[Question]

    def texts(self) -> list[str]:
        """Return what needs an embedding, each once."""
        contents = (
            message.get("content")
            for conversation in self.conversations
            for message in conversation.messages
        )
        asked = (question.text for question in self.questions)
        return list(dict.fromkeys([*filter(None, contents), *asked]))


def books() -> Corpus:
    """Return the passages: a book is a conversation, a passage a message."""
    written: list[dict[str, Any]] = json.loads(BOOKS.read_text("utf-8"))
    conversations = [
        Conversation(0, [_message("assistant", passage["text"]) for passage in book["passages"]])
        for book in written
    ]
    questions = [
        Question(
            name=f"{passage['name']}/q{place}",
            text=question["text"],
            category=question["category"],
            group=book["title"],
            tenant=0,
            conversation=None,
            answers=frozenset([(number, version)]),
        )
        for number, book in enumerate(written)
        for version, passage in enumerate(book["passages"], 1)
        for place, question in enumerate(passage["questions"])
    ]
    return Corpus("books", "recall@10", "books", conversations, questions)


def locomo() -> Corpus:
    """Return the recorded talks; a turn's text is as its recorded embedding saw it."""
    conversations: list[Conversation] = []
    questions: list[Question] = []
    for number, talk in enumerate(json.loads(TALKS.read_text("utf-8"))):
        turns = _turns(talk["conversation"])
        first = talk["conversation"]["speaker_a"]
        messages = [
            _message("user" if turn["speaker"] == first else "assistant", _spoken(turn))
            for turn in turns
        ]
        conversations.append(Conversation(0, messages))
        versions = {turn["dia_id"]: version for version, turn in enumerate(turns, 1)}
        questions += [
            Question(
                name=f"{talk['sample_id']}/q{place}",
                text=asked["question"],
                category=CATEGORIES[asked["category"]],
                group=talk["sample_id"],
                tenant=0,
                conversation=number,
                answers=answers,
            )
            for place, asked in enumerate(talk["qa"])
            if asked["category"] != ADVERSARIAL
            and (answers := _evidence(number, asked["evidence"], versions))
        ]
    return Corpus("LoCoMo", "recall@10", "conversations", conversations, questions)


def _turns(talk: dict[str, Any]) -> list[dict[str, str]]:
    sessions = sorted(
        (int(found[1]), name) for name in talk if (found := re.fullmatch(r"session_(\d+)", name))
    )
    return [turn for _, name in sessions for turn in talk[name]]


def _spoken(turn: dict[str, str]) -> str:
    shared = turn.get("blip_caption")
    return f"{turn['speaker']}: {turn['text']}" + (f" [shares {shared}]" if shared else "")


def _evidence(
    conversation: int, named: list[str], versions: dict[str, int]
) -> frozenset[tuple[int, int]]:
    """Read where the answer is; some of these are malformed, as "D8:6; D9:17" or "D:11:26"."""
    found = re.findall(r"D:?(\d+):(\d+)", " ".join(named))
    turns = (f"D{int(session)}:{int(turn)}" for session, turn in found)
    return frozenset((conversation, versions[turn]) for turn in turns if turn in versions)


def tau() -> Corpus:
    """Return recorded agent runs, each trial a tenant, asked for with what the other trial says."""
    runs: list[dict[str, Any]] = json.loads(RUNS.read_text("utf-8"))
    number = {(run["trial"], run["task_id"]): place for place, run in enumerate(runs)}
    questions = [
        Question(
            name=f"{run['task_id']}/{run['trial']}/{category}",
            text=text,
            category=category,
            group=str(run["task_id"]),
            tenant=1 - run["trial"],
            conversation=None,
            answers=frozenset((twin, version) for version in range(1, len(runs[twin]["traj"]) + 1)),
        )
        for run in runs
        if (twin := number.get((1 - run["trial"], run["task_id"]))) is not None
        for category, text in _said(run["traj"]).items()
    ]
    conversations = [Conversation(run["trial"], run["traj"]) for run in runs]
    return Corpus("tau look-up", "hit@10", "tasks", conversations, questions)


def _said(messages: list[dict[str, Any]]) -> dict[str, str]:
    """Return how the customer began, what first names something, and the longest of the rest."""
    said = [
        message["content"]
        for message in messages
        if message["role"] == "user" and message["content"] and "###" not in message["content"]
    ]
    naming = next((text for text in said if IDENTIFIER.search(text)), None)
    rest = [text for text in said[1:] if text != naming]
    chosen = {"opening": said[0], "identifier": naming, "later": max(rest, key=len, default=None)}
    return {category: text for category, text in chosen.items() if text}


def _message(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}
