"""A job that embeds the messages whose embedding was left for later, or failed.

It goes on until nothing is due or its time is nearly over, for the default tenant, or for those
that its event or its arguments name. It may run while the store is used, many times at once, and be
stopped at any moment: what it had claimed, another run finishes.

As a function: `handlers.embed.handler`, with `{"tenant_ids": [...]}`, optional. From a shell:
`python handlers/embed.py [TENANT ...]`.
"""

from __future__ import annotations

import asyncio
import math
import sys
import time
from typing import Any, Final, cast

from pgcontext import ContextStore, ContextStoreError, EmbeddingError

# What a batch may take; a new one is begun only while so much time is left.
BATCH_SECONDS: Final = 60.0
BATCH_MESSAGES: Final = 200


def handler(event: object, context: Any) -> dict[str, int]:  # noqa: ANN401 (Lambda's, or None)
    """Embed, and return how many messages were.

    Raises:
        ContextStoreError: what stands in the way, in one sentence.
    """
    given = cast("dict[str, Any]", event) if isinstance(event, dict) else {}
    left = math.inf if context is None else context.get_remaining_time_in_millis() / 1_000
    return asyncio.run(_embed(given.get("tenant_ids"), left - BATCH_SECONDS))


async def embed(
    store: ContextStore, tenant_ids: list[str] | None = None, seconds: float = math.inf
) -> dict[str, int]:
    """Embed for each of the tenants, in turns, so that none waits for all of another's.

    Args:
        store: whose database and embedder.
        tenant_ids: whose messages; None is the store's own tenant.
        seconds: no batch is begun after so long.

    Raises:
        EmbeddingError: the embedder failed for a tenant; the others had their turns all the same.
    """
    end = time.monotonic() + seconds
    stores = [store] if tenant_ids is None else [store.for_tenant(each) for each in tenant_ids]
    messages = 0
    failure: EmbeddingError | None = None
    while stores and time.monotonic() < end:
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
