"""Answers to a probe that cost a careless client much: without an end, in many small parts, or slower than anybody waits."""

import gzip

from engines.backends.memory import Behaviour

HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
BOMB = gzip.compress(bytes(50_000_000))

ANSWERS = {
    "100 Continue without end": Behaviour(repeat=b"HTTP/1.1 100 Continue\r\n\r\n"),
    "103 with headers without end": Behaviour(repeat=b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n"),
    "status line without end": Behaviour(begin=b"HTTP/1.1 200 ", repeat=b"O"),
    "header without end": Behaviour(begin=HEAD + b"X: ", repeat=b"x"),
    "headers without end": Behaviour(begin=HEAD, repeat=b"Set-Cookie: a=b\r\n"),
    "folded header without end": Behaviour(begin=HEAD + b"X: x\r\n", repeat=b" x\r\n"),
    "chunk size without end": Behaviour(begin=CHUNKED, repeat=b"0"),
    "chunk extension without end": Behaviour(begin=CHUNKED + b"5;", repeat=b"x"),
    "chunks of one byte": Behaviour(begin=CHUNKED, repeat=b"1\r\n \r\n"),
    "trailers without end": Behaviour(begin=CHUNKED + b"0\r\n", repeat=b"X: x\r\n"),
    "body without end": Behaviour(begin=HEAD + b"\r\n", repeat=b" "),
    "body in pieces of one byte": Behaviour(begin=HEAD + b"\r\n", repeat=b" ", pause_s=0.0002),
    "large Content-Length, then a byte a second": Behaviour(
        begin=HEAD + b"Content-Length: 99999999999999\r\n\r\n", repeat=b" ", pause_s=1
    ),
    "a byte a second": Behaviour(repeat=b"H", pause_s=1),
    "compressed, 50 MB in 50 kB": Behaviour(
        begin=HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(BOMB) + BOMB
    ),
    "switch of protocols": Behaviour(begin=b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", repeat=b"\0"),
    "silence": Behaviour(hangs=True),
}
"""By name, for instances of the memory backend."""
