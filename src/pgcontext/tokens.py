"""Counting the tokens of a text, exactly and without a network.

The vocabularies are inside the package (`_vocabulary/`). One is loaded when the first text is
counted with it, not before: that takes about 0.2 s and 80 MB, and a caller who gives each
message's `token_count` never pays it.
"""

from __future__ import annotations

import binascii
import functools
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from pgcontext.errors import ConfigError, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import tiktoken


class Tokenizer(Protocol):
    """What counts tokens. Any object with these two members plugs into `ContextStore`."""

    @property
    def name(self) -> str:
        """What the vocabulary is called, for people."""
        ...

    def count(self, text: str) -> int:
        """Count the tokens of `text`; called from any thread."""
        ...


class _Vocabulary(msgspec.Struct, frozen=True):
    """How a vocabulary is checked and used.

    Attributes:
        sha256: of the unpacked file, as pinned in tiktoken.
        pattern: cuts a text into the pieces that are looked up one by one.
    """

    sha256: str
    pattern: str


# Source: the definitions of these encodings in tiktoken (MIT, see _vocabulary/LICENSE). One
# alternative is added to o200k_base: `\s++$` takes the blanks that end a text, as cl100k_base has
# it. It finds the same pieces as `\s+(?!\S)` there, without a step back for each character.
_VOCABULARIES: Final = {
    "o200k_base": _Vocabulary(
        sha256="446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
        pattern=(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
            r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
            r"|\p{N}{1,3}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]*"
            r"|\s*[\r\n]+"
            r"|\s++$"
            r"|\s+(?!\S)"
            r"|\s+"
        ),
    ),
    "cl100k_base": _Vocabulary(
        sha256="223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
        pattern=(
            r"'(?i:[sdmt]|ll|ve|re)"
            r"|[^\r\n\p{L}\p{N}]?+\p{L}++"
            r"|\p{N}{1,3}+"
            r"| ?[^\s\p{L}\p{N}]++[\r\n]*+"
            r"|\s++$"
            r"|\s*[\r\n]"
            r"|\s+(?!\S)"
            r"|\s"
        ),
    ),
}
_DIRECTORY: Final = Path(__file__).with_name("_vocabulary")

# A long run of blanks before other text. Python's \s has \x1c to \x1f too, the patterns' has not.
_BLANK: Final = r"[^\S\r\n\x1c-\x1f]"
_LONG_CHARS: Final = 100_000
_LONG_BLANKS: Final = re.compile(rf"(?<!{_BLANK}){_BLANK}{{{_LONG_CHARS},}}+(?=[\S\x1c-\x1f])")

_loading: Final = threading.Lock()


class TiktokenTokenizer(msgspec.Struct, frozen=True):
    """Counts as OpenAI's models do, with a vocabulary of tiktoken.

    The text of a special token, such as `<|endoftext|>`, counts as the text it is.

    Attributes:
        name: `o200k_base` or `cl100k_base`.

    Raises:
        ConfigError: when constructed with another name.
    """

    name: str = "o200k_base"

    def __post_init__(self) -> None:
        """Refuse a vocabulary that is not shipped."""
        if self.name not in _VOCABULARIES:
            msg = (
                f"There is no vocabulary of that name; PGCONTEXT_TOKENIZER accepts "
                f"{' and '.join(_VOCABULARIES)}. Another tokenizer is given as "
                "ContextStore(tokenizer=...)."
            )
            raise ConfigError(msg)

    def count(self, text: str) -> int:
        """Count the tokens of `text`: about 0.1 s for a megabyte of prose.

        Raises:
            InvalidInputError: the text has a lone surrogate, so it is no Unicode text.
            ConfigError: the vocabulary in the installed package is damaged.
        """
        if not text.isascii():
            _require_unicode(text)
        encoding = _encoding(self.name)
        return sum(len(encoding.encode_ordinary(part)) for part in _parts(text))


def get_tokenizer(name: str) -> Tokenizer:
    """Return the built-in tokenizer of that name, without loading its vocabulary.

    Raises:
        ConfigError: there is none.
    """
    return TiktokenTokenizer(name)


def _require_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        msg = "A text holds a lone surrogate, which is not Unicode; remove or replace it."
        raise InvalidInputError(msg) from None


def _parts(text: str) -> Iterator[str]:
    """Cut a text where counting the parts one by one gives the same sum.

    Nearly every text is one part. The regular expressions of tiktoken take a step back for each
    character of a run of blanks, and the whole process panics at a million; but such a run is a
    piece by itself, except for its last blank, which goes with what follows.
    """
    start = 0
    for run in _LONG_BLANKS.finditer(text) if len(text) > _LONG_CHARS else ():
        yield text[start : run.start()]
        yield text[run.start() : run.end() - 1]
        start = run.end() - 1
    yield text[start:]


def _encoding(name: str) -> tiktoken.Encoding:
    with _loading:  # the cache alone would let two threads load at once
        return _load(name)


@functools.cache
def _load(name: str) -> tiktoken.Encoding:
    import tiktoken  # 20 ms that the request path does not have to pay

    vocabulary = _VOCABULARIES[name]
    # Lines of a token in base64, a space, and its rank.
    fields = _unpacked(name, vocabulary.sha256).split()
    ranks = dict(zip(map(binascii.a2b_base64, fields[::2]), map(int, fields[1::2]), strict=True))
    return tiktoken.Encoding(
        name, pat_str=vocabulary.pattern, mergeable_ranks=ranks, special_tokens={}
    )


def _unpacked(name: str, sha256: str) -> bytes:
    """Read a vocabulary, as tiktoken publishes it, from the package.

    Raises:
        ConfigError: it is missing, or not the one that is pinned.
    """
    import gzip  # noqa: PLC0415  # these too are for the first count only
    import hashlib  # noqa: PLC0415
    import zlib  # noqa: PLC0415

    try:
        unpacked = gzip.decompress((_DIRECTORY / f"{name}.tiktoken.gz").read_bytes())
    except (OSError, EOFError, zlib.error):
        unpacked = b""
    if hashlib.sha256(unpacked).hexdigest() != sha256:
        msg = f"The vocabulary {name} of the installed pgcontext is damaged; install it again."
        raise ConfigError(msg)
    return unpacked
