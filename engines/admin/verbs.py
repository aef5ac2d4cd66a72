"""The verbs that staff may request for an engine in the admin, with their permissions, icons and warnings."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from engines import lifecycle
from engines.models import Engine, Kind, Operation

REVEAL = "engines.reveal_engine_key"


@dataclass(frozen=True)
class Verb:
    """A verb as shown to staff. A verb with a `warning` needs a confirmation."""

    kind: Kind
    call: Callable[..., Operation]
    permission: str
    icon: str
    warning: str = ""

    @property
    def label(self) -> str:
        return str(self.kind.label).capitalize()


_OPERATE = "engines.operate_engine"
_ALL = (
    Verb(Kind.START, lifecycle.start, _OPERATE, "play_arrow"),
    Verb(Kind.STOP, lifecycle.stop, _OPERATE, "stop"),
    Verb(Kind.SLEEP, lifecycle.sleep, _OPERATE, "bedtime"),
    Verb(Kind.WAKE, lifecycle.wake, _OPERATE, "wb_sunny"),
    Verb(Kind.RESTART, lifecycle.restart, _OPERATE, "restart_alt"),
    Verb(
        Kind.ROTATE_KEY, lifecycle.rotate_key, "engines.rotate_engine_key", "key",
        "The engine restarts with a new key. Callers with the old key are locked out until they fetch the new key.",
    ),
    Verb(
        Kind.DESTROY, lifecycle.destroy, "engines.destroy_engine", "delete_forever",
        "The engine, everything on its volume and its key are removed for good. A destroy ends any open operation of the engine.",
    ),
)  # fmt: skip
VERBS: Mapping[str, Verb] = {verb.kind.value: verb for verb in _ALL}


def permitted(user: Any) -> Iterator[Verb]:
    """The verbs permitted to the user."""
    return (verb for verb in _ALL if user.has_perm(verb.permission))


def offered(user: Any, engine: Engine) -> list[Verb]:
    """The verbs permitted to the user and possible in the engine's present state."""
    return [verb for verb in permitted(user) if lifecycle.can(engine, verb.kind)]


def may_reveal(user: Any, engine: Engine) -> bool:
    """Whether the user may see the engine's key; a destroyed engine has no key."""
    return bool(user.has_perm(REVEAL)) and engine.destroyed_at is None
