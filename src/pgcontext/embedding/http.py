"""Embeddings from any server that speaks the OpenAI embeddings API, by HTTP."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import random
import re
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import SplitResult, urlsplit, urlunsplit
from weakref import WeakKeyDictionary

import msgspec

from pgcontext import limits
from pgcontext.embedding import answers
from pgcontext.embedding.answers import AgainError
from pgcontext.embedding.names import model_name
from pgcontext.errors import ConfigError, EmbeddingError, InvalidInputError
from pgcontext.settings import OPENAI_URL

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Iterator, Mapping
    from types import TracebackType
    from typing import Any, Self

    import httpx

logger: Final = logging.getLogger("pgcontext")

# Source: Azure OpenAI REST API reference. Keys go in a header of its own there; a bearer token is
# one of Entra ID.
AZURE_HOSTS: Final = (
    ".openai.azure.com",
    ".cognitiveservices.azure.com",
    ".services.ai.azure.com",
)
HEADER_TEXT: Final = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")


class _Line(NamedTuple):
    """What one event loop has: its connections, and how many requests may be under way."""

    client: httpx.AsyncClient
    turns: asyncio.Semaphore


class HttpEmbedder:
    """Asks a server that speaks the OpenAI embeddings API: OpenAI, Azure, Ollama, vLLM, TEI, ….

    Making one does no I/O. It may be used from several event loops; each has its own connections.
    A text of more than `text_chars` characters is embedded by its beginning, and so is one that
    the server says is too long.

    Args:
        model: the model's name, as the server knows it; kept with each vector.
        url: what comes before `/embeddings`, with that or without. Its query is sent along.
        key: the API key, if the server wants one. Shown nowhere.
        dimensions: ask the server for vectors of this length; None leaves it to the model. Many
            servers refuse the parameter where the model has one length only.
        headers: sent along with each request.
        seconds: how long embedding may take in all, retries and waits included; a store's own
            bound holds as well.
        batch_texts: texts in one request at most.
        requests: how many requests are under way at once, at most, in one event loop.
        text_chars: characters of one text that are sent at most.

    Raises:
        ConfigError: an argument cannot be used, or httpx is not installed.
    """

    def __init__(
        self,
        model: str,
        *,
        url: str = OPENAI_URL,
        key: str | None = None,
        dimensions: int | None = None,
        headers: Mapping[str, str] | None = None,
        seconds: float = limits.EMBEDDING_SECONDS_DEFAULT,
        batch_texts: int = limits.EMBEDDING_BATCH_TEXTS_DEFAULT,
        requests: int = limits.EMBEDDING_REQUESTS_DEFAULT,
        text_chars: int = limits.EMBEDDING_TEXT_CHARS_DEFAULT,
    ) -> None:
        if find_spec("httpx") is None:
            msg = "Embedding by HTTP needs httpx: pip install 'pgcontext[embeddings]'"
            raise ConfigError(msg)
        if min(seconds, batch_texts, requests, text_chars) <= 0:
            msg = "seconds, batch_texts, requests and text_chars must be above 0."
            raise ConfigError(msg)
        address = _address(url)
        self._model = model_name(model)
        self._url = urlunsplit(address)
        self._host = address.hostname or ""
        self._headers = {**(headers or {}), **_credentials(self._host, key)}
        self._dimensions = dimensions
        self._seconds = seconds
        self._batch_texts = batch_texts
        self._requests = requests
        self._text_chars = text_chars
        self._lines: WeakKeyDictionary[asyncio.AbstractEventLoop, _Line] = WeakKeyDictionary()
        self._process_id = os.getpid()
        self._of_parents: list[object] = []

    def __repr__(self) -> str:
        return f"HttpEmbedder({self._model!r}, host={self._host!r})"

    @property
    def model(self) -> str:
        """The model's name."""
        return self._model

    async def embed(self, texts: list[str]) -> list[list[float]]:
        """Return one `float[dimensions]` for each text, in order.

        Raises:
            EmbeddingError: the server refused, or did not answer usefully in time.
            InvalidInputError: a text is empty: servers refuse those.
        """
        if not all(texts):
            msg = "An empty text has no embedding."
            raise InvalidInputError(msg)
        line = self._line()
        sent = [text[: self._text_chars] for text in texts]
        until = time.monotonic() + self._seconds
        try:
            async with asyncio.timeout(self._seconds):
                parts = await _all(
                    self._fitted(line, batch, until) for batch in self._batches(sent)
                )
        except TimeoutError:
            msg = f"{self._who} did not answer within {self._seconds:g} s."
            raise EmbeddingError(msg, retryable=True) from None
        return [vector for part in parts for vector in part]

    async def aclose(self) -> None:
        """Close this event loop's connections; a later call makes new ones."""
        self._leave_the_parents()
        line = self._lines.pop(asyncio.get_running_loop(), None)
        if line is not None:
            await line.client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    @property
    def _who(self) -> str:
        return f"The embedding server at {self._host}"

    def _line(self) -> _Line:
        """Return this loop's connections; those of loops that are closed are dropped."""
        import httpx  # 100 ms that only who embeds by HTTP has to pay

        self._leave_the_parents()
        loop = asyncio.get_running_loop()
        line = self._lines.get(loop)
        if line is None:
            for other in [other for other in self._lines if other.is_closed()]:
                del self._lines[other]
            client = httpx.AsyncClient(
                headers={"User-Agent": "pgcontext", **self._headers},
                timeout=httpx.Timeout(self._seconds, connect=limits.EMBEDDING_CONNECT_SECONDS_MAX),
                limits=httpx.Limits(max_keepalive_connections=self._requests),
                event_hooks={"request": [_hide_query]},
            )
            line = self._lines[loop] = _Line(client, asyncio.Semaphore(self._requests))
        return line

    def _leave_the_parents(self) -> None:
        """After a fork the sockets are the parent's too: keep them, and never touch them."""
        if self._process_id != os.getpid():
            self._of_parents.append(dict(self._lines))
            self._lines = WeakKeyDictionary()
            self._process_id = os.getpid()

    def _batches(self, texts: list[str]) -> Iterator[list[str]]:
        """Cut texts into requests, bounded by count and by characters."""
        batch: list[str] = []
        chars = 0
        for text in texts:
            full = len(batch) == self._batch_texts
            if batch and (full or chars + len(text) > limits.EMBEDDING_BATCH_CHARS_MAX):
                yield batch
                batch, chars = [], 0
            batch.append(text)
            chars += len(text)
        if batch:
            yield batch

    async def _fitted(self, line: _Line, texts: list[str], until: float) -> list[list[float]]:
        """Embed a batch; what the server says is too much goes in halves, a long text by its first.

        A short text that is refused alone ends it: then it isn't about size, but about the model or
        a parameter, and would be the same for all others.
        """
        try:
            return await self._vectors(line, texts, until)
        except EmbeddingError as error:
            long_failed = error.status == answers.FAILED_STATUS and _has_long(texts)
            if not (long_failed or error.status in answers.TOO_MUCH_STATUSES):
                raise
            half = len(texts) // 2
            if half:
                first = await self._fitted(line, texts[:half], until)
                return first + await self._fitted(line, texts[half:], until)
            cut = len(texts[0]) // 2
            if cut < limits.EMBEDDING_CUT_CHARS_MIN:
                raise
        return await self._fitted(line, [texts[0][:cut]], until)

    async def _vectors(self, line: _Line, texts: list[str], until: float) -> list[list[float]]:
        """Send one request, again while that may help and there is time."""
        attempt = 1
        while True:
            try:
                async with line.turns:
                    return await self._sent(line.client, texts)
            except AgainError as again:
                pause = max(again.after_seconds, _backoff_seconds(attempt))
                attempt += 1
                failed = again.error.status == answers.FAILED_STATUS
                most = 2 if failed and _has_long(texts) else limits.EMBEDDING_ATTEMPTS_MAX
                if attempt > most or time.monotonic() + pause >= until:
                    raise again.error from None
                logger.info(
                    "embedding failed (%s), trying again in %.2f s",
                    again.error.status or "connection",
                    pause,
                    extra={"event": "retry", "status": again.error.status, "attempt": attempt - 1},
                )
            await asyncio.sleep(pause)

    async def _sent(self, client: httpx.AsyncClient, texts: list[str]) -> list[list[float]]:
        import httpx

        asked: dict[str, Any] = {"model": self._model, "input": texts}
        if self._dimensions is not None:
            asked["dimensions"] = self._dimensions
        body, headers = msgspec.json.encode(asked), {"Content-Type": "application/json"}
        try:
            async with client.stream("POST", self._url, content=body, headers=headers) as response:
                accepted = response.status_code == answers.OK_STATUS
                most = len(texts) * limits.EMBEDDING_ANSWER_BYTES_PER_TEXT_MAX
                content = await self._content(
                    response, most if accepted else limits.EMBEDDING_REFUSAL_BYTES_MAX
                )
        except httpx.HTTPError as error:
            # Its own words name the URL, whose query may hold a secret.
            msg = f"{self._who} could not be reached, or broke off ({type(error).__name__})."
            raise AgainError(EmbeddingError(msg, retryable=True)) from None
        if not accepted:
            after = response.headers.get("Retry-After", "")
            raise answers.refusal(self._who, response.status_code, content, after)
        return answers.vectors(self._who, content, len(texts), self._dimensions)

    async def _content(self, response: httpx.Response, most: int) -> bytes:
        content = bytearray()
        async for part in response.aiter_bytes():
            content += part
            if len(content) > most:
                msg = f"{self._who} answered more than {most:,} bytes."
                raise EmbeddingError(msg, status=response.status_code)
        return bytes(content)


async def _hide_query(request: httpx.Request) -> None:
    """Keep the query, which may hold a key, out of the log of httpx: it names each URL asked."""
    request.url = _url_type()(request.url)


@functools.cache
def _url_type() -> type[httpx.URL]:
    import httpx

    class Url(httpx.URL):
        def __str__(self) -> str:
            return str(self.copy_with(query=None))

    return Url


def _has_long(texts: list[str]) -> bool:
    """Tell whether there is a text that can be cut."""
    return any(len(text) >= 2 * limits.EMBEDDING_CUT_CHARS_MIN for text in texts)


async def _all(works: Iterable[Coroutine[Any, Any, list[list[float]]]]) -> list[list[list[float]]]:
    """Do all at once; when one fails, end the others and raise its error alone."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _address(url: str) -> SplitResult:
    """Take the URL apart, and end its path with what every such server calls it.

    Raises:
        ConfigError: it cannot be used.
    """
    accepted = "PGCONTEXT_EMBEDDING_URL must be an address such as https://api.openai.com/v1"
    try:
        parts = urlsplit(url.strip())
        host = parts.hostname
        _ = parts.port  # which says whether it is one
    except ValueError:
        raise ConfigError(f"{accepted}.") from None
    if parts.scheme not in {"http", "https"} or not host:
        raise ConfigError(f"{accepted}.")
    if parts.username is not None or parts.password is not None:
        msg = f"{accepted}, without a user or password; the key is PGCONTEXT_EMBEDDING_KEY."
        raise ConfigError(msg)
    path = parts.path.rstrip("/").removesuffix("/embeddings") + "/embeddings"
    return parts._replace(path=path, fragment="")


def _credentials(host: str, key: str | None) -> dict[str, str]:
    if not key:
        return {}
    if not HEADER_TEXT.fullmatch(key):
        msg = "PGCONTEXT_EMBEDDING_KEY has characters that no key has, such as a line break."
        raise ConfigError(msg)
    if host.endswith(AZURE_HOSTS):
        return {"api-key": key}
    return {"Authorization": f"Bearer {key}"}


def _backoff_seconds(attempt: int) -> float:
    """Return a pause: exponential with full jitter, so that many callers do not come at once."""
    longest = min(
        limits.EMBEDDING_BACKOFF_SECONDS_MAX, limits.EMBEDDING_BACKOFF_SECONDS_BASE * 2**attempt
    )
    return random.uniform(0, longest)  # noqa: S311 (no secret)
