"""Creates, hashes, compares and encrypts keys. Only hashes and Fernet tokens are stored, never a plaintext key."""

import hashlib
import hmac
import secrets
from functools import cache

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from common.settings import settings

PLATFORM_PREFIX = "pk-sept-"
ENGINE_PREFIX = "sk-sept-"
ADMIN_PREFIX = "ak-sept-"
SHOWN = 6  # characters of a key, after its prefix, stored and shown to tell keys apart


def make_key(prefix: str) -> str:
    """Return a new key: `prefix` and 256 random bits in URL-safe base64."""
    return prefix + secrets.token_urlsafe(32)


def hash_key(key: str) -> str:
    """Return the SHA-256 of the key in hex. For 256 random bits no slow hash is needed; engines compare the same hash."""
    return hashlib.sha256(key.encode()).hexdigest()


def matches(given: str, expected: str) -> bool:
    """Compare two strings in constant time, whatever the position of the first difference."""
    return hmac.compare_digest(given.encode(), expected.encode())


@cache
def _fernet(master_keys: tuple[str, ...]) -> MultiFernet:
    return MultiFernet([Fernet(key) for key in master_keys])


def encrypt(plaintext: str) -> str:
    """Return a Fernet token of `plaintext` under the first master key."""
    return _fernet(settings.ENV.master_keys).encrypt(plaintext.encode()).decode()


def decrypt(token: str) -> str:
    """Return the plaintext of a token. Raises cryptography.fernet.InvalidToken when the token is from none of the master keys."""
    return _fernet(settings.ENV.master_keys).decrypt(token.encode()).decode()


def is_current(token: str) -> bool:
    """Return whether the token is encrypted under the first master key."""
    try:
        _fernet(settings.ENV.master_keys[:1]).decrypt(token.encode())
    except InvalidToken:
        return False
    return True


def reencrypt(token: str) -> str:
    """Return the token's plaintext encrypted under the first master key. Raises InvalidToken as `decrypt` does."""
    return _fernet(settings.ENV.master_keys).rotate(token.encode()).decode()
