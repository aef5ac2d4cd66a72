"""/status and /metrics: a product's engines in numbers."""

from datetime import timedelta
from importlib import import_module

import pytest
from django.db import connections
from django.utils import timezone

from audit import trail
from audit.actions import Action
from engines import lifecycle
from engines.models import Engine
from fleet import status
from tests.conftest import make_running
from tests.engines.registry import put_engine

STATES = ["provisioning", "running", "sleeping", "stopped", "failed", "destroying"]
GONE = {"status": "destroyed", "destroyed_at": "2026-01-01T00:00:00Z", "key_hash": "", "key_ciphertext": ""}
FIGURES = {"provisions_1h", "crashes_1h", "restarts_1h", "avg_boot_ms", "total_provisions", "total_destroys"}


def test_status_counts_living_engines_by_state(api, product, other_product):
    for number, state in enumerate(STATES):
        for copy in range(number):
            put_engine(product, f"{state}-{copy}", state)
    put_engine(product, "gone", **GONE)
    put_engine(other_product, "alice", "failed")
    assert api.call("GET", "/status").json() == {
        "total": 15,
        "by_status": {"provisioning": 0, "running": 1, "sleeping": 2, "stopped": 3, "failed": 4, "destroying": 5},
        "health": "degraded",
        "unhealthy_count": 4,
    }


def test_status_of_an_empty_product_is_ok(api):
    assert api.call("GET", "/status").json() == {
        "total": 0,
        "by_status": dict.fromkeys(STATES, 0),
        "health": "ok",
        "unhealthy_count": 0,
    }


@pytest.mark.parametrize(
    ("total", "failed", "expected"),
    [(0, 0, "ok"), (100, 0, "ok"), (1, 1, "degraded"), (4, 4, "degraded"), (5, 5, "critical"), (25, 5, "critical"),
     (26, 5, "degraded"), (100, 19, "degraded"), (100, 20, "critical")],
)  # fmt: skip
def test_health_is_critical_from_a_fifth_and_five_failed(total, failed, expected):
    assert status.health(total, failed) == expected


def test_metrics_of_an_empty_product_are_zero(api):
    figures = api.call("GET", "/metrics").json()
    assert figures == dict.fromkeys(FIGURES, 0) | {"avg_boot_ms": None}


def record(product, action, age_s=0, count=1, **fields):
    """Rows of the product that began `age_s` seconds ago."""
    subject = trail.Subject(product_id=product.pk, product_slug=product.slug)
    for _ in range(count):
        trail.record(action, subject, by="system", started=timezone.now() - timedelta(seconds=age_s))


def test_metrics_count_the_last_hour_of_the_audit_log(api, product, other_product):
    record(product, Action.HEALTH_FAILED, age_s=60, count=3)
    record(product, Action.HEALTH_FAILED, age_s=3700)
    record(product, Action.AUTO_RESTART_START, age_s=3500, count=2)
    record(product, Action.AUTO_RESTART_SUCCESS, count=4)
    record(product, Action.PROVISION_REQUESTED)
    record(product, Action.PROVISION, age_s=100)
    record(product, Action.PROVISION, age_s=200)
    record(other_product, Action.PROVISION, age_s=300, count=3)
    figures = api.call("GET", "/metrics").json()
    assert figures.keys() == FIGURES
    assert (figures["provisions_1h"], figures["crashes_1h"], figures["restarts_1h"]) == (2, 3, 2)
    assert figures["avg_boot_ms"] == pytest.approx(150_000, rel=0.02)  # duration is from the start until the row is written
    assert isinstance(figures["avg_boot_ms"], int)


def test_metrics_total_engines_whose_rows_had_left_the_log_before_rows_were_counted(api, product, other_product):
    put_engine(product, "alice", provisioned_at="2020-01-01T00:00:00Z")
    put_engine(product, "bob", provisioned_at="2020-01-01T00:00:00Z", **GONE)
    put_engine(product, "never", "failed")
    put_engine(product, "never up, and gone", **GONE)
    put_engine(other_product, "alice", provisioned_at="2020-01-01T00:00:00Z")
    with connections["owner"].schema_editor() as editor:
        import_module("engines.migrations.0009_count_what_was_pruned").count(None, editor)
    figures = api.call("GET", "/metrics").json()
    assert (figures["total_provisions"], figures["total_destroys"]) == (2, 2)


def test_metrics_of_a_life(api, product, carry_out):
    engine = make_running(product, "alice", carry_out)
    figures = api.call("GET", "/metrics").json()
    assert (figures["provisions_1h"], figures["total_provisions"], figures["total_destroys"]) == (1, 1, 0)
    assert 0 < figures["avg_boot_ms"] < 20_000
    carry_out(lifecycle.destroy(engine, by="acme"))
    figures = api.call("GET", "/metrics").json()
    assert (figures["provisions_1h"], figures["total_provisions"], figures["total_destroys"]) == (1, 1, 1)
    assert Engine.objects.get().destroyed_at is not None
