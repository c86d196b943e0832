"""The store over HTTP: an ASGI application with one route for each method of the store.

    from pgcontext.http import create_app

    app = create_app()

Needs the extra `http`. Who may come in is decided by `PGCONTEXT_AUTH`; nobody does by default.
"""

from pgcontext.http.app import create_app

__all__ = ["create_app"]
