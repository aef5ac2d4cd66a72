"""The rules for user ids and image names."""

import re

from common import characters, image_references
from engines.errors import ImageUnknown, InvalidUserId

# Parts of emoji that `isprintable` refuses: joiners, the letters of flags, and pictures newer than Python's Unicode.
_EMOJI = re.compile("[\u200c\u200d\U0001f000-\U0001faff\U000e0020-\U000e007f]")


def check_new_user_id(user_id: object) -> str:
    """The user id of a new engine. Raises InvalidUserId like `check_user_id`, and for characters that do not show.

    Two users whose ids differ only in such characters could not be told apart.
    """
    checked = check_user_id(user_id)
    if places := characters.unseen(checked):
        named = characters.mark(checked[places[0]])
        raise InvalidUserId(f"user_id: character {places[0] + 1} is {named}, which does not show there; leave it out.")
    return checked


def check_user_id(user_id: object) -> str:
    """The user id of any engine. Raises InvalidUserId unless it is 1 to 255 printable characters, and neither `.` nor `..`.

    An engine from before the rule of `check_new_user_id` may have characters that do not show, and is found by this rule.
    """
    if not isinstance(user_id, str) or not 1 <= len(user_id) <= 255 or not _is_printable(user_id) or user_id in (".", ".."):
        raise InvalidUserId("user_id: must be a string of 1 to 255 printable characters, and not . or .. alone.")
    return user_id


def _is_printable(text: str) -> bool:
    """Whether the text has no control character, no separator except spaces, and no override of the reading direction."""
    return text.isprintable() or _EMOJI.sub("", text).isprintable()


def check_image(image: object) -> str:
    """The image's name, or an empty string when none is requested. Raises ImageUnknown for an impossible name."""
    if image == "":
        return ""
    try:
        image_references.parse(str(image))
    except ValueError as error:
        raise ImageUnknown(f"engine_version: {error}.") from error
    return str(image)
