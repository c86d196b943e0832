"""Each route does what the store's method does, and says so in JSON."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from pgcontext import limits
from pgcontext.http import create_app
from tests.support import DIMENSIONS
from tests.support.asgi import Client
from tests.support.embedders import with_embedder

if TYPE_CHECKING:
    import asyncpg

    from pgcontext import ContextStore


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text, "token_count": 3}


@pytest.fixture
async def context(admin: Client) -> str:
    """The path of a context with three messages."""
    made = await admin("POST", "/v1/contexts", {"name": "a", "metadata": {"k": 1}})
    assert made.status == 201
    path = f"/v1/contexts/{made.value['id']}"
    batch = [user(text) for text in ("one apple", "two pears", "three plums")]
    assert (await admin("POST", f"{path}/messages", {"messages": batch})).status == 201
    return path


def contents(items: list[dict[str, Any]]) -> list[str]:
    return [item["content"] for item in items]


async def test_contexts_are_made_read_changed_listed_and_deleted(admin: Client) -> None:
    """The whole life of a context, each step as its own request."""
    identity = "01890000-0000-7000-8000-00000000abcd"
    body = {"id": identity, "name": "a", "metadata": {"k": [1, None]}}
    made = await admin("POST", "/v1/contexts", {**body, "expires_at": "2090-01-02T03:04:05+02:00"})
    assert made.status == 201
    assert made.headers["content-type"] == "application/json"
    assert made.value["metadata"] == {"k": [1, None]}
    assert made.value["expires_at"] == "2090-01-02T01:04:05Z"
    path = f"/v1/contexts/{identity}"
    assert (await admin("GET", path)).value == made.value
    changed = await admin("PATCH", path, {"name": None, "expires_at": None})
    assert (changed.status, changed.value["name"], changed.value["metadata"]) == (
        200,
        None,
        {"k": [1, None]},
    )
    listed = await admin("GET", "/v1/contexts", query={"metadata": '{"k": [1]}'})
    assert [item["id"] for item in listed.value["items"]] == [identity]
    assert (await admin("GET", "/v1/contexts", query={"metadata": '{"k": 2}'})).value == {
        "items": [],
        "next_cursor": None,
    }
    assert (await admin("DELETE", path)).value["deleted_at"] is not None
    assert (await admin("GET", path)).type == "context-not-found"
    shown = await admin("GET", path, query={"include_deleted": "true"})
    assert shown.value["deleted_at"] is not None
    assert (await admin("POST", f"{path}/restore")).value["deleted_at"] is None


async def test_pages_follow_each_other_by_cursor(admin: Client) -> None:
    """A page's next_cursor leads to the next one, until there is none."""
    made = [(await admin("POST", "/v1/contexts", {})).value["id"] for _ in range(5)]
    seen: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = (await admin("GET", "/v1/contexts", query={"limit": 2, **cursor})).value
        seen += [item["id"] for item in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert seen == made[::-1]


async def test_messages_come_back_as_they_went_in(admin: Client) -> None:
    """Every field of a message returns, in its column or in the payload, to the last digit."""
    path = f"/v1/contexts/{(await admin('POST', '/v1/contexts', {})).value['id']}"
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1.0}'}}
    given = {"role": "assistant", "content": None, "tool_calls": [call], "big": 2**70, "é": [0.5]}
    await admin("POST", f"{path}/messages", {"messages": given})
    [message] = (await admin("GET", f"{path}/messages")).value["items"]
    assert message["role"] == "assistant"
    assert message["payload"] == {key: given[key] for key in ("content", "tool_calls", "big", "é")}


async def test_history_takes_every_argument(admin: Client, context: str) -> None:
    """Limits, places and roles choose as the store's arguments do."""

    async def read(**query: Any) -> list[str]:
        return contents((await admin("GET", f"{context}/messages", query=query)).value["items"])

    assert await read(limit=2) == ["two pears", "three plums"]
    assert await read(after=0, limit=1) == ["one apple"]
    assert await read(before=3) == ["one apple", "two pears"]
    assert await read(at_version=1) == ["one apple"]
    assert await read(roles=["assistant", "tool"]) == []
    assert len(await read(roles=["assistant", "user"])) == 3


async def test_messages_are_hidden_and_shown_again(admin: Client, context: str) -> None:
    """By their versions; one that is not there changes nothing."""
    hidden = await admin("POST", f"{context}/messages/delete", {"versions": [2]})
    assert contents(hidden.value["items"]) == ["two pears"]
    left = await admin("GET", f"{context}/messages")
    assert contents(left.value["items"]) == ["one apple", "three plums"]
    everything = await admin("GET", f"{context}/messages", query={"include_deleted": True})
    assert len(everything.value["items"]) == 3
    missing = await admin("POST", f"{context}/messages/delete", {"versions": [1, 9]})
    assert (missing.status, missing.type, missing.value["versions"]) == (
        404,
        "message-not-found",
        [9],
    )
    shown = await admin("POST", f"{context}/messages/restore", {"versions": [2]})
    assert contents(shown.value["items"]) == ["two pears"]


async def test_windows_forks_lineage_and_diffs(admin: Client, context: str) -> None:
    """A fork sees its parent, and what both say since is told apart."""
    window = (await admin("GET", f"{context}/window", query={"max_tokens": 6})).value
    assert contents(window["messages"]) == ["two pears", "three plums"]
    assert (window["total_tokens"], window["truncated"]) == (6, True)
    forked = await admin("POST", f"{context}/fork", {"at_version": 1, "name": "b"})
    assert (forked.status, forked.value["fork_version"]) == (201, 1)
    fork = f"/v1/contexts/{forked.value['id']}"
    await admin("POST", f"{fork}/messages", {"messages": user("another")})
    lineage = (await admin("GET", f"{fork}/lineage")).value["items"]
    assert [item["name"] for item in lineage] == ["a", "b"]
    forks = (await admin("GET", f"{context}/forks", query={"recursive": "true"})).value["items"]
    assert [item["name"] for item in forks] == ["b"]
    difference = (await admin("GET", f"{context}/diff", query={"other": forked.value["id"]})).value
    assert difference["version"] == 1
    assert contents(difference["only_a"]) == ["two pears", "three plums"]
    assert contents(difference["only_b"]) == ["another"]


async def test_a_fork_needs_nothing_said(admin: Client, context: str) -> None:
    """At the head, without a name: an empty object will do."""
    forked = await admin("POST", f"{context}/fork", {})
    assert (forked.status, forked.value["fork_version"]) == (201, 3)


async def test_merge_appends_or_says_what_is_in_its_way(admin: Client, context: str) -> None:
    """A target that moved on is a conflict with the true version; rebase goes on all the same."""
    forked = (await admin("POST", f"{context}/fork", {"at_version": 2})).value["id"]
    await admin("POST", f"/v1/contexts/{forked}/messages", {"messages": user("a fig")})
    into = context.rpartition("/")[2]
    refused = await admin("POST", f"/v1/contexts/{forked}/merge", {"into": into})
    assert (refused.status, refused.type) == (409, "version-conflict")
    assert (refused.value["expected"], refused.value["actual"]) == (2, 3)
    merged = await admin("POST", f"/v1/contexts/{forked}/merge", {"into": into, "rebase": True})
    assert contents(merged.value["items"]) == ["a fig"]
    assert merged.value["items"][0]["version"] == 4


async def test_search_finds_by_words_and_by_embedding(admin: Client, context: str) -> None:
    """With neighbours, within a context or over all."""
    found = await admin("POST", "/v1/search", {"query": "pears", "neighbors": 1})
    [hit] = found.value["items"]
    assert hit["message"]["content"] == "two pears"
    assert contents(hit["neighbors"]) == ["one apple", "three plums"]
    embedding = [1.0] * DIMENSIONS
    near = {**user("a kiwi"), "embedding": embedding}
    await admin("POST", f"{context}/messages", {"messages": near})
    body = {"query": embedding, "context_id": context.rpartition("/")[2], "limit": 1}
    [hit] = (await admin("POST", "/v1/search", body)).value["items"]
    assert (hit["message"]["content"], hit["found_by"]) == ("a kiwi", ["vector"])
    wrong = await admin("POST", "/v1/search", {"query": [0.5]})
    assert (wrong.status, wrong.type) == (422, "dimension-mismatch")


async def test_search_by_both_needs_an_embedder(store: ContextStore, admin: Client) -> None:
    """Words find by both where the service has one; a hit says which, and how well it matches."""
    refused = await admin("POST", "/v1/search", {"query": "a fig", "mode": "hybrid"})
    assert (refused.status, refused.type) == (422, "invalid-input")
    embedding = with_embedder(store)
    context = await embedding.create()
    await embedding.append(context.id, [user("a fig"), user("a kiwi"), user("plums")])
    client = Client(create_app(embedding), admin.key)
    for body in ({"query": "a fig"}, {"query": "a fig", "mode": "hybrid"}):
        first, *others = (await client("POST", "/v1/search", body)).value["items"]
        assert first["message"]["content"] == "a fig"
        assert first["found_by"] == ["vector", "text"]
        assert first["distance"] < 1e-6
        assert first["text_score"] > 0
        assert [hit["text_score"] for hit in others] == [None, None]
        assert sorted(hit["score"] for hit in others) < [first["score"]]


async def test_owed_embeddings_are_made(store: ContextStore, admin: Client) -> None:
    """As many as asked for at most; without an embedder, the caller learns that there is none."""
    refused = await admin("POST", "/v1/embed", {})
    assert (refused.status, refused.type) == (422, "invalid-input")
    embedding = with_embedder(store)
    context = await embedding.create()
    await embedding.append(context.id, [user("a"), user("b")], embed="later")
    client = Client(create_app(embedding), admin.key)
    assert (await client("POST", "/v1/embed", {"limit": 1})).value == {"messages": 1}
    assert (await client("POST", "/v1/embed", {})).value == {"messages": 1}
    assert (await client("POST", "/v1/embed", {})).value == {"messages": 0}
    assert (await client("POST", "/v1/embed", {"limit": 0})).status == 422
    assert (await client("POST", "/v1/embed", {"limit": 10_001})).status == 413


async def test_purge_and_erase_remove_for_good(admin: Client, context: str) -> None:
    """What is erased is gone at once; with the next purge go its stub and what is deleted."""
    erased = await admin("POST", f"{context}/erase", {"versions": [1]})
    assert erased.value == {"messages": 1, "contexts": 1}
    await admin("POST", f"{context}/messages/delete", {"versions": [2]})
    purged = await admin("POST", "/v1/purge", {"older_than_seconds": 0})
    assert purged.value == {"contexts": 0, "messages": 2}
    nothing: list[Any] = [None, {}, b""]
    for body in nothing:
        refused = await admin("POST", f"{context}/erase", body)
        assert refused.status in {415, 422}
        assert (await admin("GET", context)).status == 200
    assert (await admin("POST", f"{context}/erase", {"versions": None})).status == 200
    assert (await admin("GET", context)).status == 404


async def test_an_idempotency_key_makes_a_repeated_append_safe(admin: Client, context: str) -> None:
    """The same key and messages answer the first result; other messages are a conflict."""
    body = {"messages": [user("once")]}
    headers = {"idempotency-key": "order 17"}
    first = await admin("POST", f"{context}/messages", body, headers=headers)
    again = await admin("POST", f"{context}/messages", body, headers=headers)
    assert first.value["items"][0]["id"] == again.value["items"][0]["id"]
    assert [answer.value["items"][0]["replayed"] for answer in (first, again)] == [False, True]
    other = await admin("POST", f"{context}/messages", {"messages": user("x")}, headers=headers)
    assert (other.status, other.type) == (409, "idempotency-conflict")


async def test_an_expected_version_is_compared_and_set(admin: Client, context: str) -> None:
    """Only the first of two who saw the same version may append."""
    body = {"messages": user("x"), "expected_version": 3}
    assert (await admin("POST", f"{context}/messages", body)).status == 201
    late = await admin("POST", f"{context}/messages", body)
    assert (late.status, late.value["actual"], late.value["retryable"]) == (409, 4, False)


async def test_an_id_that_is_taken_is_bad_input(admin: Client, context: str) -> None:
    """A caller that chooses ids notices that it made a context before."""
    again = await admin("POST", "/v1/contexts", {"id": context.rpartition("/")[2]})
    assert (again.status, again.type) == (422, "invalid-input")


async def test_health_needs_no_database() -> None:
    """The process answers, whatever its database does."""
    from pgcontext import ContextStore, Settings

    nowhere = Settings.from_env({}, url="postgresql://u:p@127.0.0.1:1/x", acquire_seconds=0.2)
    client = Client(create_app(ContextStore(settings=nowhere)))
    alive = await client("GET", "/healthz", query={"nocache": "1"})
    assert (alive.status, alive.value) == (200, {"status": "ok"})


async def test_a_database_that_is_away_is_503(anybody: Client) -> None:
    """Whoever asks for it is told to come back, and nothing about where it should be."""
    from pgcontext import ContextStore, Settings

    nowhere = Settings.from_env({}, url="postgresql://u:hunter2@127.0.0.1:1/x")
    client = Client(create_app(ContextStore(settings=nowhere)))
    refused = await client("GET", "/readyz")
    assert (refused.status, refused.type) == (503, "unavailable")
    assert refused.headers["retry-after"] == str(limits.RETRY_AFTER_SECONDS)
    assert refused.value["retryable"] is True
    assert b"hunter2" not in refused.body
    assert b"127.0.0.1" not in refused.body


async def test_ready_is_who_is_migrated(anybody: Client, connection: asyncpg.Connection) -> None:
    """To this version or a newer one, which old code works with; never to an older one."""
    ready = await anybody("GET", "/readyz")
    assert (ready.status, ready.value) == (
        200,
        {"status": "ready", "revision": limits.SCHEMA_REVISION},
    )
    await connection.execute("UPDATE pgcontext_alembic_version SET version_num = '9999'")
    assert (await anybody("GET", "/readyz")).status == 200
    await connection.execute("UPDATE pgcontext_alembic_version SET version_num = '0001'")
    assert (await anybody("GET", "/readyz")).type == "not-ready"
    await connection.execute("DELETE FROM pgcontext_alembic_version")
    assert (await anybody("GET", "/readyz")).status == 503
    await connection.execute("DROP TABLE pgcontext_alembic_version")
    refused = await anybody("GET", "/readyz")
    assert (refused.status, refused.type) == (503, "not-ready")


async def test_a_database_from_before_the_keys_lets_nobody_in(
    empty_database_url: str,
) -> None:
    """The store works there, and the application says that the service isn't ready."""
    from pgcontext import ContextStore, Settings, migrate

    settings = Settings.from_env({}, url=empty_database_url, dimensions=DIMENSIONS)
    assert await asyncio.to_thread(migrate.upgrade, revision="0001", settings=settings) == "0001"
    async with ContextStore(settings=settings) as store:
        context = await store.create(name="a")
        await store.append(context.id, user("x"))
        client = Client(create_app(store), f"pgc_{UUID(int=0).hex}_{UUID(int=1).hex}_x")
        assert (await client("GET", "/readyz")).type == "not-ready"
        assert (await client("GET", "/v1/contexts")).type == "not-ready"
        await asyncio.to_thread(migrate.upgrade, settings=settings)
        assert (await client("GET", "/readyz")).status == 200
        assert (await client("GET", "/v1/contexts")).type == "unauthorized"
        assert len(await store.history(context.id)) == 1


async def test_an_application_closes_the_store_that_it_made(database_url: str) -> None:
    """At shutdown; a store that somebody handed in is theirs."""
    from pgcontext import ContextStore, Settings

    settings = Settings.from_env({}, url=database_url, dimensions=DIMENSIONS)
    for given in (None, ContextStore(settings=settings)):
        app = create_app(given, settings)
        closed: list[str] = []
        store: ContextStore = app.state.store
        close = store.aclose

        async def aclose(close: Any = close, closed: list[str] = closed) -> None:
            closed.append("closed")
            await close()

        store.aclose = aclose  # type: ignore[method-assign]
        async with app.router.lifespan_context(app):
            assert (await Client(app)("GET", "/readyz")).status == 200
        assert closed == (["closed"] if given is None else [])
        await close()


async def test_other_tenants_contexts_are_not_found(
    make_client: Any, context: str, admin: Client
) -> None:
    """A key opens its own tenant's contexts; another's look like none, on every path."""
    foreign = await make_client("admin", tenant_id=UUID(int=0xB))
    own = (await foreign("POST", "/v1/contexts", {})).value
    assert own["tenant_id"] == str(UUID(int=0xB))
    assert len((await foreign("GET", "/v1/contexts")).value["items"]) == 1
    requests: list[tuple[str, str, Any]] = [
        ("GET", "", None),
        ("PATCH", "", {"name": "mine"}),
        ("DELETE", "", None),
        ("POST", "/restore", None),
        ("POST", "/messages", {"messages": user("x")}),
        ("GET", "/messages", None),
        ("POST", "/messages/delete", {"versions": [1]}),
        ("POST", "/messages/restore", {"versions": [1]}),
        ("GET", "/window", None),
        ("POST", "/fork", {}),
        ("GET", "/lineage", None),
        ("GET", "/forks", None),
        ("GET", "/diff", None),
        ("POST", "/merge", {"into": own["id"]}),
        ("POST", "/erase", {"versions": None}),
    ]
    queries = {"/window": {"max_tokens": 9}, "/diff": {"other": own["id"]}}
    before = (await admin("GET", f"{context}/messages")).value
    for method, end, body in requests:
        refused = await foreign(method, context + end, body, query=queries.get(end))
        assert (refused.status, refused.type) == (404, "context-not-found"), end
    assert (await admin("GET", f"{context}/messages")).value == before


async def test_the_store_of_the_application_is_at_hand(store: ContextStore) -> None:
    """Handlers that share the application's connections find them there."""
    assert create_app(store).state.store is store
