"""Counts of the log's rows by hour, product, action and actor, which outlive the rows: lifetime totals, and data of reports.

The keeper goes through the log in the order of commits (`audit.feed`). A batch of rows and the position behind the batch are
committed together: each row counts once, however late its transaction was committed, and whenever the keeper died.

The durations of rows are counted in *buckets*: bucket b has the durations from BOUNDS[b - 1] to below BOUNDS[b] milliseconds,
four buckets for each doubling. A percentile that is read from them is off by 19 % at most: a bucket is 2^(1/4) wide.
"""

import time
from collections.abc import Collection
from math import ceil
from uuid import UUID

from django.db import connections, transaction

from audit import feed
from audit.actions import Action, Retention
from audit.models import AuditRow, Counting
from audit.partitions import OWNER

BATCH = 20_000  # rows of a transaction: a second of work, and no lock that a writer of the log would wait for
PAUSE_S = 0.25
NOT_MEASURED = -1
"""The bucket of rows without a duration."""
BOUNDS = sorted({ceil(2 ** (quarter / 4)) for quarter in range(4 * 31)})
"""Bounds of the buckets, in ms: 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20 ... up to the largest duration that a row can have."""

_COUNT = f"""
INSERT INTO audit_hourlycount (hour, product_id, action, actor, bucket, count)
SELECT date_trunc('hour', timestamp AT TIME ZONE 'UTC') AT TIME ZONE 'UTC', product_id, action, actor,
       -- width_bucket: how many of the bounds the duration has reached
       coalesce(width_bucket(duration_ms, %(bounds)s::int[]), {NOT_MEASURED}), count(*)
FROM audit_log
WHERE (stretch, txid, id) > (%(stretch)s::smallint, %(txid)s::text::xid8, %(id)s)
  AND (stretch, txid, id) <= (%(last_stretch)s::smallint, %(last_txid)s::text::xid8, %(last_id)s)
GROUP BY 1, 2, 3, 4, 5
ON CONFLICT (hour, product_id, action, actor, bucket) DO UPDATE SET count = audit_hourlycount.count + excluded.count
"""

# Counts of months that have left the log are kept by month. `starts` is the beginning of a month, in UTC.
_FOLD = """
WITH old AS (
    DELETE FROM audit_hourlycount c USING audit_window w
    WHERE w.retention = %(kind)s AND c.hour < w.starts
      AND c.hour <> date_trunc('month', c.hour AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'
    RETURNING c.*)
INSERT INTO audit_hourlycount (hour, product_id, action, actor, bucket, count)
SELECT date_trunc('month', hour AT TIME ZONE 'UTC') AT TIME ZONE 'UTC', product_id, action, actor, bucket, sum(count)
FROM old GROUP BY 1, 2, 3, 4, 5
ON CONFLICT (hour, product_id, action, actor, bucket) DO UPDATE SET count = audit_hourlycount.count + excluded.count
"""

# One statement sees the counts and the position of the same batch. The parts of the position are those of `feed`.
_TOTALS = """
WITH at AS (SELECT string_to_array(position, '.') AS parts FROM audit_counting)
SELECT action, sum(count) FROM (
    SELECT action, count FROM audit_hourlycount WHERE product_id = %(product_id)s AND action = ANY(%(actions)s)
    UNION ALL
    SELECT action, 1 FROM audit_log
    WHERE product_id = %(product_id)s AND action = ANY(%(actions)s)
      -- three subqueries, and not one: a comparison with constants can use the index
      AND (stretch, txid, id)
          > ((SELECT parts[1]::smallint FROM at), (SELECT parts[4]::xid8 FROM at), (SELECT parts[5]::bigint FROM at))
) every GROUP BY action
"""


def count() -> int:
    """Count all rows up to the frontier, in batches; return the number of batches of BATCH rows. Needs the owner's role.

    A second keeper waits for the batch of the first, and goes on behind it. Raises django.db.Error.
    """
    batches = 0
    while _count_batch():
        batches += 1
    return batches


def catch_up(deadline: float) -> bool:
    """Count every row of a transaction that has begun by now; False if one is still open at `deadline` (monotonic clock)."""
    with connections[OWNER].cursor() as cursor:
        cursor.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())::text")
        begun = int(cursor.fetchone()[0])
    while feed.look(OWNER).txid < begun:
        if time.monotonic() > deadline:
            return False
        time.sleep(PAUSE_S)
    count()
    return True


@transaction.atomic(using=OWNER)
def _count_batch() -> bool:
    """Count the next rows; whether there may be more."""
    at = Counting.objects.using(OWNER).select_for_update().get()
    span = feed.next_span(AuditRow.objects.using(OWNER), at.position, BATCH)
    keys = {**span.after._asdict(), **{f"last_{name}": value for name, value in span.until._asdict().items()}}
    with connections[OWNER].cursor() as cursor:
        cursor.execute(_COUNT, {"bounds": BOUNDS, **keys})
    Counting.objects.using(OWNER).filter(pk=at.pk).update(position=span.reached)
    return span.until.id > 0  # the frontier is no row


def fold() -> None:
    """Keep the counts of months that have left the log by month. Needs the owner's role."""
    with connections[OWNER].cursor() as cursor:
        cursor.execute(_FOLD, {"kind": Retention.STANDARD})


def totals(product_id: UUID, actions: Collection[Action]) -> dict[Action, int]:
    """How many rows of each action the log has ever had of the product, also rows that are not counted yet."""
    names = [action.value for action in actions]
    with connections["default"].cursor() as cursor:
        cursor.execute(_TOTALS, {"product_id": product_id, "actions": names})
        found = dict(cursor.fetchall())
    return {action: int(found.get(action.value, 0)) for action in actions}
