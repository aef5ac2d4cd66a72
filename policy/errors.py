"""Refusals of the policy app. `fleet.errors` maps them to HTTP statuses and codes; the message is a sentence for the caller."""

import random
from dataclasses import dataclass
from typing import Self

from policy.sliding_window import Window


class PolicyError(Exception):
    """Base class of all refusals of the policy app."""


class InvalidPolicy(PolicyError):
    """A policy has an unknown key, or a value of the wrong type; the message names the key."""


class InvalidProduct(PolicyError):
    """A slug or display name breaks its rule; the message names the field and the rule."""


class ProductSlugExists(PolicyError):
    """The slug is taken, by a living or a deleted product."""


class ProductNotFound(PolicyError):
    """No living product has the id."""


class PlatformKeyNotFound(PolicyError):
    """The product has no platform key with the id, or the key is revoked already."""


class OverrideNotFound(PolicyError):
    """The product has no override with the id, or the override has ended already."""


class InvalidAdminKeyName(PolicyError):
    """The name of a new admin key breaks its rule; the message states the rule."""


class AdminKeyExists(PolicyError):
    """An unrevoked admin key has the name already."""


class AdminKeyNotFound(PolicyError):
    """No admin key has the id, or the key is revoked already."""


class InvalidEngineEnv(PolicyError):
    """An engine environment breaks a rule; the message names the variable, and never its value."""


class EngineEnvUnreadable(PolicyError):
    """A version of a product's engine environment is removed, or no master key decrypts the version."""


class ShareTaken(PolicyError):
    """The product's requests already hold the product's share of the threads of this web process."""


class InvalidIdempotencyKey(PolicyError):
    """An `Idempotency-Key` is empty, too long, or not printable ASCII."""


class IdempotencyMismatch(PolicyError):
    """An `Idempotency-Key` was used before, with a different request body."""


@dataclass
class Denied(PolicyError):
    """A rule of the product's policy refuses the call: `value` would exceed, or has exceeded, `limit`."""

    rule: str
    limit: int | str
    value: int | str

    def metadata(self) -> dict[str, str | int]:
        """Return the refusal as metadata of an audit row."""
        return {"rule": self.rule, "limit": self.limit, "value": self.value}


@dataclass
class QuotaExceeded(Denied):
    """The product already has all the engines allowed by its policy."""

    def __str__(self) -> str:
        return f"Product at {self.rule} limit ({self.limit})."


@dataclass
class ImageDenied(Denied):
    """The policy of the product does not allow the image."""

    def __str__(self) -> str:
        return f"The product may not run {self.value}. Allowed: {self.limit}."


@dataclass
class ProductSuspended(Denied):
    """The product is suspended: its users are not admitted, its engines neither created nor started."""

    reason: str = ""

    def __str__(self) -> str:
        return f"The product is suspended: {self.reason}"


@dataclass
class DiskExceeded(Denied):
    """The volume of the engine takes more disk space than the engine may have: nothing starts the engine."""

    def __str__(self) -> str:
        return (
            f"The engine's volume takes {self.value} MB, and may take {self.limit} MB. Ask the operator to raise disk_mb for a"
            " time, start the engine then, and let it remove data; or destroy the engine."
        )


@dataclass
class RateLimited(Denied):
    """The product has used up the admits of its rate limit."""

    retry_after_s: int = 1
    window: Window | None = None

    @classmethod
    def by(cls, window: Window) -> Self:
        """Return the refusal of a full window. `retry_after_s` has random extra time, to spread the retries of many callers."""
        jitter_s = random.uniform(0, max(1, window.reset_s / 10))  # noqa: S311 (not for secrets)
        return cls("rate_limit_rpm", window.limit, window.limit, retry_after_s=window.reset_s + round(jitter_s), window=window)

    def __str__(self) -> str:
        return f"Rate limit exceeded. Retry in {self.retry_after_s} seconds."
