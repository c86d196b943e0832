"""The HTTP application as a Vercel function: `app`, which Vercel's Python runtime serves.

That runtime keeps one event loop for the life of an instance and serves several requests at once
on it, so all of them share the store's few connections. A cron job purges: Vercel calls it with
the project's CRON_SECRET; without one, nobody gets in. See docs/deploy-vercel.md.
"""

from __future__ import annotations

import hmac
import os
from typing import TYPE_CHECKING

from handlers.purge import purge
from pgcontext.errors import ContextStoreError
from pgcontext.http import create_app
from pgcontext.http.problems import UnauthorizedError, answer, refusal

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response


async def purge_daily(request: Request) -> Response:
    """Remove what was deleted long ago, when Vercel's scheduler says so."""
    secret = os.environ.get("CRON_SECRET", "")
    said = request.headers.get("authorization", "")
    if not secret or not hmac.compare_digest(said.encode(), f"Bearer {secret}".encode()):
        return refusal(UnauthorizedError("This is for the project's own schedule."))
    try:
        return answer(await purge(app.state.store))
    except ContextStoreError as error:
        return refusal(error)


app = create_app()
app.add_route("/jobs/purge", purge_daily, include_in_schema=False)
