"""The wheel as a user gets it: installed alone, in an environment and a folder of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from typing import Final, NamedTuple

import pytest

ROOT: Final = Path(__file__).parents[2]
INSTALL_SECONDS_MAX: Final = 300
RUN_SECONDS_MAX: Final = 60

STORE: Final = """
import asyncio, json, sys
from pgcontext import ContextStore

async def main():
    async with ContextStore.from_env() as store:
        context = await store.create()
        await store.append(context.id, {"role": "user", "content": "Where is my order?"})
        fork = await store.fork(context.id)
        return [[m.as_dict(), m.token_count] for m in await store.history(fork.id)]

messages = asyncio.run(main())
print(json.dumps({"path": sys.modules["pgcontext"].__file__, "messages": messages}))
"""


class Installed(NamedTuple):
    """An environment that holds nothing but the wheel and what it requires."""

    scripts: Path
    folder: Path

    def run(
        self, *arguments: str | Path, database_url: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run Python there, with no variable that could lead it back to the repository."""
        return subprocess.run(
            [self.scripts / "python", "-W", "error", *arguments],
            cwd=self.folder,
            env={"HOME": str(self.folder), "PATH": os.defpath, "DATABASE_URL": database_url},
            check=False,
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS_MAX,
        )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution, which is built from the repository."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT],
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=RUN_SECONDS_MAX,
    )
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel in an empty environment; pip's cache makes this a matter of seconds."""
    folder = tmp_path_factory.mktemp("elsewhere")
    venv.create(folder / "venv", with_pip=False, symlinks=os.name != "nt")
    scripts = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    pip = [sys.executable, "-m", "pip", "--python", str(scripts / "python"), "--quiet", "install"]
    subprocess.run(
        [*pip, "--no-compile", "--constraint", ROOT / "constraints.txt", wheel],
        check=True,
        timeout=INSTALL_SECONDS_MAX,
    )
    return Installed(scripts, folder)


def files(folder: Path, prefix: str) -> set[str]:
    return {
        f"{prefix}/{path.relative_to(folder).as_posix()}"
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_wheel_holds_the_package_and_the_migrations_and_nothing_else(wheel: Path) -> None:
    """Every file of the package and of migrations/ is in the wheel, and no test is."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    metadata = {name for name in names if ".dist-info/" in name}
    expected = files(ROOT / "src" / "pgcontext", "pgcontext") | files(
        ROOT / "migrations", "pgcontext/_migrations"
    )
    assert names - metadata == expected
    assert "pgcontext/py.typed" in names
    assert "pgcontext/_migrations/env.py" in names
    assert any(name.startswith("pgcontext/_vocabulary/") for name in names)
    assert any(name.endswith("/licenses/LICENSE") for name in metadata)


def test_installed_wheel_migrates_and_stores(installed: Installed, empty_database_url: str) -> None:
    """With the wheel alone, a database is migrated and keeps a conversation and its fork."""
    migrated = installed.run("-m", "pgcontext.migrate", database_url=empty_database_url)
    assert migrated.returncode == 0, migrated.stderr
    stored = installed.run("-c", STORE, database_url=empty_database_url)
    assert stored.returncode == 0, stored.stderr
    answer = json.loads(stored.stdout)
    assert Path(answer["path"]).is_relative_to(installed.folder)
    assert answer["messages"] == [[{"role": "user", "content": "Where is my order?"}, 5]]


def test_migration_job_runs_on_the_wheel(installed: Installed, empty_database_url: str) -> None:
    """The entry point in handlers/ needs nothing beyond the wheel, and may be run twice."""
    for _ in range(2):
        job = installed.run(ROOT / "handlers" / "migrate.py", database_url=empty_database_url)
        assert job.returncode == 0, job.stderr
        assert job.stdout.strip()


def test_command_without_its_extra_says_what_to_install(installed: Installed) -> None:
    """The `pgcontext` script of a bare wheel names the extra in one sentence."""
    command = installed.run(installed.scripts / "pgcontext", "--help")
    assert command.returncode == 5
    assert "pip install 'pgcontext[cli]'" in command.stderr
    assert "Traceback" not in command.stderr
