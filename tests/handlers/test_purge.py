from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest

from handlers.purge import handler, purge
from pgcontext import ContextStore, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable

JOB = Path(__file__).parents[2] / "handlers" / "purge.py"
NOTHING = {"contexts": 0, "messages": 0}


async def deleted_context(store: ContextStore) -> UUID:
    """Make a context with two messages, and delete it."""
    context = await store.create()
    message = {"role": "user", "content": "Forget me.", "token_count": 3}
    await store.append(context.id, [message, message])
    await store.delete(context.id)
    return context.id


@pytest.fixture
def job(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job's environment: the test's database."""
    monkeypatch.setenv("DATABASE_URL", database_url)


async def test_the_setting_says_how_old_is_old(make_store: Callable[..., ContextStore]) -> None:
    """With the default of 30 days nothing goes that was deleted just now; with 0 it does."""
    await deleted_context(make_store())
    assert await purge(make_store()) == NOTHING
    at_once = make_store(purge_days=0)
    assert await purge(at_once) == {"contexts": 1, "messages": 2}
    assert await purge(at_once) == NOTHING


async def test_only_the_named_tenants_are_purged(make_store: Callable[..., ContextStore]) -> None:
    """The job keeps to the tenants of its event, and to the default one without any."""
    one, other = uuid4(), uuid4()
    stores = [make_store(), make_store(tenant_id=one), make_store(tenant_id=other)]
    made = [await deleted_context(store) for store in stores]
    assert await purge(stores[0], [str(one)], 0) == {"contexts": 1, "messages": 2}
    for store, context_id in zip(stores[::2], made[::2], strict=True):
        assert (await store.get(context_id, include_deleted=True)).deleted_at is not None


def test_the_function_takes_an_event_of_a_schedule(job: None) -> None:
    """An event that names nothing, as a schedule sends it, means the default tenant."""
    event = {"source": "aws.scheduler", "detail-type": "Scheduled Event", "detail": {}}
    for each in (event, None, {"older_than_days": 0}):
        assert handler(each, None) == NOTHING


@pytest.mark.parametrize(
    "event",
    [
        {"older_than_days": "many"},
        {"older_than_days": -1},
        {"older_than_days": 1e300},
        {"older_than_days": float("nan")},
        {"tenant_ids": ["somebody"]},
    ],
)
def test_an_event_that_is_wrong_is_refused(job: None, event: Any) -> None:
    """A mistake in an event removes nothing, and fails in a sentence."""
    with pytest.raises(InvalidInputError, match="must be"):
        handler(event, None)


def test_the_job_runs_from_a_shell(job: None) -> None:
    """From a shell it prints what it removed; a wrong tenant is one sentence."""
    done = subprocess.run([sys.executable, JOB], capture_output=True, text=True, check=True)
    assert done.stdout == f"{NOTHING}\n"
    done = subprocess.run(
        [sys.executable, JOB, "somebody"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (1, "tenant_id must be a UUID.\n")
