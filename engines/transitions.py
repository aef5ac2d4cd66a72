"""The table of transitions: the effect of every kind of operation on an engine's state.

The state diagram in the documentation is drawn from the table.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from audit.actions import Action
from engines.models import Kind, Status


@dataclass(frozen=True)
class Transition:
    """The effect of a kind of operation on the state: `before` → `after`, or → `failed` when the operation fails for good.

    `done` and `failed` are the actions of the audit rows.
    """

    before: frozenset[Status]
    after: Status
    done: Action
    failed: Action


def _transition(before: tuple[Status, ...], after: Status, done: Action, failed: Action) -> Transition:
    return Transition(frozenset(before), after, done, failed)


TRANSITIONS: Mapping[Kind, Transition] = {
    Kind.PROVISION: _transition((Status.PROVISIONING,), Status.RUNNING, Action.PROVISION, Action.PROVISION_FAILED),
    Kind.START: _transition((Status.STOPPED, Status.FAILED, Status.SLEEPING), Status.RUNNING, Action.START, Action.START_FAILED),
    Kind.STOP: _transition((Status.RUNNING, Status.SLEEPING, Status.FAILED), Status.STOPPED, Action.STOP, Action.STOP_FAILED),
    Kind.SLEEP: _transition((Status.RUNNING,), Status.SLEEPING, Action.SLEEP, Action.SLEEP_FAILED),
    Kind.WAKE: _transition((Status.SLEEPING,), Status.RUNNING, Action.WAKE, Action.WAKE_FAILED),
    Kind.RESTART: _transition((Status.RUNNING, Status.FAILED), Status.RUNNING, Action.RESTART, Action.RESTART_FAILED),
    Kind.ROTATE_KEY: _transition((Status.RUNNING,), Status.RUNNING, Action.ROTATE_KEY, Action.ROTATE_KEY_FAILED),
    Kind.DESTROY: _transition((Status.DESTROYING,), Status.DESTROYED, Action.DESTROY, Action.DESTROY_FAILED),
}
"""The move made by every kind of operation. Five more moves are made before or without an operation: (none) → provisioning when a
provision is requested, (none) → stopped when an engine is adopted, any → destroying when a destroy is requested, running → failed
when probes fail, and in the copy of a database any → destroyed."""

BOOTS = frozenset(kind for kind, transition in TRANSITIONS.items() if transition.after == Status.RUNNING)
"""Kinds of operations that boot an instance."""

STARTS = BOOTS - {Kind.ROTATE_KEY}
"""Kinds of operations that may bring up an engine that does not run. A rotation always boots an engine that ran before."""

OCCUPYING = frozenset({Status.PROVISIONING, Status.RUNNING, Status.DESTROYING})
"""States in which an instance runs, is about to run, or may still run: a tear-down lasts as long as the stop grace."""
