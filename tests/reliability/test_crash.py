"""An engine that crashes, with nobody at hand but beat and the workers."""

import os
import signal
from uuid import UUID

import pytest
import requests
from django.conf import settings

from audit.models import AuditRow
from engines.addresses import url
from engines.backends.process import store
from engines.models import Engine
from tests import waiting
from tests.conftest import make_product, running_stack
from tests.reliability import fleet

ENVIRONMENT = {
    "ORCH_HEALTH_CHECK_INTERVAL_S": "1",
    "ORCH_HEALTH_CHECK_TIMEOUT_S": "1",
    "ORCH_HEALTH_MAX_FAILURES": "2",
    "ORCH_RESTART_BACKOFF_BASE_S": "1",
}


@pytest.fixture
def stack(db):
    """Started on the empty database: a host that is forgotten later has its engines resumed, and none of them fails."""
    with running_stack(**ENVIRONMENT) as processes:
        yield processes


def test_crashed_engine_is_found_and_restarted(stack):
    product = make_product()
    assert stack.call("POST", "/engines/provision", product.key, {"user_id": "alice"}).status_code == 200
    engine = Engine.objects.get()
    waiting.until(lambda: rows(engine, "health_check"), 30, "it was probed, and is healthy")
    os.kill(pid(engine.pk), signal.SIGKILL)
    waiting.until(lambda: rows(engine, "auto_restart_success"), 60, "it was restarted")
    told = AuditRow.objects.filter(engine_id=engine.pk).exclude(action="health_check").order_by("id")
    assert [(row.action, row.actor, row.from_status, row.to_status) for row in told][2:] == [
        ("health_failed", "system", "running", "failed"),
        ("auto_restart_start", "system", None, None),
        ("auto_restart_success", "system", "failed", "running"),
    ]
    assert rows(engine, "health_failed")[0].metadata["failures"] == 2
    assert requests.get(f"{url(engine)}/health", timeout=5).json()["status"] == "ok"
    fleet.check_agrees([engine.pk])


def rows(engine, action):
    return list(AuditRow.objects.filter(engine_id=engine.pk, action=action))


def pid(engine_id: UUID) -> int:
    record = store.read_record(settings.ENGINES_ROOT / str(engine_id), "1")
    assert record is not None
    return record.process.pid
