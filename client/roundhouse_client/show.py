"""Results as text for people, or as JSON with an object per line, which can be piped while more results come."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, is_dataclass
from datetime import datetime
from typing import Any

from roundhouse_client.results import Engine, Row


def show(answer: Any, *, as_json: bool) -> None:
    """Print the answer; of an endless answer, print every part as soon as the part comes."""
    several = isinstance(answer, Iterable) and not isinstance(answer, Mapping | str)
    for part in answer if several else [answer]:
        print(_json(part) if as_json else _text(part), flush=True)


def _json(part: Any) -> str:
    return json.dumps(asdict(part) if is_dataclass(part) and not isinstance(part, type) else part, default=_moment)


def _moment(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    raise TypeError(type(value).__name__)


def _text(part: Any) -> str:
    if isinstance(part, Engine) and part.api_key is None:
        full = f"  disk {part.disk.used_mb} of {part.disk.limit_mb} MB" if part.disk and part.disk.exceeded else ""
        return f"{part.status:<13} {part.user_id:<32} {part.url:<28} {part.engine_version}{full}"
    if isinstance(part, Row):
        told = f" {json.dumps(part.metadata)}" if part.metadata else ""
        return f"{_moment(part.timestamp)} {part.action:<22} {part.user_id or '-':<24} by {part.actor}{told}"
    fields = asdict(part) if is_dataclass(part) and not isinstance(part, type) else part
    if not isinstance(fields, dict):
        return str(fields)
    width = max(map(len, fields), default=0)
    return "\n".join(f"{name:<{width}}  {_value(value)}" for name, value in fields.items() if value is not None)


def _value(value: Any) -> str:
    if isinstance(value, str):
        return value
    return _moment(value) if isinstance(value, datetime) else json.dumps(value, default=_moment)
