"""A job that embeds the messages whose embedding was left for later, or failed.

It goes on until nothing is due or its time is nearly over, for the default tenant, or for those
that its event or its arguments name. It may run while the store is used, many times at once, and be
stopped at any moment: what it had claimed, another run finishes. But it ends by itself in time, so
that nothing stays claimed for longer than it works.

As a function: `handlers.embed.handler`, with `{"tenant_ids": [...]}`, optional. From a shell:
`python handlers/embed.py [TENANT ...]`.
"""

from __future__ import annotations

import asyncio
import math
import sys
import time
from typing import Any, Final, cast

from pgcontext import ContextStore, ContextStoreError, EmbeddingError, limits
from pgcontext.pool import within

# A batch is begun while so much time is left, or half of all there was. Embedding gets half of it,
# which by default is what one call of a server may take; the rest is for writing what came.
BATCH_SECONDS: Final = 60.0
BATCH_MESSAGES: Final = 200


def handler(event: object, context: Any) -> dict[str, int]:  # noqa: ANN401 (Lambda's, or None)
    """Embed, and return how many messages were.

    Raises:
        ContextStoreError: what stands in the way, in one sentence.
    """
    given = cast("dict[str, Any]", event) if isinstance(event, dict) else {}
    left = math.inf if context is None else context.get_remaining_time_in_millis() / 1_000
    return asyncio.run(_embed(given.get("tenant_ids"), left - limits.FUNCTION_MARGIN_SECONDS))


async def embed(
    store: ContextStore, tenant_ids: list[str] | None = None, seconds: float = math.inf
) -> dict[str, int]:
    """Embed for each of the tenants, in turns, so that none waits for all of another's.

    Args:
        store: whose database and embedder.
        tenant_ids: whose messages; None is the store's own tenant.
        seconds: how long it may take in all.

    Raises:
        EmbeddingError: the embedder failed for a tenant, or did not answer in time; the others had
            their turns all the same.
    """
    with within(seconds):
        return await _embed_in_turns(store, tenant_ids, seconds)


async def _embed_in_turns(
    store: ContextStore, tenant_ids: list[str] | None, seconds: float
) -> dict[str, int]:
    last_begin = time.monotonic() + seconds - min(BATCH_SECONDS, seconds / 2)
    stores = [store] if tenant_ids is None else [store.for_tenant(each) for each in tenant_ids]
    messages = 0
    failure: EmbeddingError | None = None
    while stores and time.monotonic() < last_begin:
        turn, *stores = stores
        try:
            embedded = await turn.embed_pending(limit=BATCH_MESSAGES)
        except EmbeddingError as error:
            failure = error  # it may be about this tenant's texts alone
            continue
        if embedded:
            messages += embedded
            stores.append(turn)
    if failure is not None:
        raise failure
    return {"messages": messages}


async def _embed(tenant_ids: list[str] | None, seconds: float) -> dict[str, int]:
    async with ContextStore.from_env() as store:
        return await embed(store, tenant_ids, seconds)


if __name__ == "__main__":
    try:
        print(handler({"tenant_ids": sys.argv[1:] or None}, None))
    except ContextStoreError as error:
        sys.exit(str(error))
