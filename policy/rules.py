"""The rules that a policy may hold, and what each decides."""

from collections.abc import Mapping
from typing import Any

from policy.errors import InvalidPolicy, QuotaExceeded

Policy = Mapping[str, Any]

MAX = 1_000_000_000
RULES: Mapping[str, str] = {
    "max_engines": "Engines of the product in all states but destroyed.",
    "rate_limit_rpm": "Admits per minute of the product, all users together.",
}
"""Every key a policy may have, each a whole number from 0 to MAX; a key that is left out is no limit."""


def check(policy: object) -> dict[str, int]:
    """The policy as it is stored. Raises InvalidPolicy naming the key that is unknown or of the wrong type."""
    if not isinstance(policy, Mapping):
        raise InvalidPolicy("policy must be a JSON object, {} for no limits.")
    for key, value in policy.items():
        if key not in RULES:
            raise InvalidPolicy(f"policy.{key}: unknown key. Known keys: {', '.join(RULES)}.")
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX:
            raise InvalidPolicy(f"policy.{key}: must be a whole number from 0 to {MAX}.")
    return dict(policy)


def check_max_engines(policy: Policy, engines: int) -> None:
    """Raise QuotaExceeded when one more engine than `engines` would be too many."""
    limit = policy.get("max_engines")
    if limit is not None and engines >= limit:
        raise QuotaExceeded("max_engines", limit, engines)
