"""A flood of refusals is two rows a minute, and every refusal is in one of them."""

import os
import subprocess
import sys
from datetime import datetime, timedelta
from uuid import UUID

import pytest
from django.db import Error

from audit import trail
from audit.actions import Action
from audit.actors import Actor
from audit.models import AuditRow
from common import valkey
from engines import lifecycle
from engines.errors import CapacityExhausted
from fleet import consistency
from policy import refusals, tallies
from policy.errors import ImageDenied, QuotaExceeded, RateLimited
from tests import floods, waiting
from tests.conftest import make_product
from tests.engines import admits
from tests.engines.crew import in_parallel
from tests.freezing import frozen_valkey

ACME = UUID("00000000-0000-4000-8000-000000000001")
REFUSE_THREE = """
import django; django.setup()
from audit import trail
from audit.actions import Action
from policy import refusals, tallies
for number in range(3):
    refusals.record(Action.ADMIT_DENIED, trail.NOTHING, by="acme", metadata={"rule": "r", "limit": 0, "value": number})
"""


def refuse(times=1, action=Action.ADMIT_DENIED, product_id=ACME, user_id="alice", by="acme", **metadata):
    about = trail.Subject(product_id=product_id, product_slug="acme", user_id=user_id)
    for _ in range(times):
        refusals.record(action, about, by=Actor(by), metadata={"rule": "rate_limit_rpm", "limit": 1, "value": 1, **metadata})


def counts(**filters):
    """What the rows say: None for a refusal by itself, else how many more."""
    return [row.metadata.get("count") for row in AuditRow.objects.filter(**filters).order_by("id")]


def test_first_refusal_is_a_row_at_once_and_the_rest_are_one_more(db):
    refuse()
    refuse(9, user_id="bob", limit=2)
    assert counts() == [None]
    assert refusals.write_due() == 0
    assert floods.written() == 1
    first, rest = AuditRow.objects.order_by("id")
    assert (first.user_id, first.metadata) == ("alice", {"rule": "rate_limit_rpm", "limit": 1, "value": 1})
    since = rest.metadata.pop("since")
    assert rest.metadata.pop("users") == {"bob": 9}
    assert rest.metadata.pop("more") == 0
    assert (rest.action, rest.actor, rest.product_id, rest.product_slug) == ("admit_denied", "acme", ACME, "acme")
    assert (rest.user_id, rest.engine_id, rest.duration_ms) == (None, None, None)
    assert rest.metadata == {"rule": "rate_limit_rpm", "limit": 2, "value": 1, "count": 9}
    assert abs(datetime.fromisoformat(since) - first.timestamp) < timedelta(seconds=1)
    assert valkey.client().keys("*") == []


def test_single_refusal_is_one_row(db):
    refuse()
    assert floods.written() == 0
    assert counts() == [None]


def test_minute_begins_anew(db):
    for _ in range(3):
        refuse(5)
        assert floods.written() == 1
    assert counts() == [None, 4] * 3


def test_minute_ends_by_itself(db):
    refuse(2)
    client = valkey.client()
    (key,) = client.keys("*/now/*")
    assert 59_000 < client.pttl(key) <= 60_000
    client.pexpire(key, 1)
    waiting.until(lambda: not client.exists(key))
    refuse(2)
    floods.written()
    assert sorted(counts(), key=str) == [1, 1, None, None]


def test_each_product_action_actor_and_rule_has_its_own_minute(db):
    for changed in ({}, {"product_id": None}, {"action": Action.PROVISION_DENIED}, {"by": "admin:sam"}, {"rule": "images"}):
        refuse(3, **changed)
    assert counts() == [None] * 5
    assert floods.written() == 5
    assert counts()[5:] == [2] * 5


def test_counts_wait_for_a_late_beat(db):
    refuse(4)
    floods.end_minutes()
    valkey.client().delete(*valkey.client().keys("*/now/*"))
    refuse(4)
    floods.end_minutes()
    assert refusals.write_due() == 2
    assert counts() == [None, None, 3, 3]


def test_count_is_written_once_by_many_at_once(db):
    for rule in "abc":
        refuse(11, rule=rule)
    floods.end_minutes()
    assert sum(in_parallel(lambda _: refusals.write_due(), range(8))) == 3
    assert counts() == [None] * 3 + [10] * 3


def test_count_is_written_once_though_its_writer_died_before_valkey_knew(db):
    refuse(5)
    floods.end_minutes()
    for tally in tallies.read_due():
        assert refusals._write_once(tally)
    assert refusals.write_due() == 0
    assert counts() == [None, 4]
    assert valkey.client().keys("*") == []


def test_refusal_after_its_minute_was_read_is_not_lost(db):
    """A clock that is set back does not count on in what is being written."""
    refuse(3)
    floods.end_minutes()
    due = tallies.read_due()
    refuse(3)
    assert [refusals._write_once(tally) for tally in due] == [True]
    tallies.forget(due)
    assert floods.written() == 1
    assert counts() == [None, None, 2, 2]


def test_first_refusal_that_could_not_be_written_leaves_that_to_the_next(db, superuser):
    superuser.execute("ALTER TABLE audit_log ADD CONSTRAINT nothing CHECK (action <> 'admit_denied') NOT VALID")
    try:
        with pytest.raises(Error):
            refuse()
    finally:
        superuser.execute("ALTER TABLE audit_log DROP CONSTRAINT nothing")
    refuse(3)
    floods.written()
    assert counts() == [None, 2]


# -- each kind of refusal --------------------------------------------------------------------------------------------------


def test_flood_of_each_rule_from_many_threads_is_two_rows_that_add_up(product, settings):
    """5,000 refusals of the rate, and of quota, image and room as many as they come to in the meantime."""
    product.policy = {"rate_limit_rpm": 1, "max_engines": 0}
    product.save()
    roomy = make_product("roomy")
    settings.ENV = settings.ENV.model_copy(update={"host_memory_mb": 1})
    admits.count(product, "alice")
    kinds = {
        RateLimited: (lambda user: admits.count(product, user), 5000),
        QuotaExceeded: (lambda user: lifecycle.provision(product, user, by=Actor("acme")), 200),
        ImageDenied: (lambda user: lifecycle.provision(product, user, by=Actor("acme"), engine_version="x"), 200),
        CapacityExhausted: (lambda user: lifecycle.provision(roomy, user, by=Actor("roomy")), 200),
    }
    for kind, (call, times) in kinds.items():
        refused = in_parallel(lambda number, call=call: call(f"user-{number}"), range(times), threads=8)
        assert {type(refusal) for refusal in refused} == {kind}
    floods.written()
    rules = {"rate_limit_rpm": 5000, "max_engines": 200, "images": 200, "host_memory_mb": 200}
    for rule, times in rules.items():
        assert counts(metadata__rule=rule) == [None, times - 1]
    verb = AuditRow.objects.get(action="capacity_exhausted", metadata__has_key="count").metadata["verb"]
    assert verb == "provision"
    assert consistency.check(print).disagreeing == 0


def test_refused_flood_costs_one_write_and_one_look_at_the_clock(product, django_assert_num_queries):
    product.policy = {"rate_limit_rpm": 0}
    with django_assert_num_queries(2) as sent:
        for _ in range(100):
            with pytest.raises(RateLimited):
                admits.count(product, "alice")
    assert sent[0]["sql"] == "SELECT statement_timestamp()"
    assert "INSERT INTO audit_log" in sent[1]["sql"]


# -- while Valkey is away --------------------------------------------------------------------------------------------------


def test_refusals_are_counted_here_while_valkey_is_away(db):
    with frozen_valkey():
        in_parallel(lambda _: refuse(125), range(8))
        assert counts() == [None]
        (tally,) = refusals._here.values()
        refusals._end_here(tally)
        refusals._end_here(tally)
    assert counts() == [None, 999]
    assert not refusals._here


def test_count_of_a_process_that_ends_is_written(db):
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "config.settings"}
    with frozen_valkey():
        subprocess.run([sys.executable, "-c", REFUSE_THREE], env=environment, check=True, timeout=60)
    assert counts() == [None, 2]


# -- for real --------------------------------------------------------------------------------------------------------------


def test_beat_has_the_counts_written(stack):
    product = make_product("flooded", {"rate_limit_rpm": 0})
    for _ in range(5):
        assert stack.call("POST", "/engines/alice/admit", product.key).status_code == 429
    floods.end_minutes()
    waiting.until(lambda: counts(action="admit_denied") == [None, 4], 15, "the count is written")
