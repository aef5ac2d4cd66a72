"""Results as text for people, or as JSON with an object per line, which can be piped while more results come.

An engine or another caller may have written the text, and a terminal must obey none of it. JSON is ASCII without control
characters. All other text goes through `clean` first.
"""

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, is_dataclass
from datetime import datetime
from typing import Any

from roundhouse_client import terminal
from roundhouse_client.results import Engine, Row

Clean = Callable[[str], str]


def show(answer: Any, *, as_json: bool) -> None:
    """Print the answer; of an endless answer, print every part as soon as the part comes."""
    several = isinstance(answer, Iterable) and not isinstance(answer, Mapping | str)
    clean = terminal.cleaner(sys.stdout)
    for part in answer if several else [answer]:
        print(_json(part) if as_json else _text(part, clean), flush=True)


def _json(part: Any) -> str:
    return _dump(asdict(part) if is_dataclass(part) and not isinstance(part, type) else part)


def _dump(value: Any) -> str:
    return json.dumps(value, default=_moment).replace("\x7f", r"\u007f")  # the only control character that `json` leaves as it is


def _moment(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    raise TypeError(type(value).__name__)


def _text(part: Any, clean: Clean) -> str:
    if isinstance(part, Engine) and part.api_key is None:
        full = f"  disk {part.disk.used_mb} of {part.disk.limit_mb} MB" if part.disk and part.disk.exceeded else ""
        user_id, url, version = map(clean, (part.user_id, part.url, part.engine_version))
        return f"{clean(part.status):<13} {user_id:<32} {url:<28} {version}{full}"
    if isinstance(part, Row):
        metadata = f" {_dump(part.metadata)}" if part.metadata else ""
        user_id = clean(part.user_id or "-")
        return f"{_moment(part.timestamp)} {clean(part.action):<22} {user_id:<24} by {clean(part.actor)}{metadata}"
    fields = asdict(part) if is_dataclass(part) and not isinstance(part, type) else part
    if not isinstance(fields, dict):
        return clean(str(fields))
    told = {clean(name): _value(value, clean) for name, value in fields.items() if value is not None}
    width = max(map(len, told), default=0)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in told.items())


def _value(value: Any, clean: Clean) -> str:
    if isinstance(value, str):
        return clean(value)
    return _moment(value) if isinstance(value, datetime) else _dump(value)
