"""Refusals of this floor. `fleet.errors` maps each to a status and a code; the message is a sentence for the caller."""

from uuid import UUID

from engines.models import Operation


class EngineError(Exception):
    """Base of this floor's refusals."""


class InvalidUserId(EngineError):
    """A user id that cannot be."""


class ImageUnknown(EngineError):
    """An engine version that is not an image's name."""


class EngineNotFound(EngineError):
    """The product has no living engine for this user."""


class EngineAlreadyExists(EngineError):
    """The product has a living engine for this user."""


class EngineAlreadyRunning(EngineError):
    """A start of a running engine."""


class EngineNotRunning(EngineError):
    """A verb that needs a running engine (or, for a stop, one that is not stopped yet)."""


class PortExhaustion(EngineError):
    """No port of the host is free."""


class CapacityExhausted(EngineError):
    """The host has no room for one more running engine: `value` would pass `limit`, the setting called `rule`."""

    def __init__(self, rule: str, limit: int, value: int) -> None:
        super().__init__(f"No host has room for one more engine ({rule} {limit}). Try again later, or destroy or stop engines.")
        self.rule, self.limit, self.value = rule, limit, value

    def metadata(self) -> dict[str, str | int]:
        """The refusal as an audit row keeps it."""
        return {"rule": self.rule, "limit": self.limit, "value": self.value}


class ProductHasEngines(EngineError):
    """A product cannot be deleted while engines of it live."""

    def __init__(self, engines: int) -> None:
        super().__init__(f"Engines of the product live ({engines}); destroy them first.")
        self.engines = engines


class OperationInProgress(EngineError):
    """Another operation on the engine is open."""

    def __init__(self, kind: str, operation_id: UUID) -> None:
        super().__init__(f"A {kind} of this engine is under way; wait for it to end.")
        self.operation_id = operation_id


class OperationNotFound(EngineError):
    """The product has no operation with this id."""


class Crowded(EngineError):
    """Too many wait already in this process for what the request needs."""


class LogsUnavailable(EngineError):
    """No worker has read the engine's log in time."""


class Unfinished(EngineError):
    """The operation is still open at the caller's deadline; it goes on."""

    def __init__(self, operation: Operation) -> None:
        super().__init__(f"The {operation.kind} is not finished yet and goes on; ask GET /operations/{operation.pk}.")
        self.operation = operation


class Unsuccessful(EngineError):
    """The operation ended without doing what it was asked to do."""

    def __init__(self, operation: Operation) -> None:
        message = operation.error_message or f"The {operation.kind} was superseded by another request."
        super().__init__(message)
        self.operation = operation
