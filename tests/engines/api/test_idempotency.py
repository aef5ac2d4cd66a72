"""`Idempotency-Key`: a call that is sent again is done once and answered the same."""

import pytest

from audit import actors
from audit.models import AuditRow
from engines import lifecycle, operations
from engines.backends.memory import Behaviour
from engines.models import Engine, Operation
from policy import crypto, idempotency, products
from policy.models import IdempotencyKey
from tests.conftest import Api, make_product
from tests.engines.crew import at_work, in_parallel
from tests.engines.registry import put_engine
from tests.envelopes import assert_error

KEY = {"Idempotency-Key": "key-1"}


@pytest.fixture
def crew(product):
    with at_work():
        yield


def provision(api, user_id="alice", **headers):
    return api.call("POST", "/engines/provision", {"user_id": user_id}, **{**KEY, **headers})


def test_calls_at_once_with_one_key_give_one_engine_and_equal_answers(crew, product):
    answers = in_parallel(lambda _: provision(Api(product.key)), range(20), threads=8)
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert Engine.objects.count() == Operation.objects.count() == IdempotencyKey.objects.count() == 1
    assert AuditRow.objects.filter(action="provision").count() == 1


def test_without_a_key_the_second_call_is_refused(crew, api):
    api.call("POST", "/engines/provision", {"user_id": "alice"})
    assert_error(api.call("POST", "/engines/provision", {"user_id": "alice"}), 409, "ENGINE_ALREADY_EXISTS")


def test_another_products_key_is_another_key(crew, api):
    other = make_product("other")
    first, second = provision(api), provision(Api(other.key))
    assert first.json()["engine_id"] != second.json()["engine_id"]


def test_another_body_under_the_key_is_refused(crew, api):
    provision(api)
    assert_error(provision(api, "bob"), 422, "IDEMPOTENCY_MISMATCH")
    assert not Engine.objects.filter(user_id="bob").exists()


def test_the_same_key_on_another_path_is_another_key(crew, api):
    provision(api)
    assert api.call("POST", "/engines/alice/stop", **KEY).json() == {"status": "stopped"}
    assert api.call("POST", "/engines/alice/stop", **KEY).json() == {"status": "stopped"}
    assert Operation.objects.filter(kind="stop").count() == 1


def test_a_destroy_sent_again_answers_the_same(crew, api):
    provision(api)
    first = api.call("DELETE", "/engines/alice", **KEY)
    second = api.call("DELETE", "/engines/alice", **KEY)
    assert (second.status_code, second.content) == (200, first.content)
    assert AuditRow.objects.filter(action="destroy").count() == 1


def test_a_replay_after_rotate_key_shows_the_living_key(crew, api):
    provision(api)
    rotated = api.call("POST", "/engines/alice/rotate-key", **KEY).json()["api_key"]
    newest = api.call("POST", "/engines/alice/rotate-key", **{"Idempotency-Key": "key-2"}).json()["api_key"]
    assert newest != rotated
    assert provision(api).json()["api_key"] == newest
    assert api.call("POST", "/engines/alice/rotate-key", **KEY).json()["api_key"] == newest
    assert Operation.objects.filter(kind="rotate_key").count() == 2


def test_a_replay_of_a_provision_whose_engine_is_gone_says_so(crew, api):
    provision(api)
    api.call("DELETE", "/engines/alice")
    assert_error(provision(api), 404, "ENGINE_NOT_FOUND")
    assert Engine.objects.count() == 1


def test_a_refusal_keeps_its_row_and_no_key(api, product):
    body = {"user_id": "alice", "engine_version": "evil:1"}
    for _ in range(2):
        assert_error(api.call("POST", "/engines/provision", body, **KEY), 403, "POLICY_DENIED")
    assert AuditRow.objects.filter(action="provision_denied").exists()
    assert not IdempotencyKey.objects.exists()


def test_a_call_that_did_not_wait_is_answered_when_it_is_sent_again(api, product, carry_out):
    assert provision(api, Prefer="respond-async").status_code == 202
    carry_out(Operation.objects.get())
    answer = provision(api)
    assert answer.status_code == 200
    engine = Engine.objects.get()
    assert answer.json()["api_key"] == crypto.decrypt(engine.key_ciphertext)


def test_a_failed_operation_fails_again_on_replay(api, product, memory_backend, carry_out, settings):
    settings.ENV = settings.ENV.model_copy(update={"boot_timeout_s": 0.3})
    memory_backend.behave(None, Behaviour(boot_s=30))
    provision(api, Prefer="respond-async")
    carry_out(Operation.objects.get())
    for _ in range(2):
        assert_error(provision(api), 504, "BOOT_TIMEOUT")
    assert Engine.objects.count() == 1


def test_a_key_is_forgotten_after_a_day(product, api, superuser):
    provision(api, Prefer="respond-async")
    superuser.execute("UPDATE policy_idempotencykey SET created_at = now() - interval '23 hours'")
    assert idempotency.purge() == 0
    superuser.execute("UPDATE policy_idempotencykey SET created_at = now() - interval '25 hours'")
    assert idempotency.purge() == 1


def test_only_the_newest_keys_of_a_caller_are_kept(product, api):
    """Each call joins the operation, and keeps a key: a product could fill the table that all products share."""
    other = Api(make_product("other").key)
    for number in range(4):
        provision(api, Prefer="respond-async", **{"Idempotency-Key": f"key-{number}"})
    provision(other, Prefer="respond-async")
    assert idempotency.purge(most=2) == 2
    kept = IdempotencyKey.objects.filter(caller=str(product.pk)).values_list("key", flat=True)
    assert (sorted(kept), IdempotencyKey.objects.count()) == (["key-2", "key-3"], 3)


@pytest.mark.parametrize("key", ["", "x" * 256, "ключ"])
def test_a_key_that_cannot_be_is_refused(api, product, key):
    answer = api.call("POST", "/engines/alice/stop", **{"Idempotency-Key": key})
    assert_error(answer, 400, "INVALID_REQUEST")


# -- admits ------------------------------------------------------------------------------------------------------------------


def admit(api, flags=None, **headers):
    return api.call("POST", "/engines/alice/admit", {"auto_provision": True} if flags is None else flags, **{**KEY, **headers})


def audit_ids():
    return set(AuditRow.objects.values_list("pk", flat=True))


def test_an_admit_sent_again_answers_the_same_and_does_nothing(crew, api):
    first = admit(api)
    assert first.json()["admitted"] is True
    rows = audit_ids()
    again = admit(api)
    assert (again.status_code, again.content) == (200, first.content)
    assert audit_ids() == rows
    assert IdempotencyKey.objects.get().operation_id == Operation.objects.get().pk


def test_an_admit_sent_again_provisions_no_second_engine(crew, api):
    """Not under its key: what it made was destroyed since."""
    assert admit(api).status_code == 200
    assert api.call("DELETE", "/engines/alice").status_code == 200
    assert_error(admit(api), 404, "ENGINE_NOT_FOUND")
    assert Engine.objects.count() == 1


def test_an_admit_sent_again_shows_no_other_engines_key(crew, api):
    admit(api)
    api.call("DELETE", "/engines/alice")
    api.call("POST", "/engines/provision", {"user_id": "alice"})
    assert_error(admit(api), 404, "ENGINE_NOT_FOUND")


def test_an_admit_sent_again_says_what_the_engine_is_now(crew, api):
    admit(api)
    rotated = api.call("POST", "/engines/alice/rotate-key").json()["api_key"]
    assert admit(api).json()["engine"]["api_key"] == rotated
    api.call("POST", "/engines/alice/stop")
    assert admit(api).json() == {"admitted": False, "engine": None, "reason": "engine_stopped"}


def test_an_admit_keeps_its_key_to_its_body(crew, api):
    admit(api)
    assert_error(admit(api, {"auto_wake": True}), 422, "IDEMPOTENCY_MISMATCH")
    api.call("DELETE", "/engines/alice")
    assert_error(admit(api, {"auto_wake": True}), 422, "IDEMPOTENCY_MISMATCH")
    assert Engine.objects.count() == 1


def test_an_admit_sent_again_is_not_counted(crew, api, product):
    product.policy = {"rate_limit_rpm": 1}
    product.save()
    first = admit(api)
    assert first.headers["RateLimit-Remaining"] == "0"
    assert admit(api).content == first.content
    assert_error(admit(api, **{"Idempotency-Key": "key-2"}), 429, "RATE_LIMITED")


def test_an_admit_sent_again_is_refused_while_the_product_is_suspended(crew, api, product):
    admit(api)
    products.suspend(product.pk, by=actors.ADMIN, reason="unpaid")
    assert_error(admit(api), 403, "PRODUCT_SUSPENDED")
    assert AuditRow.objects.filter(action="admit_denied").count() == 1


def test_an_admit_that_joins_keeps_the_operation_that_it_joined(api, product, carry_out):
    provision(api, Prefer="respond-async", **{"Idempotency-Key": "other"})
    assert admit(api, Prefer="respond-async").status_code == 202
    operation = carry_out(Operation.objects.get())
    assert IdempotencyKey.objects.get(key="key-1").operation_id == operation.pk
    assert admit(api).json()["engine"]["engine_id"] == str(operation.engine_id)


def test_an_admit_that_wakes_keeps_its_key_and_wakes_once(crew, api):
    provision(api)

    def slept():
        operation = lifecycle.sleep(Engine.objects.get(), by=actors.SYSTEM)
        return operations.wait(operation.pk, 20).state == "succeeded"

    assert slept()
    assert admit(api, {"auto_wake": True}).json()["admitted"] is True
    assert slept()
    assert admit(api, {"auto_wake": True}).json()["reason"] == "engine_sleeping"  # what was asked for once is done once
    assert Operation.objects.filter(kind="wake").count() == 1


def test_an_admit_whose_operation_failed_fails_again(api, product, memory_backend, carry_out, settings):
    memory_backend.missing_images |= {settings.ENV.engine_image}
    admit(api, Prefer="respond-async")
    carry_out(Operation.objects.get())
    for _ in range(2):
        assert_error(admit(api), 502, "BACKEND_ERROR")


@pytest.mark.parametrize(
    ("policy", "status", "code"), [({"max_engines": 0}, 429, "QUOTA_EXCEEDED"), ({"rate_limit_rpm": 0}, 429, "RATE_LIMITED")]
)
def test_an_admit_that_is_refused_keeps_no_key(api, product, policy, status, code):
    product.policy = policy
    product.save()
    assert_error(admit(api), status, code)
    assert not IdempotencyKey.objects.exists()


def test_an_admit_that_led_to_nothing_keeps_no_key(api, product):
    put_engine(product)
    for flags in (None, {}, {"auto_wake": True}):
        assert admit(api, flags).json()["admitted"] is True
    assert not IdempotencyKey.objects.exists()


def test_an_admit_without_flags_does_not_look_at_its_key(crew, api):
    admit(api)
    assert admit(api, {}).json()["admitted"] is True
    assert admit(api, {"auto_provision": False}).json()["admitted"] is True
    assert IdempotencyKey.objects.count() == 1


def test_admits_at_once_with_one_key_give_one_engine_and_equal_answers(crew, product):
    answers = in_parallel(lambda _: admit(Api(product.key)), range(20), threads=8)
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert Engine.objects.count() == Operation.objects.count() == IdempotencyKey.objects.count() == 1


def test_what_an_earlier_version_kept_of_an_admit_is_nothing(crew, api, product):
    kept = IdempotencyKey(caller=str(product.pk), method="POST", path="/engines/alice/admit", key="key-1", fingerprint="x")
    kept.save()
    assert admit(api).json()["admitted"] is True
    assert IdempotencyKey.objects.get().operation_id == Operation.objects.get().pk


def test_an_effect_that_fails_to_commit_keeps_no_key(api, product, superuser):
    superuser.execute("ALTER TABLE engines_operation ADD CONSTRAINT broken CHECK (kind <> 'stop') NOT VALID")
    try:
        provision(api, Prefer="respond-async")
        superuser.execute("UPDATE engines_operation SET state = 'succeeded', finished_at = now()")
        superuser.execute("UPDATE engines_engine SET status = 'running'")
        assert api.call("POST", "/engines/alice/stop", **KEY).status_code == 500
        assert IdempotencyKey.objects.count() == 1
    finally:
        superuser.execute("ALTER TABLE engines_operation DROP CONSTRAINT broken")
