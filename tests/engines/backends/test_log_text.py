"""How what an instance wrote becomes lines."""

import tracemalloc

import pytest

from engines.backends.log_text import BEGINS_EARLIER, last_lines


@pytest.mark.parametrize(
    ("written", "tail", "lines"),
    [
        (b"", 5, []),
        (b"one\ntwo\n", 0, []),
        (b"one\ntwo\n", 5, ["one", "two"]),
        (b"one\ntwo\nthr", 2, ["two", "thr"]),
        (b"\n\n", 5, ["", ""]),
        (b"one\r\n\r\n", 5, ["one", ""]),
        (
            b"10 %\r20 %\r\n\x0b\x0c\x1c\xc2\x85\xe2\x80\xa8\xe2\x80\xa9\xff",
            5,
            ["10 %\r20 %", "\x0b\x0c\x1c\x85\u2028\u2029\ufffd"],
        ),
    ],
)
def test_last_lines_end_at_line_feeds_and_at_nothing_else(written, tail, lines):
    assert last_lines(written, tail) == lines


@pytest.mark.parametrize(
    ("tail", "lines"), [(0, []), (1, ["two"]), (2, [f"{BEGINS_EARLIER}e", "two"]), (9, [f"{BEGINS_EARLIER}e", "two"])]
)
def test_last_lines_mark_the_line_whose_beginning_was_not_read(tail, lines):
    assert last_lines(b"e\ntwo\n", tail, is_cut=True) == lines


def test_last_lines_take_little_memory_however_many_lines_there_are():
    written = b"x\n" * 2_000_000
    tracemalloc.start()
    try:
        assert last_lines(written, 3) == ["x"] * 3
        assert tracemalloc.get_traced_memory()[1] < 4 * len(written)
    finally:
        tracemalloc.stop()
