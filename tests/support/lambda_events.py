"""Events as AWS makes them: of requests over HTTP, and of messages in a queue."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl
from uuid import uuid4

if TYPE_CHECKING:
    from pgcontext.aws.gateway import Event

API: Final = "a1b2c3.execute-api.eu-central-1.amazonaws.com"


def event(
    form: str,
    method: str = "GET",
    path: str = "/v1/contexts",
    *,
    query: str = "",
    headers: list[tuple[str, str]] | None = None,
    body: bytes | None = None,
    stage: str = "$default",
    domain: str = API,
    several: bool = True,
) -> Event:
    """Make the event that AWS makes of a request, in one of its forms.

    Args:
        form: v1, v2 or alb.
        method: of the request.
        path: as the client wrote it, without the stage.
        query: as the client wrote it.
        headers: of the request.
        body: sent as base64 when it is no text.
        stage: of the API.
        domain: that the client asked.
        several: of a balancer, whether it hands on headers and parameters that come twice.
    """
    headers = [("Host", domain), ("X-Forwarded-Proto", "https"), *(headers or [])]
    try:
        text, encoded = None if body is None else body.decode(), False
    except UnicodeDecodeError:
        text, encoded = base64.b64encode(body or b"").decode(), True
    made: Event = {"body": text, "isBase64Encoded": encoded}
    if form == "v2":
        return made | _v2(method, path, query=query, headers=headers, stage=stage, domain=domain)
    pairs = parse_qsl(query, keep_blank_values=True)
    if form == "alb":
        pairs = [(name, value) for name, _, value in (p.partition("=") for p in query.split("&"))]
        made["requestContext"] = {"elb": {"targetGroupArn": "arn:aws:elasticloadbalancing:…"}}
        headers.append(("X-Forwarded-For", "10.9.9.9, 203.0.113.7"))
    else:
        made["requestContext"] = {
            "stage": stage,
            "path": f"/{stage}{path}",
            "domainName": domain,
            "identity": {"sourceIp": "203.0.113.7"},
        }
        made["resource"] = "/{proxy+}"
    made |= {"httpMethod": method, "path": path}
    if several or form == "v1":
        made["multiValueHeaders"] = _several(headers)
        made["multiValueQueryStringParameters"] = _several(pairs) if query else None
    if not several or form == "v1":
        made["headers"] = dict(headers)
        made["queryStringParameters"] = dict(pairs) if query else None
    return made


def _v2(
    method: str,
    path: str,
    *,
    query: str,
    headers: list[tuple[str, str]],
    stage: str,
    domain: str,
) -> Event:
    if stage != "$default" and domain == API:
        path = f"/{stage}{path}"
    joined: dict[str, str] = {}
    cookies: list[str] = []
    for name, value in headers:
        if name.lower() == "cookie":
            cookies += value.split("; ")
        else:
            before = joined.get(name.lower())
            joined[name.lower()] = value if before is None else f"{before},{value}"
    made: Event = {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": query,
        "headers": joined,
        "requestContext": {
            "stage": stage,
            "domainName": domain,
            "http": {"method": method, "path": path, "sourceIp": "203.0.113.7"},
        },
    }
    return made | ({"cookies": cookies} if cookies else {})


def _several(pairs: list[tuple[str, str]]) -> dict[str, list[str]]:
    values: dict[str, list[str]] = {}
    for name, value in pairs:
        values.setdefault(name, []).append(value)
    return values


def record(body: str, **more: Any) -> dict[str, Any]:
    """A record as SQS puts it into an event, as far as anybody looks at it."""
    return {
        "messageId": str(uuid4()),
        "receiptHandle": "a handle",
        "body": body,
        "attributes": {"ApproximateReceiveCount": "1"},
        "eventSource": "aws:sqs",
        "eventSourceARN": "arn:aws:sqs:eu-central-1:123456789012:appends",
        "awsRegion": "eu-central-1",
        **more,
    }
