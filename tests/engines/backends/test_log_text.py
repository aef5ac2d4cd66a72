"""How what an instance wrote becomes lines."""

import tracemalloc

import pytest

from engines.backends.log_text import last_lines


@pytest.mark.parametrize(
    ("written", "tail", "lines"),
    [
        (b"", 5, []),
        (b"one\ntwo\n", 0, []),
        (b"one\ntwo\n", 5, ["one", "two"]),
        (b"one\ntwo\nthr", 2, ["two", "thr"]),
        (b"\n\n", 5, ["", ""]),
        (b"10 %\r20 %\r\n\x0b\x85\xe2\x80\xa8\xff", 5, ["10 %", "20 %", "\x0b\ufffd\u2028\ufffd"]),
    ],
)
def test_last_lines_end_at_line_feeds_and_carriage_returns(written, tail, lines):
    assert last_lines(written, tail) == lines


def test_last_lines_take_little_memory_however_many_lines_there_are():
    written = b"x\n" * 2_000_000
    tracemalloc.start()
    try:
        assert last_lines(written, 3) == ["x"] * 3
        assert tracemalloc.get_traced_memory()[1] < 4 * len(written)
    finally:
        tracemalloc.stop()
