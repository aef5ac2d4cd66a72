"""A product's share of the threads of a web process: a thread is in the share until its answer is closed, in every case."""

import threading

import pytest
from django.test import RequestFactory

from config.web.wsgi import application
from policy import thread_share


def held():
    """Places by product."""
    return dict(thread_share._places._taken)


def ask(product, path="/engines", start_response=lambda *_: None):
    """The answer of the WSGI application to a GET, not closed yet."""
    return application(RequestFactory(headers={"X-Platform-Key": product.key}).get(path).environ, start_response)


def test_thread_is_in_the_share_until_the_answer_is_closed(product):
    answer = ask(product)
    assert held() == {product.pk: 1}
    answer.close()
    assert held() == {}


@pytest.mark.parametrize(
    "path", ["/engines?limit=x", "/engines/nobody", "/operations/00000000-0000-4000-8000-000000000000", "/no"]
)
def test_refused_request_leaves_the_share(product, path):
    ask(product, path).close()
    assert held() == {}


def test_answer_that_cannot_be_begun_leaves_the_share(product):
    def fail(*_):
        raise ValueError("a header that cannot be sent")

    with pytest.raises(ValueError, match="cannot be sent"):
        ask(product, start_response=fail)
    assert held() == {}


def test_answer_that_nobody_closed_leaves_the_share_with_the_next_request_of_its_thread(product, other_product):
    ask(product)
    ask(other_product)
    assert held() == {other_product.pk: 1}
    thread_share.leave()
    assert held() == {}


def test_leave_in_another_thread_takes_nobody_out(product):
    answer = ask(product)
    other = threading.Thread(target=thread_share.leave)
    other.start()
    other.join()
    assert held() == {product.pk: 1}
    answer.close()


def test_admit_is_in_no_share(product):
    environ = RequestFactory(headers={"X-Platform-Key": product.key, "Prefer": "wait=0"}).post("/engines/alice/admit").environ
    answer = application(environ, lambda *_: None)
    assert held() == {}
    answer.close()
