"""Creates, hashes, compares and encrypts keys; signs what others could change. No plaintext key is ever stored.

All encryption and all signatures are by the master keys, which every process has and Valkey does not know. The first master key
encrypts and signs; all master keys decrypt and verify, so that their rotation makes nothing invalid.
"""

import hashlib
import hmac
import secrets
from functools import cache

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

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


def opens(token: str) -> bool:
    """Return whether one of the master keys opens the token."""
    return bool(settings.ENV.master_keys) and _opens(settings.ENV.master_keys, token)


def is_current(token: str) -> bool:
    """Return whether the token is encrypted under the first master key."""
    return _opens(settings.ENV.master_keys[:1], token)


def _opens(master_keys: tuple[str, ...], token: str) -> bool:
    try:
        _fernet(master_keys).decrypt(token.encode())
    except InvalidToken:
        return False
    return True


def reencrypt(token: str) -> str:
    """Return the token's plaintext encrypted under the first master key. Raises InvalidToken as `decrypt` does."""
    return _fernet(settings.ENV.master_keys).rotate(token.encode()).decode()


def sign(purpose: str, text: str) -> str:
    """Return an HMAC of `text` (32 hex digits, 128 bits) under a key of its own for `purpose`, by the first master key."""
    return _hmac(settings.ENV.master_keys[0], purpose, text)


def is_signed(purpose: str, text: str, signature: str) -> bool:
    """Return whether `signature` is the one that `sign` returns or returned, under any of the master keys."""
    return any(matches(signature, _hmac(key, purpose, text)) for key in settings.ENV.master_keys)


def _hmac(master_key: str, purpose: str, text: str) -> str:
    return hmac.digest(_derive(master_key, purpose), text.encode(), "sha256")[:16].hex()


@cache
def _derive(master_key: str, purpose: str) -> bytes:
    """A key of 32 bytes for a single purpose (HKDF, RFC 5869)."""
    return HKDF(SHA256(), 32, salt=None, info=f"roundhouse {purpose}".encode()).derive(master_key.encode())
