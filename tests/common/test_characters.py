"""Which characters do not show, and the marks in their place."""

import pytest

from common.characters import marked, unseen

SHOWN = [
    "", "alice", "with space", "ünïcödé", "e\u0301", "日本", "İ", "🦊", "🫨", "👍🏽", "🇩🇪", "❤", "❤\ufe0f",
    "1\ufe0f\u20e3", "👩\u200d👧",
    "👨\u200d👩\u200d👧\u200d👦", "❤\ufe0f\u200d🔥",
    "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", "x👩\u200d👧y",
    "می\u200cخواهم", "क\u094d\u200dष", "क\u094d\u200cष", "two\nlines\tand a tab",
]  # fmt: skip


@pytest.mark.parametrize("text", SHOWN)
def test_marked_leaves_what_shows(text):
    assert unseen(text) == []
    assert marked(text) == text


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("ali\u200dce", "ali⟨U+200D⟩ce"),
        ("\u200calice", "⟨U+200C⟩alice"),
        ("ali\U000e0061ce", "ali⟨U+E0061⟩ce"),
        ("\u202ealice", "⟨U+202E⟩alice"),
        ("a\0b\x7f", "a⟨U+0000⟩b⟨U+007F⟩"),
        ("\u3164\u2800", "⟨U+3164⟩⟨U+2800⟩"),
        ("a\ufe0fb\U000e0100", "a⟨U+FE0F⟩b⟨U+E0100⟩"),
        ("1\u200d2", "1⟨U+200D⟩2"),
        ("👩\u200d👩", "👩⟨U+200D⟩👩"),  # no emoji is joined of these two
        ("👩\u200d👧\u200d", "👩⟨U+200D⟩👧⟨U+200D⟩"),  # the beginning of an emoji, but no emoji
        ("👁\u200d🗨", "👁⟨U+200D⟩🗨"),  # looks like the emoji, which has two selectors
        ("🦊\ufe0f", "🦊⟨U+FE0F⟩"),
        ("🏴\U000e0061\U000e007f", "🏴⟨U+E0061⟩⟨U+E007F⟩"),
        ("می\u200c", "می⟨U+200C⟩"),
        ("د\u200cا", "د⟨U+200C⟩ا"),  # the first letter joins nothing anyway
        ("می\u200dخ", "می⟨U+200D⟩خ"),
        ("a\u094d\u200cक", "a\u094d⟨U+200C⟩क"),
        ("क\u094d\u200c", "क\u094d⟨U+200C⟩"),
    ],
)
def test_marked_names_what_does_not_show(text, seen):
    assert marked(text) == seen
    assert len(unseen(text)) == seen.count("⟨")
