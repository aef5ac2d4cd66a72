"""The words of the registry: states of engines, kinds, queues and states of operations, and why an operation was opened."""

from django.db import models


class Status(models.TextChoices):
    """States of an engine. DESTROYED is the state of a tombstone, and no API shows it."""

    PROVISIONING = "provisioning"
    RUNNING = "running"
    SLEEPING = "sleeping"
    STOPPED = "stopped"
    FAILED = "failed"
    DESTROYING = "destroying"
    DESTROYED = "destroyed"


class Kind(models.TextChoices):
    """The kinds of operations."""

    PROVISION = "provision"
    START = "start"
    STOP = "stop"
    SLEEP = "sleep"
    WAKE = "wake"
    RESTART = "restart"
    ROTATE_KEY = "rotate_key"
    DESTROY = "destroy"


class Queue(models.TextChoices):
    """The queues of operations: WAKE while a user waits, LIFECYCLE while a caller waits, BACKGROUND while nobody waits.

    Every queue has a process of its own, unless `ORCH_PROCESSES` is `small`.
    """

    WAKE = "wake"
    LIFECYCLE = "lifecycle"
    BACKGROUND = "background"


class OperationState(models.TextChoices):
    """States of an operation. PENDING and RUNNING are open; a RUNNING operation has been claimed at least once."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    SUPERSEDED = "superseded"


OPEN = (OperationState.PENDING, OperationState.RUNNING)
IS_OPEN = f"o.state IN ({', '.join(repr(state.value) for state in OPEN)})"
"""SQL: operation `o` is open. The states are literals, not parameters: PostgreSQL can then use its partial indexes."""


NO_VOLUME = "volume"
"""The value of `Engine.differs` for an engine that has run before, and of whose volume the runtime knows nothing."""

BESIDE = "unregistered"
"""The parameter of a provision with the ids of the user's engines that the runtime has and the registry does not."""


class Trigger(models.TextChoices):
    """Why an operation was opened. The trigger, and never the actor, decides how the operation is carried out."""

    REQUESTED = "requested"  # by a product, the operator or staff
    HEALTH = "health"  # automatic restart of a failed engine
    HOST_RESTARTED = "host_restarted"  # an engine should run and does not, because its host was started again
    RECONCILED = "reconciled"  # an instance runs although its engine should not, or does not run although its engine should
    DISK = "disk"  # a stop: the engine's volume takes too much disk space for the engine to go on, or to be started
