"""The rules that a policy may hold, and the values that each takes. What they decide is in `decisions`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeGuard

from policy.errors import InvalidPolicy

Policy = Mapping[str, Any]

MAX = 1_000_000_000
MAX_IMAGES = 100
LEAST_MEMORY_MB, LEAST_CPUS, LEAST_PIDS = 16, 0.01, 8  # no engine runs with less, and Docker takes 0 for no limit


def is_whole_number(value: object) -> TypeGuard[int]:
    """0 to MAX."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX


def is_memory(value: object) -> bool:
    """LEAST_MEMORY_MB to MAX."""
    return is_whole_number(value) and value >= LEAST_MEMORY_MB


def is_cpus(value: object) -> bool:
    """LEAST_CPUS to MAX; also with a fraction."""
    return isinstance(value, int | float) and not isinstance(value, bool) and LEAST_CPUS <= value <= MAX


def is_pids(value: object) -> bool:
    """LEAST_PIDS to MAX."""
    return is_whole_number(value) and value >= LEAST_PIDS


def is_image(value: object) -> bool:
    """1 to 255 printable characters without a space: an image's name, or a glob for names."""
    return isinstance(value, str) and 1 <= len(value) <= 255 and value.isprintable() and " " not in value


def is_image_list(value: object) -> bool:
    """1 to MAX_IMAGES of them."""
    return isinstance(value, list) and 1 <= len(value) <= MAX_IMAGES and all(is_image(item) for item in value)


@dataclass(frozen=True)
class Rule:
    """A key of the policy: what it means, and which values it takes."""

    meaning: str
    takes: Callable[[object], bool]
    form: str  # of a value, for an error message


_COUNT = (is_whole_number, f"a whole number from 0 to {MAX}")
_MEMORY = (is_memory, f"a whole number from {LEAST_MEMORY_MB} to {MAX}")
_CPUS = (is_cpus, f"a number from {LEAST_CPUS} to {MAX}")
_PIDS = (is_pids, f"a whole number from {LEAST_PIDS} to {MAX}")

RULES: Mapping[str, Rule] = {
    "max_engines": Rule("Engines of the product in all states but destroyed.", *_COUNT),
    "rate_limit_rpm": Rule("Admits per minute of the product, all users together.", *_COUNT),
    "images": Rule(
        "Images that engines may run: names, globs (`registry/agents:*`) or digests (`sha256:...`). When left out, only"
        " ORCH_ENGINE_IMAGE.",
        is_image_list,
        f"a list of 1 to {MAX_IMAGES} image names, globs or digests",
    ),
    "engine_image": Rule("Image of an engine when a provision names none.", is_image, "the name of an image"),
    "memory_mb": Rule("Memory of an engine in MB; lowers ORCH_ENGINE_MEMORY_MB.", *_MEMORY),
    "cpus": Rule("CPUs of an engine; lowers ORCH_ENGINE_CPUS.", *_CPUS),
    "pids": Rule("Processes and threads of an engine; lowers ORCH_ENGINE_PIDS.", *_PIDS),
}
"""Every key a policy may have; a key that is left out is no limit of its own."""


def check(policy: object) -> dict[str, Any]:
    """The policy as it is stored. Raises InvalidPolicy naming the key that is unknown or of the wrong type."""
    if not isinstance(policy, Mapping):
        raise InvalidPolicy("policy must be a JSON object, {} for no limits.")
    for key, value in policy.items():
        if key not in RULES:
            raise InvalidPolicy(f"policy.{key}: unknown key. Known keys: {', '.join(RULES)}.")
        if not RULES[key].takes(value):
            raise InvalidPolicy(f"policy.{key}: must be {RULES[key].form}.")
    return dict(policy)


def choose_image(policy: Policy, asked: str, default: str) -> str:
    """The image of a new engine: the one asked for, else the product's own, else `default`; allowed or not."""
    return str(asked or policy.get("engine_image") or default)


def names(pattern: str, image: str) -> bool:
    """Whether the pattern (a name, a glob, or a bare digest) stands for the image."""
    if pattern.startswith("sha256:"):
        return image == pattern or image.endswith(f"@{pattern}")
    return image == pattern or fnmatchcase(image, pattern)  # a registry's IPv6 address has brackets, which mean a choice in globs


def lowered(policy: Policy, rule: str, most: float) -> float:
    """The value of a rule that lowers a setting: the smaller of the two."""
    return float(min(policy.get(rule, most), most))
