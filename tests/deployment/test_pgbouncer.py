"""A deployment with PgBouncer in transaction mode between the application and PostgreSQL, and none for the owner."""

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from tests import conftest, pgbouncer, servers, waiting
from tests.conftest import make_product, running_stack
from tests.read_only import read_only
from tests.staff import hire

CALLS = 700


@pytest.fixture(scope="module")
def pooler(database):
    """The application's URL."""
    with pgbouncer.running() as url:
        yield url


@pytest.fixture(scope="module")
def stack(pooler, django_db_blocker):
    """Room for all callers of these tests to wait, so that no answer is 503 for want of it."""
    conftest.empty()
    urls = {"ORCH_DATABASE_URL": pooler, "ORCH_DATABASE_OWNER_URL": servers.SERVERS.urls.owner}
    with (
        django_db_blocker.unblock(),
        running_stack(edition="small", ORCH_ENGINE_BACKEND="memory", ORCH_WEB_WAITERS="16", **urls) as processes,
    ):
        yield processes


def test_calls_never_fail_behind_a_pooler(stack, db):
    product = make_product()
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda call: stack.call(*call[:2], product.key, call[2]), _mixture(CALLS)))
    codes = Counter(answer.status_code for answer in answers)
    failed = [answer for answer in answers if answer.status_code >= 500 and "Retry-After" not in answer.headers]
    assert not failed, stack.errors()  # with the header, the call was refused for want of a place
    assert codes[200] > CALLS / 2


def _mixture(number):
    """Calls as products make them: mostly reads, and every verb."""
    chance = random.Random(13)
    for _ in range(number):
        engine = f"/engines/user-{chance.randrange(12)}"
        reads = [("POST", f"{engine}/admit"), ("GET", engine), ("GET", "/engines"), ("GET", "/status"), ("GET", "/metrics")]
        reads += [("GET", "/operations"), ("GET", "/audit?limit=20"), ("GET", "/health")]
        method, path = chance.choice(reads)
        body = None
        if chance.random() < 0.15:
            verbs = [("POST", f"{engine}/{verb}") for verb in ("stop", "start", "rotate-key")] + [("DELETE", engine)]
            method, path = chance.choice([*verbs, *[("POST", f"{engine}/admit")] * 3])
            body = {"auto_provision": True, "auto_wake": True} if path.endswith("admit") else None
        yield method, path, body


def test_database_that_can_only_be_read_is_told_and_its_return_noticed_behind_a_pooler(stack, db):
    product = make_product()
    provision = ("POST", "/engines/provision", product.key)
    assert stack.call(*provision, {"user_id": "before"}).status_code == 200
    began = waiting.now()
    with ThreadPoolExecutor(10) as pool, read_only():
        asked = [pool.submit(stack.call, *provision, {"user_id": f"user-{number}"}) for number in range(8)]
        unhealthy = pool.submit(requests.get, f"{stack.url}/health", timeout=30)
        waiting.until(lambda: waiting.passed(began, 1.0))
    assert {answer.result().status_code for answer in asked} <= {200, 503}
    assert unhealthy.result().status_code in (200, 503)
    waiting.until(stack.serves, 5, "it serves again")
    for number in range(20):
        assert stack.call("POST", "/engines/after/admit", product.key, {"auto_provision": True}).status_code == 200, number


def test_keeper_has_a_session_of_its_own(stack, db):
    """A keeper that starts, and prunes under its advisory lock. The job is made due only while there is no keeper."""
    from fleet.jobs.models import Job

    stack.stop("keeper")
    before = _pruned()
    Job.objects.filter(name="prune-history").update(started_at=None, sent_at=None, unstarted=0)
    stack.start("keeper")
    waiting.until(lambda: _pruned() == before + 1, 30, "the run of the keeper has its row")
    assert '"level": "error"' not in stack.log("keeper")


def _pruned():
    from audit.models import AuditRow

    return AuditRow.objects.filter(action="retention_prune").count()


def test_staff_log_in_behind_a_pooler(stack, db):
    hire("rita", superuser=True, password="correct horse battery")
    session = requests.Session()
    page = f"{stack.url}/admin/login/"
    session.get(page, timeout=30)
    fields = {"username": "rita", "password": "correct horse battery", "csrfmiddlewaretoken": session.cookies["csrftoken"]}
    answer = session.post(page, fields, headers={"Referer": page}, timeout=30)
    assert answer.url == f"{stack.url}/admin/"
    for path in ("auth/user/add/", "auth/group/add/", "audit/auditrow/", "engines/engine/"):
        assert session.get(f"{stack.url}/admin/{path}", timeout=30).status_code == 200
