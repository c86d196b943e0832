"""HTTP as AWS hands it to functions: an event becomes an ASGI request, the response an answer.

There are three forms: "v1" (API Gateway's payload format 1.0: REST APIs and HTTP APIs), "v2"
(format 2.0: HTTP APIs and Function URLs) and "alb" (Application Load Balancers). They differ in
where the path begins, how a query is encoded, and how what comes more than once is told.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias, cast
from urllib.parse import unquote, urlencode

from pgcontext.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, MutableMapping

Event: TypeAlias = dict[str, Any]
Form: TypeAlias = Literal["v1", "v2", "alb"]
Message: TypeAlias = "MutableMapping[str, Any]"
Application: TypeAlias = "Callable[[Any, Any, Any], Awaitable[None]]"

# Where API Gateway itself answers, the stage is the first part of the path; on a domain of one's
# own it isn't.
DEFAULT_DOMAIN: Final = ".execute-api."
TEXT_TYPES: Final = ("text/", "application/json", "application/problem+json")


class Response(NamedTuple):
    """What the application answered."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


def json_object(value: object) -> dict[str, Any]:
    """Return a value that is a JSON object, and an empty one for any other."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def form_of(event: object) -> Form | None:
    """Return the form of an event, or None when it is no request over HTTP."""
    event = json_object(event)
    context = json_object(event.get("requestContext"))
    if "elb" in context:
        return "alb"
    if "http" in context:
        return "v2"
    return "v1" if "httpMethod" in event else None


def scope_of(event: Event, form: Form, context: object, *, base_path: str = "") -> dict[str, Any]:
    """Return the ASGI scope of a request.

    Args:
        event: the request.
        form: its form.
        context: what Lambda says of the invocation.
        base_path: a prefix of the path that isn't the application's, `/chats`.
    """
    told = event["requestContext"]
    headers = list(_headers(event, form))
    first = dict(reversed(headers))
    if form == "v2":
        method, path, client = told["http"]["method"], event["rawPath"], told["http"]["sourceIp"]
        path = unquote(path)
    elif form == "v1":
        method, path, client = event["httpMethod"], event["path"], told["identity"]["sourceIp"]
    else:
        method, path = event["httpMethod"], unquote(event["path"])
        # A balancer appends whom it saw to what the client claims.
        client = first.get("x-forwarded-for", "").rpartition(",")[2].strip()
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": first.get("x-forwarded-proto", "https"),
        "path": path or "/",
        "raw_path": None,
        "query_string": _query(event, form).encode(),
        "root_path": _root_path(path, event, base_path),
        "headers": [(name.encode(), value.encode()) for name, value in headers],
        "client": (client, 0) if client else None,
        "server": (first.get("host", "localhost"), 443),
        "aws.event": event,
        "aws.context": context,
    }


def body_of(event: Event) -> bytes:
    """Return the body of a request.

    Raises:
        InvalidInputError: it should be base64 and isn't.
    """
    body = event.get("body") or ""
    if not event.get("isBase64Encoded"):
        return str(body).encode()
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error:
        msg = "The event's body is not base64."
        raise InvalidInputError(msg) from None


async def ask(application: Application, scope: dict[str, Any], body: bytes) -> Response:
    """Run an ASGI application for one request and collect its response."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    answered = asyncio.Event()
    status = 0
    headers: list[tuple[str, str]] = []
    chunks: list[bytes] = []

    async def receive() -> Message:
        if messages:
            return messages.pop()
        # Who waits for the client to go away must not be told so before the answer is complete.
        await answered.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        nonlocal status, headers
        if message["type"] == "http.response.start":
            status = message["status"]
            headers = [
                (name.decode("latin-1").lower(), value.decode("latin-1"))
                for name, value in message.get("headers", ())
            ]
        elif message["type"] == "http.response.body":
            chunks.append(message.get("body", b""))
            if not message.get("more_body"):
                answered.set()

    await application(scope, receive, send)
    if not answered.is_set():
        msg = "The application gave no complete answer."
        raise RuntimeError(msg)
    return Response(status, headers, b"".join(chunks))


def answer_to(event: Event, form: Form, response: Response) -> dict[str, Any]:
    """Return a response in the form that whoever sent the event understands."""
    body, is_base64 = _body_text(response)
    answer: dict[str, Any] = {
        "statusCode": response.status,
        "body": body,
        "isBase64Encoded": is_base64,
    }
    values: dict[str, list[str]] = {}
    for name, value in response.headers:
        values.setdefault(name, []).append(value)
    if form == "v2":
        cookies = values.pop("set-cookie", [])
        answer["headers"] = {name: ",".join(each) for name, each in values.items()}
        if cookies:
            answer["cookies"] = cookies
    elif form == "v1" or "multiValueHeaders" in event:
        answer["multiValueHeaders"] = values
    else:
        # A balancer without multi-value headers takes one of each: cookies can't be joined.
        answer["headers"] = {
            name: each[-1] if name == "set-cookie" else ",".join(each)
            for name, each in values.items()
        }
    return answer


def _headers(event: Event, form: Form) -> Iterable[tuple[str, str]]:
    several: dict[str, list[str]] | None = event.get("multiValueHeaders")
    if form != "v2" and several:
        for name, values in several.items():
            for value in values:
                yield name.lower(), value
        return
    single: dict[str, str] = event.get("headers") or {}
    for name, value in single.items():
        yield name.lower(), value
    if event.get("cookies"):
        yield "cookie", "; ".join(event["cookies"])


def _query(event: Event, form: Form) -> str:
    if form == "v2":
        return str(event.get("rawQueryString") or "")
    single: dict[str, str] = event.get("queryStringParameters") or {}
    several: dict[str, list[str]] = event.get("multiValueQueryStringParameters") or {
        name: [value] for name, value in single.items()
    }
    pairs = [(name, value) for name, values in several.items() for value in values]
    if form == "alb":  # hands them on as they came, still encoded
        return "&".join(f"{name}={value}" for name, value in pairs)
    return urlencode(pairs)


def _root_path(path: str, event: Event, base_path: str) -> str:
    """Return the part of the path that isn't the application's: whole segments or nothing."""
    told = event["requestContext"]
    prefix = base_path
    stage = told.get("stage")
    # Only HTTP APIs name a version, and only they leave the stage in the path, in either format.
    if "version" in event and stage != "$default" and DEFAULT_DOMAIN in told.get("domainName", ""):
        prefix = f"/{stage}"
    return prefix if path == prefix or path.startswith(f"{prefix}/") else ""


def _body_text(response: Response) -> tuple[str, bool]:
    kind = dict(response.headers).get("content-type", "")
    encoded = "content-encoding" in dict(response.headers)
    if not encoded and kind.startswith(TEXT_TYPES):
        try:
            return response.body.decode(), False
        except UnicodeDecodeError:
            pass
    return base64.b64encode(response.body).decode(), bool(response.body)
