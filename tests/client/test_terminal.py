"""What a terminal is given: nothing that it obeys, hides or reorders; nothing else is changed."""

import io
import unicodedata

import pytest

from roundhouse_client import terminal


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 日本 🚀 \\x1b", "plain é 日本 🚀 \\x1b"),
        ("tab\tand\u00a0no-break and\u3000wide space", "tab\tand\u00a0no-break and\u3000wide space"),
        ("\x1b[31m\x07\x08\r\n\x7f", r"\x1b[31m\x07\x08\r\n\x7f"),
        ("\x9b2J \u0085", r"\x9b2J \x85"),
        ("\u202e\u2066\u200e\u200b\ufeff\U000e0041", r"\u202e\u2066\u200e\u200b\ufeff\U000e0041"),
        ("\u2028\u2029\ud800", r"\u2028\u2029\ud800"),
        ("", ""),
    ],
)
def test_make_visible_escapes_all_that_a_terminal_obeys(text, shown):
    assert terminal.make_visible(text) == shown


def test_make_visible_leaves_no_control_or_format_character():
    everything = "".join(map(chr, range(0x110000)))
    left = {unicodedata.category(character) for character in terminal.make_visible(everything).replace("\t", "")}
    assert left.isdisjoint(terminal.OBEYED)


def test_cleaner_changes_nothing_that_goes_elsewhere():
    assert terminal.cleaner(io.StringIO())("\x1b[31m") == "\x1b[31m"
