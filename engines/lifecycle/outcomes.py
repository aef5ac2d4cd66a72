"""The outcomes of attempts, as data: the engine's new state and columns, and the audit row to write.

`lifecycle.settle` commits an outcome.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from audit.actions import Action
from engines.models import BESIDE, NO_VOLUME, Engine, Kind, Operation, Status, Trigger
from engines.transitions import TRANSITIONS

NO_RESTART: Mapping[str, Any] = {"next_restart_at": None}
CLEARED: Mapping[str, Any] = {
    **NO_RESTART,
    "health_failures": 0,
    "last_health_ok": None,
    "gave_up_at": None,
    "healthy_since": None,
    "answered_at": None,
    "disk_due_at": None,  # an engine may have written much just before its stop: measured again at once
}
NO_PENDING: Mapping[str, Any] = {"pending_key_hash": "", "pending_key_ciphertext": ""}


@dataclass(frozen=True)
class After:
    """A column's value: a time `seconds` from now, by the database's clock."""

    seconds: float


NOW = After(0)
DESTROYED: Mapping[str, Any] = {"destroyed_at": NOW, "key_hash": "", "key_ciphertext": "", **NO_PENDING}


@dataclass(frozen=True)
class Outcome:
    """The end of an attempt: the engine's new state, the audit row, further columns of the engine; the error: code, sentence."""

    status: Status
    action: Action
    metadata: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)
    error: tuple[str, str] = ("", "")
    also: tuple[Action, Mapping[str, Any]] | None = None  # a further audit row, which records no move


@dataclass(frozen=True)
class Booted:
    """The instance brought up by an attempt: its image and the image's digest, its port, and its incarnation.

    `remade`: why the operation made the instance anew, or empty: `refused`, `boot_timeout` or `differs`. `proven`: the first good
    answer had the engine's proof. Otherwise the runtime showed that the instance has the port.
    """

    image: str
    digest: str
    port: int
    incarnation: int
    proven: bool
    remade: str = ""

    @property
    def facts(self) -> dict[str, Any]:
        """Metadata of the audit row."""
        facts = {"image": self.image, "digest": self.digest, "port": self.port, "incarnation": self.incarnation}
        return {**facts, "proven": self.proven, **_remade(self.remade)}


def succeeded(operation: Operation, engine: Engine, attempt: int, booted: Booted | None = None) -> Outcome:
    """The outcome of a successful operation."""
    transition = TRANSITIONS[Kind(operation.kind)]
    action = Action.AUTO_RESTART_SUCCESS if operation.trigger == Trigger.HEALTH else transition.done
    columns = dict(CLEARED)
    if booted is not None:
        # The instance was compared before its start: nothing differs, and whatever timed out before has been made anew.
        columns |= {"image_digest": booted.digest, "proves": booted.proven, "boot_timed_out": False, "differs": ""}
    if transition.after == Status.RUNNING:
        columns |= {"next_probe_at": NOW, "provisioned_at": engine.provisioned_at or NOW}
    if operation.trigger != Trigger.HEALTH:
        columns |= {"restart_attempts": 0}
    columns |= _columns_of_kind(operation, engine)
    lost = {"volume": "missing"} if booted and engine.differs == NO_VOLUME else {}
    metadata = {"attempt": attempt, **(booted.facts if booted else {}), **lost, **_repeated(operation)}
    return Outcome(transition.after, action, metadata, columns)


def _columns_of_kind(operation: Operation, engine: Engine) -> Mapping[str, Any]:
    """The columns changed only by a rotation or a destroy."""
    if operation.kind == Kind.ROTATE_KEY:
        key = {"key_hash": engine.pending_key_hash, "key_ciphertext": engine.pending_key_ciphertext, **NO_PENDING}
        valid = {"incarnation": operation.incarnation, "incarnation_mark": operation.mark}
        return {**key, **valid, "env_version": operation.env_version, "memory_mb": operation.memory_mb}
    if operation.kind == Kind.DESTROY:
        return DESTROYED
    return {}


@dataclass(frozen=True)
class Left:
    """The remains of a failed attempt: whether an instance may still run, and the valid instance's image digest, if known.

    `timed_out`: the valid instance was not healthy in time. `remade`: as in `Booted`.
    """

    may_run: bool = False
    digest: str = ""
    timed_out: bool = False
    remade: str = ""

    @property
    def columns(self) -> dict[str, Any]:
        known = {"image_digest": self.digest} if self.digest else {}
        return {"may_run": self.may_run, **known, **({"boot_timed_out": True} if self.timed_out else {})}


NOTHING = Left()


def failed(
    operation: Operation, attempt: int, error: tuple[str, str], left: Left = NOTHING, *, status: Status = Status.FAILED
) -> Outcome:
    """The outcome of an operation after a failure for good; `error` is a code and a sentence."""
    metadata = {"error": error[0], "attempt": attempt, **_remade(left.remade), **_repeated(operation)}
    columns = {**NO_RESTART, **NO_PENDING, **left.columns}
    return Outcome(status, TRANSITIONS[Kind(operation.kind)].failed, metadata, columns, error)


def restart_failed(
    operation: Operation, attempt: int, error: tuple[str, str], retry_in_s: float | None, left: Left = NOTHING
) -> Outcome:
    """The outcome of a failed automatic restart: the next follows in `retry_in_s` seconds; with None the fleet gives up."""
    number = int(operation.params["restart"])
    metadata = {"restart": number, "error": error[0], "attempt": attempt, **_remade(left.remade)}
    outcome = Outcome(Status.FAILED, Action.AUTO_RESTART_FAILED, metadata, {**NO_RESTART, **left.columns}, error)
    return _tried_again(outcome, number, retry_in_s)


def resume_failed(
    operation: Operation, attempt: int, error: tuple[str, str], restarts: int, retry_in_s: float | None, left: Left = NOTHING
) -> Outcome:
    """The outcome of a failed restart of an engine that should run and did not. Automatic restarts follow: nobody stopped it.

    `restarts` is the number of the engine's automatic restarts so far.
    """
    return _tried_again(failed(operation, attempt, error, left), restarts, retry_in_s)


def _tried_again(outcome: Outcome, restarts: int, retry_in_s: float | None) -> Outcome:
    """Add to the outcome an automatic restart in `retry_in_s` seconds, or for None an `auto_restart_gave_up` row."""
    if retry_in_s is None:
        gave_up = (Action.AUTO_RESTART_GAVE_UP, {"restarts": restarts})
        return replace(outcome, columns={**outcome.columns, "gave_up_at": NOW}, also=gave_up)
    metadata = {**outcome.metadata, "restart_in_s": round(retry_in_s, 1)}
    return replace(outcome, metadata=metadata, columns={**outcome.columns, "next_restart_at": After(retry_in_s)})


def _remade(reason: str) -> dict[str, str]:
    return {"remade": reason} if reason else {}


def _repeated(operation: Operation) -> dict[str, Any]:
    """The parameters of an operation for its audit rows."""
    keys = ("restart",) if operation.trigger == Trigger.HEALTH else ("cause", "reason")
    if operation.kind == Kind.PROVISION:
        keys = (BESIDE,)
    return {key: operation.params[key] for key in keys if key in operation.params}
