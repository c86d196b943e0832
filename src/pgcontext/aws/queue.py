"""Appending from a queue: a batch of SQS records, each done wholly or given back."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

from pgcontext import operations
from pgcontext.aws.gateway import json_object
from pgcontext.errors import ContextStoreError, InvalidInputError

if TYPE_CHECKING:
    from pgcontext.store import ContextStore

Record = dict[str, Any]

logger: Final = logging.getLogger("pgcontext.aws")

EVENT_SOURCE: Final = "aws:sqs"


def is_batch(event: object) -> bool:
    """Tell whether an event is a batch of SQS records."""
    records: object = json_object(event).get("Records")
    return isinstance(records, list) and all(
        json_object(record).get("eventSource") == EVENT_SOURCE
        for record in cast("list[object]", records)
    )


async def append_records(
    store: ContextStore, records: list[Record], *, until: float
) -> dict[str, list[dict[str, str]]]:
    """Append what the records say, and return those that the queue must keep.

    A record's body is a call, `{"operation": "append", …}`. Without an `idempotency_key` of its own
    it has the record's message id, so that a second delivery changes nothing. What fails stays in
    the queue, whether or not another try can help: the queue's redrive policy decides when it is
    put aside. Records of one context are appended in the order of the batch. In a FIFO queue, a
    record that fails keeps back those of its group that follow.

    Args:
        store: where; a record may name another tenant.
        records: of the event, at most 10,000.
        until: when to give up on what isn't done, by the loop's clock.
    """
    turns = asyncio.Semaphore(store.settings.pool_size)
    groups: dict[object, list[Record]] = {}
    for record in records:
        groups.setdefault(_group(record), []).append(record)
    failed = await asyncio.gather(
        *(_append_group(store, group, turns, until) for group in groups.values())
    )
    return {
        "batchItemFailures": [
            {"itemIdentifier": record["messageId"]} for group in failed for record in group
        ]
    }


async def _append_group(
    store: ContextStore, group: list[Record], turns: asyncio.Semaphore, until: float
) -> list[Record]:
    failed: list[Record] = []
    for place, record in enumerate(group):
        try:
            async with asyncio.timeout_at(until), turns:
                await _append(store, record)
        except (ContextStoreError, TimeoutError) as error:
            # Neither the record nor its error's sentence: both may repeat what was written.
            logger.warning("record %s failed (%s)", record["messageId"], type(error).__name__)
            if _fifo_group(record) is not None:
                return failed + group[place:]
            failed.append(record)
    return failed


async def _append(store: ContextStore, record: Record) -> None:
    call = _call(record)
    if call.get("operation") != "append":
        msg = "A queue takes the operation append only."
        raise InvalidInputError(msg)
    if call.get("idempotency_key") is None:
        call["idempotency_key"] = record["messageId"]
    await operations.call(store, call)


def _call(record: Record) -> dict[str, Any]:
    try:
        return msgspec.json.decode(record["body"], type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeError):
        msg = "A record's body must be a JSON object."
        raise InvalidInputError(msg) from None


def _group(record: Record) -> object:
    """Return what a record has in common with those that must not pass it by."""
    group = _fifo_group(record)
    if group is not None:
        return group
    try:
        call = _call(record)
    except InvalidInputError:
        return None
    return str(call.get("tenant_id")), str(call.get("context_id"))


def _fifo_group(record: Record) -> str | None:
    # A fair queue has groups too, but promises no order.
    if not str(record.get("eventSourceARN")).endswith(".fifo"):
        return None
    group: str = record["attributes"]["MessageGroupId"]
    return group
