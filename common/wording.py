"""How the admin words times, durations and metadata, and commands the texts of others. All times are UTC."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from common import characters

_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


def moment(time: datetime | None) -> str:
    """`2026-11-24 03:05:12.123`; a dash for None."""
    return "-" if time is None else time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def duration(milliseconds: float | None) -> str:
    """In the two largest units above zero: `340 ms`, `2.4 s`, `3 min 12 s`, `5 d 4 h`; a dash for None."""
    if milliseconds is None:
        return "-"
    if milliseconds < 1000:
        return f"{milliseconds:.0f} ms"
    if milliseconds < 60_000:
        return f"{milliseconds / 1000:.1f} s"
    left = int(milliseconds / 1000)
    parts: list[str] = []
    for size, unit in _UNITS:
        amount, left = divmod(left, size)
        if amount or parts:
            parts.append(f"{amount} {unit}")
    return " ".join(part for part in parts[:2] if not part.startswith("0 "))


def facts(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Metadata as pairs of texts; a value whose key ends in `_s` is in seconds."""
    return [
        (key.removesuffix("_s").replace("_", " "), value(worth) + (" s" if key.endswith("_s") else ""))
        for key, worth in metadata.items()
    ]


def value(worth: Any) -> str:
    """A value of metadata, or of a policy, in words."""
    if isinstance(worth, bool):
        return "yes" if worth else "no"
    if isinstance(worth, list):
        return ", ".join(value(item) for item in worth) or "none"
    if isinstance(worth, dict):
        return ", ".join(_pair(name, item) for name, item in sorted(worth.items())) or "none"
    return characters.marked(str(worth))


def _pair(name: str, worth: Any) -> str:
    """`alice × 3` for a count, `is staff: yes` for any other value."""
    is_count = isinstance(worth, int) and not isinstance(worth, bool)
    return f"{value(name)} × {worth}" if is_count else f"{value(name).replace('_', ' ')}: {value(worth) or 'empty'}"


def line(text: str) -> str:
    r"""The text as a single line for a terminal: `\x1b` in place of every character that does not print."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
