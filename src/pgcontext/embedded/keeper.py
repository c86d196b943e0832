"""Stop a server when nobody uses it any more, however its last user ended.

This file is also a program: a process of its own, started beside the server, that waits for the
last user and outlives it. It imports nothing of pgcontext, so that it stays small.

Three files in the server's directory carry no bytes, only locks (flock), which the kernel gives
back when their holder ends, also when it was killed:

    lock     exclusive: whoever starts or stops the server
    users    shared: each process that uses the server
    keeper   exclusive: the keeper, for its whole life
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def open_lock(directory: Path, name: str) -> int:
    """Open a lock file; closing the descriptor gives its lock back."""
    return os.open(directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def try_lock(descriptor: int, kind: int = fcntl.LOCK_EX) -> bool:
    """Take an open file's lock if that needs no waiting."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_unused(users: int) -> bool:
    """Take the lock on `users` exclusively if nobody uses the server."""
    for _ in range(1_000):
        if try_lock(users):
            return True
        if try_lock(users, fcntl.LOCK_SH):
            return False
        time.sleep(0.001)  # it is the keeper that has it, for the moment in which it wakes up
    return False


def stop_if_unused(directory: Path, stop: Sequence[str], *, keeper: int | None = None) -> bool:
    """Run the `stop` command unless somebody uses the server; tell whether nobody does."""
    lock = open_lock(directory, "lock")
    users = open_lock(directory, "users")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_unused(users):
            return False
        subprocess.run(  # noqa: S603  (the command is the one our cluster made)
            stop, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        if keeper is not None:
            os.close(keeper)  # before the lock: the next start must not count on this keeper
        return True
    finally:
        os.close(users)
        os.close(lock)


def keep(directory: Path, keeper: int, stop: Sequence[str]) -> None:
    """Wait for the last user to end, then stop the server."""
    while True:
        users = open_lock(directory, "users")
        fcntl.flock(users, fcntl.LOCK_EX)
        os.close(users)
        if stop_if_unused(directory, stop, keeper=keeper):
            return


if __name__ == "__main__":
    # The first process ends at once: who started it is not left with a child to wait for.
    if os.fork() == 0:
        keep(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
