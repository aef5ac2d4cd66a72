"""The proof that an answer comes from the engine itself, and not from a stranger who listens on the engine's port.

A request has a fresh nonce in the header NONCE. The engine answers with a header PROOF: the HMAC-SHA256 (RFC 2104) of the nonce,
keyed by the hash of the engine's key. The engine has the hash in its environment, the registry stores the hash, and neither the
key nor the hash is ever sent. docs/engines.md tells builders of images how to answer.
"""

import hmac
import secrets

NONCE = "X-Engine-Nonce"
PROOF = "X-Engine-Proof"


def make_nonce() -> str:
    """A nonce, as 32 hexadecimal digits. No nonce is used twice: a recorded proof is thus worth nothing."""
    return secrets.token_hex(16)


def prove(key_hash: str, nonce: str) -> str:
    """The proof, as 64 hexadecimal digits; `key_hash` and `nonce` are used as texts, not as the bytes that they stand for."""
    return hmac.digest(key_hash.encode(), nonce.encode(), "sha256").hex()


def is_shown(proof: bytes, key_hash: str, nonce: str) -> bool:
    """Whether `proof` is the proof for the nonce; takes the same time for every wrong proof."""
    return hmac.compare_digest(proof, prove(key_hash, nonce).encode())
