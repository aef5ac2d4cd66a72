"""Cursors: positions in a list, as texts that say nothing to their reader.

    reveal(hide("older.1764000000000000.15")) == "older.1764000000000000.15"

A position has the time and the number of a row. A cursor is the position, encrypted and authenticated under a key of Django's
secret key. Equal positions have equal cursors, so that a page keeps its address. A cursor ends with the secret key.
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from functools import cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from common.settings import settings

PATTERN = "^[A-Za-z0-9_-]{24,120}$"
"""What a cursor looks like, as a regular expression."""


def hide(position: str) -> str:
    """The cursor of a position."""
    return urlsafe_b64encode(_cipher(settings.SECRET_KEY).encrypt(position.encode(), None)).decode().rstrip("=")


def reveal(cursor: str) -> str:
    """The position of a cursor. Raises ValueError for any text that `hide` has not made."""
    try:
        hidden = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        position = _cipher(settings.SECRET_KEY).decrypt(hidden, None).decode()
    except (InvalidTag, ValueError) as error:
        raise ValueError("not a cursor") from error
    if hide(position) != cursor:  # base64 ignores foreign characters
        raise ValueError("not a cursor")
    return position


@cache
def _cipher(secret: str) -> AESSIV:
    """The cipher (RFC 5297) under a key of its own (RFC 5869): the secret key itself signs sessions."""
    return AESSIV(HKDF(SHA256(), length=64, salt=None, info=b"roundhouse.cursors").derive(secret.encode()))
