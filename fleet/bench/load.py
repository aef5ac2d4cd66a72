"""What disturbs a deployment, and what its admits notice of that: waiting provisions, a frozen Valkey, a restarted PostgreSQL."""

import contextlib
import http.client
import json
import math
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import requests
from django.conf import settings
from django.core.management.base import CommandError

from fleet.bench.figures import percentile
from fleet.bench.own import Own

BOOT_S = 20.0
RATE = 40.0  # admits per second, all callers together: far from what the deployment could do
CALLERS = 8
HEALTH_EVERY_S = 0.5
SETTLED_S = 2.0  # admits that succeed for so long are no accident
TIMEOUT_S = 30.0
POLICY = {"rate_limit_rpm": 1_000_000}
NO_ANSWER = 0


@dataclass(frozen=True)
class Call:
    """A request: when it was sent (monotonic clock), the seconds it took, its status, and whether the limiter counted it."""

    began: float
    seconds: float
    status: int
    is_counted: bool = False


@dataclass(frozen=True)
class Finding:
    """A line of the report: what was measured, and the limit it has to keep, if there is one."""

    what: str
    value: str
    limit: str = ""
    holds: bool = True

    def render(self) -> str:
        verdict = ("PASS" if self.holds else "FAIL") if self.limit else ""
        return f"{self.what:62} {self.value:>14}  {self.limit:20} {verdict}".rstrip()


@dataclass
class Traffic:
    """Requests made all the while: admits at a steady rate, and `/health`. Lists grow as the answers come."""

    port: int
    key: str
    users: int
    admits: list[Call] = field(default_factory=list)
    healths: list[Call] = field(default_factory=list)

    @contextlib.contextmanager
    def flowing(self) -> Iterator[None]:
        """Inside, it flows."""
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
    """A client with a connection that it keeps, as a product's HTTP library does."""

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
            self._connection.close()  # kept for longer than the server keeps it: once more, on a new one
            return self._ask_once(method, path, headers)

    def _ask_once(self, method: str, path: str, headers: dict[str, str]) -> http.client.HTTPResponse:
        self._connection.request(method, path, headers=headers)
        answer = self._connection.getresponse()
        answer.read()
        return answer


# -- products ----------------------------------------------------------------------------------------------------------


def register(own: Own, slug: str, env: dict[str, str]) -> str:
    """A product whose engines have these variables; returns its platform key."""
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
    """A running engine for each of `user-0`, `user-1` and so on."""
    for n in range(users):
        _call(own, "POST", "/engines/provision", {"X-Platform-Key": key}, {"user_id": f"user-{n}"})


class Waiting:
    """Provisions of engines that boot slowly, each waited for by a client of its own as long as it takes."""

    def __init__(self, own: Own, key: str) -> None:
        self._own, self._headers = own, {"X-Platform-Key": key, "Prefer": "wait=60"}
        self.statuses: Counter[int] = Counter()
        self.done = 0
        self.over = threading.Event()

    def begin(self, count: int) -> None:
        for n in range(count):
            threading.Thread(target=self._wait, args=(n,), daemon=True).start()

    def _wait(self, number: int) -> None:
        """Ask for the engine; told that it takes longer than somebody here may wait, look at the operation now and then."""
        with contextlib.suppress(requests.RequestException):
            answer = self._ask("POST", "/engines/provision", {"user_id": f"slow-{number}"})
            while answer.status_code == 202 or answer.json().get("state") in ("pending", "running"):
                self.over.wait(2)
                answer = self._ask("GET", f"/operations/{answer.json()['operation_id']}")
            self.done += 1

    def _ask(self, method: str, path: str, body: Any = None) -> requests.Response:
        if self.over.is_set():
            raise requests.RequestException
        answer = requests.request(method, self._own.url + path, json=body, headers=self._headers, timeout=120)
        self.statuses[answer.status_code] += 1
        return answer


# -- the disturbances --------------------------------------------------------------------------------------------------


def frozen_valkey(own: Own, traffic: Traffic, seconds: float) -> list[Finding]:
    """SIGSTOP Valkey for so long."""
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
    lines = [
        json.loads(line) for line in own.log("web").read_bytes()[logged:].splitlines() if b"rate_limiter_unavailable" in line
    ]
    slowest = max(call.seconds for call in during)
    most = type(settings.ENV).model_fields["web_workers"].default * math.ceil((seconds + 1) / 60)  # once a minute and process
    return [
        Finding(f"Valkey frozen for {seconds:.0f} s: slowest of {len(during)} admits", _ms(slowest), "<= 500 ms", slowest <= 0.5),
        Finding("  admits that were not answered with 200", *_others(during)),
        Finding("  admits that were not counted, by the log", str(sum(line["uncounted_admits"] for line in lines))),
        Finding("  lines about it in the log", str(len(lines)), f"1 to {most}", 1 <= len(lines) <= most),
        Finding("  the limiter counts again, after its return", f"{back - ended:.1f} s", "<= 5 s", back - ended <= 5),
    ]


def restarted_postgres(own: Own, traffic: Traffic) -> list[Finding]:
    """Stop PostgreSQL and start it at once."""
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


def waiting_provisions(own: Own, traffic: Traffic, waiting: Waiting, count: int, seconds: float) -> list[Finding]:
    """So many provisions of slow engines at once; admits before and meanwhile, for so long each."""
    with traffic.flowing():
        time.sleep(seconds)
    idle = [call.seconds for call in traffic.admits]
    traffic.admits.clear()
    traffic.healths.clear()
    with traffic.flowing():
        waiting.begin(count)
        time.sleep(seconds)
        waited_for = count - waiting.done
        waiting.over.set()
    busy = [call.seconds for call in traffic.admits]
    before, meanwhile = percentile(idle, 0.99), percentile(busy, 0.99)
    slowest = max(call.seconds for call in traffic.healths)
    failed = sum(number for status, number in waiting.statuses.items() if status >= 500)
    return [
        Finding(f"idle: p50 of {len(idle)} admits", _ms(percentile(idle, 0.5))),
        Finding("  p99", _ms(before)),
        Finding(
            f"{count} provisions waited for ({waited_for} to the end): p50 of {len(busy)} admits", _ms(percentile(busy, 0.5))
        ),
        Finding("  p99", _ms(meanwhile), f"<= 3 x {_ms(before)}", meanwhile <= 3 * before),
        Finding("  admits that were not answered with 200", *_others(traffic.admits)),
        Finding(f"  slowest of {len(traffic.healths)} /health", _ms(slowest), "< 1000 ms", slowest < 1),
        Finding("  /health that was not answered with 200", *_others(traffic.healths)),
        Finding("  5xx of the provisions and their operations", str(failed), "0", not failed),
    ]


def _settled(calls: Sequence[Call], is_well: Callable[[Call], bool]) -> float:
    """When the last of the calls that are not well had its answer; when the first was sent, if all are. Monotonic clock."""
    return max((call.began + call.seconds for call in calls if not is_well(call)), default=min(call.began for call in calls))


def _others(calls: Sequence[Call]) -> tuple[str, str, bool]:
    """Value, limit and verdict of "none but 200"."""
    others = Counter(call.status for call in calls if call.status != 200)
    return ", ".join(f"{number} x {status or 'none'}" for status, number in others.items()) or "0", "0", not others


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


def measure(own: Own, *, users: int, provisions: int, seconds: float, frozen_s: float) -> Iterator[Finding]:
    """All of it, one after the other, on a deployment that nobody else uses."""
    key = register(own, "bench", {})
    slow = register(own, "bench-slow", {"DEMO_FAULTS": "1", "DEMO_BOOT_DELAY_S": str(BOOT_S)})
    provision(own, key, users)
    yield from frozen_valkey(own, Traffic(own.port, key, users), frozen_s)
    yield from restarted_postgres(own, Traffic(own.port, key, users))
    yield from waiting_provisions(own, Traffic(own.port, key, users), Waiting(own, slow), provisions, seconds)
