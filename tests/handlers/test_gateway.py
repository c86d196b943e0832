"""Requests over HTTP in each form in which AWS hands them to a function."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, urlencode

import pytest

from pgcontext import InvalidInputError
from pgcontext.aws import gateway
from pgcontext.aws.gateway import Response
from tests.support.lambda_events import API, event

if TYPE_CHECKING:
    from pgcontext.aws.gateway import Event, Form

FORMS: Final[tuple[Form, ...]] = ("v1", "v2", "alb")


def scope(made: Event, base_path: str = "") -> dict[str, Any]:
    form = gateway.form_of(made)
    assert form is not None
    return gateway.scope_of(made, form, None, base_path=base_path)


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_recognised(form: str) -> None:
    """Each form of event is told by what it holds; a call and a batch are none of them."""
    assert gateway.form_of(event(form)) == form
    others: list[object] = [{"operation": "list"}, {"Records": []}, [], None]
    for other in [*others, {"requestContext": None}, {"requestContext": {"eventType": "CONNECT"}}]:
        assert gateway.form_of(other) is None


@pytest.mark.parametrize("form", FORMS)
def test_a_request_arrives_as_it_was_sent(form: str) -> None:
    """Method, path, host, client and scheme are those of the client."""
    seen = scope(event(form, "PATCH", "/v1/contexts/x"))
    assert (seen["method"], seen["path"], seen["root_path"]) == ("PATCH", "/v1/contexts/x", "")
    assert (seen["scheme"], seen["server"], seen["client"]) == (
        "https",
        (API, 443),
        ("203.0.113.7", 0),
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "pairs",
    [
        [],
        [("roles", "user"), ("roles", "tool")],
        [("query", "a b+c%d&e=f")],
        [("query", "Größe 順序 😀")],
        [("metadata", '{"a": [1, "%2B"]}'), ("cursor", "")],
    ],
)
def test_a_query_is_decoded_once(form: str, pairs: list[tuple[str, str]]) -> None:
    """What comes twice comes twice, and what was encoded once is decoded once, in each form."""
    seen = scope(event(form, query=urlencode(pairs)))
    decoded = parse_qsl(seen["query_string"].decode("ascii"), keep_blank_values=True)
    assert decoded == pairs


def test_a_balancer_without_several_values_is_understood() -> None:
    """The target group's default gives one of each header and parameter, and takes one."""
    made = event("alb", query="query=a%20b", headers=[("Accept", "x")], several=False)
    seen = scope(made)
    assert seen["query_string"] == b"query=a%20b"
    assert (b"accept", b"x") in seen["headers"]
    cookies = Response(200, [("set-cookie", "a=1"), ("vary", "a"), ("vary", "b")], b"")
    answer = gateway.answer_to(made, "alb", cookies)
    assert answer["headers"] == {"set-cookie": "a=1", "vary": "a,b"}
    assert "multiValueHeaders" not in answer


@pytest.mark.parametrize("form", FORMS)
def test_headers_and_cookies_arrive(form: str) -> None:
    """Names are in lower case, what came twice is there twice or joined, cookies are one header."""
    sent = [("X-Tag", "one"), ("X-Tag", "two"), ("Cookie", "a=1; b=2")]
    seen = scope(event(form, headers=sent))["headers"]
    tags = b",".join(value for name, value in seen if name == b"x-tag")
    assert tags == b"one,two"
    assert [value for name, value in seen if name == b"cookie"] == [b"a=1; b=2"]


@pytest.mark.parametrize(
    ("path", "stage", "domain", "base_path", "root_path"),
    [
        ("/v1/contexts", "prod", API, "", "/prod"),
        ("/v1/contexts", "v1", API, "", "/v1"),
        ("/v1/contexts", "v1", "api.example.com", "", ""),
        ("/chats/v1/contexts", "prod", "api.example.com", "/chats", "/chats"),
        ("/chatsroom/v1", "$default", API, "/chats", ""),
        ("/chats", "$default", API, "/chats", "/chats"),
        ("/v1/contexts", "$default", API, "/chats", ""),
    ],
)
def test_a_prefix_is_taken_off_by_whole_segments(
    path: str, stage: str, domain: str, base_path: str, root_path: str
) -> None:
    """The stage is part of the path on the API's own domain only; a base path ends at a slash."""
    seen = scope(event("v2", path=path, stage=stage, domain=domain), base_path)
    assert seen["root_path"] == root_path
    assert seen["path"].startswith(root_path)


def test_the_stage_of_a_rest_api_is_not_in_its_path() -> None:
    """With payload format 1.0 the path begins after the stage; a base path is still in it."""
    assert scope(event("v1", stage="prod"))["root_path"] == ""
    seen = scope(event("v1", path="/chats/v1/contexts", stage="prod"), "/chats")
    assert seen["root_path"] == "/chats"


def test_the_stage_of_an_http_api_is_in_its_path_in_either_format() -> None:
    """An HTTP API with payload format 1.0 names its version, and leaves the stage in the path."""
    made = event("v1", path="/prod/v1/contexts", stage="prod") | {"version": "1.0"}
    assert scope(made)["root_path"] == "/prod"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("body", [None, b"", b'{"name": "Gr\xc3\xb6\xc3\x9fe"}', b"\xff\x00\xfe"])
def test_a_body_arrives_as_it_was_sent(form: str, body: bytes | None) -> None:
    """Text and base64 are the bytes of the client; no body is an empty one."""
    assert gateway.body_of(event(form, "POST", body=body)) == (body or b"")


def test_a_body_that_is_not_base64_is_refused() -> None:
    """What claims to be base64 and isn't is no body."""
    with pytest.raises(InvalidInputError, match="not base64"):
        gateway.body_of({"body": "###", "isBase64Encoded": True})


@pytest.mark.parametrize("form", FORMS)
def test_an_answer_is_told_in_the_form_of_the_question(form: Form) -> None:
    """Status, body, what comes twice and cookies go back as that side understands them."""
    headers = [
        ("content-type", "application/json"),
        ("vary", "a"),
        ("vary", "b"),
        ("set-cookie", "a=1"),
        ("set-cookie", "b=2"),
    ]
    answer = gateway.answer_to(event(form), form, Response(201, headers, b'{"a":"\xc3\xb6"}'))
    assert (answer["statusCode"], answer["body"]) == (201, '{"a":"ö"}')
    assert answer["isBase64Encoded"] is False
    if form == "v2":
        assert answer["cookies"] == ["a=1", "b=2"]
        assert answer["headers"] == {"content-type": "application/json", "vary": "a,b"}
    else:
        assert answer["multiValueHeaders"] == {
            "content-type": ["application/json"],
            "vary": ["a", "b"],
            "set-cookie": ["a=1", "b=2"],
        }
    json.dumps(answer)


@pytest.mark.parametrize(
    ("headers", "body", "is_base64"),
    [
        ([("content-type", "application/problem+json")], b"{}", False),
        ([("content-type", "text/plain; charset=utf-8")], b"hello", False),
        ([("content-type", "image/png")], b"\x89PNG", True),
        ([("content-type", "text/plain")], b"\xff\xfe", True),
        ([("content-type", "application/json"), ("content-encoding", "gzip")], b"{}", True),
        ([], b"", False),
    ],
)
def test_a_body_that_is_no_text_goes_back_as_base64(
    headers: list[tuple[str, str]], body: bytes, is_base64: bool
) -> None:
    """Whatever the bytes are, they reach the client."""
    answer = gateway.answer_to(event("v2"), "v2", Response(200, headers, body))
    assert answer["isBase64Encoded"] is is_base64
    text = answer["body"]
    assert (base64.b64decode(text) if is_base64 else text.encode()) == body


async def test_who_waits_for_the_client_to_go_is_told_after_the_answer() -> None:
    """A disconnect before the answer is complete would cut it off."""
    seen: list[str] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        seen.append((await receive())["type"])
        waiting = asyncio.create_task(receive())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await asyncio.sleep(0)
        assert not waiting.done()
        await send({"type": "http.response.body", "body": b"b"})
        seen.append((await waiting)["type"])

    response = await gateway.ask(application, {}, b"")
    assert (response.body, seen) == (b"ab", ["http.request", "http.disconnect"])


async def test_an_application_that_gives_no_answer_is_found_out() -> None:
    """Half an answer isn't handed on as a whole one."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    with pytest.raises(RuntimeError, match="no complete answer"):
        await gateway.ask(application, {}, b"")
