"""The HTTP application as a Vercel function: `app`, which Vercel's Python runtime serves.

That runtime keeps one event loop for the life of an instance and serves several requests at once
on it, so all of them share the store's few connections. See docs/deploy-vercel.md.
"""

from __future__ import annotations

from pgcontext.http import create_app

app = create_app()
