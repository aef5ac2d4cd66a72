"""Keeps what the kill matrix measured, and writes it to docs/reliability.md when WRITE_DOCS is set."""

import os
from collections import defaultdict
from pathlib import Path

from engines.models import Kind

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- generated: kill matrix -->", "<!-- /generated -->"
_seconds: dict[str, dict[Kind, float]] = defaultdict(dict)


def note(runtime: str, fault: str, kind: Kind, seconds: float) -> None:
    """The verb had its one final row `seconds` after the return of what died."""
    _seconds[f"{runtime}: {fault}"][kind] = seconds
    if os.environ.get("WRITE_DOCS"):
        write()


def write() -> None:
    """Replace the generated block of the document."""
    head, _, rest = DOCUMENT.read_text().partition(BEGIN)
    tail = rest.partition(END)[2]
    DOCUMENT.write_text(f"{head}{BEGIN}\n{table()}{END}{tail}")


def table() -> str:
    """A row for each fault, a column for each verb, seconds in the cells."""
    lines = ["| | " + " | ".join(f"`{kind}`" for kind in Kind) + " |", "|---" * (len(Kind) + 1) + "|"]
    for fault, seconds in _seconds.items():
        cells = [f"{seconds[kind]:.1f} s" if kind in seconds else "" for kind in Kind]
        lines.append(f"| {fault} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
