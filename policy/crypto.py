"""Keys: made here, hashed here, encrypted here; nowhere else is a plaintext key stored or compared."""

import hashlib
import hmac
import secrets
from functools import cache

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from common.settings import settings

PLATFORM_PREFIX = "pk-sept-"
ENGINE_PREFIX = "sk-sept-"
ADMIN_PREFIX = "ak-sept-"
SHOWN = 6  # characters of a key, after its prefix, that are kept and shown


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
def _fernet(master_keys: tuple[str, ...]) -> MultiFernet:
    return MultiFernet([Fernet(key) for key in master_keys])


def encrypt(plaintext: str) -> str:
    """Fernet token of `plaintext` under the first master key."""
    return _fernet(settings.ENV.master_keys).encrypt(plaintext.encode()).decode()


def decrypt(token: str) -> str:
    """The plaintext of a token of `encrypt`. Raises cryptography.fernet.InvalidToken when no master key made it."""
    return _fernet(settings.ENV.master_keys).decrypt(token.encode()).decode()


def is_current(token: str) -> bool:
    """Whether the token was made under the first master key."""
    try:
        _fernet(settings.ENV.master_keys[:1]).decrypt(token.encode())
    except InvalidToken:
        return False
    return True


def reencrypt(token: str) -> str:
    """The same plaintext under the first master key. Raises InvalidToken when no master key made the token."""
    return _fernet(settings.ENV.master_keys).rotate(token.encode()).decode()
