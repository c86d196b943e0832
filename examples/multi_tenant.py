"""Many tenants in one database, none of whom can see another.

    python examples/multi_tenant.py

Prints:
    acme finds: ['The acme invoice is due on Monday.']
    globex finds: ['The globex invoice is due on Friday.']
    globex asks for acme's context: not found
    acme has 1 context, globex has 1
"""

import asyncio
from uuid import UUID, uuid5

from pgcontext import ContextNotFoundError, ContextStore

# A tenant is a UUID. Whoever has names for them derives one, always the same for a name.
TENANTS = UUID("6f1d1f7e-4f6c-4a0e-9d53-6b8f2f0f3a11")


def tenant_id(name: str) -> UUID:
    """Turn a tenant's name into its id."""
    return uuid5(TENANTS, name)


async def main() -> None:
    """Serve two tenants over one pool of connections."""
    async with ContextStore() as store:
        # Plain methods without I/O: make one for each request.
        acme = store.for_tenant(tenant_id("acme"))
        globex = store.for_tenant(tenant_id("globex"))
        for tenant, name, day in ((acme, "acme", "Monday"), (globex, "globex", "Friday")):
            # A run of this example before left its contexts: start afresh.
            for context in (await tenant.list()).items:
                await tenant.delete(context.id)
            chat = await tenant.create()
            content = f"The {name} invoice is due on {day}."
            await tenant.append(chat.id, {"role": "user", "content": content})

        for tenant, name in ((acme, "acme"), (globex, "globex")):
            hits = await tenant.search("When is the invoice due?")
            print(f"{name} finds:", [hit.message.content for hit in hits])

        [theirs] = (await acme.list()).items
        try:
            await globex.history(theirs.id)
        except ContextNotFoundError:
            # The same error as for an id that was never used: existence doesn't show either.
            print("globex asks for acme's context: not found")

        counts = [len((await tenant.list()).items) for tenant in (acme, globex)]
        print(f"acme has {counts[0]} context, globex has {counts[1]}")


asyncio.run(main())
