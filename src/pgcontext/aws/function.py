"""One Lambda function: what is kept from invocation to invocation, and what an event is for."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import msgspec

from pgcontext import limits, operations
from pgcontext.aws import gateway, queue
from pgcontext.errors import ContextStoreError, LimitExceededError, UnavailableError
from pgcontext.pool import within

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from pgcontext.aws.gateway import Application, Event, Form
    from pgcontext.store import ContextStore

T = TypeVar("T")


class Invocation(Protocol):
    """What Lambda says of an invocation: the part that is used here."""

    def get_remaining_time_in_millis(self) -> int:
        """Return the milliseconds left before the function is stopped."""
        ...


class Function:
    """Answers the events of one Lambda function, each in the form that its sender understands.

    It has one event loop for as long as the environment lives, so connections are kept from one
    invocation to the next. Every wait ends a little before the function's time does.

    Args:
        store: what the events are about.
    """

    def __init__(self, store: ContextStore) -> None:
        self._store = store
        self._loop: asyncio.AbstractEventLoop | None = None
        self._application: Application | None = None

    def __call__(self, event: Any, context: Invocation | None = None) -> Any:  # noqa: ANN401 (JSON)
        """Answer an event: Lambda calls this."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        return self._loop.run_until_complete(self._answer(event, context))

    def prepare(self) -> None:
        """Load what requests over HTTP need, while nobody waits for it."""
        self._http()

    def close(self) -> None:
        """Close the connections: before a snapshot, which they would not survive."""
        if self._loop is not None:
            self._loop.run_until_complete(self._store.aclose())
            self._loop.close()
            self._loop = None

    async def _answer(self, event: Any, context: Invocation | None) -> Any:  # noqa: ANN401
        seconds = _seconds_left(context)
        until = asyncio.get_running_loop().time() + seconds
        form = gateway.form_of(event)
        try:
            # What waits for the database ends first, since it can say more exactly what happened.
            with within(seconds - limits.FUNCTION_LEAD_SECONDS):
                if form is not None:
                    return await self._request(event, form, context, until)
                if queue.is_batch(event):
                    return await queue.append_records(self._store, event["Records"], until=until)
                return await self._call(event, until)
        finally:
            await _settle()

    async def _call(self, request: object, until: float) -> Any:  # noqa: ANN401
        try:
            result = await _in_time(operations.call(self._store, request), until)
            if len(msgspec.json.encode(result)) > limits.FUNCTION_ANSWER_BYTES_MAX:
                raise LimitExceededError(_TOO_LARGE)
        except ContextStoreError as error:
            return operations.refusal(error)
        return result

    async def _request(
        self, event: Event, form: Form, context: Invocation | None, until: float
    ) -> dict[str, Any]:
        application = self._http()
        scope = gateway.scope_of(event, form, context, base_path=self._store.settings.base_path)
        try:
            work = gateway.ask(application, scope, gateway.body_of(event))
            response = await _in_time(work, until)
            if len(response.body) > limits.FUNCTION_ANSWER_BYTES_MAX:
                raise LimitExceededError(_TOO_LARGE)  # noqa: TRY301 (told like any refusal)
        except Exception as error:  # noqa: BLE001 (whoever asked gets an answer; it is logged there)
            from pgcontext.http.problems import refusal  # noqa: PLC0415 (the application's own)

            response = await gateway.ask(refusal(error), scope, b"")
        return gateway.answer_to(event, form, response)

    def _http(self) -> Application:
        if self._application is None:
            from pgcontext.http import create_app  # noqa: PLC0415 (a direct call has no use for it)

            self._application = create_app(self._store)
        return self._application


_TOO_LARGE: Final = (
    f"The answer has more than {limits.FUNCTION_ANSWER_BYTES_MAX:,} bytes, which a function cannot "
    "return; ask for fewer at a time."
)


def _seconds_left(context: Invocation | None) -> float:
    """Return how long the answer may take; without end where nobody says."""
    if context is None:
        return math.inf
    return context.get_remaining_time_in_millis() / 1_000 - limits.FUNCTION_MARGIN_SECONDS


async def _in_time(work: Awaitable[T], until: float) -> T:
    bound = asyncio.timeout_at(until)
    try:
        async with bound:
            return await work
    except TimeoutError:
        if not bound.expired():
            raise
        msg = "The function's time ran out; whether the work was done is not known."
        raise UnavailableError(msg) from None


async def _settle() -> None:
    """Let what was cut off end properly: once the environment is frozen, nothing runs any more.

    A statement that ran out of time is cancelled at the server by another task; without it, its
    locks would stay until the next invocation.
    """
    left = asyncio.all_tasks() - {asyncio.current_task()}
    if left:
        await asyncio.wait(left, timeout=limits.FUNCTION_SETTLE_SECONDS)
