"""An embedder made of a function."""

from __future__ import annotations

import asyncio
import inspect
import threading
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from pgcontext.embedding.names import model_name

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    Vectors: TypeAlias = Sequence[Iterable[float]]


class CallableEmbedder:
    """Embeds with a function of yours: `CallableEmbedder("my-model", encode)`.

    Args:
        model: kept with each vector; give another name when the function's vectors change, since
            vectors of different models are never compared.
        function: takes a list of texts and returns one vector for each, in order: lists, or a
            numpy array. A plain function runs in a thread, one call at a time, as most models want
            it; a coroutine function runs in the event loop, as often at once as it is called.
            A thread can't be stopped: whoever gives up on a call leaves it behind, and the next
            one waits until it has ended.

    Raises:
        ConfigError: an argument cannot be used.
    """

    def __init__(
        self, model: str, function: Callable[[list[str]], Vectors | Awaitable[Vectors]]
    ) -> None:
        self._model = model_name(model)
        self._function = function
        self._one_at_a_time = threading.Lock()
        self._turns: dict[asyncio.AbstractEventLoop, asyncio.Lock] = {}

    def __repr__(self) -> str:
        return f"CallableEmbedder({self._model!r})"

    @property
    def model(self) -> str:
        """The model's name."""
        return self._model

    async def embed(self, texts: list[str]) -> Vectors:
        """Return what the function returns. Raises what it raises."""
        turn = self._turn()
        await turn.acquire()
        call = asyncio.ensure_future(asyncio.to_thread(self._called, texts))
        call.add_done_callback(partial(_ended, turn))
        # Who gives up here leaves the thread to itself, with its turn: a function that hangs would
        # take one thread after another otherwise, until the loop has none for anything else.
        try:
            await asyncio.wait([call])
        except asyncio.CancelledError:
            call.add_done_callback(_unwanted)
            raise
        made = call.result()
        return await made if inspect.isawaitable(made) else made

    def _turn(self) -> asyncio.Lock:
        """Return this loop's turn. Who waits here keeps no thread, of which a loop has few."""
        loop, turns = asyncio.get_running_loop(), self._turns
        if loop not in turns:
            # A new dict, since threads with loops of their own may be here at the same time.
            going_on = {other: turn for other, turn in turns.items() if not other.is_closed()}
            turns = self._turns = {**going_on, loop: asyncio.Lock()}
        return turns[loop]

    def _called(self, texts: list[str]) -> Vectors | Awaitable[Vectors]:
        # A coroutine function only makes its coroutine here. Other loops have turns of their own.
        with self._one_at_a_time:
            return self._function(texts)


def _unwanted(call: asyncio.Future[Vectors | Awaitable[Vectors]]) -> None:
    """Close a coroutine that was made when nobody waited for it any more: it is never run."""
    made = None if call.cancelled() or call.exception() else call.result()
    if inspect.iscoroutine(made):
        made.close()


def _ended(turn: asyncio.Lock, call: asyncio.Future[Vectors | Awaitable[Vectors]]) -> None:
    turn.release()
    if not call.cancelled():
        call.exception()  # seen, also where nobody waits for it any more
