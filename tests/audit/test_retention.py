import threading
from datetime import UTC

import psycopg
import pytest
from django.db import connection

from audit import partitions, retention, tasks, trail
from audit.actions import Action
from audit.actors import SYSTEM
from audit.models import AuditRow
from engines import lifecycle
from fleet import metrics
from tests import servers, waiting

FIRST = -5  # month that the log begins with, in tests that prune


@pytest.fixture
def history(months, keep):
    """Rows in every month from FIRST on; all that is older than the present month and the one before has expired."""
    months.lay_out(FIRST, 3)
    keep(31)
    for month in range(FIRST, 1):
        for day in (1, 5):
            trail.record(Action.START, by=SYSTEM, started=months.at(month, day))
            trail.record(Action.HEALTH_CHECK, by=SYSTEM, started=months.at(month, day))
    return months


def expired(months, days=31, kind="standard"):
    return [months.name(month, kind) for month in range(FIRST, months.first_kept(days))]


def all_expired(months):
    return expired(months) + expired(months, 14, "probe")


def last_run():
    return AuditRow.objects.filter(action=Action.RETENTION_PRUNE).latest("id")


# -- what goes and what stays ------------------------------------------------------------------------------------------


def test_prune_drops_the_expired_months_of_each_class(history):
    run = retention.prune()
    assert run.partitions == all_expired(history)
    assert run.rows == 2 * len(run.partitions)
    assert run.postponed == []
    assert not set(history.tables()) & set(run.partitions)
    for kind, days in (("standard", 31), ("probe", 14)):
        first = history.first_kept(days)
        assert history.attached(kind) == [history.name(month, kind) for month in range(first, 4)]
        assert history.window(kind) == (history.at(first, 0), history.at(4, 0))


def test_prune_writes_what_it_did(history):
    run = retention.prune()
    row = last_run()
    assert (row.actor, row.engine_id, row.product_id) == ("system", None, None)
    assert row.metadata == {
        "partitions": run.partitions, "rows": run.rows, "postponed": [], "operations": 0, "engines": 0,
        "standard_days": 31, "probe_days": 14,
    }  # fmt: skip


def test_prune_writes_a_row_when_nothing_is_expired(months):
    months.lay_out(0, 3)
    assert retention.prune() == retention.Pruned([], 0, [], {"operations": 0, "engines": 0})
    assert last_run().metadata["partitions"] == []


def test_prune_keeps_the_rows_of_months_that_are_kept(history):
    kept = set(
        AuditRow.objects.filter(action=Action.START, timestamp__gte=history.at(history.first_kept(31), 0)).values_list(
            "id", flat=True
        )
    )
    retention.prune()
    assert set(AuditRow.objects.filter(action=Action.START).values_list("id", flat=True)) == kept


@pytest.mark.parametrize("days", [1, 31, 365, 10**10])
def test_prune_never_drops_the_present_month_or_a_future_one(history, keep, days):
    keep(days, days)
    retention.prune()
    for kind in ("standard", "probe"):
        present_and_future = {history.name(month, kind) for month in range(4)}
        assert present_and_future <= set(history.attached(kind))


def test_prune_keeps_the_last_month_when_the_window_has_run_out(months, keep):
    keep(1, 1)
    months.lay_out(-5, -3)
    retention.prune()
    assert months.attached() == [months.name(-3)]
    assert months.window() == (months.at(-3, 0), months.at(-2, 0))
    trail.record(Action.START, by=SYSTEM)
    partitions.make_ahead()
    assert months.window() == (months.at(-3, 0), months.at(4, 0))


def test_prune_does_not_move_the_window_back_when_rows_are_kept_for_longer(history, keep):
    retention.prune()
    window = history.window()
    keep(365)
    assert retention.prune().partitions == []
    assert history.window() == window


def test_record_of_a_dropped_month_is_clamped(history):
    began = history.at(FIRST).astimezone(UTC)
    retention.prune()
    row = AuditRow.objects.get(pk=trail.record(Action.START, by=SYSTEM, started=began))
    assert row.timestamp == history.window()[0]
    assert row.metadata == {"clamped_from": began.isoformat()}


def test_totals_do_not_shrink(months, keep, superuser, request):
    months.lay_out(FIRST, 3)
    keep(31)
    engine, carry_out = request.getfixturevalue("running_engine"), request.getfixturevalue("carry_out")
    product = engine.product
    carry_out(lifecycle.destroy(engine, by="acme"))
    before = metrics.of_product(product)
    with superuser.transaction():
        superuser.execute("SET LOCAL session_replication_role = replica")
        superuser.execute("UPDATE audit_log SET timestamp = %s", [months.at(FIRST)])
    assert retention.prune().rows > 0
    assert not AuditRow.objects.filter(product_id=product.pk).exists()
    after = metrics.of_product(product)
    for total in ("total_provisions", "total_destroys"):
        assert after[total] == before[total] == 1


def test_tasks_do_the_keepers_work(months, keep):
    months.lay_out(FIRST, 0)
    keep(31)
    tasks.make_partitions()
    tasks.prune()
    assert months.attached() == [months.name(month) for month in range(months.first_kept(31), 4)]


# -- runs that died ----------------------------------------------------------------------------------------------------


def test_prune_finishes_a_run_that_died_after_the_window_shrank(history, superuser):
    superuser.execute("UPDATE audit_window SET starts = %s WHERE retention = 'standard'", [history.at(history.first_kept(31), 0)])
    assert retention.prune().partitions == all_expired(history)


def test_prune_finishes_a_run_that_died_in_a_detach(history, as_owner):
    name = history.name(FIRST)
    with psycopg.connect(servers.SERVERS.urls.database) as reader:
        reader.execute("SELECT count(*) FROM audit_log")
        as_owner.execute("SET lock_timeout = '50ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            as_owner.execute(f"ALTER TABLE audit_log_standard DETACH PARTITION {name} CONCURRENTLY")
    assert retention._left_to_detach(name).endswith("FINALIZE")
    assert retention.prune().partitions == all_expired(history)


def test_prune_finishes_a_run_that_died_between_detach_and_drop(history, as_owner):
    for month in (FIRST, FIRST + 1):
        as_owner.execute(f"ALTER TABLE audit_log_standard DETACH PARTITION {history.name(month)} CONCURRENTLY")
    run = retention.prune()
    assert run.partitions == all_expired(history)
    assert run.rows == 2 * len(run.partitions)


def test_prune_drops_nothing_when_its_row_cannot_be_written(history, broken_log):
    tables = history.tables()
    with broken_log(), pytest.raises(Exception, match="the log is broken"):
        retention.prune()
    assert history.tables() == tables
    assert retention.prune().partitions == all_expired(history)
    assert last_run().metadata["partitions"] == all_expired(history)


def test_prune_drops_each_month_once_with_two_keepers(history):
    runs = []
    keepers = [threading.Thread(target=lambda: runs.append(retention.prune())) for _ in range(3)]
    for keeper in keepers:
        keeper.start()
    for keeper in keepers:
        keeper.join()
    assert sorted(name for run in runs if run for name in run.partitions) == sorted(all_expired(history))


# -- readers and writers -----------------------------------------------------------------------------------------------


class Writers:
    """Threads that record, one row after the other, until the block ends; `worst_s` is the slowest insert."""

    def __init__(self, count=3):
        self.worst_s, self.written, self.failed = 0.0, 0, []
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._write) for _ in range(count)]

    def _write(self):
        while not self._stopped.is_set():
            began = waiting.now()
            try:
                trail.record(Action.START, by=SYSTEM)
            except Exception as error:
                self.failed.append(error)
                raise
            self.worst_s = max(self.worst_s, waiting.now() - began)
            self.written += 1
        connection.close()

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        waiting.until(lambda: self.written > 20, what="writers write")
        return self

    def __exit__(self, *exc):
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def check(self):
        assert not self.failed
        assert self.worst_s < 0.5, f"{self.written} inserts, the worst took {self.worst_s:.3f} s"


def test_prune_holds_no_writer_up(history):
    with Writers() as writers:
        assert retention.prune().partitions == all_expired(history)
    writers.check()


def test_prune_postpones_what_somebody_keeps_reading(history, as_app):
    """The one month-long transaction in the building holds up neither writers nor other readers nor the next months."""
    with Writers() as writers:
        with as_app.transaction():
            as_app.execute("SELECT count(*) FROM audit_log")
            run = retention.prune(patience_s=1)
            assert (run.partitions, run.rows, run.postponed) == ([], 0, all_expired(history))
            assert last_run().metadata["postponed"] == run.postponed
            oldest = AuditRow.objects.order_by("timestamp").values_list("timestamp", flat=True).first()
            assert oldest >= history.at(FIRST + 1, 0)  # the half detached month is out of sight already
            trail.record(Action.START, by=SYSTEM, started=history.at(FIRST))
            partitions.make_ahead()
            assert partitions.months_ahead() == 3
        again = retention.prune()
    assert again.partitions == run.postponed
    writers.check()


def test_prune_waits_for_a_reader_that_ends(history, as_app):
    runs = []
    with Writers() as writers:
        with as_app.transaction():
            as_app.execute("SELECT count(*) FROM audit_log")
            keeper = threading.Thread(target=lambda: runs.append(retention.prune()))
            keeper.start()
            waiting.until(
                lambda: "FINALIZE" in retention._left_to_detach(history.name(FIRST)), what="the detach waits for the reader"
            )
        keeper.join()
    assert runs[0].partitions == all_expired(history)
    writers.check()


def test_prune_postpones_a_detached_table_that_is_being_read(history, as_owner, superuser):
    name = history.name(FIRST)
    as_owner.execute(f"ALTER TABLE audit_log_standard DETACH PARTITION {name} CONCURRENTLY")
    with superuser.transaction():
        superuser.execute(f"SELECT count(*) FROM {name}")
        run = retention.prune()
    assert run.postponed == [name]
    assert [name, *run.partitions] == all_expired(history)
    assert retention.prune().partitions == [name]
