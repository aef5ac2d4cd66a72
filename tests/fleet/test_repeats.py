"""Every call that changes something, sent twice under one `Idempotency-Key`: done once, and answered with the same."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from django.conf import settings
from django.test import Client

from audit import actors
from audit.models import AuditRow
from common import valkey
from engines.models import Operation
from policy import admin_keys, overrides, products
from tests import waiting
from tests.conftest import Api, empty, make_product, running_stack
from tests.engines.crew import at_work
from tests.fleet.endpoints import ALL, ANY_ID

CHANGING = [endpoint for endpoint in ALL if endpoint.method != "GET"]
KEY = {"Idempotency-Key": "one"}
OF_PRODUCT = f"/products/{ANY_ID}"
BODIES = {
    "POST /admin-keys": {"name": "ci", "expires_in_s": 60},
    "POST /engines/alice/admit": {"auto_provision": True},
    "POST /engines/provision": {"user_id": "alice"},
    "POST /policy/explain": {"verb": "provision", "user_id": "alice"},
    "POST /products/register": {"slug": "globex", "display_name": "Globex"},
    f"POST {OF_PRODUCT}/overrides": {"rule": "max_engines", "value": 7, "reason": "launch", "expires_in_s": 60},
    f"POST {OF_PRODUCT}/platform-keys": {"scopes": ["read"]},
    f"POST {OF_PRODUCT}/resume": {"reason": "paid"},
    f"POST {OF_PRODUCT}/rotate-platform-key": {"overlap_s": 60},
    f"POST {OF_PRODUCT}/suspend": {"reason": "unpaid"},
    f"PUT {OF_PRODUCT}/engine-env": {"env": {"REGION": "eu"}},
    f"PUT {OF_PRODUCT}/policy": {"policy": {"max_engines": 5}},
}
NEED_NO_ENGINE = {"POST /engines/alice/admit", "POST /engines/provision", "POST /policy/explain"}
CHANGE_NOTHING = {"POST /policy/explain"}


def prepare(endpoint, acme, api):
    """All that the call needs in order to change something; returns its path, with the ids of that."""
    subject = acme if endpoint.is_of_user else make_product("subject")
    path = endpoint.path.replace(OF_PRODUCT, f"/products/{subject.pk}")
    if endpoint.is_of_user and str(endpoint) not in NEED_NO_ENGINE:
        assert api.call("POST", "/engines/provision", {"user_id": "alice"}).status_code == 200
    if path.endswith("/start"):
        assert api.call("POST", "/engines/alice/stop").status_code == 200
    if path.endswith("/resume"):
        products.suspend(subject.pk, "unpaid", by=actors.ADMIN)
    if path.endswith(ANY_ID):
        path = path.replace(ANY_ID, str(make_what_ends(path, subject).pk))
    return path


def make_what_ends(path, subject):
    """What a DELETE of the path is to end."""
    if "/overrides/" in path:
        return overrides.grant(subject.pk, "max_engines", 7, reason="launch", expires_in_s=60, by=actors.ADMIN)
    key, _ = (
        products.issue_key(subject, by=actors.ADMIN) if "/platform-keys/" in path else admin_keys.issue("old", by=actors.ADMIN)
    )
    return key


@pytest.mark.parametrize("endpoint", CHANGING, ids=str)
def test_call_that_is_sent_again_is_done_once(db, endpoint):
    acme = make_product()
    api = Api(acme.key)
    with at_work():
        path = prepare(endpoint, acme, api)
        keys = {"X-Admin-Key": settings.ENV.admin_key} if endpoint.header == "X-Admin-Key" else {"X-Platform-Key": acme.key}
        before = AuditRow.objects.count()

        def send():
            content = {"data": BODIES.get(str(endpoint), {}), "content_type": "application/json", "headers": {**keys, **KEY}}
            return getattr(Client(), endpoint.method.lower())(path, **content)

        first = send()
        rows = AuditRow.objects.count()
        again = send()
        assert (first.status_code, again.status_code) == (200, 200), (first.content, again.content)
        assert again.content == first.content
        assert AuditRow.objects.count() == rows
        assert (rows == before) == (str(endpoint) in CHANGE_NOTHING)


@pytest.fixture(scope="module")
def web(database, django_db_blocker):
    """A web process with a single place to wait."""
    empty()
    sizes = {"ORCH_WEB_THREADS": "8", "ORCH_WEB_WAITERS": "1", "ORCH_ENGINE_BACKEND": "memory"}
    with django_db_blocker.unblock(), running_stack("web", **sizes) as made:
        yield made


@pytest.mark.parametrize("endpoint", CHANGING, ids=str)
def test_twenty_calls_at_once_are_done_once_and_answered_the_same(web, db, endpoint):
    acme = make_product()
    with at_work():
        path = prepare(endpoint, acme, Api(acme.key))
    keys = {"X-Admin-Key": settings.ENV.admin_key} if endpoint.header == "X-Admin-Key" else {"X-Platform-Key": acme.key}
    rows = AuditRow.objects.count()

    def send(_):
        body = BODIES.get(str(endpoint), {})
        return requests.request(endpoint.method, web.url + path, json=body, headers={**keys, **KEY}, timeout=30)

    with ThreadPoolExecutor(20) as callers:
        asked = [callers.submit(send, number) for number in range(20)]
        waiting.until(lambda: all(each.done() for each in asked) or callers_of_operation() == 20, 10, "all have come")
        with at_work(1):
            answers = [each.result() for each in asked]
    assert {answer.status_code for answer in answers} == {200}, answers[0].text
    assert len({answer.content for answer in answers}) == 1
    assert AuditRow.objects.count() - rows in (0, 1, 2)


def callers_of_operation():
    """How many callers wait for the open operation."""
    opened = Operation.objects.filter(finished_at=None).first()
    return opened and valkey.client().pubsub_numsub(f"operation:{opened.pk}")[0][1]
