"""How long a caller waits, and what it is told when that was too short: the operation goes on either way."""

import time

import pytest

from engines.models import Engine, Kind, Operation, Status
from tests import waiting
from tests.engines import crew
from tests.engines.registry import put_engine, put_operation
from tests.envelopes import assert_error

ASK = {
    "provision": ("POST", "/engines/provision", {"user_id": "bob"}, Kind.PROVISION),
    "start": ("POST", "/engines/carol/start", None, Kind.START),
    "stop": ("POST", "/engines/alice/stop", None, Kind.STOP),
    "rotate-key": ("POST", "/engines/alice/rotate-key", None, Kind.ROTATE_KEY),
    "destroy": ("DELETE", "/engines/alice", None, Kind.DESTROY),
    "admit": ("POST", "/engines/dave/admit", {"auto_provision": True}, Kind.PROVISION),
    "admit and wake": ("POST", "/engines/erin/admit", {"auto_wake": True}, Kind.WAKE),
}


@pytest.fixture
def engines(product):
    put_engine(product, "alice")
    put_engine(product, "carol", Status.STOPPED)
    put_engine(product, "erin", Status.SLEEPING)


def accepted(response, kind):
    """The operation that a 202 names."""
    assert response.status_code == 202, response.content
    body = response.json()
    assert body.keys() == {"operation_id", "kind", "state"}
    assert (body["kind"], body["state"]) == (kind, "pending")
    assert response.headers["Location"] == f"/operations/{body['operation_id']}"
    return body["operation_id"]


@pytest.mark.parametrize("name", ASK)
def test_caller_who_takes_a_202_gets_one_at_once(api, engines, name):
    method, path, body, kind = ASK[name]
    operation_id = accepted(api.call(method, path, body, Prefer="respond-async"), kind)
    shown = api.call("GET", f"/operations/{operation_id}")
    assert (shown.status_code, shown.json()["kind"]) == (200, kind)


def test_caller_who_asks_again_joins_the_operation(api, engines):
    for method, path, body, kind in ASK.values():
        if path.startswith("/engines/alice"):
            Operation.objects.filter(engine__user_id="alice").delete()
        first, second = (accepted(api.call(method, path, body, Prefer="respond-async"), kind) for _ in range(2))
        assert first == second


def test_caller_who_waits_long_enough_gets_the_answer(api, product):
    with crew.at_work():
        response = api.call("POST", "/engines/provision", {"user_id": "alice"}, Prefer="wait=20")
    assert response.status_code == 200
    assert response.json()["status"] == "running"


@pytest.mark.parametrize("prefer", ["wait=0", "Respond-Async", "respond-async, wait=0", 'return=minimal,  wait = 0; foo="bar"'])
def test_preference_is_read_as_the_standard_has_it(api, engines, prefer):
    accepted(api.call("POST", "/engines/alice/stop", Prefer=prefer), Kind.STOP)


def test_caller_waits_for_as_long_as_it_said(api, engines):
    began = time.monotonic()
    accepted(api.call("POST", "/engines/alice/stop", Prefer="wait=1"), Kind.STOP)
    assert 0.9 < time.monotonic() - began < 3


@pytest.mark.parametrize("name", ["stop", "destroy"])
def test_caller_without_preference_is_told_past_the_deadline(api, engines, settings, name):
    settings.ENV = settings.ENV.model_copy(update={"wait_s": 0.3, "stop_grace_s": 0.1})
    method, path, body, _ = ASK[name]
    error = assert_error(api.call(method, path, body), 503, "UNAVAILABLE")
    operation = Operation.objects.get()
    assert error["details"] == {"operation_id": str(operation.pk), "cause": "pending"}
    assert str(operation.pk) in error["message"]
    with crew.at_work():
        assert api.call(method, path, body, Prefer="wait=10").status_code == 200


def test_destroy_supersedes_and_whoever_waited_is_told(api, product):
    operation = put_operation(put_engine(product), Kind.RESTART)
    response = api.call("DELETE", "/engines/alice", Prefer="respond-async")
    accepted(response, Kind.DESTROY)
    operation.refresh_from_db()
    assert operation.state == "superseded"
    assert Engine.objects.get().status == Status.DESTROYING


def test_destroy_of_a_provision_ends_its_wait(product, api):
    def provision():
        return api.call("POST", "/engines/provision", {"user_id": "alice"})

    def destroy():
        waiting.until(lambda: Operation.objects.filter(kind=Kind.PROVISION).exists())
        return api.call("DELETE", "/engines/alice", Prefer="respond-async")

    provisioned, destroyed = crew.in_parallel(lambda call: call(), [provision, destroy])
    assert destroyed.status_code == 202
    error = assert_error(provisioned, 409, "OPERATION_IN_PROGRESS")
    assert error["details"]["cause"] == "superseded"
