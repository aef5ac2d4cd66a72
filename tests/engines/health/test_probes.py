"""What a probe makes of an answer: healthy is a 2xx with a JSON body whose `status` is "ok", anything else is a failure."""

import asyncio
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
import requests

from bench.hostile_answers import ANSWERS, CHUNKED
from engines import health
from engines.addresses import url
from engines.health import probes
from policy import crypto
from tests import servers, waiting
from tests.engines.crew import probe_once
from tests.engines.registry import put_engines
from tests.engines.strangers import OK, body, flooding, listening, proving, saying

HEALTHY = {
    "plain": [OK],
    "in pieces": [OK[:30], OK[30:-8], OK[-8:-3], OK[-3:]],
    "chunked": [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b'8\r\n{"status\r\n',
        b'7\r\n":"ok"}\r\n',
        b"0\r\n\r\n",
    ],
    "until it closes": [b"HTTP/1.0 200 OK\r\n\r\n", b'{"status":', b'"ok"}'],
    "after interim answers": [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", OK],
    "with more bytes behind it": [OK + b" " * 50_000],
    "64 kB": [body(b'{"status": "ok"}' + b" " * (65_536 - 16))],
    "201 with more in it": [body(b'{"status": "ok", "uptime_seconds": 5, "subsystems": {}}', "201 Created")],
    "of another type": [body(b'{"status": "ok"}', "200 OK", "Content-Type: text/html; charset=nonsense")],
}
UNHEALTHY = {
    "500": ([body(b'{"status": "ok"}', "500 Oh")], "status_500"),
    "503 while it starts": ([body(b'{"status": "starting"}', "503 Busy")], "status_503"),
    "404": ([body(b'{"status": "ok"}', "404 No")], "status_404"),
    "redirect": ([body(b'{"status": "ok"}', "302 Found", "Location: /health")], "status_302"),
    "304": ([body(b"", "304 Not Modified")], "status_304"),
    "another status": ([body(b'{"status": "degraded"}')], "not_ok"),
    "status in capitals": ([body(b'{"status": "OK"}')], "not_ok"),
    "status true": ([body(b'{"status": true}')], "not_ok"),
    "no status": ([body(b"{}")], "not_ok"),
    "list": ([body(b'["status", "ok"]')], "not_ok"),
    "text": ([body(b'"ok"')], "not_ok"),
    "not json": ([body(b"ok")], "not_json"),
    "html": ([body(b"<html>ok</html>")], "not_json"),
    "empty": ([body(b"")], "not_json"),
    "204": ([b"HTTP/1.1 204 No Content\r\n\r\n"], "not_json"),
    "not text": ([body(b'{"status": "\xff"}')], "not_json"),
    "deep": ([body(b"[" * 60_000)], "not_json"),
    "compressed": ([body(b"\x1f\x8b\x08\x00", "200 OK", "Content-Encoding: gzip")], "not_json"),
    "large": ([body(b'{"status": "ok"}' + b" " * 70_000)], "too_large"),
    "endless": ([b"HTTP/1.1 200 OK\r\n\r\n", *[b" " * 16_384] * 200], "too_large"),
    "no http": ([b"SSH-2.0-OpenSSH_9.2\r\n"], "connect_error"),
    "no http, in two lines": ([b"SSH-2.0-OpenSSH_9.2\r\n\r\n", b""], "not_http"),
    "another protocol": ([b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", b""], "not_http"),
    "wrong chunk": ([CHUNKED + b"x\r\n", b""], "not_http"),
    "two lengths": ([b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", b""], "not_http"),
    "chunk that does not end": ([CHUNKED + b"9\r\nx"], "connect_error"),
    "long header": ([b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n"], "too_large"),
    "64 kB and a byte": ([body(b'{"status": "ok"}' + b" " * (65_537 - 16))], "too_large"),
    "nothing": ([], "connect_error"),
    "too little": ([b'HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"status": "ok"}'], "connect_error"),
}
HOSTILE = {
    "100 Continue without end": "too_many_parts",
    "103 with headers without end": "too_many_parts",
    "status line without end": "too_large",
    "header without end": "too_large",
    "headers without end": "too_large",
    "folded header without end": "too_large",
    "chunk size without end": "too_large",
    "chunk extension without end": "too_large",
    "chunks of one byte": "too_many_parts",
    "trailers without end": "too_large",
    "body without end": "too_large",
    "body in pieces of one byte": "too_many_parts",
    "large Content-Length, then a byte a second": "too_large",
    "a byte a second": "timeout",
    "compressed, 50 MB in 50 kB": "not_json",
    "switch of protocols": "not_http",
    "silence": "timeout",
}
KEY_HASH = "0" * 64
MOST_SENT = 1_000_000  # bytes of a hostile answer until the probe has closed the connection; most of them wait in the kernel


def probe(*ports):
    return probes.probe_all([probes.Target(uuid4(), 1, port, KEY_HASH) for port in ports])


@pytest.mark.parametrize("name", HEALTHY)
def test_probe_finds_healthy(name):
    with listening(saying(*HEALTHY[name], pause_s=0.03)) as (port,):
        assert probe(port) == [probes.Result(True, "ok")]


@pytest.mark.parametrize("name", UNHEALTHY)
def test_probe_finds_unhealthy(name):
    parts, text = UNHEALTHY[name]
    with listening(saying(*parts)) as (port,):
        assert probe(port) == [probes.Result(False, text)]


@pytest.mark.parametrize("name", ANSWERS)
def test_probe_of_a_hostile_engine_ends_after_few_bytes(settings, name):
    settings.ENV = settings.ENV.model_copy(update={"health_check_timeout_s": 0.4 if HOSTILE[name] == "timeout" else 30})
    answer, sent = ANSWERS[name], []
    with listening(flooding(answer.begin, answer.repeat, sent, answer.pause_s)) as (port,):
        assert probe(port) == [probes.Result(False, HOSTILE[name])]
        assert sum(sent) < MOST_SENT


def test_probe_accepts_an_answer_that_was_sent_before_the_request():
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        hasty = pool.submit(_answer_at_once, listener)
        assert probe(listener.getsockname()[1]) == [probes.Result(True, "ok")]
        assert hasty.result(10).startswith(b"GET /health HTTP/1.1\r\n")


def _answer_at_once(listener):
    connection, _ = listener.accept()
    with connection:
        connection.sendall(OK)
        return connection.recv(65_536)


def test_probe_of_a_port_where_nothing_listens_is_a_failure():
    assert probe(servers.free_port()) == [probes.Result(False, "connect_error")]


@pytest.mark.parametrize("parts", [[b""] * 50, [OK[:-1], b"", b"", b"", b"", b"", b""], [bytes([letter]) for letter in OK]])
def test_probe_gives_up_after_the_time_out(settings, parts):
    settings.ENV = settings.ENV.model_copy(update={"health_check_timeout_s": 0.4})
    began = time.monotonic()
    with listening(saying(*parts, pause_s=0.1)) as (port,):
        assert probe(port) == [probes.Result(False, "timeout")]
        assert time.monotonic() - began < 1.5


def test_one_bad_engine_spoils_no_others_probe(settings):
    settings.ENV = settings.ENV.model_copy(update={"health_check_timeout_s": 1})
    bad = [parts for parts, _ in UNHEALTHY.values()]

    async def answer(head, writer):
        number = ports.index(writer.get_extra_info("sockname")[1])
        await saying(*(bad[number] if number < len(bad) else [OK]))(head, writer)

    with listening(answer, len(bad) + 3) as ports:
        results = probe(*ports, servers.free_port())
    assert [result.ok for result in results] == [False] * len(bad) + [True] * 3 + [False]


def test_probe_sees_what_a_real_engine_suffers(settings, product, running_faulty, subtests):
    settings.ENV = settings.ENV.model_copy(update={"health_check_timeout_s": 0.5})
    for mode, text in {"500": "status_500", "not_ok": "not_ok", "slow": "status_503", "hang": "timeout"}.items():
        with subtests.test(mode=mode):
            order(running_faulty, mode)
            assert probe_once(running_faulty) == probes.Result(False, text)
            order(running_faulty, "none")
            assert probe_once(running_faulty).ok


@pytest.fixture
def running_faulty(settings, engine_processes, request):
    """A healthy engine, a process, that can be told to fail."""
    settings.ENGINE_ENV = {"DEMO_FAULTS": "1"}
    return request.getfixturevalue("running_engine")


def order(engine, mode, **fault):
    key = crypto.decrypt(engine.key_ciphertext)
    requests.post(
        url(engine) + "/faults", json={"mode": mode, **fault}, headers={"X-Engine-Key": key}, timeout=5
    ).raise_for_status()


def test_thousand_engines_are_probed_at_once(product):
    """Each takes 0.2 s to answer: one after the other that would be 200 s."""

    async def answer(head, writer):
        await asyncio.sleep(0.2)
        await proving(OK)(head, writer)

    with listening(answer, 1000) as ports:
        put_engines(product, ports)
        began = time.monotonic()
        assert health.probe_due() == 1000
        waiting.until(lambda: product.engines.filter(last_health_ok=True).count() == 1000, 40)
        assert time.monotonic() - began < 40
