"""Which threads a request gets."""

import pytest

from config.web import pools

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
