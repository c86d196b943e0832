"""What an embedding server answers: vectors, or why not."""

from __future__ import annotations

import math
import re
import time
from typing import Any, Final, cast

import msgspec

from pgcontext.errors import EmbeddingError

OK_STATUS: Final = 200
NOT_FOUND_STATUS: Final = 404
CREDENTIALS_STATUSES: Final = frozenset({401, 403})
# What another try may mend. 424 is what text-embeddings-inference answers when its backend failed.
PASSING_STATUSES: Final = frozenset({408, 424, 425, 429, *range(500, 600)})
# What a server answers to more than it takes, among other things: to a batch of more texts than it
# is set to, or to a text that is longer than the model's context.
TOO_MUCH_STATUSES: Final = frozenset({400, 413, 422})
# Ollama's answer to a text that is longer than the model's context, if it does not cut it itself.
FAILED_STATUS: Final = 500
# A 429 that no waiting mends: the account is out of money.
NO_QUOTA: Final = "insufficient_quota"
CODE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")


class AgainError(Exception):
    """A try failed in a way that another may mend.

    Attributes:
        error: what is raised if there is no other.
        after_seconds: how long the server wants to be left alone; 0 if it didn't say.
    """

    def __init__(self, error: EmbeddingError, after_seconds: float = 0) -> None:
        super().__init__()
        self.error = error
        self.after_seconds = after_seconds


class _Vector(msgspec.Struct):
    embedding: list[float | None]  # null is how most servers write what is no finite number
    index: int = 0  # a gateway that leaves out zeros leaves this out too


class _Vectors(msgspec.Struct):
    data: list[_Vector]


class _Reason(msgspec.Struct):
    code: Any = None
    type: Any = None


class _Refused(msgspec.Struct):
    error: _Reason


def vectors(who: str, content: bytes, count: int, dimensions: int | None) -> list[list[float]]:
    """Take vectors out of an answer: as many as texts, in their order, finite, of one length.

    Args:
        who: answered, for the error.
        content: of the answer.
        count: how many texts there were.
        dimensions: that were asked for, if any.

    Raises:
        EmbeddingError: it is anything else.
    """
    try:
        found = msgspec.json.decode(content, type=_Vectors).data
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _useless(who, "something else than embeddings; check its URL") from None
    found.sort(key=lambda vector: vector.index)
    if [vector.index for vector in found] != list(range(count)):
        raise _useless(who, f"{len(found):,} embeddings for {count:,} texts, or some twice")
    made = [vector.embedding for vector in found]
    lengths = {len(vector) for vector in made}
    if len(lengths) != 1 or dimensions not in {None, *lengths}:
        shown = ", ".join(f"{length:,}" for length in sorted(lengths))
        raise _useless(who, f"embeddings of {shown} dimensions; check the model")
    if not all(n is not None and math.isfinite(n) for vector in made for n in vector):
        # Without a status: the model makes nothing of a text, which says nothing about others.
        raise EmbeddingError(f"{who} answered embeddings with numbers that are not finite.")
    return cast("list[list[float]]", made)


def refusal(who: str, status: int, content: bytes, retry_after: str) -> Exception:
    """Return what to raise for a refusal. Of what the server says only a code: it may quote texts.

    Args:
        who: answered.
        status: of HTTP.
        content: of the answer.
        retry_after: the header of that name.
    """
    code = _code(content)
    said = f"{who} answered HTTP {status}{f' ({code})' if code else ''}"
    if status in PASSING_STATUSES and code != NO_QUOTA:
        error = EmbeddingError(f"{said}; try again later.", retryable=True, status=status)
        return AgainError(error, _after_seconds(retry_after))
    if status in CREDENTIALS_STATUSES:
        advice = "it does not accept the key (PGCONTEXT_EMBEDDING_KEY)."
    elif status == NOT_FOUND_STATUS:
        advice = "check its URL and the model's name."
    elif status in TOO_MUCH_STATUSES:
        advice = "it does not take the model, the dimensions asked for, or the text."
    else:
        advice = "check its URL, the model and the account."
    return EmbeddingError(f"{said}: {advice}", status=status)


def _useless(who: str, what: str) -> EmbeddingError:
    return EmbeddingError(f"{who} answered {what}.", status=OK_STATUS)


def _code(content: bytes) -> str | None:
    """Return the code of an error in OpenAI's form, if it is a code and no prose."""
    try:
        told = msgspec.json.decode(content, type=_Refused).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    codes = (code for code in (told.code, told.type) if isinstance(code, str))
    return next((code for code in codes if CODE.fullmatch(code)), None)


def _after_seconds(written: str) -> float:
    """Read a Retry-After header: seconds, or a date; 0 for what is neither."""
    from email.utils import parsedate_to_datetime  # noqa: PLC0415 (for failures only)

    try:
        seconds = float(written)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(written).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0
