"""No key in plaintext anywhere but in the one answer that hands it out: all that is kept, logged, sent or shown is searched."""

import re
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from html.parser import HTMLParser
from uuid import uuid4

import pytest
import redis
import requests
from django.conf import settings
from django.contrib.auth.models import User

from audit.models import AuditRow
from common import valkey
from config.local import postgres
from engines.models import Engine, Operation, OperationState, Status
from tests import servers, waiting
from tests.conftest import running_stack
from tests.reliability.runtimes import Docker, Subprocesses, used
from tests.staff import hire

KEY = re.compile(r"[aps]k-sept-[\w-]{20,}")
BEGINNING = re.compile(r"[aps]k-sept-")  # of a key: not even that is anywhere
PASSWORD = "correct horse battery staple"
VALUE = f"environment-value-{uuid4().hex}"
ENVIRONMENT = {
    "ORCH_LOG_LEVEL": "DEBUG",
    "ORCH_LEASE_S": "3",
    "ORCH_LEASE_RENEW_S": "1",
    "ORCH_RESEND_AFTER_S": "2",
    "ORCH_ENGINE_ENV_PASSTHROUGH": "DEMO_FAULTS,DEMO_BOOT_DELAY_S",
    "DEMO_FAULTS": "1",
    "DEMO_BOOT_DELAY_S": "1.5",
}
GIVEN = {"environments of engines", "docker inspect"}  # where a runtime shows what an engine was started with
IMAGES = ["roundhouse-demo-engine:*", "nope:*"]


@pytest.fixture
def commands(db) -> Iterator[list[str]]:
    """All that anybody sends to Valkey, from now on to the `ECHO over` that ends the test."""
    heard: list[str] = []
    client = redis.Redis.from_url(settings.REDIS_URL, socket_timeout=None)
    ready = threading.Event()

    def listen() -> None:
        with client.monitor() as monitor:
            ready.set()
            for command in monitor.listen():
                heard.append(command["command"])
                if heard[-1] == "ECHO over":
                    return

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    assert ready.wait(5)
    yield heard
    valkey.client().echo("over")
    thread.join(5)
    client.close()


class Operator:
    """Calls as the operator and as the product; keeps every answer's text, which is where keys do belong."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.admin_key = settings.ENV.admin_key
        self.platform_key = ""
        self.answers: list[str] = []

    def call(self, method: str, path: str, body=None, status: int = 200, **headers: str):
        keys = {"X-Admin-Key": self.admin_key, "X-Platform-Key": self.platform_key}
        response = requests.request(method, self.url + path, json=body, headers={**keys, **headers}, timeout=90)
        assert response.status_code == status, (method, path, response.text)
        self.answers.append(response.text)
        return response.json()


def live(operator, stack):
    """Everything that makes, uses, changes or fails with a key."""
    operator.admin_key = operator.call("POST", "/admin-keys", {"name": "ci"})["admin_api_key"]
    spare = operator.call("POST", "/admin-keys", {"name": "spare"}, **{"Idempotency-Key": "spare"})
    operator.call("POST", "/admin-keys", {"name": "spare"}, **{"Idempotency-Key": "spare"})
    operator.call("DELETE", f"/admin-keys/{spare['key_id']}")
    register = {"slug": "acme", "display_name": "Acme", "policy": {"images": IMAGES}}
    registered = operator.call("POST", "/products/register", register, **{"Idempotency-Key": "acme"})
    assert operator.call("POST", "/products/register", register, **{"Idempotency-Key": "acme"}) == registered
    product = f"/products/{registered['product_id']}"
    operator.call("PUT", f"{product}/engine-env", {"env": {"TOKEN": VALUE}})
    operator.call("PUT", f"{product}/engine-env", {"env": {"path": VALUE}}, 400)
    issued = operator.call("POST", f"{product}/platform-keys", {"scopes": ["read"]})
    operator.call("DELETE", f"{product}/platform-keys/{issued['key_id']}")
    operator.platform_key = registered["platform_api_key"]
    operator.platform_key = operator.call("POST", f"{product}/rotate-platform-key", {"overlap_s": 0})["platform_api_key"]
    engines(operator, stack)


def engines(operator, stack):
    """The lives of engines: one that a worker dies at, one that fails, one whose key cannot be read."""
    again = {"Idempotency-Key": "alice"}
    with ThreadPoolExecutor(1) as pool:
        request = pool.submit(partial(operator.call, "POST", "/engines/provision", {"user_id": "alice"}, **again))
        waiting.until(lambda: Operation.objects.filter(steps__contains=[{"step": "waiting_for_health"}]).exists(), 30)
        stack.kill("ops")
        first = request.result()
    assert operator.call("POST", "/engines/provision", {"user_id": "alice"}, **again)["api_key"] == first["api_key"]
    operator.call("POST", "/engines/alice/admit", {"auto_wake": True})
    operator.call("POST", "/engines/alice/rotate-key")
    operator.call("POST", "/engines/alice/stop")
    operator.call("POST", "/engines/alice/rotate-key", status=409)
    operator.call("POST", "/engines/alice/start")
    operator.call("GET", "/engines/alice/logs")
    operator.call("POST", "/engines/provision", {"user_id": "bob", "engine_version": "nope:1"}, 502)
    operator.call("POST", "/engines/carol/admit", {"auto_provision": True})
    Engine.objects.filter(user_id="bob").update(key_ciphertext="no token")
    operator.call("GET", "/engines/bob", status=500)
    operator.call("DELETE", "/engines/carol")
    wrong = {"X-Platform-Key": operator.platform_key + "x", "X-Admin-Key": operator.admin_key + "x"}
    operator.call("GET", "/engines", status=401, **wrong)
    operator.call("GET", "/admin-keys", status=401, **wrong)


# -- the admin, in a browser's place -------------------------------------------------------------------------------------


class Links(HTMLParser):
    """The addresses that a page links to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found |= {value for name, value in attrs if (tag, name) == ("a", "href") and value and value.startswith("/admin/")}


def log_in(url, username):
    session = requests.Session()
    session.get(f"{url}/admin/login/", timeout=30)
    post(session, f"{url}/admin/login/", username=username, password=PASSWORD, next="/admin/")
    return session


def post(session, address, **fields):
    fields["csrfmiddlewaretoken"] = session.cookies["csrftoken"]
    response = session.post(address, data=fields, headers={"Referer": address}, timeout=30)
    assert response.status_code == 200, response.status_code
    return response.text


def reveal(session, url, operator):
    """What staff see once: a key of an engine, of a product and of the operator."""
    engine = Engine.objects.get(user_id="alice")
    key = post(session, f"{url}/admin/engines/engine/{engine.pk}/reveal_key/")
    platform = post(session, f"{url}/admin/policy/product/{engine.product_id}/issue_key/", scopes=["read"])
    admin = post(session, f"{url}/admin/policy/adminkey/issue/", name="deploys")
    assert all(KEY.search(page) for page in (key, platform, admin))
    operator.answers += [key, platform, admin]


def crawl(session, url):
    """Every page of the admin that can be reached by links: address without its query → text."""
    pages: dict[str, str] = {}
    due = {"/admin/"}
    while due:
        address = due.pop()
        response = session.get(url + address, timeout=30)
        assert response.status_code == 200, address
        pages[address] = response.text
        links = {link.partition("#")[0].partition("?")[0] for link in Links(response.text).found}
        due |= {link for link in links if not link.startswith("/admin/logout")} - pages.keys()
    return pages


# -- what is kept --------------------------------------------------------------------------------------------------------


def dump_of_postgres():
    """`pg_dump` of everything, as the superuser."""
    command = [postgres.binaries() / "pg_dump", servers.SERVERS.urls.superuser]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def dump_of_valkey():
    """Every key with its value, and the file that a save writes."""
    client = valkey.client()
    client.config_set("rdbcompression", "no")
    client.save()
    file = servers.HOME / "valkey" / "dump.rdb"
    saved = file.read_bytes()
    file.unlink()
    read = {
        b"string": client.get,
        b"list": lambda key: client.lrange(key, 0, -1),
        b"set": client.smembers,
        b"hash": client.hgetall,
        b"zset": lambda key: client.zrange(key, 0, -1, withscores=True),
    }
    return str([(key, read[client.type(key)](key)) for key in client.scan_iter()]) + saved.decode("latin-1")


def files(name):
    folder = servers.HOME / name
    return "".join(path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file())


@pytest.fixture(params=["subprocess", "docker"])
def runtime(request, db) -> Iterator[Subprocesses | Docker]:
    runtime = Docker() if request.param == "docker" else Subprocesses()
    with used(runtime):
        yield runtime


def test_no_key_is_kept_logged_sent_or_shown(runtime, commands):
    hire("viewer", "policy.view_adminkey", password=PASSWORD)
    hire("operator", "policy.view_adminkey", "engines.operate_engine", "policy.operate_product", password=PASSWORD)
    User.objects.create_superuser("root", password=PASSWORD)
    with running_stack(**ENVIRONMENT, **runtime.environment) as stack:
        operator = Operator(stack.url)
        live(operator, stack)
        sessions = {name: log_in(stack.url, name) for name in ("root", "operator", "viewer")}
        reveal(sessions["root"], stack.url, operator)
        waiting.until(lambda: not Operation.objects.filter(state__in=[OperationState.PENDING, OperationState.RUNNING]).exists())
        pages = {name: crawl(session, stack.url) for name, session in sessions.items()}
        searched = {
            **runtime.told(),
            **{f"pages of {name}": "".join(found.values()) for name, found in pages.items()},
        }
    searched |= {
        "pg_dump": dump_of_postgres(),
        "Valkey": dump_of_valkey(),
        "commands to Valkey": "\n".join(commands),
        "logs": files("log"),
        "audit rows": str([vars(row) for row in AuditRow.objects.all()]),
    }
    handed_out = set(KEY.findall("".join(operator.answers)))
    assert len(handed_out) >= 10  # the pattern finds what there was to find
    for where, text in searched.items():
        assert text, where
        found = [text[max(0, hit.start() - 300) : hit.end() + 40] for hit in BEGINNING.finditer(text)]
        assert not found, (where, found[:3])
        assert not any(key.partition("-sept-")[2] in text for key in handed_out), where
        if where not in (*GIVEN, "files of engines"):  # there it has to be
            assert VALUE not in text, where
    (given,) = searched.keys() & GIVEN
    check_searched(searched, pages, searched[given])


def check_searched(searched, pages, given):
    """That the search was one: each place holds what it is expected to hold."""
    engine = Engine.objects.get(user_id="alice")
    assert engine.status == Status.RUNNING
    assert Operation.objects.filter(engine=engine, attempt__gt=1).exists()  # the worker died in the middle
    assert engine.key_hash in searched["pg_dump"]
    assert engine.key_hash in given
    assert VALUE in given
    assert f"/admin/engines/engine/{engine.pk}/change/" in pages["viewer"].keys() & pages["root"].keys()
    assert "/admin/policy/adminkey/issue/" in pages["root"].keys() - pages["viewer"].keys()
    assert {path for path in pages["operator"] if path.endswith("/issue_key/")}
    for words in ("InvalidToken", "run_operation", "lease"):  # the traceback, the worker's lines
        assert words in searched["logs"], words
    assert str(Operation.objects.filter(engine=engine).first().pk) in searched["commands to Valkey"]
