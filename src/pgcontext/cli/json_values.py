"""Read a JSON file value by value, whatever its length: an array, JSON lines, or both mixed.

A whole-file parser needs memory for the whole file. Here the end of a value is found by counting
brackets outside strings, and only that value is parsed, by the exact parser of the standard
library: large integers and unusual escapes arrive as they were written.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple, NoReturn

from pgcontext import limits
from pgcontext.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNK_BYTES: Final = 1 << 18
BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
# A whole string, a bracket, or the quote of a string whose end is still to be read. Possessive,
# so that a long string is walked through once.
TOKEN: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{}"]', re.DOTALL)
SPACE: Final = re.compile(rb"[ \t\r\n]*")


class FileFormatError(InvalidInputError):
    """The file is not what it should be; says where, never what stands there."""


class Value(NamedTuple):
    """An object or a list in the file.

    Attributes:
        group: the array it is an element of, counted from 1; 0 outside arrays.
        line: the line it begins in, from 1.
        parsed: the value itself.
    """

    group: int
    line: int
    parsed: Any


class JsonValues:
    """The objects and lists of a file, one at a time; elements of an array one by one.

    Attributes:
        bytes_read: how far the file has been read.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._buffer = b""
        self._start = 0
        self._line = 1
        self._count = 0
        self.bytes_read = 0

    def __iter__(self) -> Iterator[Value]:
        """Yield the values in the order of the file.

        Raises:
            FileFormatError: it is not JSON, not UTF-8, or ends too early. What came before was
                yielded.
        """
        group = 0
        self._more()
        if self._buffer.startswith(BYTE_ORDER_MARK):
            self._start = len(BYTE_ORDER_MARK)
        while byte := self._peek():
            if byte == b"[":
                group += 1
                yield from self._elements(group)
            elif byte == b"{":
                yield self._value(0)
            else:
                self._refuse("an object or an array was expected")

    def _elements(self, group: int) -> Iterator[Value]:
        self._skip(1)
        if self._peek() == b"]":
            self._skip(1)
            return
        while True:
            if self._peek() not in {b"{", b"["}:
                self._refuse("an object or a list was expected")
            yield self._value(group)
            separator = self._peek()
            if separator not in {b",", b"]"}:
                self._refuse("a comma or the array's end was expected")
            self._skip(1)
            if separator == b"]":
                return

    def _value(self, group: int) -> Value:
        line = self._line
        end = self._end_of_value()
        text = self._buffer[self._start : end]
        try:
            parsed = json.loads(text.decode(), parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            self._refuse("it is not valid JSON in UTF-8")
        self._skip(end - self._start)
        self._count += 1
        return Value(group, line, parsed)

    def _end_of_value(self) -> int:
        """Return where the value at the start of the buffer ends, reading what is missing."""
        depth = 0
        offset = 0
        while True:
            for token in TOKEN.finditer(self._buffer, self._start + offset):
                byte = token[0]
                if byte in {b"{", b"["}:
                    depth += 1
                elif byte in {b"}", b"]"}:
                    depth -= 1
                    if depth == 0:
                        return token.end()
                elif byte == b'"':
                    offset = token.start() - self._start
                    break
            else:
                offset = len(self._buffer) - self._start
            if len(self._buffer) - self._start > limits.IMPORT_CONVERSATION_BYTES_MAX:
                megabytes = limits.IMPORT_CONVERSATION_BYTES_MAX >> 20
                self._refuse(f"it does not end within {megabytes} MiB")
            if not self._more():
                self._refuse("the file ends inside it")

    def _peek(self) -> bytes:
        """Return the next byte that is not white space; b"" at the end of the file."""
        while True:
            space = SPACE.match(self._buffer, self._start)
            self._skip(space.end() - self._start if space else 0)
            if self._start < len(self._buffer):
                return self._buffer[self._start : self._start + 1]
            if not self._more():
                return b""

    def _skip(self, length: int) -> None:
        self._line += self._buffer.count(b"\n", self._start, self._start + length)
        self._start += length

    def _more(self) -> bool:
        """Read on; as much as is held already, so that a long value is copied few times."""
        rest = self._buffer[self._start :]
        chunk = self._file.read(max(CHUNK_BYTES, len(rest)))
        self._buffer, self._start = rest + chunk, 0
        self.bytes_read += len(chunk)
        return bool(chunk)

    def _refuse(self, why: str) -> NoReturn:
        msg = f"Entry {self._count + 1} of the file (line {self._line}) cannot be read: {why}."
        raise FileFormatError(msg)


def _refuse_constant(_name: str) -> NoReturn:
    raise ValueError  # NaN and the infinities are not JSON
