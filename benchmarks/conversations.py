"""Conversations as agents have them: questions, tool calls, what the tools say, answers.

Made up, and the same in every run. Lengths are spread as in recorded agent runs: a question has a
sentence or three, an answer up to ten, and what a tool says is JSON of a few hundred bytes to some
thousand.
"""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

SEED: Final = 18
MESSAGES_PER_TURN: Final = 4

SYSTEM: Final = (
    "You are the assistant of an online bookshop. Look things up with the tools before you answer, "
    "never guess an order number, and ask before you change or cancel anything. Refunds above 50 "
    "euros need the approval of a colleague. Answer in the language of the customer, briefly."
)
_QUESTIONS: Final = (
    "Hello, I ordered two books last week and only one of them has arrived.",
    "Could you tell me where order {order} is right now?",
    "The parcel was left with a neighbour who moved out in {month}.",
    "I would like to send back {title}, the cover is torn.",
    "Is {title} by {author} available as a paperback again?",
    "My invoice shows {amount} euros but the shop said {other} euros.",
    "Please use the address in {city} from now on, not the old one.",
    "Can the gift card be used for the shipping as well?",
    "I never received the confirmation mail for {order}.",
    "What would express delivery to {city} cost me?",
    "We are a school library and need {count} copies of {title} before {month}.",
    "Thanks, that helps. One more thing before I go.",
    "That is not what I asked, please read my first message again.",
)
_ANSWERS: Final = (
    "I found order {order}: it left our warehouse in {city} and is on its way to you.",
    "The carrier reports that the second parcel was scanned on Tuesday, so it will be there soon.",
    "{title} by {author} is in stock as a paperback for {amount} euros.",
    "You can return it free of charge within thirty days; I have sent you the label by mail.",
    "The difference on the invoice comes from the shipping, which is free above {other} euros.",
    "I have changed the delivery address to the one in {city}.",
    "For {count} copies there is a discount of ten per cent, which I can add to the order.",
    "Express delivery takes one working day and costs 7.90 euros inside the country.",
    "A refund of {amount} euros will be on your card within five working days.",
    "Before I cancel anything: shall I cancel only the missing book, or the whole order {order}?",
    "If it has not arrived by Friday, write to me again and I will open an investigation.",
    "Is there anything else that I can do for you today?",
)
_TOOLS: Final = ("get_order_details", "search_catalogue", "track_parcel", "calculate_refund")
_TITLES: Final = (
    "The Lighthouse Keeper's Ledger",
    "A Grammar of Small Rivers",
    "Winter in Nine Kitchens",
    "The Cartographer's Apprentice",
    "Salt and Semaphore",
    "An Orchard on the Moon",
)
_AUTHORS: Final = ("Ines Talvik", "Jonah Okafor", "Marguerite Sato", "Piotr Lindqvist", "Aila Roy")
_CITIES: Final = ("Lisbon", "Tallinn", "Graz", "Utrecht", "Bologna", "Galway", "Brno")
_MONTHS: Final = ("January", "March", "May", "July", "September", "November")
_STATES: Final = ("delivered", "in transit", "packed", "returned", "waiting for stock")


def conversation(turns: int) -> Iterator[dict[str, Any]]:
    """Yield a system message, then `MESSAGES_PER_TURN` messages for each turn."""
    chance = random.Random(SEED)  # noqa: S311 (no secret)
    yield {"role": "system", "content": SYSTEM}
    for turn in range(turns):
        yield from _turn(chance, f"call_{turn}")


def _turn(chance: random.Random, call_id: str) -> Iterator[dict[str, Any]]:
    order = f"#W{chance.randrange(10**7):07}"
    tool = chance.choice(_TOOLS)
    arguments = json.dumps({"order_id": order, "include_history": chance.random() < 0.5})  # noqa: PLR2004
    yield {"role": "user", "content": _prose(chance, _QUESTIONS, order, chance.randint(1, 3))}
    yield {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": call_id,
                "type": "function",
                "function": {"name": tool, "arguments": arguments},
            }
        ],
    }
    yield {
        "role": "tool",
        "tool_call_id": call_id,
        "name": tool,
        "content": json.dumps(_found(chance, order)),
    }
    yield {"role": "assistant", "content": _prose(chance, _ANSWERS, order, chance.randint(2, 10))}


def _prose(chance: random.Random, sentences: tuple[str, ...], order: str, count: int) -> str:
    return " ".join(
        sentence.format(
            order=order,
            title=chance.choice(_TITLES),
            author=chance.choice(_AUTHORS),
            city=chance.choice(_CITIES),
            month=chance.choice(_MONTHS),
            amount=chance.randint(5, 80),
            other=chance.randint(5, 80),
            count=chance.randint(2, 60),
        )
        for sentence in chance.sample(sentences, count)
    )


def _found(chance: random.Random, order: str) -> dict[str, Any]:
    return {
        "order_id": order,
        "state": chance.choice(_STATES),
        "city": chance.choice(_CITIES),
        "items": [
            {
                "isbn": f"978{chance.randrange(10**10):010}",
                "title": chance.choice(_TITLES),
                "author": chance.choice(_AUTHORS),
                "price": chance.randint(500, 8000) / 100,
                "quantity": chance.randint(1, 3),
            }
            for _ in range(chance.randint(1, 8))
        ],
    }
