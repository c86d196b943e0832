"""What is said in the demo: how the conversation it forks goes on, on both sides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from pgcontext import Context, ContextStore, Message
    from pgcontext.models import Json


class Story(msgspec.Struct, frozen=True, kw_only=True):
    """The words that the demo adds.

    Attributes:
        question: a message appended to the conversation.
        answer: what follows it there.
        fork_name: the name of the fork.
        why: what the fork is for.
        other: what follows the fork point in the fork instead.
        words: what is searched for where nothing embeds.
        query: what is searched for in other words than were said; "" to choose from `QUERIES`.
    """

    question: str
    answer: str
    fork_name: str
    why: str
    other: list[dict[str, Any]]
    words: str
    query: str = ""


FERRY: Final = Story(
    question="One more thing: does the canoe need a life jacket, too?",
    answer="It floats by itself, so no. But two straps hold it to the rack, and they are free.",
    fork_name="What if the waves win?",
    why="The canoe has decided for the early boat. What if the teenager had?",
    other=[
        {
            "role": "user",
            "content": "Leave the canoe at home, we rent one on the island. "
            "The teenager wins: SK-211, please!",
        },
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "call_waves_1",
                    "type": "function",
                    "function": {"name": "book", "arguments": '{"sailing": "SK-211"}'},
                },
                {
                    "id": "call_waves_2",
                    "type": "function",
                    "function": {
                        "name": "canoe_rental",
                        "arguments": '{"island": "Gullholm", "date": "2026-06-19"}',
                    },
                },
            ],
        },
        {
            "role": "tool",
            "tool_call_id": "call_waves_1",
            "name": "book",
            "content": '{"reference": "GULL-4502", "status": "confirmed"}',
        },
        {
            "role": "tool",
            "tool_call_id": "call_waves_2",
            "name": "canoe_rental",
            "content": '{"available": 3, "colour": "red", "crowns_per_day": 220}',
        },
        {
            "role": "assistant",
            "content": "Booked: GULL-4502, SK-211 at 08:15. A red canoe waits at the pier of "
            "Gullholm for 220 crowns a day. Waves of a metre are included.",
        },
    ],
    words="booked for Friday",
    query="sales grew because of a discount error",
)

ANY: Final = Story(
    question="Before we go on: what have we got so far, in one sentence?",
    answer="(A line that the demo has appended: here your agent would answer.)",
    fork_name="What if?",
    why="The same beginning, another way from there.",
    other=[
        {"role": "user", "content": "Wait. Let us go another way from here."},
        {
            "role": "assistant",
            "content": "(A line that the demo has appended: here your agent would go another way.)",
        },
    ],
    words="",
)

# What people talk about, in words that they seldom say: for conversations that aren't known.
QUERIES: Final = (
    "angry about a late plane",
    "forgot my password",
    "give us our money back",
    "somebody died",
    "kids and parents",
    "our new puppy",
    "food for dinner",
    "looking for a job",
    "a long vacation abroad",
)
NEAR_DISTANCE: Final = 0.7
WORDS: Final = 2
WORD_CHARS: Final = range(6, 12)


def story_of(context: Context, messages: list[Message]) -> Story:
    """Return the story for a conversation: its own for the sample, one that fits any otherwise."""
    if context.metadata.get("product") == "Skerry Lines":
        return FERRY
    return msgspec.structs.replace(ANY, words=words_of(messages))


def fork_point(messages: list[Message]) -> int:
    """Return the version nearest to the middle where an assistant has finished speaking."""
    middle = messages[(len(messages) - 1) // 2].version
    finished = [m.version for m in messages if m.role == "assistant" and not _calls(m)]
    return min(finished, key=lambda version: abs(version - middle), default=middle)


def words_of(messages: list[Message]) -> str:
    """Choose words to search for: the longest that the user says."""
    said = " ".join(m.content or "" for m in messages if m.role == "user")
    words = dict.fromkeys(
        word for word in said.split() if word.isalpha() and len(word) in WORD_CHARS
    )
    longest = sorted(words, key=len, reverse=True)[:WORDS]
    return " ".join(longest) or "the"


async def query_of(store: ContextStore) -> str:
    """Choose the one of `QUERIES` that has the nearest answer, one in other words if there is."""
    answers: dict[str, tuple[bool, float]] = {}
    for query in QUERIES:
        for hit in await store.search(query, mode="hybrid", limit=1):
            distance = 2.0 if hit.distance is None else hit.distance
            shared = hit.text_score is not None
            answers[query] = (shared or distance > NEAR_DISTANCE, distance)
    return min(answers, key=lambda query: answers[query], default=QUERIES[0])


def window_tokens(messages: list[Message]) -> int:
    """Choose a budget that cuts: the instructions, and about a quarter of the rest."""
    pinned = sum(m.token_count for m in messages if m.role in {"system", "developer"})
    rest = sum(m.token_count for m in messages) - pinned
    return max(100, -(-(pinned + rest // 4) // 50) * 50)


def _calls(message: Message) -> Json | None:
    return (message.payload or {}).get("tool_calls")
