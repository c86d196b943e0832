"""A job that removes for good what was deleted or has expired long enough ago.

How long ago is PGCONTEXT_PURGE_DAYS. It works for the default tenant, or for those that its event
or its arguments name. It may run while the store is used, twice at once, and be stopped at any
moment: what is left, the next run finds.

As a function: `handlers.purge.handler`, with `{"tenant_ids": [...], "older_than_days": 30}`, both
optional. From a shell: `python handlers/purge.py [TENANT ...]`.
"""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta
from typing import Any, cast

from pgcontext import ContextStore, ContextStoreError, InvalidInputError


def handler(event: object, context: object) -> dict[str, int]:  # noqa: ARG001 (Lambda's signature)
    """Purge, and return how many contexts and messages were removed.

    Raises:
        ContextStoreError: what stands in the way, in one sentence.
    """
    given = cast("dict[str, Any]", event) if isinstance(event, dict) else {}
    return asyncio.run(_purge(given.get("tenant_ids"), given.get("older_than_days")))


async def purge(
    store: ContextStore, tenant_ids: list[str] | None = None, days: float | None = None
) -> dict[str, int]:
    """Purge for each of the tenants.

    Args:
        store: whose database.
        tenant_ids: whose contexts; None is the store's own tenant.
        days: how long ago what goes was deleted or expired; None is what the settings say.
    """
    days = store.settings.purge_days if days is None else days
    try:
        older_than = timedelta(days=days)
    except (OverflowError, TypeError, ValueError):
        msg = "older_than_days must be a number of days."
        raise InvalidInputError(msg) from None
    stores = [store] if tenant_ids is None else [store.for_tenant(each) for each in tenant_ids]
    reports = [await each.purge(older_than=older_than) for each in stores]
    return {
        "contexts": sum(report.contexts for report in reports),
        "messages": sum(report.messages for report in reports),
    }


async def _purge(tenant_ids: list[str] | None, days: float | None) -> dict[str, int]:
    async with ContextStore.from_env() as store:
        return await purge(store, tenant_ids, days)


if __name__ == "__main__":
    try:
        print(handler({"tenant_ids": sys.argv[1:] or None}, None))
    except ContextStoreError as error:
        sys.exit(str(error))
