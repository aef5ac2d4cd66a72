"""Where a request ends, byte for byte and in any pieces."""

import pytest

from config.web import framing
from config.web.framing import Frame, Stage, Unreadable

HEAD = b"POST /engines/alice/stop HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
NEXT = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
WHOLE = {
    "without a body": NEXT,
    "length 0": HEAD + b"Content-Length: 0\r\n\r\n",
    "length 2": HEAD + b"Content-Length: 2\r\n\r\n{}",
    "any case and spaces": HEAD + b"content-LENGTH :\t2 \r\n\r\n{}",
    "body that looks like a head": HEAD + b"Content-Length: 4\r\n\r\n\r\n\r\n",
    "no chunk": CHUNKED + b"0\r\n\r\n",
    "two chunks": CHUNKED + b"1\r\n{\r\n1\r\n}\r\n0\r\n\r\n",
    "chunk with an extension": CHUNKED + b"2;name=value\r\n{}\r\n0;last\r\n\r\n",
    "chunk with line ends in it": CHUNKED + b"8\r\n\r\n0\r\n\r\n.\r\n0\r\n\r\n",
    "trailers": CHUNKED + b"2\r\n{}\r\n0\r\nX-Sum: 1\r\nX-More: 2\r\n\r\n",
}


@pytest.mark.parametrize("request_", WHOLE.values(), ids=WHOLE)
def test_grow_finds_the_end_of_a_request_that_comes_in_pieces(request_):
    for size in (1, 2, 3, 7, len(request_) + len(NEXT)):
        frame, received, stage = Frame(), bytearray(), Stage.NOTHING
        sent = request_ + NEXT
        while stage is not Stage.WHOLE:
            assert len(received) < len(sent), "the end was not found"
            received += sent[len(received) : len(received) + size]
            stage = frame.grow(received)
        assert bytes(received[: frame.end]) == request_


@pytest.mark.parametrize("request_", WHOLE.values(), ids=WHOLE)
def test_grow_tells_head_from_body_while_bytes_are_missing(request_):
    head = request_.index(b"\r\n\r\n") + 4
    for length in range(1, len(request_)):
        expected = Stage.HEAD if length < head else Stage.BODY
        assert Frame().grow(bytearray(request_[:length])) is expected


MALFORMED = {
    "two lengths": HEAD + b"Content-Length: 2\r\nContent-Length: 30\r\n\r\n{}",
    "length and chunks": HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "length that is none": HEAD + b"Content-Length: abc\r\n\r\n{}",
    "negative length": HEAD + b"Content-Length: -1\r\n\r\n{}",
    "unknown coding": HEAD + b"Transfer-Encoding: br\r\n\r\n{}",
}


@pytest.mark.parametrize("request_", MALFORMED.values(), ids=MALFORMED)
def test_grow_leaves_a_malformed_head_to_the_parser(request_):
    """Waiting for more bytes would hold the connection for nothing: the parser refuses the head."""
    assert Frame().grow(bytearray(request_)) is Stage.WHOLE


UNREADABLE = {
    "request line": (b"GET /" + b"x" * framing.MAX_HEAD, "The request line is too long."),
    "headers": (b"GET / HTTP/1.1\r\n" + b"X: 1\r\n" * 20_000, "There are too many headers, or one is too long."),
    "length": (HEAD + b"Content-Length: 1048577\r\n\r\n", "The body is longer than 1048576 bytes."),
    "length of many digits": (HEAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n", "The body is longer than 1048576 bytes."),
    "chunks": (CHUNKED + b"1\r\nx\r\n" * 400_000, "The body is longer than 1048576 bytes, or its chunks are too small."),
    "chunk's size": (CHUNKED + b"xyz\r\n{}\r\n", "The chunks of the body cannot be read."),
    "signed size": (CHUNKED + b"+2\r\n{}\r\n", "The chunks of the body cannot be read."),
    "chunk longer than its size": (CHUNKED + b"2\r\n{}abc\r\n0\r\n\r\n", "The chunks of the body cannot be read."),
    "chunk's line": (CHUNKED + b"2;" + b"x" * 9000, "The chunks of the body cannot be read."),
}


@pytest.mark.parametrize(("request_", "message"), UNREADABLE.values(), ids=UNREADABLE)
def test_grow_refuses_bytes_that_become_no_request(request_, message):
    with pytest.raises(Unreadable, match=message):
        Frame().grow(bytearray(request_))


def test_wants_continue_only_with_the_header_and_http_1_1():
    assert framing.wants_continue(HEAD + b"Expect: 100-Continue\r\n\r\n")
    assert not framing.wants_continue(HEAD + b"\r\n")
    assert not framing.wants_continue(HEAD.replace(b"1.1", b"1.0") + b"Expect: 100-continue\r\n\r\n")
