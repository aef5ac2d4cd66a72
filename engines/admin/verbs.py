"""What staff may do to an engine in the admin: each verb with its permission, and the words on its button."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from audit import actors
from audit.actors import Actor
from engines import lifecycle
from engines.models import Engine, Kind, Operation

REVEAL = "engines.reveal_engine_key"


@dataclass(frozen=True)
class Verb:
    """A verb as staff see it; one with a `warning` is asked about before it is done."""

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
        "The engine restarts with a new key; whoever holds the old one is locked out until they fetch the new one.",
    ),
    Verb(
        Kind.DESTROY, lifecycle.destroy, "engines.destroy_engine", "delete_forever",
        "The engine, everything on its volume and its key are removed for good. A destroy ends whatever else is under way.",
    ),
)  # fmt: skip
VERBS: Mapping[str, Verb] = {verb.kind.value: verb for verb in _ALL}


def permitted(user: Any) -> Iterator[Verb]:
    """The verbs that the user has the permission for."""
    return (verb for verb in _ALL if user.has_perm(verb.permission))


def offered(user: Any, engine: Engine) -> list[Verb]:
    """The verbs that the user may ask for in the engine's present state."""
    return [verb for verb in permitted(user) if lifecycle.can(engine, verb.kind)]


def may_reveal(user: Any, engine: Engine) -> bool:
    """Whether the user may look at the engine's key; a destroyed engine has none."""
    return bool(user.has_perm(REVEAL)) and engine.destroyed_at is None


def actor_of(user: Any) -> Actor:
    """The actor of what the user does."""
    return actors.staff(user.get_username())
