"""GET /engines/{user_id}/logs: read by a worker, handed over through Valkey, kept nowhere."""

from uuid import uuid4

import pytest

from common import times, valkey
from engines import log_mailbox, tasks, worker
from engines.api import logs
from engines.worker import logs as worker_logs
from tests import waiting
from tests.conftest import Api
from tests.envelopes import assert_error


def test_logs_come_from_a_worker(memory_stack, product):
    made = memory_stack.call("POST", "/engines/provision", product.key, {"user_id": "alice"}).json()
    answer = memory_stack.call("GET", "/engines/alice/logs", product.key)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["engine_id"], body["user_id"]) == (made["engine_id"], "alice")
    assert body["lines"]
    assert all(isinstance(line, str) for line in body["lines"])
    assert len(memory_stack.call("GET", "/engines/alice/logs?tail=1", product.key).json()["lines"]) == 1
    assert valkey.client().keys("logs:*") == []  # gone once read


def test_logs_without_a_worker_are_unavailable(running_engine, api):
    begun = waiting.now()
    assert_error(api.get("/engines/alice/logs"), 503, "UNAVAILABLE")
    assert logs.WAIT_S <= waiting.now() - begun < logs.WAIT_S + 2


def test_logs_of_another_product_are_not_found(running_engine, other_product):
    assert_error(Api(other_product.key).get("/engines/alice/logs"), 404, "ENGINE_NOT_FOUND")


@pytest.mark.parametrize("tail", ["0", "1001", "-1", "x", "", "1.5", "١"])
def test_logs_refuse_a_tail_that_cannot_be(api, tail):
    error = assert_error(api.get("/engines/alice/logs", {"tail": tail}), 400, "INVALID_REQUEST")
    assert list(error["details"]["fields"]) == ["tail"]


def test_worker_leaves_the_lines_for_a_moment(running_engine):
    token = uuid4()
    worker.hand_over(running_engine.pk, 10, token)
    assert 0 < valkey.client().ttl(f"logs:{token}") <= log_mailbox.KEPT_S


@pytest.mark.parametrize(("asked_s_ago", "is_read"), [(log_mailbox.WAIT_S - 2, True), (log_mailbox.WAIT_S + 1, False)])
def test_worker_reads_nothing_once_nobody_waits(running_engine, asked_s_ago, is_read):
    token, asked_at = uuid4(), times.database_now().timestamp() - asked_s_ago
    tasks.read_logs(str(running_engine.pk), 10, str(token), asked_at)
    assert (log_mailbox.take(token, running_engine.pk) is not None) == is_read


def test_worker_drops_a_request_with_an_impossible_time(running_engine):
    for impossible in ("now", float("nan")):
        token = uuid4()
        tasks.read_logs(str(running_engine.pk), 10, str(token), impossible)
        assert log_mailbox.take(token, running_engine.pk) is None


def test_worker_leaves_nothing_of_an_engine_that_is_gone(db):
    token, engine_id = uuid4(), uuid4()
    worker.hand_over(engine_id, 10, token)
    assert log_mailbox.take(token, engine_id) == {"lines": []}


def test_worker_reads_no_more_lines_than_an_answer_may_hold(running_engine):
    """The number comes from a message, which anybody who reaches Valkey may have written."""
    for tail, lines in ((10**9, 1), (-5, 1), (1, 1)):
        token = uuid4()
        worker.hand_over(running_engine.pk, tail, token)
        assert len(log_mailbox.take(token, running_engine.pk)["lines"]) == lines


def test_lines_are_not_readable_in_valkey(db):
    token, engine_id = uuid4(), uuid4()
    log_mailbox.put(token, engine_id, {"lines": ["a line", "é\x1b😀"]})
    assert b"line" not in valkey.client().get(f"logs:{token}")
    assert log_mailbox.take(token, engine_id) == {"lines": ["a line", "é\x1b😀"]}
    assert log_mailbox.take(token, engine_id) is None


def test_lines_of_another_engine_or_request_are_not_handed_over(db):
    token, engine_id = uuid4(), uuid4()
    for of_token, of_engine in ((uuid4(), engine_id), (token, uuid4())):
        log_mailbox.put(of_token, of_engine, {"lines": ["secret"]})
        valkey.client().set(f"logs:{token}", valkey.client().get(f"logs:{of_token}"))
        assert log_mailbox.take(token, engine_id) is None


@pytest.mark.parametrize("value", ["", "garbage", b"\xff\xfe", '{"lines": ["forged"]}', "x" * 11_000_000])
def test_lines_that_are_not_ours_are_dropped(db, value):
    token, engine_id = uuid4(), uuid4()
    valkey.client().set(f"logs:{token}", value)
    assert log_mailbox.take(token, engine_id) is None
    valkey.client().rpush(f"logs:{token}", "garbage")
    assert log_mailbox.take(token, engine_id) is None
    assert valkey.client().keys("*") == []


def test_lines_are_cut_to_what_an_answer_may_hold():
    lines = worker_logs._cut(["first", *["x" * 10_000] * 300, "la\0st"])
    assert lines[-1] == "last"
    assert sum(map(len, lines)) <= worker_logs.MAX_TEXT
    assert "first" not in lines


def test_cut_line_says_how_many_characters_are_left_out():
    whole = "é" * worker_logs.MAX_LINE
    assert worker_logs._cut([whole, f"{whole}xy\u2028z", "\0" + whole]) == [whole, f"{whole} [4 more characters left out]", whole]
