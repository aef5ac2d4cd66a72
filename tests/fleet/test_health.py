"""/health: whether this process can serve. And what callers are told while the database cannot be reached."""

import contextlib
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import requests
from django.core.management import call_command
from django.db import connection
from django.db.models.functions import Now

from common import valkey
from common.times import iso
from engines.models import Operation
from fleet.jobs.models import Job
from tests import waiting
from tests.conftest import make_product
from tests.engines import crew
from tests.engines.registry import put_engine
from tests.envelopes import assert_error
from tests.read_only import read_only
from tests.stack import Stack

ROLE = "roundhouse_app"
BEYOND = [
    ("/engines/provision", {"user_id": "bob"}),
    ("/engines/dave/admit", {"auto_provision": True}),
    ("/engines/erin/admit", {"auto_wake": True}),
    ("/engines/carol/start", None),
]


@pytest.fixture
def web(db):
    """A web process, not yet ready, in which one request may wait at a time."""
    with contextlib.closing(Stack(ORCH_WEB_WAITERS="1")) as stack:
        yield stack


def health(web):
    try:
        return requests.get(f"{web.url}/health", timeout=30)
    except requests.ConnectionError:
        return None


def test_health_needs_no_key_and_says_ok(client, db):
    response = client.get("/health")
    assert response.status_code == 200
    assert response.json()["status"] == "ok"
    assert client.head("/health").status_code == 200
    assert client.get("/health", headers={"X-Platform-Key": "wrong"}).status_code == 200


def test_health_is_told_until_every_migration_is_applied_and_every_action_may_be_written(web, superuser):
    superuser.execute("DELETE FROM audit_action WHERE action = 'key_reveal'")
    removed = superuser.execute("DELETE FROM django_migrations WHERE app = 'engines' RETURNING id, app, name, applied").fetchall()
    try:
        web.start("web")
        waiting.until(lambda: health(web) is not None, 30, "the web server answers")
        error = assert_error(health(web), 503, "UNAVAILABLE")
        assert error["message"] == "Not able to serve: migrations missing."
    finally:
        with superuser.cursor() as cursor:
            cursor.executemany("INSERT INTO django_migrations (id, app, name, applied) VALUES (%s, %s, %s, %s)", removed)
    assert_error(health(web), 503, "UNAVAILABLE")
    call_command("migrate", verbosity=0)
    assert health(web).json()["status"] == "ok"


def test_health_names_the_jobs_that_are_late_and_still_says_ok(client, db):
    Job.objects.update(added_at=Now(), done_at=Now())
    assert client.get("/health").json()["jobs"] == "ok"
    Job.objects.filter(name="reconcile").update(done_at=Now() - timedelta(seconds=121))
    Job.objects.filter(name="prune-history").update(added_at=Now() - timedelta(hours=13), done_at=None)
    response = client.get("/health")
    assert (response.status_code, response.json()["status"], response.json()["jobs"]) == (200, "ok", "2 late")
    done_at = iso(Job.objects.get(name="reconcile").done_at)
    late = [{"name": "prune-history", "done_at": None}, {"name": "reconcile", "done_at": done_at}]
    assert response.json()["late_jobs"] == late


@pytest.mark.alone
def test_database_that_is_away_is_told_and_its_return_noticed(web, superuser):
    product = make_product()
    web.start("web")
    waiting.until(web.serves, 30, "the web server answers")
    superuser.execute(f"ALTER ROLE {ROLE} NOLOGIN")
    try:
        superuser.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", [ROLE])
        with ThreadPoolExecutor() as pool:  # each takes as long as the pool waits for a connection
            unhealthy = pool.submit(health, web)
            others = [
                pool.submit(web.call, method, path, product.key)
                for method, path in (("GET", "/status"), ("POST", "/engines/alice/admit"))
            ]
        assert assert_error(unhealthy.result(), 503, "UNAVAILABLE")["message"] == "Not able to serve: database unreachable."
        for other in others:
            assert_error(other.result(), 503, "UNAVAILABLE")
    finally:
        superuser.execute(f"ALTER ROLE {ROLE} LOGIN")
        connection.pool.drain()  # of this process: its connections are gone too
    waiting.until(web.serves, 3, "it serves again")
    assert web.call("GET", "/status", product.key).status_code == 200


@pytest.mark.alone
def test_database_that_can_only_be_read_is_told_and_its_return_noticed(web):
    """As after a failover: the sessions have ended, and new ones land on a server that takes no writes."""
    product = make_product()
    put_engine(product, "alice", "stopped")
    web.start("web")
    waiting.until(web.serves, 30, "the web server answers")
    with ThreadPoolExecutor() as pool:
        with read_only():
            unhealthy = pool.submit(health, web)
            writes = [pool.submit(web.call, "POST", "/engines/alice/start", product.key) for _ in range(3)]
            admit = pool.submit(web.call, "POST", "/engines/alice/admit", product.key)
            told = assert_error(unhealthy.result(), 503, "UNAVAILABLE")["message"]
            assert told == "Not able to serve: database read-only."
            for answer in [*writes, admit]:
                assert_error(answer.result(), 503, "UNAVAILABLE")
        waiting.until(web.serves, 5, "it serves again")
        start = web.call("POST", "/engines/alice/start", product.key, Prefer="respond-async")
        assert start.status_code == 202
        assert not pool.submit(web.errors).result().count("Traceback")


def test_health_notices_at_once_that_living_sessions_cannot_write(client, db, superuser):
    assert client.get("/health").status_code == 200
    superuser.execute("ALTER SYSTEM SET default_transaction_read_only = on")
    superuser.execute("SELECT pg_reload_conf()")
    try:
        waiting.until(lambda: client.get("/health").status_code == 503, what="it is told")
    finally:
        superuser.execute("ALTER SYSTEM RESET default_transaction_read_only")
        superuser.execute("SELECT pg_reload_conf()")
    waiting.until(lambda: client.get("/health").status_code == 200, 5, "it serves again")


def test_request_beyond_those_that_may_wait_is_answered_at_once(web, subtests):
    """The one that may wait does: the others are told to come back, and which operation goes on meanwhile."""
    product = make_product()
    put_engine(product, "erin", "sleeping")
    put_engine(product, "carol", "stopped")
    web.start("web")
    waiting.until(web.serves, 30, "the web server answers")
    with ThreadPoolExecutor() as pool:
        first = pool.submit(web.call, "POST", "/engines/provision", product.key, {"user_id": "first"})
        waiting.until(lambda: valkey.client().pubsub_channels("operation:*"), what="the first request waits")
        for path, body in BEYOND:
            with subtests.test(path=path):
                answer = web.call("POST", path, product.key, body, timeout=3)
                error = assert_error(answer, 503, "UNAVAILABLE")
                assert 1 <= int(answer.headers["Retry-After"]) <= 3
                shown = web.call("GET", f"/operations/{error['details']['operation_id']}", product.key)
                assert shown.json()["state"] == "pending"
                assert web.call("POST", path, product.key, body, timeout=3, Prefer="wait=9").status_code == 202
        Operation.objects.exclude(engine__user_id="first").delete()
        with crew.at_work(1):
            assert first.result().status_code == 200
