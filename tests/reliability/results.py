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
    """Replace the generated block of the document; rows that were not measured now stay as they are."""
    head, _, rest = DOCUMENT.read_text().partition(BEGIN)
    tail = rest.partition(END)[2]
    DOCUMENT.write_text(f"{head}{BEGIN}\n{table()}{END}{tail}")


def read() -> list[list[str]]:
    """The cells of the document's table, the line below its head left out."""
    block = DOCUMENT.read_text().partition(BEGIN)[2].partition(END)[0]
    lines = [line for line in block.splitlines() if line.startswith("|") and not line.startswith("|---")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def table() -> str:
    """A row for each runtime and fault, a column for each verb, seconds in the cells."""
    measured = {
        fault: [f"{seconds[kind]:.1f} s" if kind in seconds else "" for kind in Kind] for fault, seconds in _seconds.items()
    }
    rows = {row[0]: row[1:] for row in read()[1:]} | measured
    lines = ["| | " + " | ".join(f"`{kind}`" for kind in Kind) + " |", "|---" * (len(Kind) + 1) + "|"]
    lines += [f"| {fault} | " + " | ".join(cells) + " |" for fault, cells in sorted(rows.items())]
    return "\n".join(lines) + "\n"
