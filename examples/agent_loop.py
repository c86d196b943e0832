"""An agent with a tool, in the chat-completions form, whose memory is a context.

    python examples/agent_loop.py

The model here is scripted, so that the example runs without a network or a key. With a real one,
`answer` is one call: `client.chat.completions.create(model=…, messages=messages, tools=…)`, and
its `choices[0].message.model_dump(exclude_none=True)` is appended as it is.

Prints:
    user: Where is my parcel HX-204?
    assistant calls parcel_status({"number": "HX-204"})
    tool: out for delivery, Leeds depot
    assistant: Parcel HX-204: out for delivery, Leeds depot.
    user: Thanks! Can you call me when it is here?
    assistant: I can't place calls, but I can send a message.
    the model sees 6 of 7 messages in 100 tokens, and the system prompt is among them
"""

import asyncio
import json
from typing import Any
from uuid import UUID

from pgcontext import ContextStore

WINDOW_TOKENS = 100


async def run_turn(store: ContextStore, chat_id: UUID, request_id: str, question: str) -> None:
    """Answer one request. Called again with the same request_id, it says nothing twice."""
    await store.append(
        chat_id, {"role": "user", "content": question}, idempotency_key=f"{request_id}/question"
    )
    for step in range(5):
        # What fits, newest first, the system prompt always, a tool call never without its result.
        window = await store.window(chat_id, max_tokens=WINDOW_TOKENS)
        reply = answer([message.as_dict() for message in window.messages])
        # The reply and the results of its calls are one batch: nobody sees the one without the
        # other, and a retry of this step writes nothing new.
        batch = [reply, *(call_tool(call) for call in reply.get("tool_calls", []))]
        await store.append(chat_id, batch, idempotency_key=f"{request_id}/{step}")
        if not reply.get("tool_calls"):
            return


def answer(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """Stand in for a model: look at the last message and say the next."""
    last = messages[-1]
    if last["role"] == "tool":
        status = json.loads(last["content"])
        text = f"Parcel {status['number']}: {status['status']}, {status['place']}."
        return {"role": "assistant", "content": text}
    if "call me" in last["content"]:
        text = "I can't place calls, but I can send a message."
        return {"role": "assistant", "content": text}
    number = last["content"].rstrip("?").rsplit(" ", 1)[1]
    function = {"name": "parcel_status", "arguments": json.dumps({"number": number})}
    call = {"id": "call_1", "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def call_tool(call: dict[str, Any]) -> dict[str, Any]:
    """Do what the model asked for."""
    number = json.loads(call["function"]["arguments"])["number"]
    status = {"number": number, "status": "out for delivery", "place": "Leeds depot"}
    return {"role": "tool", "tool_call_id": call["id"], "content": json.dumps(status)}


async def main() -> None:
    """Hold a conversation of two turns and show what was stored."""
    async with ContextStore() as store:
        chat = await store.create(name="support", metadata={"customer": 7})
        await store.append(chat.id, {"role": "system", "content": "You help with parcels."})
        await run_turn(store, chat.id, "request-1", "Where is my parcel HX-204?")
        await run_turn(store, chat.id, "request-2", "Thanks! Can you call me when it is here?")
        async for message in store.iter_history(chat.id):
            show(message.as_dict())
        window = await store.window(chat.id, max_tokens=WINDOW_TOKENS)
        pinned = any(message.role == "system" for message in window.messages)
        print(
            f"the model sees {len(window.messages)} of {(await store.get(chat.id)).message_count} "
            f"messages in {WINDOW_TOKENS} tokens, and the system prompt is "
            f"{'' if pinned else 'not '}among them"
        )


def show(message: dict[str, Any]) -> None:
    """Print a message in one line; the system prompt is left out."""
    for call in message.get("tool_calls", []):
        function = call["function"]
        print(f"{message['role']} calls {function['name']}({function['arguments']})")
    if message["role"] == "tool":
        status = json.loads(message["content"])
        print(f"tool: {status['status']}, {status['place']}")
    elif message["content"] and message["role"] != "system":
        print(f"{message['role']}: {message['content']}")


asyncio.run(main())
