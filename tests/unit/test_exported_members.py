import importlib.metadata
import inspect

import pytest

import pgcontext
from pgcontext import ContextStore

EXPORTED = """
    CallableEmbedder ConfigError Context ContextNotFoundError ContextStore ContextStoreError Diff
    DimensionMismatchError Embedder EmbeddingError EraseReport Hit HttpEmbedder
    IdempotencyConflictError InvalidInputError LimitExceededError LocalEmbedder Message
    MessageNotFoundError NewMessage Page PoolTimeoutError PurgeReport SchemaMismatchError Settings
    Tokenizer UnavailableError VersionConflictError Window
    __version__
"""
# The arguments that callers rely on: names, order, kinds and defaults.
METHODS = {
    "aclose": "()",
    "append": "(context_id, messages, *, idempotency_key=None, expected_version=None, embed=None)",
    "create": "(*, name=None, metadata=None, expires_at=None, id=None)",
    "delete": "(context_id)",
    "delete_messages": "(context_id, versions)",
    "diff": "(a, b)",
    "embed_pending": "(*, limit=100)",
    "erase": "(context_id, versions=None)",
    "for_tenant": "(tenant_id)",
    "fork": "(context_id, *, at_version=None, name=None, metadata=None, id=None)",
    "forks": "(context_id, *, recursive=False)",
    "from_env": "(**overrides)",
    "get": "(context_id, *, include_deleted=False)",
    "history": "(context_id, *, at_version=None, before=None, after=None, limit=100, roles=None,"
    " include_deleted=False)",
    "iter_history": "(context_id, *, at_version=None, before=None, after=None, roles=None,"
    " page_size=500)",
    "lineage": "(context_id)",
    "list": "(*, limit=50, cursor=None, metadata=None, include_deleted=False)",
    "merge": "(source_id, *, into, rebase=False)",
    "purge": "(*, older_than)",
    "restore": "(context_id)",
    "restore_messages": "(context_id, versions)",
    "search": "(query, *, context_id=None, limit=10, mode='auto', roles=None, since=None,"
    " until=None, metadata=None, model=None, max_distance=None, neighbors=0, diversity=None,"
    " at_version=None)",
    "update": "(context_id, *, name=Ellipsis, metadata=Ellipsis, expires_at=Ellipsis)",
    "window": "(context_id, *, max_tokens, at_version=None)",
}
PROPERTIES = ["embedder", "settings", "tenant_id"]


def arguments(method: object) -> str:
    """Write a method's arguments without their types."""
    assert callable(method)
    parameters = inspect.signature(method).parameters.values()
    bare = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in parameters
        if parameter.name != "self"
    ]
    return str(inspect.Signature(bare))


def test_the_package_exports_exactly_this() -> None:
    """A name is added or taken away on purpose, with this list."""
    assert pgcontext.__all__ == EXPORTED.split()
    assert pgcontext.__all__ == sorted(pgcontext.__all__)


@pytest.mark.parametrize("name", EXPORTED.split())
def test_every_exported_name_says_what_it_is(name: str) -> None:
    """`from pgcontext import *` works, and each class has a docstring of its own."""
    value = getattr(pgcontext, name)
    if inspect.isclass(value):
        assert value.__doc__
        assert not value.__doc__.startswith(f"{name}(")


def test_the_store_has_exactly_these_members() -> None:
    """The surface is the design's, no more and no less."""
    public = [name for name in dir(ContextStore) if not name.startswith("_")]
    assert public == sorted([*METHODS, *PROPERTIES])


@pytest.mark.parametrize("name", METHODS)
def test_a_method_takes_what_it_promises(name: str) -> None:
    """Names, order, kinds and defaults stay, and the docstring is there."""
    method = getattr(ContextStore, name)
    assert arguments(method) == METHODS[name]
    assert method.__doc__


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_a_coroutine_unless_the_design_says_otherwise(name: str) -> None:
    """Two make a store, one gives an asynchronous iterator, all others are awaited."""
    method = getattr(ContextStore, name)
    if name == "iter_history":
        assert inspect.isasyncgenfunction(method)
    else:
        assert inspect.iscoroutinefunction(method) is (name not in {"for_tenant", "from_env"})


def test_the_installed_version_is_the_one_in_the_code() -> None:
    """There is one place for it, and what pip shows is made from that."""
    assert importlib.metadata.version("pgcontext") == pgcontext.__version__
