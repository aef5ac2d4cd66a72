"""The web server's threads: what is slow, silent or waiting holds up no admit and no `/health`."""

import contextlib
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from audit import actors
from engines.admission.gate import PATIENCE_S
from engines.models import Operation
from policy import products
from tests import waiting
from tests.conftest import make_product
from tests.engines.registry import put_engine
from tests.stack import Stack

FLAGS = {"auto_provision": True, "auto_wake": True}


@pytest.fixture
def web(db):
    """One web process with two threads of each kind, all of which may wait, and nobody who carries anything out."""
    with contextlib.closing(Stack(ORCH_WEB_THREADS="2", ORCH_WEB_WAITERS="2")) as stack:
        stack.start("web")
        waiting.until(stack.serves, 30, "the web server answers")
        yield stack


@pytest.mark.alone
def test_admit_and_health_answer_while_all_other_threads_wait(web, product):
    put_engine(product)
    asked = [
        threading.Thread(
            target=web.call, args=("POST", "/engines/provision", product.key, {"user_id": f"u{n}"}), kwargs={"Prefer": "wait=6"}
        )
        for n in range(2)
    ]
    for thread in asked:
        thread.start()
    waiting.until(lambda: Operation.objects.count() == 2, 10, "both are asked for")
    for flags in ({}, FLAGS):
        answer = web.call("POST", "/engines/alice/admit?x=1", product.key, flags, timeout=2)
        assert answer.json()["admitted"] is True
    assert requests.get(f"{web.url}/health", timeout=2).status_code == 200
    with pytest.raises(requests.Timeout):
        web.call("GET", "/engines", product.key, timeout=1)
    for thread in asked:
        thread.join()
    assert web.call("GET", "/engines", product.key).json()["total"] == 3


@pytest.mark.alone
def test_admits_behind_a_products_lock_hold_up_no_other_product(db, superuser):
    """On the shipped sizes: forty of one product want an engine, while somebody holds the product's lock."""
    stuck, other = make_product("stuck"), make_product("other")
    put_engine(other)
    with contextlib.closing(Stack()) as stack, ThreadPoolExecutor(40) as pool:
        stack.start("web")
        waiting.until(stack.serves, 30, "the web server answers")
        with superuser.transaction():
            superuser.execute("SELECT 1 FROM policy_product WHERE id = %s FOR NO KEY UPDATE", [stuck.pk])
            asked = [
                pool.submit(stack.call, "POST", f"/engines/u{n}/admit", stuck.key, FLAGS, Prefer="respond-async")
                for n in range(40)
            ]
            at_first = timed_admit(stack, other)
            waiting.until(lambda: sum(each.done() for each in asked) == 39, 10, "all but the one in the gate are answered")
            asked += [pool.submit(stack.call, "POST", "/engines/late/admit", stuck.key, FLAGS) for _ in range(20)]
            took = [timed_admit(stack, other) for _ in range(20)]
        answers = [each.result() for each in asked]
    assert at_first < PATIENCE_S + 0.5
    assert max(took) < 0.5
    assert sorted(answer.status_code for answer in answers) == [202] + [503] * 59
    assert {answer.json()["error"]["code"] for answer in answers if answer.status_code == 503} == {"UNAVAILABLE"}
    assert Operation.objects.count() == 1


def timed_admit(stack, product):
    """Seconds that a plain admit took."""
    began = time.monotonic()
    assert stack.call("POST", "/engines/alice/admit", product.key, {}).json()["admitted"] is True
    return time.monotonic() - began


@pytest.mark.alone
def test_silent_connections_hold_up_nobody(web, product):
    with contextlib.ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(contextlib.closing(socket.create_connection(("127.0.0.1", web.port))))
        assert web.call("GET", "/engines", product.key, timeout=2).json()["total"] == 0


def test_request_that_comes_in_pieces_is_answered(web, product):
    put_engine(product)
    head = f"POST /engines/alice/admit HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Platform-Key: {product.key}\r\n"
    rest = "Content-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", web.port), timeout=10) as client:
        for piece in (head[:10], head[10:], rest, "{}"):
            client.sendall(piece.encode())
            time.sleep(0.2)
        answer = b"".join(iter(lambda: client.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b'"admitted":true' in answer


def test_revoked_key_and_changed_policy_are_in_force_in_every_process(db):
    """Two web processes that have both answered with the key and the policy just before."""
    product = make_product()
    put_engine(product)
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(contextlib.closing(Stack())) for _ in range(2)]
        for process in processes:
            process.start("web")
        for process in processes:
            waiting.until(process.serves, 30, "the web server answers")

        def statuses() -> list[int]:
            return [process.call("POST", "/engines/alice/admit", product.key).status_code for process in processes]

        for _ in range(3):
            assert statuses() == [200, 200]
            products.update_policy(product.pk, {"rate_limit_rpm": 0}, by=actors.ADMIN)
            assert statuses() == [429, 429]
            products.update_policy(product.pk, {}, by=actors.ADMIN)
        assert statuses() == [200, 200]
        products.revoke_key(product.keys.get().pk, by=actors.ADMIN)
        assert statuses() == [401, 401]


def test_workers_give_way_to_the_web_server(web):
    web.start("ops")
    waiting.until(lambda: os.getpriority(os.PRIO_PROCESS, web.pid("ops")) == 10, 10, "the worker is nice")
    assert os.getpriority(os.PRIO_PROCESS, web.pid("web")) == 0
