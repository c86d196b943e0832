"""A real PgBouncer in front of a test's database."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import pytest

from pgcontext.embedded import cluster
from pgcontext.url import parse

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

PROGRAM: Final = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
PORT: Final = 6432
START_SECONDS_MAX: Final = 10.0
SETTINGS: Final = {
    "listen_addr": "",
    "auth_type": "trust",
    "pool_mode": "transaction",
    "default_pool_size": "2",
    "max_client_conn": "300",
    "log_connections": "0",
    "log_disconnections": "0",
}


def version() -> tuple[int, ...]:
    """The version of the PgBouncer that is installed; empty where none is."""
    if PROGRAM is None:
        return ()
    said = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"(\d+)\.(\d+)", said)
    assert found is not None
    return tuple(map(int, found.groups()))


needs_pgbouncer: Final = pytest.mark.skipif(PROGRAM is None, reason="pgbouncer is not installed")
TRACKS_FROM: Final = (1, 21)
needs_tracking: Final = pytest.mark.skipif(
    version() < TRACKS_FROM, reason=f"pgbouncer tracks prepared statements from 1.21; {version()}"
)


class PgBouncer:
    """Pools transactions over two server connections, unless the settings say otherwise.

    Attributes:
        url: where it listens, a Unix socket.
    """

    def __init__(self, database_url: str, **settings: str) -> None:
        target = parse(database_url)
        (host, port), *_ = target.hosts
        self._directory = Path(tempfile.mkdtemp(prefix="pgbouncer-"))
        self._log = self._directory / "log"
        self._write(
            f"{target.database} = host={host} port={port}",
            {**SETTINGS, "auth_file": f"{self._directory}/users", **settings},
            target.user or "",
        )
        # It refuses to be root, as PostgreSQL does.
        uid, gid = cluster._owner(self._directory / "nothing")
        self._as_user = cluster._as_user(uid, gid)
        for path in (self._directory, *self._directory.iterdir()):
            os.chown(path, uid, gid)
        self.url = (
            f"postgresql://{quote(target.user or '', safe='')}@/{target.database}"
            f"?host={quote(str(self._directory), safe='')}&port={PORT}"
        )

    def start(self) -> None:
        """Start it, and wait until it listens."""
        assert PROGRAM is not None
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._as_user, PROGRAM, str(self._directory / "ini")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_SECONDS_MAX
        while not self._listens():
            alive = self._process.poll() is None and time.monotonic() < deadline
            assert alive, self._log.read_text("utf-8")
            time.sleep(0.01)

    def kill(self) -> None:
        """End it at once, without a word to anybody."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._socket.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop it."""
        with contextlib.suppress(ProcessLookupError):
            self.kill()
        shutil.rmtree(self._directory)

    @property
    def _socket(self) -> Path:
        return self._directory / f".s.PGSQL.{PORT}"

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(str(self._socket)) == 0

    def _write(self, database: str, settings: dict[str, str], user: str) -> None:
        settings = {
            **settings,
            "unix_socket_dir": str(self._directory),
            "listen_port": str(PORT),
        }
        lines = ["[databases]", database, "[pgbouncer]"]
        lines += [f"{name} = {value}" for name, value in settings.items()]
        (self._directory / "ini").write_text("\n".join(lines) + "\n", "utf-8")
        (self._directory / "users").write_text(f'"{user}" ""\n', "utf-8")
