"""The rate limit of admits: one sliding minute per product, shared through Valkey, and no limit while Valkey is away."""

import os
import subprocess
import sys
import time

import pytest
from django.conf import settings
from limits import RateLimitItemPerMinute
from limits.storage import RedisStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from audit.models import AuditRow
from common import valkey
from policy import rate_limit
from policy.errors import RateLimited
from tests import waiting
from tests.conftest import Api, make_product
from tests.engines.crew import in_parallel
from tests.engines.registry import put_engine
from tests.envelopes import assert_error
from tests.freezing import frozen_valkey

USE_UP_TEN = """
import django; django.setup()
from policy import errors, rate_limit
for fitted in range(100):
    try:
        rate_limit.hit("p", {"rate_limit_rpm": 10})
    except errors.RateLimited:
        print(fitted)
        break
"""


def hit(limit, product_id="p"):
    """Whether an admit fits; in seconds, when one fits again when not (then the answer is not True)."""
    try:
        rate_limit.hit(product_id, {"rate_limit_rpm": limit})
    except RateLimited as refused:
        return refused.window.reset_s
    return True


def use_up(limit, product_id="p"):
    """Admits until one does not fit; how many fitted."""
    fitted = 0
    while hit(limit, product_id) is True:
        fitted += 1
    return fitted


def let_pass(seconds):
    """Age what Valkey has counted: all that a window depends on is how long its keys have left."""
    client = valkey.client()
    for key in client.keys("*admits*"):
        client.pexpire(key, max(1, client.pttl(key) - int(seconds * 1000)))
    waiting.until(lambda: all(client.pttl(key) > 1 for key in client.keys("*admits*")), what="what expires has expired")


def test_hit_refuses_above_the_limit(db):
    assert use_up(5) == 5
    assert use_up(5, "another product") == 5


def test_hit_without_a_limit_counts_nothing(db):
    for _ in range(3):
        rate_limit.hit("p", {})
    assert valkey.client().keys("*") == []


def test_limit_of_none_refuses_all(db):
    assert hit(0) == 60
    assert valkey.client().keys("*") == []


def test_window_slides(db):
    """A minute after a burst nothing is free at once: what was used fades out over the next minute, bit by bit."""
    assert use_up(60) == 60
    let_pass(59)
    assert use_up(60) == 0
    let_pass(11)
    assert 9 <= use_up(60) <= 11
    let_pass(30)
    assert 29 <= use_up(60) <= 31
    let_pass(130)
    assert use_up(60) == 60


def test_lowered_limit_keeps_the_count(db):
    for _ in range(6):
        assert hit(10) is True
    assert use_up(5) == 0
    assert use_up(6) == 0
    assert use_up(8) == 2
    assert use_up(10) == 2


@pytest.mark.parametrize(
    ("used", "aged_s", "limit"), [(10, 0, 10), (10, 70, 10), (600, 75, 600), (600, 20, 30), (7, 100, 1), (1, 0, 1)]
)
def test_reset_of_a_refusal_is_when_one_more_fits(db, used, aged_s, limit):
    assert use_up(used) == used
    let_pass(aged_s)
    use_up(limit)
    reset_s = hit(limit)
    assert 1 <= reset_s <= 120
    let_pass(max(0, reset_s - 1.5))  # up to a second is rounded up
    if reset_s > 2:
        assert hit(limit) is not True
    let_pass(1.6)
    assert hit(limit) is True


@pytest.mark.parametrize(("used", "aged_s"), [(1, 0), (10, 0), (10, 70), (10, 119), (200, 90), (599, 61)])
def test_reset_is_when_more_remain(db, used, aged_s):
    for _ in range(used):
        rate_limit.hit("p", {"rate_limit_rpm": 600})
    let_pass(aged_s)
    now = rate_limit.peek("p", {"rate_limit_rpm": 600})
    if now.reset_s:
        let_pass(now.reset_s + 0.01)  # at the very moment the count is still the same
        assert rate_limit.peek("p", {"rate_limit_rpm": 600}).remaining > now.remaining
    else:
        assert now.remaining == 600


def test_window_is_what_the_library_says(db):
    """Our script is the library's two in one; its own strategy over the same keys has the same opinion."""

    class Item(RateLimitItemPerMinute):
        def key_for(self, *identifiers):
            return f"admits/{identifiers[0]}"

    storage = RedisStorage(settings.REDIS_URL.replace("unix://", "redis+unix://"))
    strategy, item = SlidingWindowCounterRateLimiter(storage), Item(10)
    for aged_s in (0, 70, 20, 45, 130):
        let_pass(aged_s)
        for _ in range(7):
            fits = strategy.test(item, "p")
            assert (hit(10) is True) == fits
            assert strategy.get_window_stats(item, "p").remaining == rate_limit.peek("p", {"rate_limit_rpm": 10}).remaining


def test_look_counts_nothing(db):
    policy = {"rate_limit_rpm": 3}
    assert rate_limit.peek("p", policy) == rate_limit.Window(3, 3, 0)
    assert valkey.client().keys("*") == []
    assert rate_limit.hit("p", policy) == rate_limit.peek("p", policy) == rate_limit.Window(3, 2, 60)
    assert rate_limit.peek("p", {}) is None
    assert rate_limit.peek("p", {"rate_limit_rpm": 0}) == rate_limit.Window(0, 0, 60)


def test_retry_after_is_spread_from_the_reset_on(db):
    assert use_up(5) == 5
    refused = []
    for _ in range(200):
        with pytest.raises(RateLimited) as info:
            rate_limit.hit("p", {"rate_limit_rpm": 5})
        refused.append(info.value)
    assert {0, 3, 6} <= {error.retry_after_s - error.window.reset_s for error in refused} <= set(range(7))


def test_hit_costs_one_round_trip(db):
    hit(5)
    valkey.client().config_resetstat()
    for _ in range(10):
        hit(5)
    stats = valkey.client().info("commandstats")
    assert stats["cmdstat_evalsha"]["calls"] == 10
    assert "cmdstat_script|exists" not in stats


def test_limit_is_shared_by_threads(db):
    results = in_parallel(lambda _: sum(hit(50) is True for _ in range(20)), range(8))
    assert sum(results) == 50


def test_limit_is_shared_by_processes(db):
    assert sum(hit(10) is True for _ in range(4)) == 4
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "config.settings"}
    other = subprocess.run(
        [sys.executable, "-c", USE_UP_TEN], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert other.stdout.strip() == "6"
    assert use_up(10) == 0


# -- counts that somebody else has written -------------------------------------------------------------------------------

KEYS = ["LIMITS:{admits/p}", "LIMITS:{admits/p}/-1"]
SPOILT = {
    "no number": ("garbage", 30_000),
    "a fraction": ("1.5", 30_000),
    "an exponent": ("1e9", 30_000),
    "negative": ("-1000", 30_000),
    "digits without end": ("9" * 5000, 30_000),
    "no end": ("5", None),
    "an end in a year": ("5", 365 * 86_400_000),
}


@pytest.mark.parametrize("kind", SPOILT)
@pytest.mark.parametrize("key", KEYS)
def test_count_that_cannot_be_is_removed_and_counting_begins_anew(db, key, kind):
    value, ends_ms = SPOILT[kind]
    valkey.client().set(key, value, px=ends_ms)
    assert rate_limit.peek("p", {"rate_limit_rpm": 3}) == rate_limit.Window(3, 3, 0)
    valkey.client().set(key, value, px=ends_ms)
    assert use_up(3) == 3


def test_entry_of_another_type_is_removed_and_other_products_are_counted_on(db):
    """Nor does it count as an absence of Valkey, which would lift the limits of all products."""
    assert hit(2, "another") is True
    for key in KEYS:
        valkey.client().rpush(key, "garbage")
    assert use_up(3) == 3
    assert use_up(2, "another") == 1


def test_valkey_that_refuses_writes_counts_as_away(db):
    client = valkey.client()
    client.config_set("maxmemory", 1)
    try:
        assert rate_limit.hit("p", {"rate_limit_rpm": 3}) is None
    finally:
        client.config_set("maxmemory", 0)
    with pytest.raises(valkey.Away):
        valkey.ask(lambda client: client.ping())


# -- over the API ----------------------------------------------------------------------------------------------------------


def admit(api, user_id="alice"):
    return api.call("POST", f"/engines/{user_id}/admit")


def test_admit_above_the_limit_is_refused_with_when_to_come_back(db):
    product = make_product(policy={"rate_limit_rpm": 3})
    api = Api(product.key)
    put_engine(product, "alice")
    assert [admit(api, user).json()["admitted"] for user in ("alice", "bob", "alice")] == [
        True,
        False,
        True,
    ]  # all users together
    response = admit(api, "carol")
    error = assert_error(response, 429, "RATE_LIMITED")
    seconds = int(response.headers["Retry-After"])
    assert 55 <= seconds <= 66
    assert error["message"] == f"Rate limit exceeded. Retry in {seconds} seconds."
    assert error["details"] == {"rule": "rate_limit_rpm", "limit": 3, "value": 3}


def rate(response):
    """The three headers, as numbers."""
    return tuple(int(response.headers[f"RateLimit-{name}"]) for name in ("Limit", "Remaining", "Reset"))


def test_every_admit_says_what_is_left(db):
    product = make_product(policy={"rate_limit_rpm": 7, "max_engines": 1})
    api = Api(product.key)
    put_engine(product, "alice")
    put_engine(product, "bob", "sleeping")
    assert rate(admit(api)) == (7, 6, 60)
    assert rate(admit(api, "nobody"))[:2] == (7, 5)
    refused = api.call("POST", "/engines/carol/admit", {"auto_provision": True})
    assert_error(refused, 429, "QUOTA_EXCEEDED")
    assert "Retry-After" not in refused.headers
    assert rate(refused)[:2] == (7, 4)
    accepted = api.call("POST", "/engines/bob/admit", {"auto_wake": True}, Prefer="respond-async")
    assert accepted.status_code == 202
    assert rate(accepted)[:2] == (7, 3)
    unfinished = api.call("POST", "/engines/bob/admit", {"auto_wake": "perhaps"})
    assert_error(unfinished, 400, "INVALID_REQUEST")  # was not counted
    assert "RateLimit-Limit" not in unfinished.headers
    assert [rate(admit(api))[1] for _ in range(3)] == [2, 1, 0]
    over = admit(api)
    assert_error(over, 429, "RATE_LIMITED")
    limit, remaining, reset_s = rate(over)
    assert (limit, remaining) == (7, 0)
    assert 55 <= reset_s <= int(over.headers["Retry-After"])
    product.policy = {"rate_limit_rpm": 4}
    product.save()
    assert rate(admit(api))[:2] == (4, 0)
    product.policy = {"rate_limit_rpm": 9}
    product.save()
    assert rate(admit(api))[:2] == (9, 1)


def test_admit_without_a_limit_says_nothing_of_one(api):
    assert not [name for name in admit(api).headers if name.startswith("RateLimit")]


def test_refusal_by_rate_is_a_row(db):
    product = make_product(policy={"rate_limit_rpm": 1})
    api = Api(product.key)
    admit(api)
    response = admit(api)
    row = AuditRow.objects.get(action="admit_denied")
    assert (row.actor, row.product_id, row.user_id, row.engine_id) == ("acme", product.pk, "alice", None)
    assert row.metadata == {"rule": "rate_limit_rpm", "limit": 1, "value": 1}
    assert row.request_id == response.headers["X-Request-ID"]


def test_rate_limit_counts_admits_only(db):
    api = Api(make_product(policy={"rate_limit_rpm": 1}).key)
    admit(api)
    for path in ("/engines", "/status", "/metrics", "/audit"):
        assert api.call("GET", path).status_code == 200
    assert_error(api.call("POST", "/engines/alice/stop"), 404, "ENGINE_NOT_FOUND")


def test_rate_limit_is_each_products_own(db):
    one, two = (Api(make_product(slug, {"rate_limit_rpm": 1}).key) for slug in ("one", "two"))
    assert [admit(api).status_code for api in (one, one, two, two)] == [200, 429, 200, 429]


def test_admits_go_on_while_valkey_is_frozen_and_the_limit_returns_after(db):
    product = make_product(policy={"rate_limit_rpm": 2})
    api = Api(product.key)
    put_engine(product, "alice")
    assert [admit(api).status_code for _ in range(3)] == [200, 200, 429]
    with frozen_valkey():
        took = []
        for _ in range(10):
            began = time.monotonic()
            response = admit(api)
            assert response.json()["admitted"] is True
            assert "RateLimit-Limit" not in response.headers
            took.append(time.monotonic() - began)
        assert max(took) < 0.5, took
        assert sum(took) - max(took) < 0.5, took  # the breaker is open: one admit paid for all
    began = time.monotonic()
    waiting.until(lambda: admit(api).status_code == 429, 6, "the limiter is back")
    assert time.monotonic() - began < 5.2


@pytest.fixture
def told(db, caplog):
    """Calls up the lines so far that tell of admits that no limit counted; before the test, all was quiet for a minute."""
    rate_limit._log_after, rate_limit._uncounted = 0.0, 0

    def lines():
        said = [record.msg for record in caplog.records if record.name == rate_limit.__name__]
        return [(line["event"], line["uncounted_admits"]) for line in said]

    return lines


def test_admits_that_no_limit_counted_are_one_line_and_all_of_them_in_the_sum(told):
    api = Api(make_product(policy={"rate_limit_rpm": 1000}).key)
    with frozen_valkey():
        for _ in range(20):
            assert "RateLimit-Limit" not in admit(api).headers
        assert [event for event, _ in told()] == ["rate_limiter_unavailable"]
    uncounted = 20
    deadline = time.monotonic() + 6
    while "RateLimit-Limit" not in admit(api).headers:  # the breaker is still open
        uncounted += 1
        assert time.monotonic() < deadline
    assert [event for event, _ in told()] == ["rate_limiter_unavailable", "rate_limiter_back"]
    assert sum(count for _, count in told()) == uncounted


def test_admits_that_no_limit_counted_are_a_line_again_a_minute_later(told):
    api = Api(make_product(policy={"rate_limit_rpm": 1000}).key)
    with frozen_valkey():
        for _ in range(3):
            admit(api)
        rate_limit._log_after -= rate_limit.LOG_EVERY_S  # a minute passes
        admit(api)
    assert told() == [("rate_limiter_unavailable", 1), ("rate_limiter_unavailable", 3)]
