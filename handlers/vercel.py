"""The HTTP application as a Vercel function: `app`, which Vercel's Python runtime serves.

That runtime keeps one event loop for the life of an instance and serves several requests at once
on it, so all of them share the store's few connections. Cron jobs purge, and embed what was left
for later: Vercel calls them with the project's CRON_SECRET; without one, nobody gets in. See
docs/deploy-vercel.md.
"""

from __future__ import annotations

import hmac
import os
from typing import TYPE_CHECKING, Any, Final

from handlers.embed import embed
from handlers.purge import purge
from pgcontext.errors import ContextStoreError
from pgcontext.http import create_app
from pgcontext.http.problems import UnauthorizedError, answer, refusal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request
    from starlette.responses import Response

    from pgcontext import ContextStore

# A function has 300 seconds, as Vercel sets it up.
EMBED_SECONDS: Final = 280.0


async def purge_daily(request: Request) -> Response:
    """Remove what was deleted long ago, when Vercel's scheduler says so."""
    return await _scheduled(request, purge)


async def embed_daily(request: Request) -> Response:
    """Embed what was left for later, or failed, when Vercel's scheduler says so."""

    async def for_a_while(store: ContextStore) -> dict[str, int]:
        return await embed(store, seconds=EMBED_SECONDS)

    return await _scheduled(request, for_a_while)


async def _scheduled(
    request: Request, job: Callable[[ContextStore], Awaitable[dict[str, Any]]]
) -> Response:
    secret = os.environ.get("CRON_SECRET", "")
    said = request.headers.get("authorization", "")
    if not secret or not hmac.compare_digest(said.encode(), f"Bearer {secret}".encode()):
        return refusal(UnauthorizedError("This is for the project's own schedule."))
    try:
        return answer(await job(app.state.store))
    except ContextStoreError as error:
        return refusal(error)


app = create_app()
app.add_route("/jobs/purge", purge_daily, include_in_schema=False)
app.add_route("/jobs/embed", embed_daily, include_in_schema=False)
