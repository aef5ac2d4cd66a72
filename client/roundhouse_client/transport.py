"""A request to the API, with its retries."""

import random
import time
from collections.abc import Mapping
from typing import Any, Self
from urllib.parse import quote
from uuid import uuid4

import httpx

from roundhouse_client.errors import ApiError, StillRunning, Unreachable

READ_S = 120.0  # longer than the longest wait in the API
LONGEST_S = 60.0  # after a longer Retry-After the call is not retried: the caller decides
BASE_S, CAP_S = 0.25, 8.0  # backoff without a Retry-After
RETRIES = 6  # with pauses of 8 to 16 s in all, which outlast a restart of the web server


class Transport:
    """HTTP with a key. Retries a call after a broken or refused connection, after 429 with a Retry-After, and after 503.

    Calls that change something carry an `Idempotency-Key`, which is the same in all tries of a call. The API thus carries out a
    call once, no matter how many tries arrive. `is_read`: a call that changes nothing, whatever its method. `retries` is the
    number of tries after the first. `on_behalf_of`, if given, goes with every call: the person or program behind the calls.
    """

    def __init__(
        self, url: str, key: Mapping[str, str], *, on_behalf_of: str = "", retries: int = RETRIES, timeout_s: float = READ_S
    ) -> None:
        self._retries = retries
        sent = {**key, "X-On-Behalf-Of": on_behalf_of}
        headers = {name.encode(): value.encode() for name, value in sent.items() if value}
        timeout = httpx.Timeout(timeout_s, connect=min(5.0, timeout_s))
        self._http = httpx.Client(base_url=url.rstrip("/"), headers=headers, timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _call(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, Any] | None = None,
        wait_s: int | None = None,
        is_read: bool = False,
    ) -> Any:
        """The answer's JSON. Raises ApiError, StillRunning, Unreachable."""
        headers = {} if method == "GET" or is_read else {"Idempotency-Key": uuid4().hex}
        headers |= {} if wait_s is None else {"Prefer": f"wait={wait_s}"}
        params = {name: _text(value) for name, value in (query or {}).items() if value is not None}
        tries = self._retries
        while True:
            try:
                response = self._http.request(method, path, json=body, params=params or None, headers=headers)
            except httpx.TransportError as error:
                if tries == 0:
                    raise Unreachable(f"{self._http.base_url}: {error or type(error).__name__}") from error
                pause_s = None
            else:
                if response.is_success:
                    return _read(response)
                refusal = _refusal(response)
                pause_s = refusal.retry_after_s
                if tries == 0 or not _is_worth_a_retry(refusal):
                    raise refusal
            time.sleep(_pause_s(self._retries - tries, pause_s))
            tries -= 1


def path_of(user_id: str, verb: str = "") -> str:
    """The path of a user's engine. Raises ValueError for a user id that a path cannot hold."""
    if user_id in ("", ".", ".."):
        raise ValueError(f"not a user id: {user_id!r}")
    return f"/engines/{quote(user_id, safe='')}{verb and '/'}{verb}"


def _text(value: Any) -> str:
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _read(response: httpx.Response) -> Any:
    body = response.json()
    if response.status_code == 202:
        raise StillRunning(body["operation_id"], body["kind"], body["state"])
    return body


def _refusal(response: httpx.Response) -> ApiError:
    try:
        error = response.json()["error"]
        code, message = error["code"], error["message"]
    except (ValueError, KeyError, TypeError):  # a proxy's answer, not the API's
        error, code, message = {}, "UNKNOWN", f"HTTP {response.status_code}"
    after = response.headers.get("Retry-After", "")
    return ApiError(
        code,
        message,
        status=response.status_code,
        details=error.get("details"),
        request_id=error.get("request_id", ""),
        retry_after_s=float(after) if after.isdigit() else None,
    )


def _is_worth_a_retry(refusal: ApiError) -> bool:
    after = refusal.retry_after_s
    if after is not None and after > LONGEST_S:
        return False
    return refusal.status == 503 or (refusal.status == 429 and after is not None)


def _pause_s(attempt: int, asked_s: float | None) -> float:
    """Seconds before the next try: `asked_s` plus a little, or doubled at every try; random, to keep callers apart."""
    if asked_s is not None:
        return asked_s + random.uniform(0, 0.25)  # noqa: S311 (jitter)
    return float(min(CAP_S, BASE_S * 2**attempt)) * random.uniform(0.5, 1.0)  # noqa: S311


def given(**body: Any) -> dict[str, Any]:
    """A request body without the fields that are None."""
    return {name: value for name, value in body.items() if value is not None}
