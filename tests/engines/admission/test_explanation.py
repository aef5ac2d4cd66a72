"""`explain`: says of a call what the call then does, by the same rules, and does nothing itself."""

import pytest
from django.conf import settings
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from hypothesis import HealthCheck, event, example, given, settings as hypothesis_settings, strategies

from audit import actors
from audit.models import AuditRow
from common import valkey
from engines import admission, hosts, lifecycle
from engines.admission import explanation
from engines.admission.explanation import Question
from engines.admission.sight import Course
from engines.errors import CapacityExhausted, EngineError, ImageUnknown, InvalidUserId, Unfinished
from engines.models import Kind, Operation, OperationState, Status
from fleet.errors import classify
from policy import overrides, products, rate_limit
from policy.errors import Denied
from tests import examples
from tests.conftest import Api, empty, make_product
from tests.engines.registry import put_engine, put_operation
from tests.envelopes import assert_error

ACME = actors.product("acme")
ADMIN = actors.ADMIN
DEFAULT = settings.ENV.engine_image
REFUSED = (Denied, CapacityExhausted, EngineError)


def ask(product, verb, user_id="alice", **more):
    return admission.explain(products.authenticate(product.key).product, Question(verb, user_id, **more))


def act(product, question):
    """The call itself, as the API makes it, without waiting for a worker. Returns what it did; raises what it refuses."""
    product = products.authenticate(product.key).product
    match question.verb:
        case "admit":
            flags = {"auto_provision": question.auto_provision, "auto_wake": question.auto_wake}
            try:
                return admission.admit(product, question.user_id, timeout_s=0, **flags)
            except Unfinished as unfinished:
                return unfinished.operation
        case "provision":
            return lifecycle.provision(product, question.user_id, by=ACME, engine_version=question.engine_version)
        case verb:
            return getattr(lifecycle, verb.replace("-", "_"))(lifecycle.find(product, question.user_id), by=ACME)


# -- the same as the call --------------------------------------------------------------------------------------------------------

USED_MB = 900  # by alice's volume

POLICIES = strategies.fixed_dictionaries(
    {},
    optional={
        "max_engines": strategies.integers(1, 4),
        "rate_limit_rpm": strategies.sampled_from([0, 2, 4, 9]),
        "images": strategies.sampled_from([["*"], ["acme/*", DEFAULT], ["other/*"]]),
        "engine_image": strategies.sampled_from(["acme/agent:1", "pinned:2"]),
        "memory_mb": strategies.integers(16, 600),
        "egress": strategies.sampled_from(["none", ["api.example.com:443"]]),
        "disk_mb": strategies.sampled_from([USED_MB - 1, USED_MB]),
    },
)
CALLS = strategies.one_of(
    strategies.builds(Question, strategies.sampled_from(["start", "stop", "rotate-key", "destroy"]), strategies.just("alice")),
    strategies.builds(
        Question,
        strategies.just("provision"),
        strategies.just("alice"),
        strategies.sampled_from(["", "acme/agent:1", "other/agent:2", DEFAULT]),
    ),
    strategies.builds(
        Question,
        strategies.just("admit"),
        strategies.just("alice"),
        auto_provision=strategies.booleans(),
        auto_wake=strategies.booleans(),
    ),
)
ENGINES = strategies.sampled_from([*[None] * 4, *(status for status in Status if status != Status.DESTROYED)])
OPEN_KINDS = {Status.PROVISIONING: Kind.PROVISION, Status.DESTROYING: Kind.DESTROY}


def put(policy, overridden, suspension, status, kind, others, admits):
    """A product as the example has it: with alice's engine, those of others, and admits of this minute."""
    product = make_product(policy=policy)
    for rule, value in overridden.items():
        overrides.grant(product.pk, rule, value, reason="test", expires_in_s=60, by=ADMIN)
    for number in range(others):
        put_engine(product, f"user-{number}", Status.STOPPED)
    if status is not None:
        engine = put_engine(product, status=status, engine_version=DEFAULT, disk_used_mb=USED_MB)
        if (status, kind) == (Status.SLEEPING, Kind.SLEEP):
            kind = None  # never: an engine sleeps from the transaction on that ends its sleep
        if kind := OPEN_KINDS.get(status, kind):
            put_operation(engine, kind, params={"cause": "requested"} if kind in (Kind.START, Kind.STOP) else {})
    for _ in range(admits):
        rate_limit.hit(str(product.pk), {"rate_limit_rpm": 1000})
    if suspension:
        products.suspend(product.pk, suspension, by=ADMIN)
    return product


def did(result):
    """What a call did, in the words of `would`; and the reason of an admit that was refused."""
    if isinstance(result, admission.Admission):
        return (Course.REFUSE, result.reason) if result.reason else (Course.ADMIT, "")
    return result.kind, ""


def sure(question, **of):
    """An example that chance would rarely find."""
    plain = {
        "policy": {},
        "overridden": {},
        "suspension": "",
        "status": None,
        "kind": None,
        "others": 0,
        "admits": 0,
        "ceiling": 0,
    }
    return example(**{**plain, **of}, question=question)


@sure(Question("start", "alice"), status=Status.STOPPED, ceiling=1)
@sure(Question("start", "alice"), status=Status.STOPPED, kind=Kind.START, ceiling=1)
@sure(Question("admit", "alice", auto_wake=True), status=Status.SLEEPING, ceiling=1)
@sure(Question("admit", "alice", auto_wake=True), status=Status.SLEEPING, kind=Kind.WAKE)
@sure(Question("admit", "alice", auto_wake=True), status=Status.SLEEPING, kind=Kind.STOP)
@sure(Question("admit", "alice", auto_provision=True), policy={"max_engines": 2}, others=2)
@sure(Question("admit", "alice", auto_provision=True), policy={"max_engines": 2}, overridden={"max_engines": 3}, others=2)
@sure(Question("provision", "alice"), policy={"max_engines": 2}, overridden={"max_engines": 1}, others=1)
@sure(Question("provision", "alice"), ceiling=1)
@sure(Question("start", "alice"), status=Status.STOPPED, policy={"disk_mb": USED_MB - 1}, ceiling=1)
@sure(Question("start", "alice"), status=Status.RUNNING, policy={"disk_mb": USED_MB - 1})
@sure(Question("admit", "alice", auto_wake=True), status=Status.SLEEPING, policy={"disk_mb": USED_MB - 1}, ceiling=1)
@sure(Question("rotate-key", "alice"), status=Status.RUNNING, policy={"disk_mb": USED_MB - 1})
@hypothesis_settings(
    max_examples=examples.number(150), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    policy=POLICIES,
    overridden=POLICIES,
    suspension=strategies.sampled_from([*[""] * 5, "unpaid"]),
    status=ENGINES,
    kind=strategies.sampled_from([None, None, Kind.STOP, Kind.START, Kind.WAKE, Kind.SLEEP, Kind.ROTATE_KEY, Kind.RESTART]),
    others=strategies.integers(0, 4),
    admits=strategies.integers(0, 3),
    ceiling=strategies.sampled_from([0, 0, 0, 1]),
    question=CALLS,
)
def test_call_is_decided_as_explained(
    db, settings, policy, overridden, suspension, status, kind, others, admits, ceiling, question
):
    """Allowed exactly when no rule refuses the call; else the same rule, limit and value. The same error, or the same deed."""
    settings.ENV = settings.ENV.model_copy(update={"host_max_engines": ceiling})
    empty()
    product = put(policy, overridden, suspension, status, kind, others, admits)
    if ceiling:  # of which one is taken
        put_engine(make_product("neighbour"), "bob")
    told = ask(product, question.verb, **{name: value for name, value in vars(question).items() if name != "verb"})
    opened = set(Operation.objects.values_list("pk", flat=True))
    result = outcome(product, question)
    refused = isinstance(result, (Denied, CapacityExhausted))
    event(f"{question.verb}: {type(result).__name__ if isinstance(result, Exception) else told.would}")
    assert told.allowed == (not refused), (told, result)
    if refused:
        first = next(decision for decision in told.decisions if not decision.allowed)
        assert {"rule": first.rule, "limit": first.limit, "value": first.value} == result.metadata()
    if isinstance(result, Exception):
        assert (told.would, classify(told.refusal)) == (Course.REFUSE, classify(result))
        assert words(told.refusal) == words(result)
    elif told.would == Course.JOIN:
        assert result.pk in opened
    elif told.would == Course.CANCEL_SLEEP:
        assert Operation.objects.get(kind=Kind.SLEEP).state == OperationState.SUPERSEDED
    else:
        assert (told.would, told.refusal) == did(result)


def outcome(product, question):
    """What the call returns, or the refusal that it raises."""
    try:
        return act(product, question)
    except REFUSED as refusal:
        return refusal


def words(refusal):
    """What it says, but for how long to wait: that is spread at random."""
    return str(refusal).partition("Retry in")[0]


# -- what it says ----------------------------------------------------------------------------------------------------------------


def test_explain_names_every_rule_with_its_headroom(product, settings):
    settings.ENV = settings.ENV.model_copy(update={"host_max_engines": 9})
    product.policy = {"max_engines": 3, "rate_limit_rpm": 10}
    product.save()
    put_engine(product, "bob")
    rate_limit.hit(str(product.pk), product.policy)
    told = ask(product, "admit", auto_provision=True)
    assert [(each.rule, each.limit, each.value, each.headroom) for each in told.decisions] == [
        ("suspended", "active", "active", None),
        ("rate_limit_rpm", 10, 1, 9),
        ("images", DEFAULT, DEFAULT, None),
        ("max_engines", 3, 1, 2),
        ("host_max_engines", 9, 2, 8),
    ]
    assert (told.allowed, told.would, told.refusal) == (True, "provision", "")


def test_explain_goes_by_an_override_to_the_instant(product):
    made = overrides.grant(product.pk, "max_engines", 0, reason="test", expires_in_s=60, by=ADMIN)
    assert not ask(product, "provision").allowed
    overrides.end(product.pk, made.pk, by=ADMIN)
    assert ask(product, "provision").allowed


@pytest.mark.parametrize(("flags", "would"), [({}, "refuse"), ({"auto_wake": True}, "wake")])
def test_explain_knows_a_sleep_that_is_too_late_to_cancel(product, flags, would):
    put_operation(put_engine(product), Kind.SLEEP, OperationState.RUNNING)
    told = ask(product, "admit", **flags)
    assert (told.allowed, told.would) == (True, would)


def test_explain_refuses_what_no_call_takes(product):
    with pytest.raises(InvalidUserId):
        ask(product, "provision", "..")
    with pytest.raises(ImageUnknown):
        ask(product, "provision", engine_version="a b")


# -- without effect --------------------------------------------------------------------------------------------------------------


def kept():
    """Every row of every table but when keys were used, and every key of Valkey with its value."""
    tables = [name for name in connection.introspection.table_names() if name != "policy_platformkey"]
    with connection.cursor() as cursor:
        rows = {}
        for table in tables:
            cursor.execute(f"SELECT t.*::text FROM {table} t")
            rows[table] = sorted(row[0] for row in cursor.fetchall())
    client = valkey.client()
    return rows, {key: client.dump(key) for key in client.scan_iter()}


@pytest.mark.parametrize("verb", sorted(explanation.VERBS))
@pytest.mark.parametrize("status", [None, Status.RUNNING, Status.STOPPED, Status.SLEEPING])
def test_explain_writes_nothing_and_counts_nothing(api, product, settings, verb, status):
    settings.ENV = settings.ENV.model_copy(update={"host_max_engines": 1})
    product.policy = {"max_engines": 1, "rate_limit_rpm": 2}
    product.save()
    if status is not None:
        put_engine(product, status=status)
    rate_limit.hit(str(product.pk), product.policy)
    before = kept()
    flags = {"auto_provision": True, "auto_wake": True} if verb == "admit" else {}
    for _ in range(3):
        body = {"verb": verb, "user_id": "alice", **flags}
        assert api.call("POST", "/policy/explain", body, **{"Idempotency-Key": "once"}).status_code == 200
    assert kept() == before


def test_explain_makes_no_host(product, settings):
    settings.ENV = settings.ENV.model_copy(update={"host_max_engines": 1})
    assert [each.rule for each in ask(product, "provision").decisions][-1] == "host_max_engines"
    assert not hosts.Host.objects.exists()


def test_explain_could_not_write_if_it_would(product):
    """Not only does it not: PostgreSQL holds it to that."""
    with CaptureQueriesContext(connection) as queries:
        admission.explain(product, Question("stop", "alice"))
    assert [query["sql"] for query in queries][:2] == ["BEGIN", "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"]


# -- over REST -------------------------------------------------------------------------------------------------------------------


def post(api, **body):
    return api.call("POST", "/policy/explain", {"verb": "provision", "user_id": "alice", **body})


@pytest.fixture
def admin(db):
    """The REST API as the operator calls it."""
    return Client(headers={"X-Admin-Key": settings.ENV.admin_key})


def test_explain_answers_a_product_of_itself(api, product, other_product):
    put_engine(other_product)
    assert post(api).json()["would"] == "provision"
    assert post(api, product_id=str(product.pk)).json()["would"] == "provision"
    assert_error(post(api, product_id=str(other_product.pk)), 404, "PRODUCT_NOT_FOUND")


def test_explain_answers_the_operator_of_any(admin, product):
    products.suspend(product.pk, "unpaid", by=ADMIN)
    body = {"verb": "provision", "user_id": "alice"}
    answer = admin.post("/policy/explain", {**body, "product_id": str(product.pk)}, "application/json").json()
    assert (answer["allowed"], answer["would"], answer["refusal"]) == (False, "refuse", "PRODUCT_SUSPENDED")
    assert answer["decisions"][0] == {
        "rule": "suspended", "allowed": False, "limit": "active", "value": "suspended", "headroom": None,
    }  # fmt: skip
    assert_error(admin.post("/policy/explain", body, "application/json"), 400, "INVALID_REQUEST")
    unknown = {**body, "product_id": "00000000-0000-4000-8000-000000000000"}
    assert_error(admin.post("/policy/explain", unknown, "application/json"), 404, "PRODUCT_NOT_FOUND")


@pytest.mark.parametrize("scope", ["admit", "lifecycle", "read"])
def test_explain_takes_a_key_of_any_scope(product, scope):
    _, key = products.issue_key(product, by=ADMIN, scopes=[scope])
    assert post(Api(key)).status_code == 200


def test_explain_tells_a_wrong_key_by_its_header(product, admin):
    answer = Client(headers={"X-Admin-Key": "x"}).post("/policy/explain", {}, "application/json")
    assert_error(answer, 401, "INVALID_ADMIN_KEY")
    assert_error(Client().post("/policy/explain", {}, "application/json"), 401, "INVALID_PLATFORM_KEY")


@pytest.mark.parametrize(
    "body",
    [{"verb": "fly"}, {"verb": "stop", "engine_version": "a"}, {"verb": "provision", "auto_wake": True}, {"user_id": ".."},
     {"user_id": 1}, {"engine_version": "a b"}, {"product_id": "x"}, {"colour": "red"}],
)  # fmt: skip
def test_explain_that_cannot_be_is_refused(api, body):
    assert_error(post(api, **body), 400, "INVALID_REQUEST")


def test_explain_says_the_reason_of_an_admit(api, product):
    put_engine(product, status=Status.SLEEPING)
    answer = post(api, verb="admit").json()
    assert (answer["allowed"], answer["would"], answer["refusal"]) == (True, "refuse", "engine_sleeping")
    assert AuditRow.objects.filter(action="admit_denied").count() == 0
