"""Documentation generated from code: whole files and blocks inside files, and the check for outdated files.

A block begins with `<!-- generated: NAME -->` and ends with `<!-- /generated -->`. Text outside the block is kept.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, get_args

from audit.actions import Action, Retention
from audit.catalogue import CATALOGUE, CLAMPED
from audit.entries import Entry
from common.env_record import RecordEnv
from common.env_staff import StaffEnv
from common.settings import settings
from engines.models import Status
from engines.transitions import TRANSITIONS
from fleet.openapi import document
from fleet.staff import roles

Move = tuple[Status | None, Status, Action]

_ALIVE = [status for status in Status if status not in (Status.DESTROYING, Status.DESTROYED)]
_WITHOUT_OPERATION: frozenset[Move] = frozenset(
    {
        (None, Status.PROVISIONING, Action.PROVISION_REQUESTED),
        (None, Status.STOPPED, Action.ENGINE_ADOPTED),
        *((status, Status.DESTROYING, Action.DESTROY_REQUESTED) for status in _ALIVE),
        (Status.RUNNING, Status.FAILED, Action.HEALTH_FAILED),
        *((status, Status.DESTROYED, Action.ENGINE_DISOWNED) for status in Status if status != Status.DESTROYED),
    }
)
_SPECIAL: frozenset[Move] = frozenset(
    {
        (Status.FAILED, Status.RUNNING, Action.AUTO_RESTART_SUCCESS),
        (Status.FAILED, Status.FAILED, Action.AUTO_RESTART_FAILED),
        (Status.RUNNING, Status.RUNNING, Action.ROTATE_KEY_FAILED),  # the engine keeps its old key
        *(
            (before, after, action)  # reconcile stops a running instance of the engine once more
            for before, done, bad in (
                (Status.STOPPED, Action.STOP, Action.STOP_FAILED),
                (Status.SLEEPING, Action.SLEEP, Action.SLEEP_FAILED),
            )
            for after, action in ((before, done), (Status.FAILED, bad))
        ),
    }
)


def moves() -> frozenset[Move]:
    """Every possible move of an engine: (from, to, action of the audit row). From is None for the first move."""
    ends = {
        move
        for transition in TRANSITIONS.values()
        for before in transition.before
        for move in ((before, transition.after, transition.done), (before, Status.FAILED, transition.failed))
    }
    return frozenset(ends | _WITHOUT_OPERATION | _SPECIAL)


# -- blocks ------------------------------------------------------------------------------------------------------------


def draw_states() -> str:
    """The state diagram in Mermaid: an arrow per pair of states, labelled with the actions of the move."""
    order = [None, *Status]
    labels: dict[tuple[int, int], list[str]] = defaultdict(list)
    for before, after, action in sorted(moves(), key=lambda move: list(Action).index(move[2])):
        labels[order.index(before), order.index(after)].append(action)
    lines = [
        f"    {order[before] or '[*]'} --> {order[after]}: {', '.join(names)}"
        for (before, after), names in sorted(labels.items())
    ]
    return "\n".join(["```mermaid", "stateDiagram-v2", *lines, f"    {Status.DESTROYED} --> [*]", "```"])


def list_actions() -> str:
    """A Markdown table of the catalogue of audit actions."""
    kept = {Retention.STANDARD: "`ORCH_AUDIT_RETENTION_DAYS`", Retention.PROBE: "`ORCH_AUDIT_PROBE_RETENTION_DAYS`"}
    rows = [
        (f"`{action}`", entry.meaning, entry.triggered_by, entry.about, _metadata(entry), kept[entry.retention])
        for action, entry in CATALOGUE.items()
    ]
    note = f"A row whose timestamp was outside the existing partitions keeps the original in `{CLAMPED}` (string, ISO 8601)."
    return f"{_table(('action', 'meaning', 'triggered by', 'about', 'metadata', 'kept for'), rows)}\n\n{note}"


_JSON = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array", dict: "object"}


def _metadata(entry: Entry) -> str:
    """The keys with their types; keys that products do not see are marked."""
    return ", ".join(_key(key, kind, key in entry.shown) for key, kind in entry.metadata.items()) or "–"


def _key(name: str, kind: type | UnionType, is_shown: bool) -> str:
    types = " or ".join(_JSON[part] for part in get_args(kind) or (kind,))
    return f"`{name}` {types}" if is_shown else f"`{name}` {types} (operators only)"


def list_roles() -> str:
    """A Markdown table of the permissions of staff, with a mark for each role that has the permission."""
    rows = [
        (f"`{line.permission}`", line.allows, *("✓" if role in line.roles else "–" for role in roles.NAMES))
        for line in roles.TABLE
    ]
    return _table(("permission", "allows", *(f"`{role}`" for role in roles.NAMES)), rows)


def list_settings() -> str:
    """A Markdown table of the `ORCH_*` variables."""
    env = type(settings.ENV)
    last = {**RecordEnv.model_fields, **StaffEnv.model_fields}  # inherited, and so the first of the class
    rows = [
        (
            f"`ORCH_{name.upper()}`",
            _default(field.default, name in env.REQUIRED_IN_PRODUCTION),
            _values(field.annotation),
            field.description or "",
        )
        for name, field in sorted(env.model_fields.items(), key=lambda item: item[0] in last)
    ]
    return _table(("variable", "default", "values", "what it is"), rows)


def _default(value: Any, is_required: bool) -> str:
    shown = "empty" if value in ("", None) else f"`{value:g}`" if isinstance(value, float) else f"`{value}`"
    shown = shown.lower() if isinstance(value, bool) else shown
    return f"{shown}; **required in production**" if is_required else shown


def _values(annotation: Any) -> str:
    names = {str: "text", int: "whole number", float: "number", bool: "`true`, `false`"}
    options = [option for option in get_args(annotation) if option is not type(None)]
    return names[annotation] if annotation in names else ", ".join(names.get(option) or f"`{option}`" for option in options)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    columns = list(head)
    lines = [columns, ["---"] * len(columns), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# -- files -------------------------------------------------------------------------------------------------------------

BLOCKS: Mapping[str, tuple[str, Mapping[str, Callable[[], str]]]] = {
    "docs/audit-actions.md": ("The audit log's actions", {"actions": list_actions}),
    "docs/operations.md": ("Operations", {"roles": list_roles, "settings": list_settings}),
    "docs/architecture.md": ("Architecture", {"states": draw_states}),
}
"""File → the title used to create a missing file, and the file's blocks: name → function rendering the block."""


FILES: Mapping[str, Callable[[], str]] = {"docs/openapi.json": document.text}
"""File → function rendering the whole file."""


def stale(root: Path) -> list[str]:
    """Paths, relative to `root`, of missing files and of files different from the code's text."""
    return [name for name in (*BLOCKS, *FILES) if _read(root / name) != _fresh(root, name)]


def write(root: Path) -> list[str]:
    """Bring every file and block up to date, and create missing files and blocks. Returns the changed files."""
    changed = stale(root)
    for name in changed:
        path = root / name
        text = _fresh(root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return changed


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _fresh(root: Path, name: str) -> str:
    """The file's text with its blocks rendered anew."""
    if name in FILES:
        return FILES[name]()
    title, blocks = BLOCKS[name]
    text = _read(root / name) or f"# {title}\n"
    for block, render in blocks.items():
        text = _with_block(text, block, render())
    return text


def _with_block(text: str, block: str, rendered: str) -> str:
    """The text with the block in place of the block's last rendering, or at the end of a text without the block."""
    begin, end = f"<!-- generated: {block} -->", "<!-- /generated -->"
    made = f"{begin}\n\n{rendered}\n\n{end}"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if pattern.search(text):
        return pattern.sub(lambda _: made, text, count=1)
    return f"{text.rstrip()}\n\n{made}\n"
