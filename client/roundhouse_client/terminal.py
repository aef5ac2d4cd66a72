"""Text for a terminal, which obeys some characters, hides some, and shows others in a different order."""

import unicodedata
from collections.abc import Callable
from typing import TextIO

# Control characters, format characters (which also turn the direction of text), halves of pairs, separators of lines.
OBEYED = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))


def make_visible(text: str) -> str:
    r"""The text with an escape such as `\x1b` or `\u202e` in place of every character that a terminal obeys; tabs stay."""
    return text if text.isprintable() else "".join(map(_show, text))


def cleaner(stream: TextIO) -> Callable[[str], str]:
    """What to do with a text of somebody else before it is written to `stream`: nothing, unless the stream is a terminal."""
    return make_visible if stream.isatty() else str


def _show(character: str) -> str:
    if character == "\t" or unicodedata.category(character) not in OBEYED:
        return character
    return character.encode("unicode_escape").decode()
