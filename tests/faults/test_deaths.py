"""Clients that are killed in the middle of a call, and a disk that is full."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from pgcontext import ContextStore, UnavailableError
from pgcontext.settings import child_environment
from tests.support.crashing import CrashingServer
from tests.support.promises import assert_counters_match_views, view

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

ROOT: Final = Path(__file__).parents[2]
KILLS: Final = max(int(os.environ.get("PGCONTEXT_FAULTS", "1000")) // 50, 5)
AT_ONCE: Final = 5
DISK_MEGABYTES: Final = 192
BALLAST_MEGABYTES: Final = 40
CONTENT_BYTES: Final = 400_000


async def die(database_url: str, context_id: UUID, name: str) -> dict[str, list[int] | None]:
    """Let a process append, and kill it within a call; return its batches and what it was told."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(ROOT / "tests" / "support" / "mortal.py"), str(context_id), name),
        env=child_environment(DATABASE_URL=database_url, PYTHONPATH=str(ROOT)),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    first = await process.stdout.readline()
    await asyncio.sleep(random.uniform(0.02, 0.2))
    process.kill()
    lines = (first + await process.stdout.read()).split(b"\n")
    await process.wait()
    told = {}
    for line in lines[:-1]:  # the last one is not whole
        contents, versions = json.loads(line)
        told["|".join(contents)] = versions
    return told


async def test_a_client_that_is_killed_leaves_whole_batches(
    store: ContextStore, database_url: str
) -> None:
    """What it was told is there, in its place; what it was not told is whole or absent."""
    context = await store.create()
    told: dict[str, list[int] | None] = {}
    for start in range(0, KILLS, AT_ONCE):
        deaths = (die(database_url, context.id, f"{n}") for n in range(start, start + AT_ONCE))
        for one in await asyncio.gather(*deaths):
            told |= one
    messages = await view(store, context.id)
    assert [message.version for message in messages] == list(range(1, len(messages) + 1))
    places = {message.content: message.version for message in messages}
    assert len(places) == len(messages)
    for batch, versions in told.items():
        found = [places.pop(content, None) for content in batch.split("|")]
        whole = found[0] is not None and found == list(range(found[0], found[0] + len(found)))
        assert found == versions if versions else whole or not any(found)
    assert not places
    assert any(told.values())
    await assert_counters_match_views(store)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few megabytes; skips where none can be made."""
    options = ("-t", "tmpfs", "-o", f"size={DISK_MEGABYTES}m,mode=0755", "tmpfs")
    mount, umount = shutil.which("mount"), shutil.which("umount")
    if mount is None or umount is None:
        pytest.skip("mount is not there")
    if subprocess.run([mount, *options, tmp_path], capture_output=True, check=False).returncode:
        pytest.skip("a small file system can only be mounted by root")
    yield tmp_path
    subprocess.run([umount, "--lazy", tmp_path], check=True)


async def test_a_full_disk_loses_nothing_and_recovers(small_disk: Path) -> None:
    """Appends fail while it is full; when there is room again all that was told is there."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(BALLAST_MEGABYTES * 1024**2))
    with CrashingServer(small_disk / "server") as server:
        async with ContextStore(server.url) as store:
            context = await store.create()
            told = await _append_until_refused(store, context.id)
            ballast.unlink()
            await server.recover()
            shown = [message.content for message in await view(store, context.id)]
            assert shown[: len(told)] == told
            assert len(shown) - len(told) in {0, 1}  # what the last call did, nobody was told
            await store.append(context.id, _random_text(0))
            await assert_counters_match_views(store)


async def _append_until_refused(store: ContextStore, context_id: UUID) -> list[str]:
    told: list[str] = []
    for number in range(DISK_MEGABYTES * 1024**2 // CONTENT_BYTES):
        message = _random_text(number)
        try:
            await store.append(context_id, message)
        except UnavailableError:
            return told
        told.append(message["content"])
    raise AssertionError


def _random_text(number: int) -> dict[str, Any]:
    # Random, so that it does not get smaller on the disk.
    text = random.Random(number).randbytes(CONTENT_BYTES // 2).hex()
    return {"role": "user", "content": text, "token_count": 1}
