"""Every named error of a backend, in every verb: a row, an answer that says what to do, and no state that is stuck."""

import pytest

from audit import actors
from audit.models import AuditRow
from engines import causes, lifecycle, operations
from engines.backends import base
from engines.lifecycle import outcomes
from engines.models import Engine, Kind, Operation, Status
from engines.transitions import TRANSITIONS
from engines.worker import boot
from policy import products
from tests.engines.strangers import OK, listening, saying
from tests.envelopes import assert_error

ACME = actors.product("acme")
FOR_GOOD = {
    base.ImageMissing: (502, "BACKEND_ERROR"),
    base.ImageMismatch: (502, "BACKEND_ERROR"),
    base.NetworkFull: (503, "CAPACITY_EXHAUSTED"),
    base.NetworkUnguarded: (503, "UNAVAILABLE"),
    base.RuntimeMissing: (503, "UNAVAILABLE"),
    base.DiskFull: (503, "CAPACITY_EXHAUSTED"),
    base.QuotaMissing: (502, "BACKEND_ERROR"),
    base.ImageUnfit: (502, "BACKEND_ERROR"),
    base.BackendError: (502, "BACKEND_ERROR"),
}
FOR_NOW = [base.BackendUnavailable, base.InstanceMissing]
VERBS = {  # kind: (state before, the verb, the backend's verb that fails)
    Kind.START: (Status.STOPPED, lifecycle.start, "create"),
    Kind.WAKE: (Status.SLEEPING, lifecycle.wake, "start"),
    Kind.STOP: (Status.RUNNING, lifecycle.stop, "stop"),
    Kind.SLEEP: (Status.RUNNING, lifecycle.sleep, "stop"),
    Kind.RESTART: (Status.RUNNING, lifecycle.restart, "create"),
    Kind.ROTATE_KEY: (Status.RUNNING, lifecycle.rotate_key, "create"),
    Kind.DESTROY: (Status.RUNNING, lifecycle.destroy, "remove"),
}


@pytest.fixture
def engine(product, memory_backend, superuser):
    """Makes an engine in a state. No process belongs to it, but something healthy listens on its port."""

    def make(status):
        operation = lifecycle.provision(product, "alice", by=ACME)
        lease = operations.claim(operation.pk)
        assert lifecycle.settle(lease, operation, outcomes.succeeded(operation, operation.engine, 1))
        superuser.execute("UPDATE engines_engine SET status = %s, port = %s", [status.value, port])
        return Engine.objects.get()

    with listening(saying(OK)) as (port,):
        yield make


@pytest.mark.parametrize("error", FOR_GOOD)
def test_provision_that_fails_answers_with_what_to_do(api, memory_backend, carry_out, error):
    memory_backend.fail_next("create", error("said the runtime"))
    api.call("POST", "/engines/provision", {"user_id": "alice"}, Prefer="respond-async", **{"Idempotency-Key": "k"})
    operation = carry_out(Operation.objects.get())
    row = AuditRow.objects.get(action="provision_failed")
    assert (operation.error_code, row.metadata["error"], row.to_status) == (error.code, error.code, "failed")
    answer = api.call("POST", "/engines/provision", {"user_id": "alice"}, **{"Idempotency-Key": "k"})
    assert_error(answer, *FOR_GOOD[error])
    said = answer.json()["error"]
    assert said["details"]["cause"] == error.code
    for shown in (said, api.call("GET", f"/operations/{operation.pk}").json()["error"]):
        assert shown["message"] == causes.sentence(error.code)
        assert "said the runtime" not in str(shown)
    assert "said the runtime" in operation.error_message  # for operators
    assert operation.error_message.startswith(f"{error.advice} (")
    assert lifecycle.can(Engine.objects.get(), Kind.START)
    assert lifecycle.can(Engine.objects.get(), Kind.DESTROY)


@pytest.mark.parametrize("kind", VERBS)
@pytest.mark.parametrize("error", FOR_GOOD)
def test_verb_that_fails_for_good_leaves_a_row_and_a_way_out(engine, memory_backend, carry_out, kind, error):
    before, verb, backend_verb = VERBS[kind]
    found = engine(before)
    memory_backend.fail_next(backend_verb, error("said the runtime"))
    operation = carry_out(verb(found, by=ACME))
    assert (operation.state, operation.error_code) == ("failed", error.code)
    row = AuditRow.objects.get(operation_id=operation.pk, action=f"{kind}_failed")
    after = "running" if kind == Kind.ROTATE_KEY else "failed"  # it goes back to the old key
    assert (row.to_status, row.metadata["error"]) == (after, error.code)
    assert not Operation.objects.filter(finished_at=None).exists()
    assert carry_out(lifecycle.destroy(found, by=ACME)).state == "succeeded"


@pytest.mark.parametrize("kind", VERBS)
@pytest.mark.parametrize("error", FOR_NOW)
def test_verb_that_may_work_later_is_tried_again(engine, memory_backend, carry_out, superuser, kind, error):
    before, verb, backend_verb = VERBS[kind]
    found = engine(before)
    memory_backend.fail_next(backend_verb, error("said the runtime"))
    operation = carry_out(verb(found, by=ACME))
    assert (operation.state, operation.returned, operation.lease_until) == ("running", 1, None)
    assert not AuditRow.objects.filter(action__endswith="_failed").exists()
    superuser.execute("UPDATE engines_operation SET due_at = now()")
    assert carry_out(operation).state == "succeeded"
    assert [row.action for row in AuditRow.objects.filter(operation_id=operation.pk, action=TRANSITIONS[kind].done)]
    assert Engine.objects.get().status == TRANSITIONS[kind].after


@pytest.mark.parametrize(("allowed", "cause"), [("runc", "runtime_missing"), ("runsc", "runtime_not_allowed")])
def test_boot_fails_by_name_where_the_policys_runtime_cannot_be_had(
    settings, api, product, memory_backend, carry_out, allowed, cause
):
    """The memory backend has no runtimes, and runs no engine that has to be in one."""
    products.update_policy(product.pk, {"runtime": "runc"}, by=actors.ADMIN)
    settings.ENV = settings.ENV.model_copy(update={"engine_runtimes": allowed})
    api.call("POST", "/engines/provision", {"user_id": "alice"}, Prefer="respond-async", **{"Idempotency-Key": "k"})
    assert carry_out(Operation.objects.get()).error_code == cause
    assert memory_backend.list() == []
    answer = api.call("POST", "/engines/provision", {"user_id": "alice"}, **{"Idempotency-Key": "k"})
    assert_error(answer, 503, "UNAVAILABLE")
    assert answer.json()["error"]["details"]["cause"] == cause


BOOTS = {Kind.START: Status.STOPPED, Kind.WAKE: Status.SLEEPING, Kind.RESTART: Status.RUNNING}


@pytest.mark.parametrize("kind", BOOTS)
def test_boot_fails_by_name_when_its_port_is_taken_and_no_other_is_left(settings, engine, memory_backend, carry_out, kind):
    found = engine(BOOTS[kind])
    settings.ENV = settings.ENV.model_copy(update={"port_min": found.port, "port_max": found.port})
    memory_backend.fail_next("start", base.PortTaken("said the runtime"))
    operation = carry_out(VERBS[kind][1](found, by=ACME))
    assert (operation.state, operation.error_code, operation.attempt) == ("failed", "port_exhaustion", 1)
    assert "destroy an engine or widen the range" in operation.error_message
    row = AuditRow.objects.get(operation_id=operation.pk, action=f"{kind}_failed")
    assert (row.to_status, row.metadata["error"]) == ("failed", "port_exhaustion")
    assert carry_out(lifecycle.destroy(found, by=ACME)).state == "succeeded"


@pytest.mark.parametrize(("others", "cause"), [(0, "port_exhaustion"), (100, "port_taken")])
def test_provision_whose_ports_are_all_taken_says_so(settings, api, memory_backend, carry_out, others, cause):
    settings.ENV = settings.ENV.model_copy(update={"port_min": 20001, "port_max": 20001 + others})
    for _ in range(boot.MAX_PORTS):
        memory_backend.fail_next("start", base.PortTaken("said the runtime"))
    api.call("POST", "/engines/provision", {"user_id": "alice"}, Prefer="respond-async", **{"Idempotency-Key": "k"})
    assert carry_out(Operation.objects.get()).attempt == 1
    assert AuditRow.objects.get(action="provision_failed").metadata["error"] == cause
    answer = api.call("POST", "/engines/provision", {"user_id": "alice"}, **{"Idempotency-Key": "k"})
    assert_error(answer, 503, "PORT_EXHAUSTION")
    said = answer.json()["error"]
    assert said["details"]["cause"] == cause
    assert said["message"] == "No port was free for the engine. Try again later."
