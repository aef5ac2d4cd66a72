"""Functions are short: half of them have 6 lines or fewer, and none has more than 40."""

import ast
import statistics
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("common", "audit", "policy", "engines", "fleet", "config", "bench", "client")


def lengths():
    """Lines of each function, by its place."""
    for path in (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if "migrations" not in path.parts):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node.end_lineno - node.lineno + 1


def test_functions_are_short():
    found = dict(lengths())
    assert {place: lines for place, lines in found.items() if lines > 40} == {}
    assert statistics.median(found.values()) <= 6
