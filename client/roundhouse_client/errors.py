"""The exceptions of the client."""

from collections.abc import Mapping
from typing import Any


class RoundhouseError(Exception):
    """Base of the package's errors."""


class Unreachable(RoundhouseError):
    """No answer came, even after all retries. The API may or may not have carried out the request."""


class ApiError(RoundhouseError):
    """The API refused the request. Decide by `code`; `message` is for people.

    `operation_id`: the operation that goes on or has failed, for `Client.get_operation`; empty if the request has none.
    `retry_after_s`: seconds to wait before a retry; None if the API does not ask for a retry.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        status: int,
        details: Mapping[str, Any] | None = None,
        request_id: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message, self.status = code, message, status
        self.details: Mapping[str, Any] = details or {}
        self.request_id = request_id
        self.retry_after_s = retry_after_s

    @property
    def operation_id(self) -> str:
        return str(self.details.get("operation_id", ""))


class StillRunning(RoundhouseError):
    """The caller's `wait_s` is over, and the operation goes on; `Client.get_operation` returns its state."""

    def __init__(self, operation_id: str, kind: str, state: str) -> None:
        super().__init__(f"the {kind} goes on as operation {operation_id}")
        self.operation_id, self.kind, self.state = operation_id, kind, state
