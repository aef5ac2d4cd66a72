"""Overrides of a policy's rules: in force at once, for their time and no longer, each with its two rows."""

import contextlib
import time
from datetime import timedelta
from pathlib import Path

import pytest
from django.db import connection
from django.db.models import F
from django.test.utils import CaptureQueriesContext

from audit import actors
from audit.models import AuditRow
from engines import lifecycle
from policy import overrides, products, rules, tasks
from policy.errors import ImageDenied, InvalidPolicy, OverrideNotFound, ProductNotFound, QuotaExceeded, RateLimited
from policy.models import PolicyOverride, Product
from tests import waiting
from tests.conftest import make_product
from tests.engines import admits
from tests.engines.crew import in_parallel
from tests.engines.registry import put_engine
from tests.stack import Stack

ADMIN = actors.ADMIN
ACME = actors.product("acme")
ROOT = Path(__file__).parents[2]


def grant(product, rule="max_engines", value=5, *, reason="launch", expires_in_s=3600):
    return overrides.grant(product.pk, rule, value, reason=reason, expires_in_s=expires_in_s, by=ADMIN)


def in_force(product):
    return overrides.in_force(products.authenticate(product.key).product)


def expire(override):
    """Let the override's time be over, as if it had been granted earlier."""
    PolicyOverride.objects.filter(pk=override.pk).update(expires_at=F("expires_at") - timedelta(days=1))
    overrides._copy(override.product_id)


def rows(*actions):
    found = AuditRow.objects.filter(action__in=actions or ("policy_override_grant", "policy_override_end"))
    return [(row.action, row.actor, row.metadata) for row in found.order_by("id")]


# -- in force ----------------------------------------------------------------------------------------------------------------


def test_grant_is_in_force_for_every_reader_of_the_product(product):
    grant(product)
    grant(product, "images", ["acme/*"])
    assert in_force(product) == {"max_engines": 5, "images": ["acme/*"]}
    assert overrides.in_force(Product.objects.get()) == in_force(product)
    assert Product.objects.get().policy == {}


def test_grant_ends_to_the_instant_without_any_job(db):
    product = make_product(policy={"max_engines": 1})
    grant(product, expires_in_s=1)
    assert in_force(product) == overrides.in_force(Product.objects.get()) == {"max_engines": 5}
    time.sleep(1.01)
    assert in_force(product) == overrides.in_force(Product.objects.get()) == {"max_engines": 1}
    assert PolicyOverride.objects.filter(ended_at=None).exists()


def test_override_decides_of_every_rule(db, settings):
    product = make_product(policy={"max_engines": 0, "rate_limit_rpm": 0})
    with pytest.raises(RateLimited):
        admits.count(products.authenticate(product.key).product, "alice")
    with pytest.raises(QuotaExceeded):
        lifecycle.provision(product, "alice", by=ACME)
    grant(product, "rate_limit_rpm", 7)
    grant(product, "max_engines", 1)
    grant(product, "memory_mb", 64)
    assert admits.count(products.authenticate(product.key).product, "alice").limit == 7
    assert lifecycle.provision(product, "alice", by=ACME).engine.memory_mb == 64
    with pytest.raises(ImageDenied):
        lifecycle.provision(product, "bob", by=ACME, engine_version="acme/agent:1")
    grant(product, "images", ["acme/*"])
    with pytest.raises(QuotaExceeded):
        lifecycle.provision(product, "bob", by=ACME, engine_version="acme/agent:1")


def test_policy_that_is_replaced_leaves_an_override_alone(product):
    grant(product)
    products.update_policy(product.pk, {"max_engines": 1, "pids": 9}, by=ADMIN)
    assert in_force(product) == {"max_engines": 5, "pids": 9}


def test_admit_costs_two_reads_with_overrides_too(api, product):
    put_engine(product)
    grant(product, "rate_limit_rpm", 100)
    api.call("POST", "/engines/alice/admit")
    with CaptureQueriesContext(connection) as queries:
        assert api.call("POST", "/engines/alice/admit").headers["RateLimit-Limit"] == "100"
    assert [query["sql"].split()[0] for query in queries] == ["SELECT", "SELECT"], [query["sql"] for query in queries]


def test_nobody_decides_by_the_policy_alone():
    """`Product.policy` is what the operator wrote; only who shows or replaces that may read it."""
    allowed = {"policy/products.py", "policy/overrides.py", "policy/answers.py", "policy/admin.py"}
    for floor in ("policy", "engines", "fleet"):
        for path in (ROOT / floor).rglob("*.py"):
            if str(path.relative_to(ROOT)) not in allowed:
                assert "product.policy" not in path.read_text(), path


# -- granted and ended -------------------------------------------------------------------------------------------------------


def test_grant_and_end_are_rows(product):
    made = grant(product)
    told = {"override_id": str(made.pk), "rule": "max_engines", "expires_at": rows()[0][2]["expires_at"]}
    overrides.end(product.pk, made.pk, by=actors.staff("rita"))
    assert rows() == [
        ("policy_override_grant", "admin", {**told, "value": 5, "reason": "launch"}),
        ("policy_override_end", "admin:rita", {**told, "cause": "revoked"}),
    ]
    assert in_force(product) == {}
    made.refresh_from_db()
    assert made.ended_at < made.expires_at
    assert (made.granted_by, made.reason) == ("admin", "launch")


def test_grant_replaces_the_override_of_the_same_rule(product):
    grant(product)
    grant(product, "pids", 70)
    grant(product, value=9)
    assert in_force(product) == {"max_engines": 9, "pids": 70}
    assert [(action, metadata.get("cause")) for action, _, metadata in rows()][2:] == [
        ("policy_override_end", "replaced"), ("policy_override_grant", None),
    ]  # fmt: skip


@pytest.mark.parametrize(("rule", "value"), [("max_engines", -1), ("max_engines", None), ("images", []), ("colour", 1)])
def test_grant_refuses_what_no_policy_takes(product, rule, value):
    with pytest.raises(InvalidPolicy, match=f"policy.{rule}"):
        grant(product, rule, value)
    assert rows() == []


def test_every_rule_may_be_overridden_and_told(product):
    values = {
        rules.is_whole_number: 0,
        rules.is_cpus: 0.5,
        rules.is_image_list: ["a"],
        rules.is_image: "a",
        rules.is_runtime: "runc",
        rules.is_egress: "none",
    }
    for name, rule in rules.RULES.items():
        grant(product, name, values.get(rule.takes, 64))
    assert in_force(product).keys() == rules.RULES.keys()
    assert len(rows()) == len(rules.RULES)


def test_end_refuses_what_does_not_live(product, other_product):
    made = grant(product)
    with pytest.raises(OverrideNotFound):
        overrides.end(other_product.pk, made.pk, by=ADMIN)
    expire(made)
    with pytest.raises(OverrideNotFound):
        overrides.end(product.pk, made.pk, by=ADMIN)
    with pytest.raises(ProductNotFound):
        overrides.end(made.pk, made.pk, by=ADMIN)


# -- expired -----------------------------------------------------------------------------------------------------------------


def test_expired_override_gets_its_row_once_however_many_jobs_run(product):
    grant(product, "pids", 70)
    expire(grant(product))
    ended = in_parallel(lambda _: overrides.end_due(), range(8))
    assert sorted(ended) == [0] * 7 + [1]
    tasks.end_overrides()
    assert [(actor, metadata["rule"], metadata["cause"]) for _, actor, metadata in rows("policy_override_end")] == [
        ("system", "max_engines", "expired")
    ]
    gone = PolicyOverride.objects.get(rule="max_engines")
    assert gone.ended_at == gone.expires_at
    assert Product.objects.get().overridden.keys() == {"pids"}


def test_expired_override_gets_its_row_within_a_minute_by_itself(product):
    with contextlib.closing(Stack()) as stack:
        stack.start("beat", "health")
        grant(product, expires_in_s=1)
        waiting.until(lambda: rows("policy_override_end"), 60, "the override's end has its row")
    assert rows("policy_override_end")[0][1] == "system"


def test_expired_override_does_not_stand_in_the_way_of_another(product):
    expire(grant(product))
    grant(product, value=8)
    assert in_force(product) == {"max_engines": 8}
    assert overrides.end_due() == 0
    assert [metadata["cause"] for _, _, metadata in rows("policy_override_end")] == ["expired"]


def test_end_that_cannot_be_recorded_does_not_happen(product, superuser):
    expire(grant(product))
    superuser.execute("ALTER TABLE audit_log ADD CONSTRAINT nothing_more CHECK (action <> 'policy_override_end') NOT VALID")
    try:
        with pytest.raises(Exception, match="nothing_more"):
            overrides.end_due()
    finally:
        superuser.execute("ALTER TABLE audit_log DROP CONSTRAINT nothing_more")
    assert PolicyOverride.objects.get().ended_at is None
    assert overrides.end_due() == 1
