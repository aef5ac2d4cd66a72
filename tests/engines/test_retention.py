"""Destroyed engines and ended operations leave with the log's last row of them, and not before."""

from datetime import timedelta

import psycopg
import pytest

from audit import retention, trail
from audit.actions import Action
from audit.actors import SYSTEM
from audit.models import AuditRow
from engines.models import Engine, Operation
from engines.retention import BATCH, prune
from fleet import metrics
from tests import servers
from tests.audit.conftest import keep, months  # noqa: F401 (fixtures)
from tests.engines.registry import put_engine, put_operation

OLD = -3  # months; kept for 31 days


@pytest.fixture
def old(months, keep):  # noqa: F811
    """A time in a month that the next run removes."""
    months.lay_out(OLD, 3)
    keep(31)
    return months.at(OLD)


def gone(product, user_id, at):
    return put_engine(product, user_id, "destroyed", destroyed_at=at, provisioned_at=at, key_hash="", key_ciphertext="")


def row(engine, at):
    subject = trail.Subject(product_id=engine.product_id, product_slug="acme", user_id=engine.user_id, engine_id=engine.pk)
    return trail.record(Action.DESTROY, subject, by=SYSTEM, started=at)


def ended(engine, at, **columns):
    return put_operation(engine, state="succeeded", finished_at=at, created_at=at, **columns)


def test_engine_leaves_with_its_last_row_and_its_operations(product, old):
    forgotten, named = gone(product, "alice", old), gone(product, "bob", old)
    for engine in (forgotten, named):
        row(engine, old)
        ended(engine, old)
    row(named, old + timedelta(days=90))
    before = metrics.of_product(product)
    run = retention.prune()
    assert (run.others, [engine.pk for engine in Engine.objects.all()]) == ({"operations": 2, "engines": 1}, [named.pk])
    told = AuditRow.objects.get(action="retention_prune").metadata
    assert (told["operations"], told["engines"], told["rows"]) == (2, 1, 2)
    assert metrics.of_product(product) == before


def test_engine_that_lives_keeps_its_row_and_what_is_open(product, old):
    engine = put_engine(product, provisioned_at=old)
    ended(engine, old)
    kept = [put_operation(engine, created_at=old), ended(engine, old + timedelta(days=90))]
    assert retention.prune().others == {"operations": 1, "engines": 0}
    assert set(Operation.objects.values_list("pk", flat=True)) == {each.pk for each in kept}
    assert Engine.objects.get().pk == engine.pk


def test_operation_of_yesterday_is_kept_for_repeated_calls(product, superuser, old):
    """The log's first month may have begun today."""
    kept = ended(put_engine(product), old + timedelta(days=90))
    superuser.execute("UPDATE audit_window SET ends = 'infinity'")
    superuser.execute("UPDATE audit_window SET starts = now() + interval '1 hour'")
    superuser.execute("UPDATE engines_operation SET finished_at = now(), created_at = now()")
    assert prune() == {"operations": 0, "engines": 0}
    assert Operation.objects.get().pk == kept.pk


def test_many_leave_in_batches_and_a_locked_row_holds_nobody_up(product, old):
    engine = gone(product, "alice", old)
    Operation.objects.bulk_create(
        Operation(engine=engine, kind="stop", state="failed", actor=SYSTEM, incarnation=1, created_at=old, finished_at=old)
        for _ in range(2 * BATCH + 1)
    )
    with psycopg.connect(servers.SERVERS.urls.database) as holder:
        holder.execute("SELECT FROM engines_operation LIMIT 1 FOR UPDATE")
        assert retention.prune(patience_s=0.1).others == {"operations": 2 * BATCH, "engines": 0}
    assert retention.prune().others == {"operations": 1, "engines": 1}
