"""Rows are counted once, in the order of commits, and the counts outlive the rows."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from django.db import connections
from django.db.models import Sum

from audit import actors, counts, feed, retention, trail
from audit.actions import Action
from audit.models import AuditRow, Counting, HourlyCount
from audit.partitions import OWNER
from tests import servers
from tests.audit.test_api import write, write_bulk
from tests.audit.test_feed import INSERT


def counted(**filters):
    return HourlyCount.objects.filter(**filters).aggregate(total=Sum("count"))["total"] or 0


@pytest.fixture(autouse=True)
def _from_here(db):
    """What earlier tests have written is gone, and does not count."""
    counts.count()
    connections[OWNER].cursor().execute("DELETE FROM audit_hourlycount")


def test_rows_are_counted_by_hour_product_action_actor_and_duration(product):
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    write(product, 3)
    write(product, 2, by=actors.SYSTEM, started=hour - timedelta(minutes=30))
    trail.record(Action.RETENTION_PRUNE, by=actors.SYSTEM)
    counts.count()
    found = HourlyCount.objects.exclude(action=Action.POLICY_REGISTER).exclude(action=Action.PLATFORM_KEY_ISSUE)
    rows = set(found.values_list("product_id", "action", "actor", "count"))
    assert rows == {(product.pk, "start", "acme", 3), (product.pk, "start", "system", 2), (None, "retention_prune", "system", 1)}
    late = found.get(actor="system", action="start")
    assert late.hour == hour - timedelta(hours=1)
    assert counts.BOUNDS[late.bucket - 1] <= 90 * 60_000  # begun 30 to 90 minutes before now
    assert counts.BOUNDS[late.bucket] > 30 * 60_000
    assert {row.bucket for row in found.exclude(pk=late.pk)} == {counts.NOT_MEASURED}


@pytest.mark.parametrize(("duration_ms", "bucket"), [(0, 0), (1, 1), (2, 2), (8, 8), (9, 8), (10, 9), (2**31 - 1, 119)])
def test_duration_counts_in_the_bucket_of_its_bounds(product, superuser, duration_ms, bucket):
    superuser.execute(
        "INSERT INTO audit_log (timestamp, action, product_id, duration_ms) VALUES (now(), 'stop', %s, %s)",
        [product.pk, duration_ms],
    )
    counts.count()
    assert HourlyCount.objects.get(action="stop").bucket == bucket
    assert bucket == sum(bound <= duration_ms for bound in counts.BOUNDS)


def test_row_that_commits_late_counts_once(product):
    with psycopg.connect(servers.SERVERS.urls.database) as slow:
        slow.execute(INSERT, ["stop", product.pk])
        write(product, 2)
        counts.count()
        counts.count()
        assert counted(action="stop") == 0
    counts.count()
    counts.count()
    assert (counted(action="stop"), counted(action="start")) == (1, 2)


def test_two_keepers_count_every_row_once(product, superuser):
    write_bulk(superuser, product, 3 * counts.BATCH // 2)

    def keep():
        try:
            return counts.count()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(2) as pool:
        batches = [each.result(60) for each in [pool.submit(keep), pool.submit(keep)]]
    assert counted(action="start") == AuditRow.objects.filter(action="start").count() == 3 * counts.BATCH // 2
    assert sum(batches) == 1  # of BATCH rows; the rest ends at the frontier


def test_batch_that_dies_is_counted_again(product):
    write(product, 2)
    before = Counting.objects.get().position
    with connections[OWNER].cursor() as cursor:
        cursor.execute("ALTER TABLE audit_counting ADD CONSTRAINT refused CHECK (position = %s)", [before])
        try:
            with pytest.raises(Exception, match="refused"):
                counts.count()
        finally:
            cursor.execute("ALTER TABLE audit_counting DROP CONSTRAINT refused")
    assert counted(action="start") == 0
    counts.count()
    assert counted(action="start") == 2


def test_totals_have_rows_that_nobody_has_counted_yet(product):
    write(product, 2)
    assert counts.totals(product.pk, [Action.START, Action.STOP]) == {Action.START: 2, Action.STOP: 0}
    counts.count()
    write(product, 1)
    assert counts.totals(product.pk, [Action.START]) == {Action.START: 3}


def test_month_is_kept_until_the_transactions_of_its_writers_are_counted(months, keep, product):
    months.lay_out(-3, 3)
    keep(31)
    with psycopg.connect(servers.SERVERS.urls.database) as slow:
        slow.execute("INSERT INTO audit_log (timestamp, action, product_id) VALUES (%s, 'stop', %s)", [months.at(-3), product.pk])
        run = retention.prune(patience_s=0.5)
        assert months.name(-3) in run.postponed
        assert months.name(-3) in months.tables()
    assert months.name(-3) in retention.prune().partitions
    assert counted(action="stop") == 1


def test_counts_of_months_that_left_the_log_are_kept_by_month(months, keep, product, superuser):
    months.lay_out(-3, 3)
    keep(31)
    for day in range(3):
        for hour in range(3):
            write(product, 1, started=months.at(-3) + timedelta(days=day, hours=hour))
    counts.count()
    assert HourlyCount.objects.filter(action="start").count() == 9
    retention.prune()
    [kept] = HourlyCount.objects.filter(action="start", actor="acme").values("hour").annotate(total=Sum("count"))
    assert (kept["hour"].day, kept["hour"].hour, kept["total"]) == (1, 0, 9)


def test_application_cannot_change_the_counts(as_app):
    for statement in ("DELETE FROM audit_hourlycount", "UPDATE audit_counting SET position = 'start'"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            as_app.execute(statement)


def test_position_of_the_totals_is_read_as_the_feed_reads_it(product):
    write(product, 1)
    counts.count()
    position = Counting.objects.get().position
    assert feed._POSITION.fullmatch(position)
    assert feed.read(AuditRow.objects.all(), position, 10, shown=feed._KEY[0]).rows == []
