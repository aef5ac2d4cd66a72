"""The web server's threads: what is slow, silent or waiting holds up no admit and no `/health`."""

import contextlib
import json
import os
import re
import signal
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
def test_requests_are_answered_while_as_many_wait_as_there_are_threads(web, product, other_product):
    """Two products: the share of one is one of the two threads."""
    put_engine(product)
    asked = [
        threading.Thread(
            target=web.call, args=("POST", "/engines/provision", each.key, {"user_id": "u"}), kwargs={"Prefer": "wait=6"}
        )
        for each in (product, other_product)
    ]
    for thread in asked:
        thread.start()
    waiting.until(lambda: Operation.objects.count() == 2, 10, "both are asked for")
    for flags in ({}, FLAGS):
        answer = web.call("POST", "/engines/alice/admit?x=1", product.key, flags, timeout=2)
        assert answer.json()["admitted"] is True
    assert requests.get(f"{web.url}/health", timeout=2).status_code == 200
    assert web.call("GET", "/engines", product.key, timeout=2).json()["total"] == 2
    for thread in asked:
        thread.join()


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
def test_strangers_hold_up_nobody(db, product):
    """On the shipped sizes: requests that stop in the middle, silent connections, and clients that neither read nor close."""
    put_engine(product)
    with contextlib.closing(Stack()) as stack, contextlib.ExitStack() as strangers:
        stack.start("web")
        waiting.until(stack.serves, 30, "the web server answers")

        def come(count, sent=b""):
            return [strangers.enter_context(stranger(stack, sent)) for _ in range(count)]

        silent = come(1_000)
        stopped = [come(64, sent) for sent in STOPPED]
        for _ in range(5):
            come(6, b"GET /nope HTTP/1.0\r\n\r\n")
            assert max(timed_admit(stack, product) for _ in range(5)) < 0.2
        for clients in stopped:
            answers = [client.recv(4096) for client in clients]
            assert {answer[:12] for answer in answers} == {b"HTTP/1.1 408"}
            assert all(b'"INVALID_REQUEST"' in answer for answer in answers)
        assert {client.recv(1) for client in silent} == {b""}


HEAD = b"POST /engines/alice/admit HTTP/1.1\r\nHost: localhost\r\n"
STOPPED = [HEAD, HEAD + b"Content-Length: 500\r\n\r\n{", HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{"]


@contextlib.contextmanager
def stranger(stack, sent=b"", source=("127.0.0.1", 0)):
    """A client that sends these bytes, and then nothing."""
    with socket.create_connection(("127.0.0.1", stack.port), timeout=20, source_address=source) as client:
        client.sendall(sent)
        yield client


def test_server_stops_although_strangers_stay(db):
    """Silent ones, one whose long body has minutes to come, and one that does not read a long answer."""
    with contextlib.closing(Stack()) as stack, contextlib.ExitStack() as strangers:
        stack.start("web")
        waiting.until(stack.serves, 30, "the web server answers")
        body = b"POST /engines/alice/stop HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 900_000
        for sent in (b"", body, b"GET /nope HTTP/1.0\r\n\r\n", LARGE):
            strangers.enter_context(stranger(stack, sent))
        web = stack.forget("web")
        os.killpg(web.pid, signal.SIGTERM)
        waiting.until(lambda: not web.is_alive(), 15, "the web server has ended")


BUNDLE = "/static/drf_spectacular_sidecar/swagger-ui-dist/swagger-ui-bundle.js"  # 1.4 MB, for anybody
LARGE = f"GET {BUNDLE} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


@pytest.mark.alone
def test_clients_that_do_not_read_hold_no_thread(web, product):
    """Two threads, and four clients that want a large answer in the smallest window there is."""
    with contextlib.ExitStack() as clients:
        for _ in range(4):
            client = clients.enter_context(contextlib.closing(socket.socket()))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            client.connect(("127.0.0.1", web.port))
            client.sendall(LARGE)
        for _ in range(4):
            assert web.call("GET", "/engines", product.key, timeout=2).json()["total"] == 0


def test_large_answer_arrives_whole_at_a_slow_reader(web):
    answer = requests.get(web.url + BUNDLE, stream=True, timeout=10)
    pieces = []
    for piece in answer.iter_content(100_000):
        time.sleep(0.02)
        pieces.append(piece)
    assert len(b"".join(pieces)) == int(answer.headers["Content-Length"]) > 1_000_000


def test_address_gets_its_number_of_connections_and_a_trusted_proxy_gets_more(db, product):
    sizes = {"ORCH_WEB_CONNECTIONS_PER_ADDRESS": "5", "ORCH_TRUSTED_PROXIES": "127.0.0.2,127.0.0.3", "ORCH_LOG_LEVEL": "INFO"}
    with contextlib.closing(Stack(**sizes)) as stack, contextlib.ExitStack() as strangers:
        stack.start("web")
        waiting.until(stack.serves, 30, "the web server answers")
        for _ in range(20):
            strangers.enter_context(stranger(stack, source=("127.0.0.2", 0)))
        for _ in range(5):
            strangers.enter_context(stranger(stack))
        answers = [strangers.enter_context(stranger(stack)).recv(4096) for _ in range(3)]
        assert [answer[:12] for answer in answers] == [b"HTTP/1.1 503", b"", b""]
        refused = b"GET /engines HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 203.0.113.9, 198.51.100.4\r\n\r\n"
        through = strangers.enter_context(stranger(stack, refused, source=("127.0.0.3", 0)))
        assert through.recv(4096).startswith(b"HTTP/1.1 401")
        told = [json.loads(line) for line in stack.log("web").splitlines() if line.startswith("{")]
    assert [line["address"] for line in told if line["event"] == "connections_refused"] == ["127.0.0.1"]
    assert [line["address"] for line in told if line["event"] == "key_refused"] == ["198.51.100.4"]


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


def test_requests_sent_at_once_are_answered_in_order(web):
    """Pipelined, in one piece: each is whole when the connection gets its thread, and the rest waits."""
    asked = b"".join(b"GET /nope/%d HTTP/1.1\r\nHost: localhost\r\n\r\n" % number for number in range(3))
    with stranger(web, asked + b"GET /health HTTP/1.0\r\n\r\n") as client:
        client.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: client.recv(4096), b""))
    assert re.findall(rb"HTTP/1.[01] (\d+)", answer) == [b"404", b"404", b"404", b"200"]


def test_client_that_asks_first_is_told_to_send_its_body(web, product):
    head = f"POST /engines/alice/admit HTTP/1.1\r\nHost: localhost\r\nX-Platform-Key: {product.key}\r\n"
    with stranger(
        web, f"{head}Content-Type: application/json\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n".encode()
    ) as client:
        assert client.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"{}")
        assert client.recv(4096).startswith(b"HTTP/1.1 200 ")


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
