"""The API for a product."""

import time
from collections.abc import Iterator, Sequence
from datetime import datetime

from roundhouse_client import results
from roundhouse_client.record import PAGE, Record
from roundhouse_client.results import read
from roundhouse_client.transport import READ_S, RETRIES, given, path_of

LINES = 1000  # the most lines in an answer


class Client(Record):
    """A product's client. Every method raises ApiError, Unreachable; with `wait_s` also StillRunning, after `wait_s` seconds.

    The audit rows of the client's calls name `on_behalf_of`, if given.
    """

    def __init__(
        self, url: str, platform_key: str, *, on_behalf_of: str = "", retries: int = RETRIES, timeout_s: float = READ_S
    ) -> None:
        keys = {"X-Platform-Key": platform_key}
        super().__init__(url, keys, on_behalf_of=on_behalf_of, retries=retries, timeout_s=timeout_s)

    # -- engines ---------------------------------------------------------------------------------------------------------

    def provision(self, user_id: str, engine_version: str = "", *, wait_s: int | None = None) -> results.Provisioned:
        """Make an engine from the given or the policy's image; returns when the engine is healthy."""
        body = {"user_id": user_id} | ({"engine_version": engine_version} if engine_version else {})
        return read(results.Provisioned, self._call("POST", "/engines/provision", body=body, wait_s=wait_s))

    def get_engine(self, user_id: str) -> results.Engine:
        """The user's engine, with its key."""
        return read(results.Engine, self._call("GET", path_of(user_id)))

    def list_engines(self, status: str | None = None, *, limit: int = 100, offset: int = 0) -> results.Engines:
        """A page of engines, newest first, without their keys."""
        query = {"status": status, "limit": limit, "offset": offset}
        return read(results.Engines, self._call("GET", "/engines", query=query))

    def engines(self, status: str | None = None, *, page_size: int = PAGE) -> Iterator[results.Engine]:
        """Every engine, page by page. Engines made or destroyed meanwhile may be left out; no engine comes twice."""
        seen: set[str] = set()
        offset = 0
        while page := self.list_engines(status, limit=page_size, offset=offset).engines:
            yield from (engine for engine in page if engine.engine_id not in seen)
            seen |= {engine.engine_id for engine in page}
            offset += len(page)

    def start(self, user_id: str, *, wait_s: int | None = None) -> results.Started:
        """Start a stopped, sleeping or failed engine."""
        return read(results.Started, self._call("POST", path_of(user_id, "start"), wait_s=wait_s))

    def stop(self, user_id: str, *, wait_s: int | None = None) -> results.Stopped:
        """Stop an engine; its data and key stay."""
        return read(results.Stopped, self._call("POST", path_of(user_id, "stop"), wait_s=wait_s))

    def rotate_key(self, user_id: str, *, wait_s: int | None = None) -> results.NewEngineKey:
        """Give a running engine a new key; returns when the engine is healthy with the new key."""
        return read(results.NewEngineKey, self._call("POST", path_of(user_id, "rotate-key"), wait_s=wait_s))

    def destroy(self, user_id: str, *, wait_s: int | None = None) -> results.Destroyed:
        """End the engine, its data and its key, for good."""
        return read(results.Destroyed, self._call("DELETE", path_of(user_id), wait_s=wait_s))

    def admit(
        self, user_id: str, *, auto_provision: bool = False, auto_wake: bool = False, wait_s: int | None = None
    ) -> results.Admission:
        """Whether a request of the user may go to the user's engine now."""
        body = {"auto_provision": auto_provision, "auto_wake": auto_wake}
        is_read = not (auto_provision or auto_wake)
        answer = self._call("POST", path_of(user_id, "admit"), body=body, wait_s=wait_s, is_read=is_read)
        return read(results.Admission, answer)

    def get_operation(self, operation_id: str) -> results.Operation:
        """The state and result of an operation."""
        return read(results.Operation, self._call("GET", f"/operations/{operation_id}"))

    def explain(
        self,
        verb: str,
        user_id: str,
        engine_version: str | None = None,
        *,
        auto_provision: bool | None = None,
        auto_wake: bool | None = None,
    ) -> results.Explanation:
        """Dry-run a call: its outcome, and the deciding rules. The flags belong to `admit`, the image to `provision`."""
        body = {"verb": verb, "user_id": user_id, "engine_version": engine_version}
        flags = {"auto_provision": auto_provision, "auto_wake": auto_wake}
        return read(results.Explanation, self._call("POST", "/policy/explain", body=given(**body, **flags), is_read=True))

    # -- logs ------------------------------------------------------------------------------------------------------------

    def get_logs(self, user_id: str, tail: int = 100) -> results.Logs:
        """The last `tail` lines of the engine's log."""
        return read(results.Logs, self._call("GET", path_of(user_id, "logs"), query={"tail": tail}))

    def follow_logs(self, user_id: str, tail: int = 100, *, every_s: float = 1.0) -> Iterator[str]:
        """The last `tail` lines, then every new line, without end. Bursts of more than LINES lines are cut to the last LINES."""
        known = self.get_logs(user_id, LINES).lines
        yield from known[-tail:]
        while True:
            time.sleep(every_s)
            now = self.get_logs(user_id, LINES).lines
            yield from now[_overlap(known, now) :]
            known = now

    # -- record ----------------------------------------------------------------------------------------------------------

    def list_audit_of_user(self, user_id: str, *, limit: int = 100, **filters: str | datetime | None) -> results.Rows:
        """A page of the newest rows of a user, also rows of destroyed engines."""
        return read(results.Rows, self._call("GET", path_of(user_id, "audit"), query={"limit": limit, **filters}))

    # -- fleet -----------------------------------------------------------------------------------------------------------

    def get_status(self) -> results.Status:
        """The product's engines by state."""
        return read(results.Status, self._call("GET", "/status"))

    def get_metrics(self) -> results.Metrics:
        """The product's last hour, and totals."""
        return read(results.Metrics, self._call("GET", "/metrics"))

    def get_health(self) -> results.Health:
        """Whether the web process can serve."""
        return read(results.Health, self._call("GET", "/health"))


def _overlap(known: Sequence[str], now: Sequence[str]) -> int:
    """How many first lines of `now` are the last lines of `known`; 0 if more new lines came than an answer holds."""
    for length in range(min(len(known), len(now)), 0, -1):
        if known[-length:] == now[:length]:
            return length
    return 0
