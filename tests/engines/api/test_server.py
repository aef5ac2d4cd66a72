"""The API on the real web server with real workers: what a user id may be in a path, and what many callers at once come to."""

import contextlib
import http.client
import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import pytest
import requests

from audit.models import AuditRow
from common import valkey
from engines.models import Engine, Operation
from policy import crypto, rate_limit
from policy.errors import RateLimited
from policy.models import IdempotencyKey
from tests import floods, waiting
from tests.conftest import empty, make_product, running_stack
from tests.engines.registry import put_engine
from tests.envelopes import assert_error
from tests.freezing import freeze_at_rest
from tests.stack import WORKERS

# fmt: off
USER_IDS = [
    "alice/audit", "alice/admit", "a/b/c", "/", "//", "with space", "a+b", "a?b=c", "a#b", "a&b", "%2F", "%", "100%", "a%00b",
    "ünïcödé", "日本", "🦊", "a;b,c", "'\"<>\\", "user@example.com", "a:b", "~", "provision", "...", "x" * 255, "é" * 255,
    "👩‍👩‍👧‍👦", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "❤️‍🔥", "👍🏽", "🫨", "می‌خواهم", "e\u0301", "ﬁ", "İ",
    "🦊" * 255, " ", "%2e%2e", ". .", "../..", "admin", "*",
]
# fmt: on


@pytest.fixture(scope="module")
def server(database, django_db_blocker):
    """Two web processes and a worker for the whole module; every test has a product of its own."""
    empty()
    sizes = {"ORCH_WEB_WORKERS": "2", "ORCH_WEB_THREADS": "60", "ORCH_WEB_WAITERS": "55", "ORCH_OPS_CONCURRENCY": "4"}
    with django_db_blocker.unblock(), running_stack("web", *WORKERS, ORCH_ENGINE_BACKEND="memory", **sizes) as stack:
        yield stack


@pytest.fixture
def acme(server, request):
    """A product of this test's own."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.removeprefix("test_").lower())
    return make_product(name[-60:].strip("-"))


def at_once(count, call):
    """`call` of each number, all at the same time; the answers in order."""
    barrier = threading.Barrier(count)

    def one(number):
        barrier.wait(20)
        return call(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def segment(user_id):
    return quote(user_id, safe="")


# -- paths -----------------------------------------------------------------------------------------------------------------


def test_user_id_goes_through_every_path_as_it_is(server, acme, subtests):
    for user_id in USER_IDS:
        with subtests.test(user_id=user_id):
            response = server.call("POST", "/engines/provision", acme.key, {"user_id": user_id}, Prefer="respond-async")
            assert response.status_code in (200, 202), response.text  # 200 if a worker was faster than the answer
            path = f"/engines/{segment(user_id)}"
            assert server.call("GET", path, acme.key).json()["user_id"] == user_id
            assert server.call("POST", f"{path}/admit", acme.key).status_code == 200
            rows = server.call("GET", f"{path}/audit", acme.key).json()["results"]
            assert {row["user_id"] for row in rows} == {user_id}
            assert_error(server.call("PUT", path, acme.key), 405, "METHOD_NOT_ALLOWED")
            assert server.call("DELETE", path, acme.key, Prefer="respond-async").status_code in (200, 202)
    waiting.until(lambda: not Operation.objects.filter(finished_at=None).exists(), 60, "all are destroyed")


def test_slash_in_a_user_id_is_told_from_one_in_the_path(server, acme):
    put_engine(acme, "alice")
    put_engine(acme, "alice/audit")
    assert server.call("GET", "/engines/alice%2Faudit", acme.key).json()["user_id"] == "alice/audit"
    assert server.call("GET", "/engines/alice%2faudit", acme.key).json()["user_id"] == "alice/audit"
    assert server.call("GET", "/engines/alice/audit", acme.key).json().keys() == {"results", "next", "previous"}
    assert_error(server.call("GET", "/engines/alice%2Fnone", acme.key), 404, "ENGINE_NOT_FOUND")
    assert_error(server.call("GET", "/engines/alice/none", acme.key), 404, "NOT_FOUND")


def test_user_ids_that_look_alike_are_told_apart(server, acme):
    """Nothing is normalised, folded or trimmed: a user id is its code points."""
    alike = ["é", "e\u0301", "É", "a", "A", "a ", " a", "👩‍👧", "👩👧", "ﬁ", "fi", "%61", "a\u200d"]
    for user_id in alike:
        put_engine(acme, user_id)
    for user_id in alike:
        assert server.call("GET", f"/engines/{segment(user_id)}", acme.key).json()["user_id"] == user_id


def test_links_of_a_page_lead_to_the_same_user(server, acme):
    for _ in range(3):
        server.call("POST", "/engines/provision", acme.key, {"user_id": "a/b %2F?"}, Prefer="respond-async")
        waiting.until(lambda: server.call("DELETE", f"/engines/{segment('a/b %2F?')}", acme.key).status_code == 200, 20)
    total = AuditRow.objects.filter(product_id=acme.pk, user_id="a/b %2F?").count()
    found, link = [], f"/engines/{segment('a/b %2F?')}/audit?limit=2"
    while link:
        page = server.call("GET", link.removeprefix(server.url), acme.key).json()
        found += [row["id"] for row in page["results"]]
        link = page["next"]
    assert len(found) == len(set(found)) == total > 4


def test_target_with_scheme_and_host_is_understood(server, acme):
    put_engine(acme, "alice/audit")
    assert get(server, f"{server.url}/engines/alice%2Faudit?x=/engines/", acme.key)["user_id"] == "alice/audit"


def test_path_that_is_not_utf8_is_not_found(server, acme):
    for target in ("/engines/%FF", "/engines/%ED%A0%80", "/engines/%C3"):
        assert get(server, target, acme.key)["error"]["code"] == "NOT_FOUND"


def get(server, target, key):
    """The answer to a GET with this very target, which other clients would tidy up."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)) as connection:
        connection.request("GET", target, headers={"X-Platform-Key": key})
        return json.load(connection.getresponse())


# -- many at once ------------------------------------------------------------------------------------------------------------


def test_provisions_at_once_of_one_user_give_one_engine(server, acme):
    answers = at_once(50, lambda _: server.call("POST", "/engines/provision", acme.key, {"user_id": "alice"}))
    made = [answer.json() for answer in answers if answer.status_code == 200]
    late = [answer for answer in answers if answer.status_code != 200]
    assert len(made) >= 1
    for answer in late:  # it came when the engine was there already
        assert_error(answer, 409, "ENGINE_ALREADY_EXISTS")
    assert len({json.dumps(body, sort_keys=True) for body in made}) == 1
    engine = Engine.objects.get(product=acme)
    assert str(engine.pk) == made[0]["engine_id"]
    assert Operation.objects.filter(engine=engine).count() == 1
    rows = AuditRow.objects.filter(product_id=acme.pk, user_id="alice").order_by("id")
    assert [row.action for row in rows] == ["provision_requested", "provision"]


def test_admits_at_once_of_one_user_give_one_engine(server, acme):
    answers = at_once(50, lambda _: server.call("POST", "/engines/alice/admit", acme.key, {"auto_provision": True}))
    assert {answer.status_code for answer in answers} == {200}, [answer.text for answer in answers if answer.status_code != 200]
    assert {answer.json()["admitted"] for answer in answers} == {True}
    assert len({(body["engine"]["engine_id"], body["engine"]["api_key"]) for body in (answer.json() for answer in answers)}) == 1
    assert Engine.objects.filter(product=acme).count() == Operation.objects.filter(engine__product=acme).count() == 1


def test_provisions_at_once_at_the_limit_give_one_engine(server, acme):
    acme.policy = {"max_engines": 4}
    acme.save()
    for user_id in "abc":
        put_engine(acme, user_id, "stopped")
    answers = at_once(200, lambda number: server.call("POST", "/engines/provision", acme.key, {"user_id": f"user-{number}"}))
    assert sorted(answer.status_code for answer in answers) == [200] + [429] * 199
    for answer in answers:
        if answer.status_code == 429:
            assert_error(answer, 429, "QUOTA_EXCEEDED")
    assert Engine.objects.filter(product=acme).count() == 4
    floods.written()
    rest, first = AuditRow.objects.filter(product_id=acme.pk, action="provision_denied")
    assert "count" not in first.metadata
    assert rest.metadata["count"] == 198


def test_admits_at_once_share_one_limit_in_all_processes(server, acme):
    acme.policy = {"rate_limit_rpm": 20}
    acme.save()
    answers = at_once(40, lambda _: server.call("POST", "/engines/alice/admit", acme.key))
    assert sorted(answer.status_code for answer in answers) == [200] * 20 + [429] * 20
    with pytest.raises(RateLimited):  # a third process, this one
        rate_limit.hit(str(acme.pk), acme.policy)


def test_mixed_verbs_at_once_leave_one_story(server, acme):
    """Anything may be refused, nothing may fail, and the engine is left with no open operation."""
    verbs = [("POST", "/stop"), ("POST", "/start"), ("POST", "/rotate-key"), ("POST", "/admit"), ("GET", "")]
    assert server.call("POST", "/engines/provision", acme.key, {"user_id": "alice"}).status_code == 200

    def call(number):
        method, suffix = verbs[number % len(verbs)]
        return server.call(method, f"/engines/alice{suffix}", acme.key)

    answers = at_once(30, call)
    assert {answer.status_code for answer in answers} <= {200, 409}, [answer.text for answer in answers]
    engine = Engine.objects.get(product=acme)
    assert not Operation.objects.filter(engine=engine, finished_at=None).exists()
    seqs = list(
        AuditRow.objects.filter(engine_id=engine.pk, to_status__isnull=False).order_by("engine_seq").values_list("engine_seq")
    )
    assert seqs == [(number,) for number in range(1, engine.seq + 1)]


# -- under one key -----------------------------------------------------------------------------------------------------------

KEY = {"Idempotency-Key": "one"}
CALLS = {"provision": ("/engines/provision", {"user_id": "alice"}), "admit": ("/engines/alice/admit", {"auto_provision": True})}


def rows_of(product):
    return [row.action for row in AuditRow.objects.filter(product_id=product.pk, user_id="alice").order_by("id")]


@pytest.mark.parametrize("call", CALLS)
def test_twenty_calls_with_one_key_give_one_engine_one_row_and_equal_answers(server, acme, call):
    path, body = CALLS[call]
    answers = at_once(20, lambda _: server.call("POST", path, acme.key, body, **KEY))
    assert [answer.status_code for answer in answers] == [200] * 20, [answer.text for answer in answers]
    assert len({answer.content for answer in answers}) == 1
    assert Engine.objects.filter(product=acme).count() == Operation.objects.filter(engine__product=acme).count() == 1
    assert IdempotencyKey.objects.filter(caller=str(acme.pk)).count() == 1
    assert rows_of(acme) == ["provision_requested", "provision"]


def is_waited_for(product):
    return any(
        valkey.client().pubsub_numsub(f"operation:{operation.pk}")[0][1]
        for operation in Operation.objects.filter(engine__product=product)
    )


@pytest.mark.parametrize("call", CALLS)
def test_call_whose_web_process_is_killed_between_effect_and_answer_is_answered_when_it_is_sent_again(server, acme, call):
    path, body = CALLS[call]
    carrying = freeze_at_rest(server, "ops")
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(server.call, "POST", path, acme.key, body, **KEY)
        waiting.until(lambda: is_waited_for(acme), 20, "the intent is committed, sent and waited for")
        server.freeze("web")
        server.thaw(carrying)
        waiting.until(lambda: Operation.objects.get(engine__product=acme).state == "succeeded", 20, "the effect is there")
        server.kill("web")
        with pytest.raises(requests.ConnectionError):
            asked.result()
    waiting.until(server.serves, 30, "the web server is back")
    again = server.call("POST", path, acme.key, body, **KEY)
    assert again.status_code == 200
    engine = Engine.objects.get(product=acme)
    shown = again.json()["engine"] if call == "admit" else again.json()
    assert (shown["engine_id"], shown["api_key"]) == (str(engine.pk), crypto.decrypt(engine.key_ciphertext))
    assert rows_of(acme) == ["provision_requested", "provision"]
