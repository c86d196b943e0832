"""`pgcontext keys` and `pgcontext serve`, as they are typed."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import pytest
import requests

from pgcontext.cli.output import Exit
from pgcontext.keys import read
from tests.support.cli import Cli, command

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TENANT: Final = UUID(int=0xB)
SECONDS_MAX: Final = 60


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, database_url: str) -> Cli:
    """The command line, on the test's database."""
    return Cli(monkeypatch, database_url)


def test_a_key_is_printed_once_and_alone(cli: Cli) -> None:
    """On stdout the key and no more, so that it can be piped; what it is goes to stderr."""
    made = cli.ok("keys", "create", "for the web", "--scope", "write")
    presented = read(made.out.strip())
    assert presented is not None
    assert presented.tenant_id == UUID(int=0)
    assert str(presented.id) in made.err
    assert "not shown again" in made.err
    listed = cli.ok("keys", "list").out
    assert "for the web" in listed
    assert made.out.strip().rpartition("_")[2] not in listed


def test_keys_are_listed_rotated_and_revoked(cli: Cli) -> None:
    """Each step is seen in the list, and in JSON."""
    assert "nobody comes in" in cli.ok("keys", "list").out
    made = cli.json("keys", "create", "a", "--scope", "admin", "--days", "1.5")
    assert made["text"].startswith("pgc_")
    assert (made["scope"], made["state"]) == ("admin", "live")
    new = cli.json("keys", "rotate", made["id"], "--grace", "3600")
    assert (new["name"], new["scope"], new["expires_at"]) == ("a", "admin", made["expires_at"])
    states = {key["id"]: key["state"] for key in cli.json("keys", "list")}
    assert states == {made["id"]: "ending", new["id"]: "live"}
    assert cli.ok("keys", "revoke", made["id"]).out == f"Revoked {made['id']}.\n"
    assert cli.json("keys", "revoke", new["id"])["state"] == "revoked"
    assert {key["state"] for key in cli.json("keys", "list")} == {"revoked"}
    assert all("text" not in key and "secret_hash" not in key for key in cli.json("keys", "list"))


def test_keys_belong_to_a_tenant(cli: Cli) -> None:
    """Made, listed and ended for that tenant alone."""
    made = cli.json("keys", "create", "a", "--tenant", TENANT)
    presented = read(made["text"])
    assert presented is not None
    assert presented.tenant_id == TENANT
    assert cli.json("keys", "list") == []
    refused = cli("keys", "revoke", made["id"])
    assert (refused.code, refused.out) == (Exit.NOT_FOUND, "")
    assert cli.json("keys", "revoke", made["id"], "--tenant", TENANT)["state"] == "revoked"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("create", "a", "--scope", "root"), "scope must be one of: read, write, admin."),
        (("create", "a", "--days", "0"), "--days must be above 0"),
        (("create", "a", "--days", "nan"), "--days must be above 0"),
        (("create", "a", "--days", "1e300"), "--days must be above 0"),
        (("rotate", str(UUID(int=9)), "--grace", "-1"), "grace_seconds must be from 0"),
    ],
)
def test_what_a_key_cannot_be_is_one_sentence(
    cli: Cli, arguments: tuple[str, ...], sentence: str
) -> None:
    """Bad input, and what is accepted; no key is made."""
    refused = cli("keys", *arguments)
    assert refused.code == Exit.INVALID_INPUT
    assert sentence in refused.err
    assert refused.out == ""
    assert cli.json("keys", "list") == []


def test_a_key_that_is_not_there_is_not_found(cli: Cli) -> None:
    """By the exit code that says so."""
    for what in ("rotate", "revoke"):
        assert cli("keys", what, UUID(int=9)).code == Exit.NOT_FOUND


@pytest.fixture
def serve(cli: Cli) -> Iterator[Callable[..., str]]:
    """Starts `pgcontext serve` on a free port and gives its URL; stopped at the end."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> str:
        process = subprocess.Popen(
            command("serve", "--port", "0", *arguments),
            env=dict(os.environ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if "running on" in line:
                return line.split("running on ")[1].split()[0]
        raise AssertionError("".join(said))

    yield start
    for process in started:
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=SECONDS_MAX)
        assert process.returncode in {0, -signal.SIGTERM}, rest
        assert "GET /" not in rest


def test_serve_answers_whoever_has_a_key(cli: Cli, serve: Callable[..., str]) -> None:
    """From the first key to the first message, over a real connection."""
    key = cli.ok("keys", "create", "a", "--scope", "write").out.strip()
    url = serve()
    with requests.Session() as session:
        assert session.get(f"{url}/readyz").status_code == 200
        assert session.get(f"{url}/v1/contexts").status_code == 401
        session.headers["Authorization"] = f"Bearer {key}"
        context = session.post(f"{url}/v1/contexts", json={"name": "Grüße"}).json()
        message: dict[str, Any] = {"role": "user", "content": "Hello"}
        path = f"{url}/v1/contexts/{context['id']}/messages"
        assert session.post(path, json={"messages": message}).status_code == 201
        assert session.get(path).json()["items"][0]["content"] == "Hello"
        assert "server" not in session.get(f"{url}/healthz").headers


def test_serve_stops_at_a_signal(cli: Cli, serve: Callable[..., str]) -> None:
    """It was told to, so that is no failure."""
    url = serve()
    assert requests.get(f"{url}/healthz", timeout=SECONDS_MAX).status_code == 200


def test_serve_asks_nobody_on_this_machine_when_told_so(
    monkeypatch: pytest.MonkeyPatch, cli: Cli, serve: Callable[..., str]
) -> None:
    """PGCONTEXT_AUTH=none on loopback; a page that was led here under its own name is refused."""
    monkeypatch.setenv("PGCONTEXT_AUTH", "none")
    url = serve("--host", "127.0.0.1")
    made = requests.post(f"{url}/v1/contexts", json={}, timeout=SECONDS_MAX)
    assert made.status_code == 201
    led = {"Host": "attacker.example"}
    answer = requests.get(f"{url}/v1/contexts", headers=led, timeout=SECONDS_MAX)
    assert answer.status_code == 401


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.com"])  # noqa: S104
def test_serve_without_keys_refuses_other_addresses(
    monkeypatch: pytest.MonkeyPatch, cli: Cli, host: str
) -> None:
    """Before it listens; the sentence says what to do."""
    monkeypatch.setenv("PGCONTEXT_AUTH", "none")
    started = time.monotonic()
    refused = cli("serve", "--host", host, "--port", "0")
    assert refused.code == Exit.CONFIG
    assert "listen on 127.0.0.1, or set PGCONTEXT_AUTH=keys" in refused.err
    assert time.monotonic() - started < SECONDS_MAX


def test_serve_refuses_settings_that_cannot_be(monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    """By the variable's name, and without a traceback."""
    monkeypatch.setenv("PGCONTEXT_AUTH", "authorizer")
    refused = cli("serve", "--port", "0")
    assert refused.code == Exit.CONFIG
    assert "PGCONTEXT_AUTH_TENANT" in refused.err
