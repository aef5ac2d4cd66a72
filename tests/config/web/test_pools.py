"""Which threads a request gets."""

import threading

import pytest

from common import busy_thread
from config.web import pools
from tests import waiting

HOT = [
    b"POST /engines/alice/admit HTTP/1.1\r\n",
    b"POST /engines/a%2Fb/admit?x=1 HTTP/1.1\r\n",
    b"GET /health HTTP/1.1\r\n",
    b"HEAD /health?x HTTP/1.1\r\n",
]
OTHER = [
    b"POST /engines/provision?next=/admit HTTP/1.1\r\n",
    b"POST /engines/provision?/admit HTTP/1.1\r\n",
    b"POST /policy/explain?x=/engines/a/admit HTTP/1.1\r\n",
    b"POST /engines/alice/stop?/admit? HTTP/1.1\r\n",
    b"POST /engines/a/b/admit HTTP/1.1\r\n",
    b"POST /products/register/admit HTTP/1.1\r\n",
    b"POST /engines/alice/admitted HTTP/1.1\r\n",
    b"GET /engines/alice/admit HTTP/1.1\r\n",
    b"GET /healthy HTTP/1.1\r\n",
    b"GET /admin/?next=/health HTTP/1.1\r\n",
    b"POST /engines/alice/admit HTTP/1.1\r\n" + b"x" * pools.SMALL,
]


@pytest.mark.parametrize("request_", HOT)
def test_is_hot_for_admits_and_health(request_):
    assert pools.is_hot(request_)


@pytest.mark.parametrize("request_", OTHER)
def test_is_hot_for_nothing_else(request_):
    assert not pools.is_hot(request_)


@pytest.mark.parametrize("path", [b"/engines/alice", b"/engines/a%2Fb?x=1", b"/engines/provision"])
def test_is_destroy_for_the_deletion_of_an_engine(path):
    assert pools.is_destroy(b"DELETE " + path + b" HTTP/1.1\r\n")


@pytest.mark.parametrize(
    "line", [b"GET /engines/alice", b"DELETE /products/1", b"DELETE /engines/a/b", b"POST /x?DELETE /engines/a"]
)
def test_is_destroy_for_nothing_else(line):
    assert not pools.is_destroy(line + b" HTTP/1.1\r\n")


# -- a pool ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pool():
    with pools.Pool(2, "test") as made:
        yield made


def test_pool_has_so_many_busy_threads(pool):
    begun, may_end = [], threading.Event()

    def work(number):
        begun.append(number)
        may_end.wait(10)
        return number

    asked = [pool.submit(work, number) for number in range(6)]
    waiting.until(lambda: len(begun) == 2, 5)
    assert not [each for each in asked if each.done()]
    may_end.set()
    assert [each.result(5) for each in asked] == list(range(6))
    assert (set(begun[:2]), set(begun)) == ({0, 1}, set(range(6)))


def test_pool_keeps_the_order():
    with pools.Pool(1, "test") as pool:
        begun = []
        for answer in [pool.submit(begun.append, number) for number in range(20)]:
            answer.result(5)
        assert begun == list(range(20))


def test_pool_starts_another_request_for_each_thread_that_stands_aside(pool):
    may_end = threading.Event()

    def wait(number):
        busy_thread.stand_aside()
        may_end.wait(10)
        return number

    waiters = [pool.submit(wait, number) for number in range(40)]
    assert pool.submit(lambda conn: conn, "short").result(5) == "short"
    assert not [each for each in waiters if each.done()]
    may_end.set()
    assert [each.result(5) for each in waiters] == list(range(40))
    test_pool_has_so_many_busy_threads(pool)


def test_pool_hands_an_error_on_and_goes_on(pool):
    def fail(_conn):
        raise SystemExit(1)

    for _ in range(4):
        with pytest.raises(SystemExit):
            pool.submit(fail, None).result(5)
    assert pool.submit(lambda conn: conn, 1).result(5) == 1


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_pool_that_is_shut_down_ends_what_it_was_given(is_cancelled):
    pool, may_end = pools.Pool(1, "test"), threading.Event()
    first, second = (pool.submit(lambda _: may_end.wait(10), None) for _ in range(2))
    waiting.until(first.running, 5)
    pool.shutdown(wait=False, cancel_futures=is_cancelled)
    may_end.set()
    assert first.result(5)
    assert second.cancelled() if is_cancelled else second.result(5)
