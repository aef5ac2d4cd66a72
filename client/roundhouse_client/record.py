"""The audit log, for a product and for the operator."""

import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from roundhouse_client import results
from roundhouse_client.results import read
from roundhouse_client.transport import Transport

PAGE = 500
WAIT_S = 25  # a proxy in front of the API often ends an answer that takes longer
PAUSE_S = 1.0


class Record(Transport):
    """Reads rows of the audit log: with a platform key the product's own rows, with an admin key every row.

    Filters: `action`, `actor`, `user_id`, `engine_id`, `since`, `until`; with an admin key also `product_id`, `request_id`,
    `call_id` and `key_id`.
    """

    def list_audit(self, *, limit: int = 100, **filters: str | datetime | None) -> results.Rows:
        """A page of the newest rows; `cursor` is a filter, too."""
        return read(results.Rows, self._call("GET", "/audit", query={"limit": limit, **filters}))

    def audit(self, *, page_size: int = PAGE, **filters: str | datetime | None) -> Iterator[results.Row]:
        """Every row, newest first, page by page."""
        page = self.list_audit(limit=page_size, **filters)
        yield from page.results
        while page.next:
            address = urlsplit(page.next)  # use only its path and query: our URL of the API may have a different host
            page = read(results.Rows, self._call("GET", f"{address.path}?{address.query}"))
            yield from page.results

    def list_audit_after(
        self, after: str = "start", *, wait_s: int = 0, limit: int = PAGE, **filters: str | datetime | None
    ) -> results.Rows:
        """The next rows in the order in which their transactions were committed: no row is missed, and none comes twice.

        `after` is `start`, `now`, or `after` of an earlier answer, also of one long ago. Without new rows, the answer comes after
        `wait_s` seconds, 30 at most, or at once where too many readers wait. An answer without rows may come before the last
        row, if the filters match few rows: go on from its `after`.
        """
        return self._read_after({"after": after, "wait": wait_s, "limit": limit, **filters})

    def _read_after(self, query: Mapping[str, Any]) -> results.Rows:
        return read(results.Rows, self._call("GET", "/audit", query=query))

    def follow_audit(self, tail: int = 20, *, wait_s: int = WAIT_S, **filters: str | datetime | None) -> Iterator[results.Row]:
        """The last `tail` rows, oldest first, then every new row, without end.

        New rows come as from `list_audit_after`.
        """
        onward: dict[str, Any] = {"limit": PAGE, **filters}
        page = self._read_after({**onward, "after": "now"})
        shown = sorted(self.list_audit(limit=tail, **filters).results, key=lambda row: row.id)
        yield from shown
        known = {row.id for row in shown}  # some may have been committed after `now`
        while True:
            began = time.monotonic()
            page = self._read_after({**onward, "after": page.after, "wait": wait_s})
            yield from (row for row in page.results if row.id not in known)
            if not page.results and time.monotonic() - began < PAUSE_S:
                time.sleep(PAUSE_S)  # not let wait
