"""The audit log, for a product and for the operator."""

import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from urllib.parse import urlsplit

from roundhouse_client import results
from roundhouse_client.results import read
from roundhouse_client.transport import Transport

PAGE = 500
LATE_S = 300  # a row may appear LATE_S seconds after its timestamp, the start of its action


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

    def follow_audit(self, tail: int = 20, *, every_s: float = 1.0, **filters: str | datetime | None) -> Iterator[results.Row]:
        """The last `tail` rows, oldest first, then every new row, without end."""
        newest = self.list_audit(limit=tail, **filters).results
        seen = {row.id: row.timestamp for row in newest}
        floor = min(seen) if seen else 0  # rows older than the first shown rows are not new
        yield from sorted(newest, key=lambda row: row.id)
        while True:
            time.sleep(every_s)
            window = {**filters, "since": max(seen.values()) - timedelta(seconds=LATE_S)} if seen else filters
            fresh = [row for row in self.audit(page_size=PAGE, **window) if row.id not in seen and row.id > floor]
            yield from sorted(fresh, key=lambda row: row.id)
            seen |= {row.id: row.timestamp for row in fresh}
