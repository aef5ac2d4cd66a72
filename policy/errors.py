"""Refusals of this floor. `fleet.errors` maps each to a status and a code; the message is a sentence for the caller."""

import random
from dataclasses import dataclass
from typing import Self

from policy.sliding_window import Window


class PolicyError(Exception):
    """Base of this floor's refusals."""


class InvalidPolicy(PolicyError):
    """A policy with an unknown key, or a value of the wrong type; the message names the key."""


class InvalidProduct(PolicyError):
    """A slug or display name that cannot be; the message names the field and its rule."""


class ProductSlugExists(PolicyError):
    """Another product has the slug."""


class ProductNotFound(PolicyError):
    """No product has the id."""


class PlatformKeyNotFound(PolicyError):
    """The product has no such key, or it is revoked already."""


class OverrideNotFound(PolicyError):
    """The product has no override with this id, or it has ended already."""


class InvalidAdminKeyName(PolicyError):
    """A name that an admin key cannot have."""


class AdminKeyExists(PolicyError):
    """Another admin key that is not revoked has the name."""


class AdminKeyNotFound(PolicyError):
    """There is no such admin key, or it is revoked already."""


class InvalidEngineEnv(PolicyError):
    """Variables that engines cannot get; the message names the one, and never its value."""


class EngineEnvUnreadable(PolicyError):
    """A version of a product's engine environment that is gone, or that no master key opens."""


class InvalidIdempotencyKey(PolicyError):
    """An `Idempotency-Key` that cannot be."""


class IdempotencyMismatch(PolicyError):
    """An `Idempotency-Key` that was used for another request."""


@dataclass
class Denied(PolicyError):
    """A rule of the product's policy refuses: `value` would pass, or has passed, `limit`."""

    rule: str
    limit: int | str
    value: int | str

    def metadata(self) -> dict[str, str | int]:
        """The refusal as an audit row keeps it."""
        return {"rule": self.rule, "limit": self.limit, "value": self.value}


@dataclass
class QuotaExceeded(Denied):
    """The product has as many engines as its policy allows."""

    def __str__(self) -> str:
        return f"Product at {self.rule} limit ({self.limit})."


@dataclass
class ImageDenied(Denied):
    """The product may not run this image."""

    def __str__(self) -> str:
        return f"The product may not run {self.value}. Allowed: {self.limit}."


@dataclass
class ProductSuspended(Denied):
    """The product is suspended: none of its users is admitted, and none of its engines made to run."""

    reason: str = ""

    def __str__(self) -> str:
        return f"The product is suspended: {self.reason}"


@dataclass
class RateLimited(Denied):
    """The product used up its admits of this minute."""

    retry_after_s: int = 1
    window: Window | None = None

    @classmethod
    def by(cls, window: Window) -> Self:
        """The refusal by a window that is full. Callers are told to come back at different times."""
        jitter_s = random.uniform(0, max(1, window.reset_s / 10))  # noqa: S311 (not for secrets)
        return cls("rate_limit_rpm", window.limit, window.limit, retry_after_s=window.reset_s + round(jitter_s), window=window)

    def __str__(self) -> str:
        return f"Rate limit exceeded. Retry in {self.retry_after_s} seconds."
