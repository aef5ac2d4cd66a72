"""Decisions: what each rule says of something that is asked for. The real calls and `POST /policy/explain` both ask here.

Nothing in here reads anything: the caller gathers the facts, a real call under the product's lock. `None` as a count means that
it does not matter. A real call raises the first refusal (`check`), explain shows all decisions.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from policy import rules
from policy.errors import ImageDenied, ProductSuspended, QuotaExceeded, RateLimited
from policy.rules import Policy
from policy.sliding_window import Window


@dataclass(frozen=True)
class Decision:
    """What one rule says: `value` measured against `limit`, and how many more would fit; None where there is no such thing."""

    rule: str
    limit: int | str | None
    value: int | str | None
    headroom: int | None = None
    refusal: Exception | None = None

    @property
    def allowed(self) -> bool:
        return self.refusal is None


def check(decided: Iterable[Decision]) -> None:
    """Raise the first refusal among them."""
    for decision in decided:
        if decision.refusal is not None:
            raise decision.refusal


# -- what is asked for -------------------------------------------------------------------------------------------------


def on_admit(policy: Policy, suspension: str, window: Window | None) -> list[Decision]:
    """Of an admit, whatever it may lead to. `window`: of the rate limit, before this admit; None while that cannot be counted."""
    return [suspended(suspension), rate_limit(policy, window)]


def on_provision(policy: Policy, suspension: str, image: str, default: str, engines: int | None) -> list[Decision]:
    """Of a new engine with this image. `engines`: those that there are; None for a user who has one already."""
    decided = [suspended(suspension), images(policy, image, default)]
    return decided if engines is None else [*decided, max_engines(policy, engines)]


def on_serve(suspension: str) -> list[Decision]:
    """Of a start, or anything else that makes an engine serve that does not."""
    return [suspended(suspension)]


# -- what a rule says --------------------------------------------------------------------------------------------------


def suspended(reason: str) -> Decision:
    """`reason` is that of the product's suspension, empty while it has none."""
    refusal = ProductSuspended("suspended", "active", "suspended", reason) if reason else None
    return Decision("suspended", "active", "suspended" if reason else "active", refusal=refusal)


def rate_limit(policy: Policy, window: Window | None) -> Decision:
    """One more admit, after those that the window counts."""
    if window is None:
        return Decision("rate_limit_rpm", policy.get("rate_limit_rpm"), None)
    refusal = None if window.remaining else RateLimited.by(window)
    return Decision("rate_limit_rpm", window.limit, window.limit - window.remaining, window.remaining, refusal)


def images(policy: Policy, image: str, default: str) -> Decision:
    """The image of a new engine. `default` is the only one allowed where the policy names none, and the pinned one always is."""
    allowed = policy.get("images") or [default]
    limit = ", ".join(allowed)[:255]
    is_allowed = image == policy.get("engine_image") or any(rules.names(pattern, image) for pattern in allowed)
    return Decision("images", limit, image, refusal=None if is_allowed else ImageDenied("images", limit, image))


def max_engines(policy: Policy, engines: int) -> Decision:
    """One more engine than `engines`."""
    limit = policy.get("max_engines")
    if limit is None:
        return Decision("max_engines", None, engines)
    refusal = QuotaExceeded("max_engines", limit, engines) if engines >= limit else None
    return Decision("max_engines", limit, engines, max(0, limit - engines), refusal)
