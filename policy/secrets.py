"""Keys: made here, hashed here, encrypted here; nowhere else is a plaintext key stored or compared."""

import hashlib
import hmac
import secrets
from functools import cache

from cryptography.fernet import Fernet
from django.conf import settings

PLATFORM_PREFIX = "pk-sept-"
ENGINE_PREFIX = "sk-sept-"
SHOWN = len(PLATFORM_PREFIX) + 6  # characters of a key that lists may show


def make_key(prefix: str) -> str:
    """A new key: `prefix` and 256 random bits in URL-safe base64."""
    return prefix + secrets.token_urlsafe(32)


def hash_key(key: str) -> str:
    """SHA-256 of the key in hex: enough for 256 random bits, and what the engine compares with."""
    return hashlib.sha256(key.encode()).hexdigest()


def matches(given: str, expected: str) -> bool:
    """Compare two strings in time that does not depend on where they differ."""
    return hmac.compare_digest(given.encode(), expected.encode())


@cache
def _fernet() -> Fernet:
    return Fernet(settings.ENV.master_key)


def encrypt(plaintext: str) -> str:
    """Fernet token of `plaintext` under the master key."""
    return _fernet().encrypt(plaintext.encode()).decode()


def decrypt(token: str) -> str:
    """The plaintext of a token that `encrypt` made. Raises cryptography.fernet.InvalidToken under another master key."""
    return _fernet().decrypt(token.encode()).decode()
