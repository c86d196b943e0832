"""What AWS Lambda is to a function: its Runtime API on loopback, and AWS's own client for it.

The function runs in a process of its own, under `awslambdaric`, as in AWS: it asks for the next
invocation, and posts what came of it.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

ROOT: Final = Path(__file__).parents[2]
VERSION: Final = "/2018-06-01/runtime"
ANSWER_SECONDS_MAX: Final = 60
ARN: Final = "arn:aws:lambda:eu-central-1:123456789012:function:pgcontext"


class Outcome(NamedTuple):
    """What a function said: a result, or an error of its own."""

    result: Any
    error: Any


class FunctionFailedError(AssertionError):
    """The process said something else than the answer to an invocation."""


class LambdaService:
    """Serves the Runtime API and runs one environment of a function.

    Args:
        handler: its module and name, as in a template.
        environment: variables of the function.
        folder: where its code is.
        path: all that can be imported beside that, instead of what is installed here.
    """

    def __init__(
        self,
        handler: str,
        environment: dict[str, str],
        *,
        folder: Path = ROOT,
        path: str | None = None,
    ) -> None:
        self._waiting: queue.Queue[tuple[str, bytes, int]] = queue.Queue()
        self._outcomes: queue.Queue[tuple[str, Outcome]] = queue.Queue()
        self._server = ApiServer(self)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._handler = handler
        self._environment = environment
        self._folder = folder
        self._path = path
        self.process: subprocess.Popen[bytes] | None = None
        self.closing = False
        self.snapshot_taken = False

    def __enter__(self) -> Self:
        self._thread.start()
        variables = {
            "AWS_LAMBDA_FUNCTION_NAME": "pgcontext",
            "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{self._server.server_port}",
            "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
            **({} if self._path is None else {"PYTHONPATH": self._path}),
        }
        self.process = subprocess.Popen(
            [
                sys.executable,
                *([] if self._path is None else ["-S"]),
                *("-m", "awslambdaric", self._handler),
            ],
            cwd=self._folder,
            env=os.environ | variables | self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> str:
        """End the environment and return what it logged."""
        self.closing = True
        assert self.process is not None
        self.process.kill()
        log, _ = self.process.communicate(timeout=ANSWER_SECONDS_MAX)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        return log.decode()

    def invoke(self, event: Any, *, seconds: float = 30.0) -> Any:
        """Send an event and return the function's answer to it.

        Args:
            event: JSON.
            seconds: the function's time.

        Raises:
            FunctionFailedError: the function itself failed.
        """
        name = str(uuid.uuid4())
        deadline = int((time.time() + seconds) * 1_000)
        self._waiting.put((name, json.dumps(event).encode(), deadline))
        try:
            answered, outcome = self._outcomes.get(timeout=ANSWER_SECONDS_MAX)
        except queue.Empty:
            raise FunctionFailedError("no answer: " + self.stop()) from None
        if answered != name or outcome.error is not None:
            raise FunctionFailedError(outcome.error)
        return outcome.result

    def freeze(self) -> None:
        """Stop the environment where it stands, as between two invocations."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGCONT)

    def next_invocation(self) -> tuple[str, bytes, int] | None:
        """Wait for an invocation, for the function that asks for one."""
        while not self.closing:
            try:
                return self._waiting.get(timeout=0.1)
            except queue.Empty:
                continue
        return None

    def answered(self, name: str, outcome: Outcome) -> None:
        """Take what a function posted."""
        self._outcomes.put((name, outcome))


class ApiServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, service: LambdaService) -> None:
        super().__init__(("127.0.0.1", 0), Api)
        self.service = service


class Api(BaseHTTPRequestHandler):
    """The Runtime API, as far as a function uses it."""

    protocol_version = "HTTP/1.1"

    @property
    def _service(self) -> LambdaService:
        assert isinstance(self.server, ApiServer)
        return self.server.service

    def do_GET(self) -> None:
        if self.path == f"{VERSION}/restore/next":
            self._service.snapshot_taken = True
            self._reply(200)
            return
        if self.path != f"{VERSION}/invocation/next":
            self._reply(404)
            return
        invocation = self._service.next_invocation()
        if invocation is None:
            self.close_connection = True
            return
        name, body, deadline = invocation
        self._reply(
            200,
            body,
            {
                "Lambda-Runtime-Aws-Request-Id": name,
                "Lambda-Runtime-Deadline-Ms": str(deadline),
                "Lambda-Runtime-Invoked-Function-Arn": ARN,
                "Lambda-Runtime-Trace-Id": "Root=1-5759e988-bd862e3fe1be46a994272793",
            },
        )

    def do_POST(self) -> None:
        body = json.loads(self._body() or b"null")
        parts = self.path.removeprefix(VERSION).strip("/").split("/")
        self._reply(202, b'{"status": "OK"}')
        if parts[0] == "init":
            self._service.answered("", Outcome(None, body))
        elif parts[2] == "response":
            self._service.answered(parts[1], Outcome(body, None))
        else:
            self._service.answered(parts[1], Outcome(None, body))

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", "0")))
        parts: list[bytes] = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _reply(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
