"""How admits fare while a deployment is disturbed by waiting provisions, by a frozen Valkey, and by a restarted PostgreSQL."""

import contextlib
import http.client
import json
import math
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event
from typing import Any

import requests
from django.core.management.base import CommandError

from bench.figures import percentile
from bench.own_deployment import Own
from common.settings import settings

BOOT_S = 20.0
RATE = 40.0  # admits per second, all callers together: far below the capacity of the deployment
CALLERS = 8
HEALTH_EVERY_S = 0.5
WATCH_S = 5.0  # between two reads of an operation
TIMEOUT_S = 30.0
POLICY = {"rate_limit_rpm": 1_000_000}
NO_ANSWER = 0
WEB_WORKERS = int(settings.ENV.WEB_WORKERS["full"])


@dataclass(frozen=True)
class Call:
    """A request: time of sending (monotonic clock), duration in seconds, status, and whether the limiter counted the request."""

    began: float
    seconds: float
    status: int
    is_counted: bool = False


@dataclass(frozen=True)
class Finding:
    """A line of the report: a quantity, its value, its limit if it has a limit, and whether the limit holds."""

    what: str
    value: str
    limit: str = ""
    holds: bool = True

    def render(self) -> str:
        verdict = ("PASS" if self.holds else "FAIL") if self.limit else ""
        return f"{self.what:62} {self.value:>16}  {self.limit:20} {verdict}".rstrip()


@dataclass
class Traffic:
    """Background requests: admits at a steady rate, and `/health`. The lists grow as answers arrive."""

    port: int
    key: str
    users: int
    admits: list[Call] = field(default_factory=list)
    healths: list[Call] = field(default_factory=list)

    @contextlib.contextmanager
    def flowing(self) -> Iterator[None]:
        """Send the requests while the block runs."""
        over = threading.Event()
        threads = [threading.Thread(target=self._admit, args=(over, n)) for n in range(CALLERS)]
        threads.append(threading.Thread(target=self._ask_health, args=(over,)))
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            over.set()
            for thread in threads:
                thread.join()

    def _admit(self, over: threading.Event, number: int) -> None:
        caller, pause = _Caller(self.port), CALLERS / RATE
        over.wait(pause * number / CALLERS)
        while not over.is_set():
            path = f"/engines/user-{(len(self.admits) + number) % self.users}/admit"
            call = caller.ask("POST", path, {"X-Platform-Key": self.key})
            self.admits.append(call)
            over.wait(max(0.0, pause - call.seconds))

    def _ask_health(self, over: threading.Event) -> None:
        caller = _Caller(self.port)
        while not over.wait(HEALTH_EVERY_S):
            self.healths.append(caller.ask("GET", "/health", {}))


class _Caller:
    """A client with a kept-alive connection, like a product's HTTP library."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)

    def ask(self, method: str, path: str, headers: dict[str, str]) -> Call:
        began = time.monotonic()
        try:
            answer = self._ask(method, path, headers)
            status, is_counted = answer.status, "RateLimit-Limit" in answer.headers
        except (OSError, http.client.HTTPException):
            self._connection.close()
            status, is_counted = NO_ANSWER, False
        return Call(began, time.monotonic() - began, status, is_counted)

    def _ask(self, method: str, path: str, headers: dict[str, str]) -> http.client.HTTPResponse:
        try:
            return self._ask_once(method, path, headers)
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            self._connection.close()  # the server closed the idle connection: retry on a new connection
            return self._ask_once(method, path, headers)

    def _ask_once(self, method: str, path: str, headers: dict[str, str]) -> http.client.HTTPResponse:
        self._connection.request(method, path, headers=headers)
        answer = self._connection.getresponse()
        answer.read()
        return answer


# -- products ----------------------------------------------------------------------------------------------------------


def register(own: Own, slug: str, env: dict[str, str]) -> str:
    """Register a product with the engine environment `env`; returns the platform key."""
    headers = {"X-Admin-Key": own.admin_key()}
    made = _call(own, "POST", "/products/register", headers, {"slug": slug, "display_name": slug, "policy": POLICY})
    _call(own, "PUT", f"/products/{made['product_id']}/engine-env", headers, {"env": env})
    return str(made["platform_api_key"])


def _call(own: Own, method: str, path: str, headers: dict[str, str], body: Any) -> Any:
    answer = requests.request(method, own.url + path, json=body, headers=headers, timeout=120)
    if answer.status_code not in (200, 202):
        raise CommandError(f"{method} {path}: {answer.status_code} {answer.text[:300]}")
    return answer.json()


def provision(own: Own, key: str, users: int) -> None:
    """Provision a running engine per user; the users are `user-0`, `user-1` and so on."""
    for n in range(users):
        _call(own, "POST", "/engines/provision", {"X-Platform-Key": key}, {"user_id": f"user-{n}"})


class Waiting:
    """Provisions of slowly booting engines, with a waiting client (a thread) per provision.

    All clients run in a separate process, to leave the measuring process undisturbed.
    """

    def __init__(self, own: Own, key: str, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._ready, self._begin, self._over = context.Event(), context.Event(), context.Event()
        self._results = context.SimpleQueue()
        everything = (own.url, key, count, self._ready, self._begin, self._over, self._results)
        self._process = context.Process(target=_wait_for_all, args=everything, daemon=True)
        self._process.start()
        self._ready.wait(TIMEOUT_S)

    def begin(self) -> None:
        self._begin.set()

    def end(self) -> tuple[int, Counter[int]]:
        """Stop waiting. Returns the number of provisions still waited for, and the number of answers per status."""
        self._over.set()
        result: tuple[int, Counter[int]] = self._results.get()
        return result


def _wait_for_all(url: str, key: str, count: int, ready: Event, begin: Event, over: Event, results: Any) -> None:
    os.nice(10)  # low priority: the clients must not slow the deployment down
    statuses, done = Counter[int](), list[int]()
    for n in range(count):
        threading.Thread(target=_wait_for_one, args=(url, key, n, begin, over, statuses, done), daemon=True).start()
    ready.set()
    over.wait()
    results.put((count - len(done), statuses))


def _wait_for_one(url: str, key: str, number: int, begin: Event, over: Event, statuses: Counter[int], done: list[int]) -> None:
    """Provision an engine; after a 202 (operation still open), read the operation every WATCH_S seconds until its end."""
    headers = {"X-Platform-Key": key, "Prefer": "wait=60"}

    def ask(method: str, path: str, body: Any = None) -> requests.Response:
        answer = requests.request(method, url + path, json=body, headers=headers, timeout=120)
        statuses[answer.status_code] += 1
        return answer

    begin.wait()
    answer = ask("POST", "/engines/provision", {"user_id": f"slow-{number}"})
    while answer.status_code == 202 or answer.json().get("state") in ("pending", "running"):
        if over.wait(WATCH_S):
            return
        answer = ask("GET", f"/operations/{answer.json()['operation_id']}")
    done.append(number)


# -- the disturbances --------------------------------------------------------------------------------------------------


def frozen_valkey(own: Own, traffic: Traffic, seconds: float) -> list[Finding]:
    """Freeze Valkey with SIGSTOP for `seconds`; findings on the admits during the freeze and after it."""
    logged = own.log("web").stat().st_size
    with traffic.flowing():
        time.sleep(5)
        began = time.monotonic()
        own.send("valkey", signal.SIGSTOP)
        time.sleep(seconds)
        ended = time.monotonic()
        own.send("valkey", signal.SIGCONT)
        time.sleep(12)
    during = [call for call in traffic.admits if began <= call.began < ended]
    back = _settled([call for call in traffic.admits if call.began >= ended], lambda call: call.is_counted)
    slowest = max(call.seconds for call in during)
    lines = [json.loads(line) for line in own.log("web").read_bytes()[logged:].splitlines() if b"rate_limiter_" in line]
    most = WEB_WORKERS * (1 + math.ceil((seconds + 1) / 60))  # per web worker: a line per minute, and a last line
    return [
        Finding(f"Valkey frozen for {seconds:.0f} s: slowest of {len(during)} admits", _ms(slowest), "<= 500 ms", slowest <= 0.5),
        Finding("  admits that were not answered with 200", *_others(during)),
        Finding("  admits that were not counted, by the log", str(sum(line["uncounted_admits"] for line in lines))),
        Finding("  log lines about uncounted admits", str(len(lines)), f"1 to {most}", 1 <= len(lines) <= most),
        Finding("  the limiter counts again, after its return", f"{back - ended:.1f} s", "<= 5 s", back - ended <= 5),
    ]


def restarted_postgres(own: Own, traffic: Traffic) -> list[Finding]:
    """Restart PostgreSQL; findings on the admits from the stop on."""
    with traffic.flowing():
        time.sleep(5)
        began = time.monotonic()
        own.stop("postgres", signal.SIGINT)
        own.start("postgres")
        time.sleep(20)
    after = [call for call in traffic.admits if call.began >= began]
    back = _settled(after, lambda call: call.status == 200) - began
    slowest = max(call.seconds for call in after)
    return [
        Finding("PostgreSQL restarted: all admits succeed again after", f"{back:.1f} s", "<= 5 s", back <= 5),
        Finding("  admits refused meanwhile", str(sum(call.status != 200 for call in after))),
        Finding("  slowest admit", _ms(slowest)),
    ]


def waiting_provisions(own: Own, traffic: Traffic, slow_key: str, count: int, seconds: float) -> list[Finding]:
    """Start `count` slow provisions at once; findings on admits before, while the provisions come in, and while they wait."""
    waiting = Waiting(own, slow_key, count)
    with traffic.flowing():
        began = time.monotonic()
        time.sleep(seconds)
        asked = time.monotonic()
        waiting.begin()
        while _engines(own, slow_key) < count:
            time.sleep(0.2)
        taken_in = time.monotonic()
        time.sleep(seconds)
        waited_for, statuses = waiting.end()
    idle, coming, busy = (
        [call.seconds for call in traffic.admits if since <= call.began < until]
        for since, until in ((began, asked), (asked, taken_in), (taken_in, math.inf))
    )
    before, meanwhile = percentile(idle, 0.99), percentile(busy, 0.99)
    slowest = max(call.seconds for call in traffic.healths if call.began >= asked)
    failed = sum(number for status, number in statuses.items() if status >= 500)
    return [
        Finding(f"idle: {len(idle)} admits, p50 and p99", _ms(percentile(idle, 0.5), before)),
        Finding(
            f"{count} provisions come in within {taken_in - asked:.1f} s: p50 and p99",
            _ms(percentile(coming, 0.5), percentile(coming, 0.99)),
        ),
        Finding(f"provisions wait, {waited_for} to the end: p50 of {len(busy)} admits", _ms(percentile(busy, 0.5))),
        Finding("  p99", _ms(meanwhile), f"<= 3 x {_ms(before)}", meanwhile <= 3 * before),
        Finding("  admits that were not answered with 200", *_others(traffic.admits)),
        Finding("  slowest /health, from the first provision on", _ms(slowest), "< 1000 ms", slowest < 1),
        Finding("  /health that was not answered with 200", *_others(traffic.healths)),
        Finding("  5xx of the provisions and their operations", str(failed), "0", not failed),
    ]


def _engines(own: Own, key: str) -> int:
    return int(_call(own, "GET", "/status", {"X-Platform-Key": key}, None)["total"])


def _settled(calls: Sequence[Call], is_well: Callable[[Call], bool]) -> float:
    """The end of the last call without `is_well`, or the start of the first call if all are well. Monotonic clock, seconds."""
    return max((call.began + call.seconds for call in calls if not is_well(call)), default=min(call.began for call in calls))


def _others(calls: Sequence[Call]) -> tuple[str, str, bool]:
    """Value, limit and verdict of the rule: every answer is 200."""
    others = Counter(call.status for call in calls if call.status != 200)
    return ", ".join(f"{number} x {status or 'none'}" for status, number in others.items()) or "0", "0", not others


def _ms(*seconds: float) -> str:
    return " / ".join(f"{value * 1000:.1f}" for value in seconds) + " ms"


def measure(own: Own, *, users: int, provisions: int, seconds: float, frozen_s: float) -> Iterator[Finding]:
    """Disturb a deployment without other users in three ways, one after the other; yields the findings."""
    key = register(own, "bench", {})
    slow = register(own, "bench-slow", {"DEMO_FAULTS": "1", "DEMO_BOOT_DELAY_S": str(BOOT_S)})
    provision(own, key, users)
    yield from frozen_valkey(own, Traffic(own.port, key, users), frozen_s)
    yield from restarted_postgres(own, Traffic(own.port, key, users))
    yield from waiting_provisions(own, Traffic(own.port, key, users), slow, provisions, seconds)
