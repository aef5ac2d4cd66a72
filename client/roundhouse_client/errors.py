"""What goes wrong, as exceptions."""

from collections.abc import Mapping
from typing import Any


class RoundhouseError(Exception):
    """Base of this package's errors."""


class Unreachable(RoundhouseError):
    """No answer came, also not after the retries; whether the request was carried out is not known."""


class ApiError(RoundhouseError):
    """An answer that refuses. Decide by `code`; `message` is for people."""

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


class StillRunning(RoundhouseError):
    """The time that the caller gave with `wait_s` is over; the operation goes on, ask `get_operation`."""

    def __init__(self, operation_id: str, kind: str, state: str) -> None:
        super().__init__(f"the {kind} goes on as operation {operation_id}")
        self.operation_id, self.kind, self.state = operation_id, kind, state
