"""Where a request ends in the bytes of its connection, found without a thread and without parsing the request.

The bytes of a request are handed to a thread when the last byte has come. gunicorn's parser then reads the head and the body, and
refuses what HTTP does not allow. So this module may let a malformed request pass as complete, but never waits for more than HTTP
allows.
"""

import re
from dataclasses import dataclass, field
from enum import Enum

from common.sizes import MAX_BODY

MAX_LINE = 4094  # bytes of a request line, as gunicorn's own limit
MAX_HEAD = 64 * 1024  # bytes of a request line and all headers
MAX_CHUNKED = 2 * MAX_BODY  # bytes of a chunked body with its framing
MAX_CHUNK_LINE = 8190  # bytes of the line in front of a chunk

_BLANK = b"\r\n\r\n"
_FRAMING = re.compile(rb"\r\n(?:(content-length)|(transfer-encoding))[ \t]*:[ \t]*([^\r\n]*)", re.IGNORECASE)
_CONTINUE = re.compile(rb"\r\nexpect[ \t]*:[ \t]*100-continue[ \t]*\r\n", re.IGNORECASE)


class Unreadable(Exception):
    """The bytes cannot become a request that is accepted; the message says why."""


class Stage(Enum):
    """How much of the next request has come."""

    NOTHING = "nothing"
    HEAD = "head"
    BODY = "body"
    WHOLE = "whole"


@dataclass(slots=True)
class Frame:
    """The place of the next request in the bytes received. `end` is the number of its bytes; -1 while unknown."""

    stage: Stage = Stage.NOTHING
    head: int = 0
    end: int = -1
    _looked: int = field(default=0, repr=False)  # bytes before this position need no second look

    def grow(self, received: bytearray) -> Stage:
        """Look at the bytes received so far; return the stage reached. Raises Unreadable."""
        if not self.head and received:
            self._find_head(received)
        if self.head and self.end < 0:
            self._find_last_chunk(received)
        if 0 <= self.end <= len(received):
            self.stage = Stage.WHOLE
        elif self.head:
            self.stage = Stage.BODY
        elif received:
            self.stage = Stage.HEAD
        return self.stage

    def _find_head(self, received: bytearray) -> None:
        at = received.find(_BLANK, max(0, self._looked - len(_BLANK)))
        self._looked = len(received)
        if max(at, len(received) if at < 0 else 0) > MAX_HEAD:
            _refuse_head(received)
        if at >= 0:
            self.head = self._looked = at + len(_BLANK)
            self.end = self.head + _declared(received[: self.head])
            if self.end < self.head:
                self.end = -1

    def _find_last_chunk(self, received: bytearray) -> None:
        """Walk over the chunks that have come; set `end` behind the last chunk and the trailers (RFC 9112, section 7.1)."""
        if len(received) - self.head > MAX_CHUNKED:
            raise Unreadable(f"The body is longer than {MAX_BODY} bytes, or its chunks are too small.")
        while self.end < 0:
            line_end = received.find(b"\r\n", self._looked)
            if line_end < 0:
                if len(received) - self._looked > MAX_CHUNK_LINE:
                    raise Unreadable("The chunks of the body cannot be read.")
                return
            size = _chunk_size(received[self._looked : line_end])
            if size == 0:
                blank = received.find(_BLANK, line_end)
                self.end = blank + len(_BLANK) if blank >= 0 else -1
                return
            after = line_end + 2 + size
            if after + 2 > len(received):
                return
            if received[after : after + 2] != b"\r\n":
                raise Unreadable("The chunks of the body cannot be read.")
            self._looked = after + 2


def wants_continue(head: bytes) -> bool:
    """Whether the client waits for `100 Continue` before it sends the body (RFC 9110, section 10.1.1)."""
    return _CONTINUE.search(head) is not None and b" HTTP/1.1\r\n" in head


def _declared(head: bytearray) -> int:
    """Bytes of the body after the head: 0 without a body, -1 for a chunked body; 0 if malformed: the parser refuses."""
    found = _FRAMING.findall(head)
    if len(found) != 1:
        return 0  # no body, or two lengths, which the parser refuses
    is_length, _, value = found[0]
    if not is_length:
        return -1 if value.strip().lower().endswith(b"chunked") else 0
    if not value.strip().isdigit():
        return 0
    if len(value) > len(str(MAX_BODY)) or int(value) > MAX_BODY:
        raise Unreadable(f"The body is longer than {MAX_BODY} bytes.")
    return int(value)


def _chunk_size(line: bytearray) -> int:
    """The size in a chunk's first line. Raises Unreadable."""
    digits = bytes(line.partition(b";")[0]).strip()
    if not re.fullmatch(rb"[0-9a-fA-F]{1,8}", digits):
        raise Unreadable("The chunks of the body cannot be read.")
    return int(digits, 16)


def _refuse_head(received: bytearray) -> None:
    if received.find(b"\r\n", 0, MAX_LINE + 2) < 0:
        raise Unreadable("The request line is too long.")
    raise Unreadable("There are too many headers, or one is too long.")
