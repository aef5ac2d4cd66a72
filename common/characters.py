"""Characters that do not show: where a text has them, and the text with a mark in place of each.

    unseen("a\\u200db") == [1]
    marked("a\\u200db") == "a⟨U+200D⟩b"

Two texts that differ only in such characters look alike. A joiner shows where it joins: in an emoji, and between the letters of
some scripts.
"""

import re
import unicodedata

# Blank or ignorable by Unicode, although `str.isprintable` is true of them. The list is Default_Ignorable_Code_Point of
# https://www.unicode.org/Public/UCD/latest/ucd/DerivedCoreProperties.txt, less the characters that Python calls unprintable, and
# three blank symbols: U+2800, U+16FE4 and U+1D159.
_BLANK = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U00016fe4\U0001d159\U000e0100-\U000e01ef]"
)
_PICTURE = re.compile("[\U0001f000-\U0001faff]")  # shows, although it may be newer than Python's tables
_JOINERS = ("\u200c", "\u200d")
_WHOLE = 2  # the library's number for "fully-qualified" in Unicode's emoji-test.txt
_VIRAMA = 9  # the combining class of the marks that bind two consonants of an Indic script
_LOOKALIKES = frozenset({"LATIN", "CYRILLIC", "GREEK", "COPTIC", "ARMENIAN", "CHEROKEE"})


def unseen(text: str) -> list[int]:
    """The positions of all characters that do not show, in order.

    Shown are: printable characters that are not blank, line breaks and tabs; all characters of an emoji in the list of emoji;
    joiners by which letters of one script are written differently, as in Persian and Hindi.
    """
    if text.isprintable() and not _BLANK.search(text):
        return []
    in_emoji = _positions_of_emoji(text)
    return [
        place
        for place, character in enumerate(text)
        if not (place in in_emoji or _shows(character) or (character in _JOINERS and _joins(text, place)))
    ]


def mixes_alphabets(text: str) -> bool:
    """Whether the text has letters of several of the alphabets whose letters look alike, such as Latin and Cyrillic."""
    return len(_LOOKALIKES & {_script(each) for each in text if each.isalpha()}) > 1


def marked(text: str) -> str:
    """The text with a mark in place of each character that does not show: `⟨U+200D⟩`."""
    places = set(unseen(text))
    return "".join(mark(each) if place in places else each for place, each in enumerate(text)) if places else text


def mark(character: str) -> str:
    """The mark of a character: `⟨U+200D⟩`."""
    return f"⟨U+{ord(character):04X}⟩"


def _shows(character: str) -> bool:
    if character.isprintable():
        return not _BLANK.match(character)
    return character in "\n\t" or _PICTURE.match(character) is not None


def _positions_of_emoji(text: str) -> set[int]:
    """The positions of all characters of emoji, joiners and selectors included.

    An emoji counts in its whole form only: without a selector it looks the same on most screens, and would be a second text.
    """
    import emoji  # only where a text has such characters: the list of emoji takes 10 MB

    found = [each for each in emoji.emoji_list(text) if emoji.EMOJI_DATA[each["emoji"]]["status"] == _WHOLE]
    return {place for each in found for place in range(each["match_start"], each["match_end"])}


def _joins(text: str, place: int) -> bool:
    """Whether a joiner is within letters of one script that it changes (CONTEXTJ of RFC 5892, appendix A)."""
    from idna.core import valid_contextj

    if not 0 < place < len(text) - 1 or not text[place + 1].isalpha():
        return False
    first = place - 2 if unicodedata.combining(text[place - 1]) == _VIRAMA else place - 1
    scripts = {_script(character) for character in text[max(first, 0) : place] + text[place + 1]}
    return len(scripts) == 1 and valid_contextj(text, place)


def _script(character: str) -> str:
    """The first word of the character's name, which is the name of its script for all letters and their marks."""
    return unicodedata.name(character, "").partition(" ")[0]
