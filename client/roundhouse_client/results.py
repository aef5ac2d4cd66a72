"""The contents of answers. Fields unknown to the client are left out; a `repr` never shows a key."""

import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from datetime import datetime
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints
from urllib.parse import parse_qs, urlsplit

T = TypeVar("T")


@dataclass(frozen=True)
class Disk:
    """What an engine's volume takes and may take, in MB; `used_mb` is None before the first measurement."""

    used_mb: int | None
    limit_mb: int
    exceeded: bool
    measured_at: datetime | None


@dataclass(frozen=True)
class Engine:
    """An engine; lists leave `api_key` out, and older servers `disk`."""

    engine_id: str
    user_id: str
    status: str
    url: str
    engine_version: str
    created_at: datetime
    last_health_at: datetime | None
    api_key: str | None = field(default=None, repr=False)
    disk: Disk | None = None


@dataclass(frozen=True)
class Engines:
    """A page of engines, and the number of all matching engines."""

    engines: list[Engine]
    total: int


@dataclass(frozen=True)
class Provisioned:
    """A new engine, healthy."""

    engine_id: str
    user_id: str
    status: str
    url: str
    api_key: str = field(repr=False)


@dataclass(frozen=True)
class Started:
    """The engine runs, at `url`."""

    status: str
    url: str


@dataclass(frozen=True)
class Stopped:
    """The engine does not run."""

    status: str


@dataclass(frozen=True)
class Destroyed:
    """The engine is gone."""

    status: str
    engine_id: str


@dataclass(frozen=True)
class NewEngineKey:
    """The engine is healthy with its new key."""

    engine_id: str
    user_id: str
    api_key: str = field(repr=False)


@dataclass(frozen=True)
class Admission:
    """Whether the user's request may go to the engine; `reason` says why not."""

    admitted: bool
    engine: Engine | None
    reason: str | None = None


@dataclass(frozen=True)
class Decision:
    """The decision of a rule: `value` measured against `limit`; `headroom` is how many more fit."""

    rule: str
    allowed: bool
    limit: int | float | str | None
    value: int | float | str | None
    headroom: int | None


@dataclass(frozen=True)
class Explanation:
    """The outcome of a dry run. `allowed`: no rule refuses; `would`: the call's effect; `refusal`: the reason of a refusal.

    `egress`: where the product's engines may open connections: `internet`, `none`, or destinations.
    """

    allowed: bool
    decisions: list[Decision]
    would: str
    refusal: str | None
    egress: str | list[str]


@dataclass(frozen=True)
class Logs:
    """The last lines of an engine's log, oldest first."""

    engine_id: str
    user_id: str
    lines: list[str]


@dataclass(frozen=True)
class Step:
    """A step of an operation, and its time."""

    at: datetime
    step: str
    attempt: int


@dataclass(frozen=True)
class OperationError:
    """Why an operation failed."""

    code: str
    message: str


@dataclass(frozen=True)
class Operation:
    """An operation, with its state and result."""

    operation_id: str
    engine_id: str
    user_id: str
    kind: str
    state: str
    attempt: int
    queue: str
    queue_position: int | None
    created_at: datetime
    finished_at: datetime | None
    steps: list[Step]
    error: OperationError | None
    notice: str | None = None


@dataclass(frozen=True)
class Row:
    """A row of the audit log."""

    id: int
    timestamp: datetime
    product_id: str | None
    user_id: str | None
    engine_id: str | None
    action: str
    actor: str
    metadata: dict[str, Any]
    duration_ms: int | None
    product_slug: str | None
    from_status: str | None
    to_status: str | None
    engine_seq: int | None
    operation_id: str | None
    request_id: str | None
    retention: str
    call_id: str | None = None
    key_id: str | None = None
    client_ip: str | None = None
    user_agent: str | None = None
    on_behalf_of: str | None = None
    written_at: datetime | None = None
    txid: str | None = None
    stretch: int | None = None


@dataclass(frozen=True)
class Rows:
    """A page of the audit log, newest first; `next` is the address of the page of older rows.

    In the order of commits, `next` is the address of the page of later rows, and `after` the cursor in the address.
    """

    results: list[Row]
    next: str | None
    previous: str | None

    @property
    def after(self) -> str:
        """The cursor with which `list_audit_after` goes on; empty on a page that is newest first."""
        return parse_qs(urlsplit(self.next or "").query).get("after", [""])[0]


@dataclass(frozen=True)
class Status:
    """The product's engines by state."""

    total: int
    by_status: dict[str, int]
    health: str
    unhealthy_count: int


@dataclass(frozen=True)
class Metrics:
    """The product's last hour, and totals of all time."""

    provisions_1h: int
    crashes_1h: int
    restarts_1h: int
    avg_boot_ms: int | None
    total_provisions: int
    total_destroys: int


@dataclass(frozen=True)
class Health:
    """The web process can serve."""

    status: str
    audit_partitions: str
    hosts: str
    disk: str | None = None
    jobs: str | None = None


@dataclass(frozen=True)
class Registered:
    """A product and its first platform key."""

    product_id: str
    slug: str
    platform_api_key: str = field(repr=False)


@dataclass(frozen=True)
class Override:
    """A new value for a rule of a product's policy, for a limited time."""

    override_id: str
    rule: str
    value: Any
    reason: str
    granted_by: str
    created_at: datetime
    expires_at: datetime
    ended_at: datetime | None


@dataclass(frozen=True)
class Deleted:
    """The product is gone."""

    status: str
    product_id: str


@dataclass(frozen=True)
class Suspension:
    """Whether the product is suspended; `stopping` and `busy` count engines, in the answer to a suspension only."""

    product_id: str
    suspended_at: datetime | None
    reason: str | None
    stopping: int | None = None
    busy: int | None = None


@dataclass(frozen=True, kw_only=True)
class PlatformKey:
    """A platform key; only the answer that issues the key has `platform_api_key`."""

    key_id: str
    prefix: str
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None
    platform_api_key: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Replaced:
    """A platform key replaced by a rotation."""

    key_id: str
    prefix: str
    expires_at: datetime


@dataclass(frozen=True, kw_only=True)
class RotatedPlatformKey(PlatformKey):
    """The new platform key, and the replaced keys."""

    replaced: list[Replaced]


@dataclass(frozen=True, kw_only=True)
class AdminKey:
    """An admin key; only the answer that issues the key has `admin_api_key`."""

    key_id: str
    name: str
    prefix: str
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None
    admin_api_key: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class EngineEnv:
    """The names of the environment variables of a product's engines."""

    version: int
    names: list[str]
    updated_at: datetime | None


# -- reading -------------------------------------------------------------------------------------------------------------


def read(kind: type[T], body: Mapping[str, Any]) -> T:
    """The answer as `kind`. Raises KeyError when a field without a default is missing."""
    hints = get_type_hints(kind)
    known = fields(kind)  # type: ignore[arg-type]  # all kinds are dataclasses
    wanted = [each.name for each in known if each.name in body or each.default is MISSING]
    return kind(**{name: _convert(hints[name], body[name]) for name in wanted})


def _convert(hint: Any, value: Any) -> Any:
    """The JSON value as the type `hint`."""
    if value is None or hint is Any:
        return value
    if get_origin(hint) in (Union, types.UnionType):
        return _convert(next(option for option in get_args(hint) if option is not type(None)), value)
    if get_origin(hint) is list:
        return [_convert(get_args(hint)[0], item) for item in value]
    if hint is datetime:
        return datetime.fromisoformat(value)
    return read(hint, value) if is_dataclass(hint) and isinstance(hint, type) else value
