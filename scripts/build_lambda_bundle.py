"""Build what AWS Lambda runs: build/lambda/request.zip and build/lambda/migrate.zip.

    python scripts/build_lambda_bundle.py [--python 3.13] [--arch arm64] [--only request]

The request bundle holds what a request uses and nothing else: no Alembic, SQLAlchemy, numpy or
command line. The migrate bundle holds all of the package's requirements. Both are built for
Lambda's Linux from wheels, on any machine; a zip is the same for the same versions.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT: Final = Path(__file__).parents[1]
TARGET: Final = ROOT / "build" / "lambda"
PYTHON_DEFAULT: Final = "3.13"
ARCHITECTURES: Final = {"arm64": "aarch64", "x86_64": "x86_64"}
# Lambda's Python 3.12 and later run on Amazon Linux 2023. Its 3.11 has glibc 2.26, for which not
# all of the wheels are made.
GLIBCS: Final = ("2_17", "2_28", "2_34")

REQUEST_PACKAGES: Final = ("asyncpg", "httpx", "msgspec", "starlette")
# tiktoken asks for requests, to download vocabularies; these come with the package.
ALONE_PACKAGES: Final = ("tiktoken", "regex")
HANDLERS: Final = {"request": ("aws_lambda.py", "embed.py", "purge.py"), "migrate": ("migrate.py",)}
# What wheels carry for compilers and for their own tests, and what pip leaves behind.
LITTER: Final = ("*.c", "*.h", "*.pxd", "*.pxi", "*.pyx", "*.pyi", "__pycache__", "bin", "tests")
# What of the package no request uses: it would not even start there.
SIDE_BRANCH: Final = ("_migrations", "cli", "embedded", "migrate", "samples", "schema.py")

# Source: AWS Lambda quotas, "Deployment package (.zip file archive) size".
UNZIPPED_BYTES_MAX: Final = 250 * 1024 * 1024
# The oldest date that a zip can hold: the same bytes whenever it is made.
ZIP_DATE: Final = (1980, 1, 1, 0, 0, 0)


def main() -> None:
    """Build the bundles and say how large they are."""
    parser = argparse.ArgumentParser(description="Build what AWS Lambda runs.")
    parser.add_argument("--python", default=PYTHON_DEFAULT, help="3.12 or later (%(default)s)")
    parser.add_argument("--arch", default="arm64", choices=ARCHITECTURES, help="(%(default)s)")
    parser.add_argument("--only", choices=HANDLERS, help="one bundle instead of both")
    parser.add_argument("--into", type=Path, default=TARGET, help="folder to put them in")
    arguments = parser.parse_args()
    for name in [arguments.only] if arguments.only else HANDLERS:
        made = build(name, arguments.into, python=arguments.python, arch=arguments.arch)
        print(f"{made}: {_megabytes(made.stat().st_size)} zipped, for Python {arguments.python}")


def build(name: str, into: Path, *, python: str, arch: str) -> Path:
    """Build one bundle; return its zip.

    Args:
        name: request or migrate.
        into: the folder for the zip.
        python: the version it is for, as "3.13".
        arch: the processor it is for, as Lambda calls it.
    """
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        content = Path(folder) / "content"
        _install(name, content, python=python, arch=arch)
        _install_project(content, Path(folder) / "wheel")
        (content / "handlers").mkdir()
        for handler in HANDLERS[name]:
            shutil.copy(ROOT / "handlers" / handler, content / "handlers")
        side_branch = SIDE_BRANCH if name == "request" else ()
        _remove(content / "pgcontext" / each for each in side_branch)
        for pattern in LITTER:
            _remove(list(content.rglob(pattern)))
        _compile(content, python)
        unzipped = sum(path.stat().st_size for path in content.rglob("*") if path.is_file())
        if unzipped > UNZIPPED_BYTES_MAX:
            sys.exit(f"{name} has {_megabytes(unzipped)} unzipped; Lambda takes 250 MB.")
        print(f"{name}: {_megabytes(unzipped)} unzipped")
        return _zip(content, into / f"{name}.zip")


def requirements(name: str) -> tuple[list[str], list[str]]:
    """Return what a bundle installs: with, and without what that asks for in turn."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    if name == "migrate":
        return project["dependencies"], []
    asked = project["dependencies"] + project["optional-dependencies"]["lambda"]
    for extra in ("embeddings", "http"):
        asked += project["optional-dependencies"][extra]
    by_name = {re.split(r"[^A-Za-z0-9_.-]", each)[0].lower(): each for each in asked}
    return (
        [by_name[package] for package in REQUEST_PACKAGES],
        [by_name.get(package, package) for package in ALONE_PACKAGES],
    )


def _install(name: str, content: Path, *, python: str, arch: str) -> None:
    platforms = [f"--platform=manylinux_{each}_{ARCHITECTURES[arch]}" for each in GLIBCS]
    platforms.append(f"--platform=manylinux2014_{ARCHITECTURES[arch]}")
    target = [f"--python-version={python}", "--implementation=cp", *platforms]
    with_others, alone = requirements(name)
    _pip("--only-binary=:all:", *target, f"--target={content}", *with_others)
    if alone:
        _pip("--only-binary=:all:", *target, f"--target={content}", "--no-deps", *alone)


def _install_project(content: Path, wheels: Path) -> None:
    _run(
        *(sys.executable, "-m", "pip", "-qq", "--disable-pip-version-check", "wheel"),
        *("--no-deps", "--no-build-isolation", f"--wheel-dir={wheels}", str(ROOT)),
    )
    [wheel] = wheels.iterdir()
    _pip("--no-deps", f"--target={content}", str(wheel))


def _pip(*arguments: str) -> None:
    _run(
        *(sys.executable, "-m", "pip", "-qq", "--disable-pip-version-check", "install"),
        *("--no-compile", "--constraint", str(ROOT / "constraints.txt"), *arguments),
    )


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _compile(content: Path, python: str) -> None:
    """Compile for the function's Python: its folder is read-only, so each start would do it anew.

    Without a look at the source's date, which a zip changes.
    """
    here = f"{sys.version_info.major}.{sys.version_info.minor}" == python
    interpreter = sys.executable if here else shutil.which(f"python{python}")
    command = ["-m", "compileall", "-qq", "-j", "0", "--invalidation-mode", "unchecked-hash"]
    if interpreter is None or not _runs(interpreter):
        print(f"Not compiled, for want of python{python} here: cold starts take a little longer.")
        return
    _run(interpreter, *command, "-s", str(content), str(content))


def _runs(interpreter: str) -> bool:
    """Tell whether it is more than the stand-in of a version manager."""
    return subprocess.run([interpreter, "-V"], check=False, capture_output=True).returncode == 0


def _zip(content: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for path in sorted(path for path in content.rglob("*") if path.is_file()):
            entry = zipfile.ZipInfo(path.relative_to(content).as_posix(), ZIP_DATE)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, path.read_bytes())
    return target


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False)
    if done.returncode:
        sys.exit(f"This failed: {' '.join(command)}")


def _megabytes(size: int) -> str:
    return f"{size / 1024 / 1024:.1f} MB"


if __name__ == "__main__":
    main()
