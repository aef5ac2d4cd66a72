"""The rules of a policy and their allowed values. `policy.decisions` applies the rules to calls."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeGuard

from common import destinations, image_references
from common.image_references import Reference
from common.settings import settings
from policy.errors import InvalidPolicy

Policy = Mapping[str, Any]

MAX = 1_000_000_000
MAX_IMAGES = 100
MAX_DESTINATIONS = 100
INTERNET, NO_EGRESS = "internet", "none"  # the values of `egress` that are words
# the least an engine can run with; Docker reads 0 as "no limit"
LEAST_MEMORY_MB, LEAST_CPUS, LEAST_PIDS, LEAST_DISK_MB = 16, 0.01, 8, 1


def is_whole_number(value: object) -> TypeGuard[int]:
    """Accept whole numbers from 0 to MAX."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX


def is_memory(value: object) -> bool:
    """Accept whole numbers from LEAST_MEMORY_MB to MAX."""
    return is_whole_number(value) and value >= LEAST_MEMORY_MB


def is_cpus(value: object) -> bool:
    """Accept numbers from LEAST_CPUS to MAX, also with a fraction."""
    return isinstance(value, int | float) and not isinstance(value, bool) and LEAST_CPUS <= value <= MAX


def is_pids(value: object) -> bool:
    """Accept whole numbers from LEAST_PIDS to MAX."""
    return is_whole_number(value) and value >= LEAST_PIDS


def is_disk(value: object) -> bool:
    """Accept whole numbers from LEAST_DISK_MB to MAX."""
    return is_whole_number(value) and value >= LEAST_DISK_MB


def is_image(value: object) -> bool:
    """Accept references to images: a name, or a digest."""
    return isinstance(value, str) and _parse(image_references.parse, value) is not None


def is_image_list(value: object) -> bool:
    """Accept a list of 1 to MAX_IMAGES references, or patterns of references."""
    return isinstance(value, list) and 1 <= len(value) <= MAX_IMAGES and all(map(_is_pattern, value))


def _is_pattern(value: object) -> bool:
    return isinstance(value, str) and _parse(image_references.parse_pattern, value) is not None


def _parse(parse: Callable[[str], Reference], text: str) -> Reference | None:
    """The parts of the text; None outside the grammar."""
    try:
        return parse(text)
    except ValueError:
        return None


def is_runtime(value: object) -> bool:
    """Accept the name of a container runtime in ORCH_ENGINE_RUNTIMES."""
    return isinstance(value, str) and value in settings.ENV.runtimes


def is_egress(value: object) -> bool:
    """Accept INTERNET, NO_EGRESS, or a list of 1 to MAX_DESTINATIONS destinations with ports: see `common.destinations`."""
    if isinstance(value, str):
        return value in (INTERNET, NO_EGRESS)
    return isinstance(value, list) and 1 <= len(value) <= MAX_DESTINATIONS and all(map(_has_port, value))


def _has_port(value: object) -> bool:
    return isinstance(value, str) and destinations.is_destination(value) and destinations.parse(value).first > 0


@dataclass(frozen=True)
class Rule:
    """A key of the policy: its meaning, and the check of its values."""

    meaning: str
    takes: Callable[[object], bool]
    form: str | Callable[[], str]  # the allowed values in words; a function where the settings decide

    def wants(self) -> str:
        """Describe the allowed values for error messages: "must be ..."."""
        return self.form if isinstance(self.form, str) else self.form()


_COUNT = (is_whole_number, f"a whole number from 0 to {MAX}")
_MEMORY = (is_memory, f"a whole number from {LEAST_MEMORY_MB} to {MAX}")
_CPUS = (is_cpus, f"a number from {LEAST_CPUS} to {MAX}")
_PIDS = (is_pids, f"a whole number from {LEAST_PIDS} to {MAX}")
_DISK = (is_disk, f"a whole number from {LEAST_DISK_MB} to {MAX}")


def _runtimes() -> str:
    return f"one of the container runtimes that ORCH_ENGINE_RUNTIMES allows: {', '.join(settings.ENV.runtimes)}"


RULES: Mapping[str, Rule] = {
    "max_engines": Rule("Maximum number of engines of the product, counted in all states but destroyed.", *_COUNT),
    "rate_limit_rpm": Rule("Maximum number of admits per minute of the product, all users together.", *_COUNT),
    "images": Rule(
        "Images that engines may run: names, names with stars (`registry/agents:*`) or digests (`sha256:...`). Without this rule:"
        " only ORCH_ENGINE_IMAGE.",
        is_image_list,
        f"a list of 1 to {MAX_IMAGES} names of images, with or without stars, or digests: {image_references.FORM}; no short ids",
    ),
    "engine_image": Rule(
        "Image of new engines when the provision names no image.",
        is_image,
        f"the name of an image: {image_references.FORM}; no short id",
    ),
    "memory_mb": Rule("Memory of an engine in MB; lowers ORCH_ENGINE_MEMORY_MB.", *_MEMORY),
    "cpus": Rule("CPUs of an engine; lowers ORCH_ENGINE_CPUS.", *_CPUS),
    "pids": Rule("Processes and threads of an engine; lowers ORCH_ENGINE_PIDS.", *_PIDS),
    "disk_mb": Rule("Disk space of the volume of an engine in MB; replaces ORCH_ENGINE_DISK_MB.", *_DISK),
    "runtime": Rule(
        "Container runtime of engines, from their next incarnation on. Without this rule: the first of ORCH_ENGINE_RUNTIMES.",
        is_runtime,
        _runtimes,
    ),
    "egress": Rule(
        "Where engines may open connections: `internet`, `none`, or a list of networks and names with ports"
        " (`api.example.com:443`, `203.0.113.0/24:8000-8010`, `192.0.2.1:53/udp`). Without this rule: ORCH_ENGINE_INTERNET.",
        is_egress,
        f"{INTERNET}, {NO_EGRESS}, or a list of 1 to {MAX_DESTINATIONS} entries such as api.example.com:443,"
        " 203.0.113.0/24:8000-8010 or 192.0.2.1:53/udp (IPv4 only, no wildcards)",
    ),
}
"""All keys of a policy; a key left out sets no limit."""


def check(policy: object) -> dict[str, Any]:
    """Return the policy in its stored form. Raises InvalidPolicy naming the key with an unknown name or a wrong value."""
    if not isinstance(policy, Mapping):
        raise InvalidPolicy("policy must be a JSON object, {} for no limits.")
    for key, value in policy.items():
        if key not in RULES:
            raise InvalidPolicy(f"policy.{key}: unknown key. Known keys: {', '.join(RULES)}.")
        if not RULES[key].takes(value):
            raise InvalidPolicy(f"policy.{key}: must be {RULES[key].wants()}.")
    return dict(policy)


def choose_image(policy: Policy, asked: str, default: str) -> str:
    """Return the image of a new engine: `asked` if given, else the policy's `engine_image`, else `default`; allowed or not."""
    return str(asked or policy.get("engine_image") or default)


def choose_egress(policy: Policy, internet: bool) -> str | list[str]:
    """Return where engines may open connections; `internet` says whether they may without the rule `egress`."""
    value: str | list[str] = policy.get("egress", INTERNET if internet else NO_EGRESS)
    return value


def names(pattern: str, image: str) -> bool:
    """Return whether the pattern (a name, a name with stars, or a digest) matches the image.

    A digest matches every name with this digest, and the image's id. Names match part by part: a star in the tag matches no
    slash and no other part, a star in the repository also matches slashes. A star at the end of a pattern without a tag matches
    any tag and digest. A text outside the grammar matches nothing, in a policy from before the grammar as well.
    """
    wanted, asked = _parse(image_references.parse_pattern, pattern), _parse(image_references.parse, image)
    if wanted is None or asked is None:
        return False
    if not wanted.repository:
        return asked.digest == wanted.digest
    return asked.repository != "" and _matches(asked.repository, wanted.repository) and _matches_rest(asked, wanted)


def _matches_rest(asked: Reference, wanted: Reference) -> bool:
    """Whether tag and digest match. A digest beside a matching tag only narrows: the image must have both."""
    if wanted.digest:
        return asked.digest == wanted.digest and (not wanted.tag or _matches(asked.tag, wanted.tag))
    if wanted.tag:
        return asked.tag != "" and _matches(asked.tag, wanted.tag)
    return wanted.repository.endswith("*") or not (asked.tag or asked.digest)


def _matches(text: str, pattern: str) -> bool:
    # The brackets of an IPv6 address are no set of characters. The grammar has no other special characters than the star.
    return fnmatchcase(text, pattern.replace("[", "[[]"))


def lowered(policy: Policy, rule: str, most: float) -> float:
    """Return the smaller of the rule's value and the setting `most`; without the rule, `most`."""
    return float(min(policy.get(rule, most), most))
