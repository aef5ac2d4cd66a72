"""The decisions of the policy's rules on a call, for the real calls and for `POST /policy/explain`.

The functions here read no data: the caller passes all facts. Real calls gather the facts under the product's lock. `None` as a
count means "not counted". Real calls raise the first refusal (`check`); explain shows all decisions.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from policy import rules
from policy.errors import DiskExceeded, ImageDenied, ProductSuspended, QuotaExceeded, RateLimited
from policy.rules import Policy
from policy.sliding_window import Window

SUSPENDED = "suspended"  # the name of the rule that a suspension is, beside the rules of a policy


@dataclass(frozen=True)
class Decision:
    """The decision of one rule: `value` compared with `limit`, and in `headroom` how many more fit; None if not applicable."""

    rule: str
    limit: int | str | None
    value: int | str | None
    headroom: int | None = None
    refusal: Exception | None = None

    @property
    def allowed(self) -> bool:
        return self.refusal is None


def check(decided: Iterable[Decision]) -> None:
    """Raise the refusal of the first decision with a refusal; return without one."""
    for decision in decided:
        if decision.refusal is not None:
            raise decision.refusal


# -- decisions per kind of call ----------------------------------------------------------------------------------------


def on_admit(policy: Policy, suspension: str, window: Window | None) -> list[Decision]:
    """Decide on an admit itself, without a provision or wake by its flags.

    `suspension` is the reason of the product's suspension, or empty. `window` is the rate limit's window before the admit, or
    None without a count of admits.
    """
    return [suspended(suspension), rate_limit(policy, window)]


def on_provision(policy: Policy, suspension: str, image: str, default: str, engines: int | None) -> list[Decision]:
    """Decide on a new engine running `image`.

    `engines` is the number of the product's engines; None skips the quota, for a user whose engine exists already.
    """
    decided = [suspended(suspension), images(policy, image, default)]
    return decided if engines is None else [*decided, max_engines(policy, engines)]


def on_serve(suspension: str) -> list[Decision]:
    """Decide on a start, a wake, or a restart of a failed engine."""
    return [suspended(suspension)]


# -- decisions per rule ------------------------------------------------------------------------------------------------


def suspended(reason: str) -> Decision:
    """Refuse if the product is suspended; `reason` is the reason of the suspension, empty without a suspension."""
    refusal = ProductSuspended(SUSPENDED, "active", "suspended", reason) if reason else None
    return Decision(SUSPENDED, "active", "suspended" if reason else "active", refusal=refusal)


def rate_limit(policy: Policy, window: Window | None) -> Decision:
    """Refuse if the window has no room for one more admit."""
    if window is None:
        return Decision("rate_limit_rpm", policy.get("rate_limit_rpm"), None)
    refusal = None if window.remaining else RateLimited.by(window)
    return Decision("rate_limit_rpm", window.limit, window.limit - window.remaining, window.remaining, refusal)


def images(policy: Policy, image: str, default: str) -> Decision:
    """Refuse images not allowed for a new engine.

    Without the rule `images`, only `default` is allowed. The policy's `engine_image` is always allowed.
    """
    allowed = policy.get("images") or [default]
    limit = ", ".join(allowed)[:255]
    is_allowed = image == policy.get("engine_image") or any(rules.names(pattern, image) for pattern in allowed)
    return Decision("images", limit, image, refusal=None if is_allowed else ImageDenied("images", limit, image))


def disk_mb(limit: int, used: int | None) -> Decision:
    """Refuse to start an engine whose volume takes more than `limit`, in MB; `used` is None before the first measurement."""
    refusal = DiskExceeded("disk_mb", limit, used) if used is not None and used > limit else None
    return Decision("disk_mb", limit, used, None if used is None else max(0, limit - used), refusal)


def max_engines(policy: Policy, engines: int) -> Decision:
    """Refuse one more engine if `engines` has reached the quota."""
    limit = policy.get("max_engines")
    if limit is None:
        return Decision("max_engines", None, engines)
    refusal = QuotaExceeded("max_engines", limit, engines) if engines >= limit else None
    return Decision("max_engines", limit, engines, max(0, limit - engines), refusal)
