"""Percentiles, and a table of them."""

import math
from collections.abc import Mapping, Sequence


def percentile(sample: Sequence[float], share: float) -> float:
    """The value that `share` (0 to 1) of a non-empty sample does not exceed (nearest rank)."""
    ordered = sorted(sample)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def table(rows: Mapping[str, Sequence[float]]) -> str:
    """A line per sample of seconds: n, p50, p95 and p99 in milliseconds."""
    width = max(len(name) for name in rows)
    lines = [f"{'':{width}}      n   p50 ms   p95 ms   p99 ms"]
    for name, sample in rows.items():
        cells = "".join(f"{percentile(sample, share) * 1000:9.1f}" for share in (0.5, 0.95, 0.99))
        lines.append(f"{name:{width}} {len(sample):6d}{cells}")
    return "\n".join(lines)
