"""The application on the test's database, and callers with keys of each scope."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from pgcontext.http import create_app
from pgcontext.keys import Keys
from tests.support.asgi import Client

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pgcontext import ContextStore
    from pgcontext.settings import Scope

OTHER_TENANT = UUID(int=0xB)


@pytest.fixture
def anybody(store: ContextStore) -> Client:
    """A caller without a key."""
    return Client(create_app(store))


@pytest.fixture
def make_client(store: ContextStore, anybody: Client) -> Callable[..., Awaitable[Client]]:
    """Makes callers with a key of a scope, of the default tenant or another."""

    async def make(scope: Scope, *, tenant_id: UUID | None = None) -> Client:
        tenant = store if tenant_id is None else store.for_tenant(tenant_id)
        made = await Keys.of(tenant).create(f"to {scope}", scope=scope)
        return anybody.with_key(made.text)

    return make


@pytest.fixture
async def admin(make_client: Callable[..., Awaitable[Client]]) -> Client:
    """A caller who may do everything."""
    return await make_client("admin")
