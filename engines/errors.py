"""The refusals of `engines`. `fleet.errors` maps them to HTTP statuses and codes; the message is a sentence for the caller."""

from uuid import UUID

from engines import causes
from engines.models import Operation


class EngineError(Exception):
    """Base class of all refusals of `engines`."""


class InvalidUserId(EngineError):
    """The user id breaks the rule for user ids."""


class ImageUnknown(EngineError):
    """The engine version is not the name of an image."""


class EngineNotFound(EngineError):
    """The product has no living engine for the user."""


class EngineAlreadyExists(EngineError):
    """The product has a living engine for the user already."""


class EngineAlreadyRunning(EngineError):
    """A start or a wake of a running engine."""


class EngineNotRunning(EngineError):
    """The engine is in none of the states that the verb needs: not running, for most verbs."""


class PortExhaustion(EngineError):
    """No port of the host is free."""


class CapacityExhausted(EngineError):
    """The host has no room for a further running engine: `value` would exceed `limit`, the setting named `rule`."""

    def __init__(self, rule: str, limit: int, value: int) -> None:
        super().__init__(f"No host has room for one more engine ({rule} {limit}). Try again later, or destroy or stop engines.")
        self.rule, self.limit, self.value = rule, limit, value

    def metadata(self) -> dict[str, str | int]:
        """The refusal as metadata of an audit row."""
        return {"rule": self.rule, "limit": self.limit, "value": self.value}


class ProductHasEngines(EngineError):
    """A product with living engines cannot be deleted."""

    def __init__(self, engines: int) -> None:
        super().__init__(f"Engines of the product live ({engines}); destroy them first.")
        self.engines = engines


class OperationInProgress(EngineError):
    """A different operation on the engine is open."""

    def __init__(self, kind: str, operation_id: UUID) -> None:
        super().__init__(f"A {kind} of this engine is under way; wait for it to end.")
        self.operation_id = operation_id


class OperationNotFound(EngineError):
    """The product has no operation with the given id."""


class Crowded(EngineError):
    """Too many requests of this process wait for the same locks already."""


class LogsUnavailable(EngineError):
    """No worker read the engine's log in time."""


class Unfinished(EngineError):
    """The operation is still open at the caller's deadline, and goes on."""

    def __init__(self, operation: Operation, state: str = "is not finished yet and goes on") -> None:
        super().__init__(f"The {operation.kind} {state}; poll GET /operations/{operation.pk}.")
        self.operation = operation


class NoPlaceToWait(Unfinished):
    """The operation is still open and goes on, but its caller cannot wait: too many requests of the process do."""

    def __init__(self, operation: Operation) -> None:
        super().__init__(operation, "goes on, but too many requests are waiting already")


class Unsuccessful(EngineError):
    """The operation failed, or was superseded. The message is for products, and so has no word of the runtime."""

    def __init__(self, operation: Operation) -> None:
        code = operation.error_code
        super().__init__(causes.sentence(code) if code else f"The {operation.kind} was superseded by another request.")
        self.operation = operation
