"""What an instance was made of, as a short fingerprint per part, and the parts in which two makings differ.

A backend notes the fingerprints when it makes an instance, as Docker Compose does with its label `config-hash`. Parts instead of
one hash, because staff should read which part differs. Values of the environment are secrets: only fingerprints are noted.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence

KEY = "ENGINE_KEY_HASH"  # the variable with the hash of the engine's key
UNKNOWN = "unknown"  # the part that differs where nothing was noted
LENGTH = 16  # hexadecimal digits


def fingerprint(value: object) -> str:
    """A fingerprint of a value that JSON can express; mappings count without their order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:LENGTH]


def of_environment(env: Mapping[str, str]) -> dict[str, str]:
    """The parts `key` and `environment` of an instance with the variables `env`."""
    others = {name: value for name, value in env.items() if name != KEY}
    return {"key": fingerprint(env.get(KEY, "")), "environment": fingerprint(others)}


def differing(noted: Mapping[str, str], wanted: Mapping[str, str]) -> Sequence[str]:
    """The parts of `wanted` that were noted otherwise, sorted; UNKNOWN alone where nothing was noted."""
    if not noted:
        return [UNKNOWN]
    return sorted(part for part, value in wanted.items() if noted.get(part) != value)
