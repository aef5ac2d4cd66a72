import threading

import psycopg
import pytest
from django.db import OperationalError, connections

from audit import partitions, trail
from audit.actions import Action
from audit.actors import SYSTEM
from audit.models import AuditRow
from tests import servers, waiting
from tests.simulated_clock import simulate


def names(months, first, last):
    return sorted(months.name(month, kind) for kind in ("standard", "probe") for month in range(first, last + 1))


def test_make_ahead_makes_three_future_months(months):
    months.lay_out(-1, 0)
    assert sorted(partitions.make_ahead()) == names(months, 1, 3)
    assert months.tables() == names(months, -1, 3)
    assert months.window() == months.window("probe") == (months.at(-1, 0), months.at(4, 0))


def test_make_ahead_makes_nothing_when_all_is_there(months):
    months.lay_out(-1, 3)
    assert partitions.make_ahead() == []
    assert months.tables() == names(months, -1, 3)


def test_make_ahead_leaves_no_month_out_after_a_long_absence(months):
    months.lay_out(-9, -6)
    partitions.make_ahead()
    assert months.tables() == names(months, -9, 3)
    assert months.window() == (months.at(-9, 0), months.at(4, 0))
    for month in range(-9, 4):
        trail.record(Action.START, by=SYSTEM, started=months.at(month))
    assert not AuditRow.objects.filter(metadata__has_key="clamped_from").exists()


def test_make_ahead_makes_each_month_once_with_two_keepers(months):
    months.lay_out(-6, -5)
    made = []

    def keep():
        made.extend(partitions.make_ahead())

    keepers = [threading.Thread(target=keep) for _ in range(4)]
    for keeper in keepers:
        keeper.start()
    for keeper in keepers:
        keeper.join()
    assert sorted(made) == names(months, -4, 3)


def test_make_ahead_gives_way_to_a_keeper_that_is_at_work(months):
    months.lay_out(-1, 0)
    connections["owner"].ensure_connection()
    with partitions.alone() as free:
        assert free
        made = []
        other = threading.Thread(target=lambda: made.append(partitions.make_ahead(wait_s=0.2)))
        other.start()
        other.join()
    assert made == [[]]
    assert partitions.make_ahead() != []


def test_alone_asks_for_the_lock_at_most_once_a_second_and_gives_up_at_its_limit(db, monkeypatch):
    clock = simulate(monkeypatch, partitions)
    asked = []

    def note(execute, statement, *rest):
        asked.append(statement)
        return execute(statement, *rest)

    with psycopg.connect(servers.SERVERS.urls.owner, autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(hashtext('audit_log'), hashtext('keeper'))")
        with connections["owner"].execute_wrapper(note), partitions.alone(wait_s=60.0) as free:
            assert not free
    assert 60 <= clock.now < 61
    assert 60 <= len(asked) <= 66


@pytest.fixture
def warnings(caplog):
    """The warnings of this floor, so far: their events with what they say."""
    return lambda: [record.msg for record in caplog.records if record.name == "audit.partitions"]


def test_make_ahead_says_nothing_when_all_is_well(months, warnings):
    months.lay_out(-1, 2)
    partitions.make_ahead()
    assert warnings() == []


def test_make_ahead_warns_before_fewer_than_two_months_are_left(months, warnings):
    """It was skipped, and the third month is not there."""
    months.lay_out(-1, 2)
    with psycopg.connect(servers.SERVERS.urls.owner, autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(hashtext('audit_log'), hashtext('keeper'))")
        assert partitions.make_ahead(wait_s=0.1) == []
    busy, low = warnings()
    assert busy["event"] == "partitions_busy"
    assert (low["event"], low["level"], low["months_ahead"]) == ("partitions_low", "warning", 2)


def test_make_ahead_warns_when_it_fails(months, superuser, warnings):
    months.lay_out(-1, 2)
    with superuser.transaction():
        superuser.execute("LOCK TABLE audit_log_standard IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(OperationalError):
            partitions.make_ahead()
    assert [said["event"] for said in warnings()] == ["partitions_not_made"]
    assert partitions.months_ahead() == 2


def test_alone_ends_with_its_session_when_the_block_fails(months):
    with pytest.raises(ZeroDivisionError), partitions.alone():
        1 / 0  # noqa: B018
    with partitions.alone() as free:
        assert free


@pytest.mark.parametrize("last", [-2, 0, 1, 3])
def test_months_ahead_counts_whole_future_months(months, last):
    months.lay_out(-3, last)
    assert partitions.months_ahead() == last


def test_months_ahead_counts_the_class_that_ends_first(months, superuser):
    months.lay_out(-1, 3)
    superuser.execute("UPDATE audit_window SET ends = %s WHERE retention = 'probe'", [months.at(2, 0)])
    assert partitions.months_ahead() == 1


def test_health_tells_when_months_run_short(months, api):
    months.lay_out(-1, 3)
    assert api.get("/health").json()["audit_partitions"] == "ok"
    months.lay_out(-1, 1)
    response = api.get("/health")
    assert (response.status_code, response.json()["audit_partitions"]) == (200, "low")
    partitions.make_ahead()
    assert api.get("/health").json()["audit_partitions"] == "ok"


def test_make_ahead_holds_no_writer_up(months, as_app, superuser):
    """An insert is in the middle of its transaction, another one follows while the keeper is at work."""
    months.lay_out(-1, 0)
    with as_app.transaction():
        as_app.execute("INSERT INTO audit_log (timestamp, action) VALUES (now(), 'start')")
        partitions.make_ahead()
        as_app.execute("INSERT INTO audit_log (timestamp, action) VALUES (now(), 'start')")
    waiting.until(lambda: months.tables() == names(months, -1, 3), what="the months are made")
    assert AuditRow.objects.count() == 2
