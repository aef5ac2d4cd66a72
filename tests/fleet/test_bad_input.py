"""Bad input on the real web server, for every endpoint there is: the envelope with a 4xx, nothing written, nothing told."""

import contextlib
import http.client
import itertools
import json
import socket

import pytest
import requests
from django.apps import apps
from django.conf import settings
from django.db.models.functions import Now

from config.web import refusals
from policy import admin_keys, products
from policy.models import AdminKey, PlatformKey
from tests import waiting
from tests.conftest import empty, make_product
from tests.engines.registry import put_engine, put_operation
from tests.envelopes import assert_error
from tests.fleet.endpoints import ALL, ANY_ID, PATHS, methods
from tests.stack import Stack

ADMIN_KEY = settings.ENV.admin_key
JSON = "application/json"
OF_PRODUCTS = [endpoint for endpoint in ALL if endpoint.header == "X-Platform-Key"]
OF_ADMINS = [endpoint for endpoint in ALL if endpoint.header == "X-Admin-Key"]
WITH_BODY = [endpoint for endpoint in ALL if endpoint.takes_body]
PER_ENDPOINT = {"ids": str}
TOLD_BY_NOBODY = ("Traceback", "<html", "<!DOCTYPE", "sk-sept-", "pk-sept-", ADMIN_KEY, "django", "psycopg", "gunicorn")

BODIES = {
    "broken": b"{",
    "not json": b"user_id=alice",
    "two values": b"{} {}",
    "nan": b'{"user_id": NaN}',
    "invalid utf-8": b'{"user_id": "\xff"}',
    "half a character": b'{"user_id": "\\ud83e"}',
    "nul": b'{"user_id": "a\\u0000b", "slug": "a\\u0000b", "display_name": "\\u0000", "policy": {"\\u0000": 1}}',
    "huge number": b'{"user_id": ' + b"9" * 5000 + b"}",
    "deep": b"[" * 100_000,
    "1 MB": b'{"user_id": "' + b"x" * 1024 * 1024 + b'"}',
    "10,000 characters": json.dumps(dict.fromkeys(("user_id", "slug", "display_name", "name"), "x" * 10_000)).encode(),
    "list for object": b'[{"user_id": "alice"}]',
    "string": b'"alice"',
    "number": b"1",
    "null": b"null",
    "unknown field": b'{"user": "alice"}',
    "wrong types": b'{"user_id": 1, "slug": [], "display_name": {}, "policy": "{}", "auto_wake": 7, "name": false, "values": 1}',
}
BODY_TYPES = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "x", "text/html")


@pytest.fixture(scope="module")
def server(database, django_db_blocker):
    """A web process for the whole module."""
    empty()
    with django_db_blocker.unblock(), contextlib.closing(Stack(ORCH_WEB_THREADS="8")) as stack:
        stack.start("web")
        waiting.until(stack.serves, 30, "the web server answers")
        yield stack


@pytest.fixture(scope="module")
def acme(server):
    """A product with an engine, and another product's engine beside it."""
    product = make_product()
    put_engine(product, "alice")
    put_operation(put_engine(make_product("other"), "bob"))
    return product


@pytest.fixture
def unchanged(acme):
    """Fails a test that leaves anything written."""
    before = contents()
    yield
    assert contents() == before


def contents():
    """All that is written, but for when a key was last used."""
    found = {}
    for model in apps.get_models():
        columns = [field.attname for field in model._meta.concrete_fields if field.attname != "last_used_at"]
        found[model._meta.label] = sorted(map(repr, model.objects.values_list(*columns)))
    return found


def keys_of(product):
    return {"X-Platform-Key": product.key, "X-Admin-Key": ADMIN_KEY}


def send(server, endpoint, headers, content=b"", content_type=JSON, path=None, product_id=None):
    """One request; `product_id` takes the place of the id that no product has."""
    url = server.url + (path or endpoint.path)
    url = url.replace(ANY_ID, str(product_id)) if product_id else url
    all_headers = {**headers, "Prefer": "respond-async", **({"Content-Type": content_type} if content_type else {})}
    return requests.request(endpoint.method, url, data=content, headers=all_headers, timeout=30)


def refused(response, status, code):
    """An error like any other, which says nothing of how things are inside."""
    error = assert_error(response, status, code)
    told = response.text.lower()
    assert not [word for word in TOLD_BY_NOBODY if word.lower() in told], response.text
    return error


def test_every_endpoint_is_found():
    assert len(OF_PRODUCTS) >= 13
    assert len(OF_ADMINS) >= 2
    assert {"/engines/provision", "/engines/alice/admit", "/audit", "/health", "/products/register"} <= set(PATHS)


# -- bodies ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", WITH_BODY, **PER_ENDPOINT)
def test_body_that_is_wrong_is_refused(server, acme, unchanged, subtests, endpoint):
    for name, body in BODIES.items():
        with subtests.test(name):
            refused(send(server, endpoint, keys_of(acme), body, product_id=acme.pk), 400, "INVALID_REQUEST")


@pytest.mark.parametrize("endpoint", WITH_BODY, **PER_ENDPOINT)
def test_body_of_another_type_is_refused(server, acme, unchanged, subtests, endpoint):
    for content_type in BODY_TYPES:
        with subtests.test(content_type):
            response = send(server, endpoint, keys_of(acme), b'{"user_id": "carol"}', content_type, product_id=acme.pk)
            refused(response, 415, "UNSUPPORTED_MEDIA_TYPE")


@pytest.mark.parametrize("path", ["/engines/provision", "/products/register", f"/products/{ANY_ID}/policy"])
def test_no_body_is_an_empty_object_and_refused_where_something_is_required(server, acme, unchanged, path):
    (endpoint,) = [endpoint for endpoint in WITH_BODY if endpoint.path == path]
    for content_type in (JSON, None):
        error = refused(send(server, endpoint, keys_of(acme), content_type=content_type), 400, "INVALID_REQUEST")
        assert error["details"]["fields"]


def test_chunked_body_is_read_as_any_other(server, acme, unchanged):
    provision, register = (
        next(endpoint for endpoint in WITH_BODY if endpoint.path == path) for path in ("/engines/provision", "/products/register")
    )
    for endpoint, body in itertools.product((provision, register), BODIES.values()):
        refused(send(server, endpoint, keys_of(acme), iter([body[:7], body[7:]])), 400, "INVALID_REQUEST")
    chunks = iter([b'{"user_id"', b': "alice"}'])
    refused(send(server, provision, keys_of(acme), chunks), 409, "ENGINE_ALREADY_EXISTS")


# -- paths, methods, parameters ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
def test_method_that_is_none_is_not_allowed(server, acme, unchanged, subtests, path):
    allowed = methods(path) | ({"GET", "DELETE"} if path == "/engines/provision" else set())
    for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "BREW"} - allowed:
        with subtests.test(method):
            response = requests.request(method, server.url + path, headers=keys_of(acme), timeout=30)
            refused(response, 405, "METHOD_NOT_ALLOWED")
            assert set(response.headers["Allow"].split(", ")) <= allowed | {"OPTIONS", "HEAD"}


UNKNOWN = ["/", "/engines/", "/engine", "/engines/alice/none", "/engines/alice/admit/", "/engines//admit", "/operations/1",
           "/products", "/products/1/policy", "/admin.php", "/administrator", "/static/none.css", "/favicon.ico", "/%00", "/%ff",
           "/%ED%A0%80", "/engines/%ff", "//engines/alice", "/ENGINES/alice", "/engines/alice%2faudit/none", "/health/", "/.env",
           "/static/../manage.py", "/static/%2e%2e/manage.py", "/*"]  # fmt: skip


@pytest.mark.parametrize("path", UNKNOWN)
def test_path_that_is_none_is_not_found(server, acme, unchanged, path):
    for method in ("GET", "POST", "DELETE"):
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *(f"{name}: {key}" for name, key in keys_of(acme).items())]
        refused(raw(server, "\r\n".join([*lines, "Connection: close", "", ""]).encode()), 404, "NOT_FOUND")


@pytest.mark.parametrize("endpoint", [endpoint for endpoint in ALL if endpoint.is_of_user], **PER_ENDPOINT)
def test_user_id_in_the_path_that_cannot_be_is_refused(server, acme, unchanged, subtests, endpoint):
    cannot_be = (".", "..", "%2E", "%2e%2e", "%00", "a%00b") + (() if endpoint.path.endswith("/audit") else ("%0A", "x" * 256))
    for segment in cannot_be:
        with subtests.test(segment):
            head = [f"{endpoint.method} {endpoint.path.replace('alice', segment)} HTTP/1.1", "Host: localhost"]
            head += [*(f"{name}: {key}" for name, key in keys_of(acme).items()), "Connection: close", "", ""]
            refused(raw(server, "\r\n".join(head).encode()), 400, "INVALID_REQUEST")


@pytest.mark.parametrize("path", ["/engines", "/audit", "/engines/alice/audit"])
@pytest.mark.parametrize("limit", ["-1", "1000000000", "0", "1001", "1.5", "1e2", "x", "", "%00", "%FF", "١", "9" * 3000, "NaN"])
def test_limit_that_cannot_be_is_refused(server, acme, unchanged, path, limit):
    response = requests.get(f"{server.url}{path}?limit={limit}", headers=keys_of(acme), timeout=30)
    assert refused(response, 400, "INVALID_REQUEST")["details"]["fields"].keys() == {"limit"}


@pytest.mark.parametrize(
    "query",
    ["offset=-1", "offset=1000000000", "offset=x", "status=none", "status=%00", "status=RUNNING"],
)
def test_parameter_of_the_list_that_cannot_be_is_refused(server, acme, unchanged, query):
    response = requests.get(f"{server.url}/engines?{query}", headers=keys_of(acme), timeout=30)
    assert refused(response, 400, "INVALID_REQUEST")["details"]["fields"].keys() == {query.partition("=")[0]}


@pytest.mark.parametrize(
    "query",
    ["since=x", "since=99999-01-01", "until=2026-13-01", "action=none", "engine_id=1",
     "user_id=%00", "actor=%00", "cursor=x", "cursor=%00", "none=1", "since="],
)  # fmt: skip
def test_parameter_of_the_record_that_cannot_be_is_refused(server, acme, unchanged, query):
    for path in ("/audit", "/engines/alice/audit"):
        response = requests.get(f"{server.url}{path}?{query}", headers=keys_of(acme), timeout=30)
        refused(response, 400, "INVALID_REQUEST")


# -- keys --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wrong_keys(acme):
    """Of a product: names of what is wrong with each."""
    revoked, expired = (products.issue_key(acme, by="admin") for _ in range(2))
    products.revoke_key(revoked[0].pk, by="admin")
    PlatformKey.objects.filter(pk=expired[0].pk).update(expires_at=Now())
    return {
        "missing": {},
        "empty": {"X-Platform-Key": ""},
        "wrong": {"X-Platform-Key": "pk-sept-" + "x" * 43},
        "one character off": {"X-Platform-Key": acme.key[:-1]},
        "not ascii": {"X-Platform-Key": "ключ".encode()},
        "its hash": {"X-Platform-Key": PlatformKey.objects.filter(product=acme).first().key_hash},
        "10,000 characters": {"X-Platform-Key": "x" * 8000},
        "revoked": {"X-Platform-Key": revoked[1]},
        "expired": {"X-Platform-Key": expired[1]},
        "an admin's": {"X-Admin-Key": ADMIN_KEY},
        "in another header": {"Authorization": f"Bearer {acme.key}"},
    }


@pytest.mark.parametrize("endpoint", OF_PRODUCTS, **PER_ENDPOINT)
def test_product_endpoint_refuses_a_wrong_key(server, acme, wrong_keys, unchanged, subtests, endpoint):
    for name, headers in wrong_keys.items():
        if name == "an admin's" and endpoint.takes_any_key:
            continue
        with subtests.test(name):
            response = send(server, endpoint, headers, b'{"user_id": "carol"}')
            refused(response, 401, "INVALID_PLATFORM_KEY")
            assert response.headers["WWW-Authenticate"] == "X-Platform-Key"


@pytest.fixture(scope="module")
def wrong_admin_keys(acme):
    revoked, expired = (admin_keys.issue(name, by="admin") for name in ("revoked", "expired"))
    admin_keys.revoke(revoked[0].pk, by="admin")
    AdminKey.objects.filter(pk=expired[0].pk).update(expires_at=Now())
    return {
        "missing": "",
        "wrong": "x" * 43,
        "one character off": ADMIN_KEY[:-1],
        "a product's": acme.key,
        "its hash": expired[0].key_hash,
        "revoked": revoked[1],
        "expired": expired[1],
    }


@pytest.mark.parametrize("endpoint", OF_ADMINS, **PER_ENDPOINT)
def test_admin_endpoint_refuses_a_wrong_key(server, acme, wrong_admin_keys, unchanged, subtests, endpoint):
    for name, key in wrong_admin_keys.items():
        with subtests.test(name):
            body = b'{"slug": "new", "display_name": "New", "name": "new", "policy": {}}'
            response = send(server, endpoint, {"X-Admin-Key": key, "X-Platform-Key": acme.key}, body, product_id=acme.pk)
            refused(response, 401, "INVALID_ADMIN_KEY")
            assert response.headers["WWW-Authenticate"] == "X-Admin-Key"


@pytest.mark.parametrize(
    "endpoint", [one for one in OF_PRODUCTS if one.is_of_user and not one.path.endswith(("/admit", "/audit"))], **PER_ENDPOINT
)
def test_key_of_another_product_does_not_find_the_engine(server, acme, unchanged, endpoint):
    refused(send(server, endpoint, keys_of(acme), path=endpoint.path.replace("alice", "bob")), 404, "ENGINE_NOT_FOUND")


def test_refused_key_leaves_one_log_line(server, acme):
    """The line has what staff knows the key by, and no more of the key."""
    _, reader = products.issue_key(acme, by="admin", scopes=["read"])
    keys = ["pk-sept-abcdefghijk", "ak-sept-zyxwvutsrqp", "somebody-elses-secret", reader]
    for number, key in enumerate(keys):
        requests.post(f"{server.url}/engines/u{number}/stop", headers={"X-Platform-Key": key}, timeout=10)
    told = [json.loads(line) for line in server.log("web").splitlines() if line.startswith("{") and "/engines/u" in line]
    assert [line["event"] for line in told] == ["key_refused"] * 4
    assert [line["key"] for line in told] == ["abcdef", "zyxwvu", "", reader.removeprefix("pk-sept-")[:6]]
    assert [line["code"] for line in told] == ["INVALID_PLATFORM_KEY"] * 3 + ["INSUFFICIENT_SCOPE"]
    assert {(line["address"], line["method"]) for line in told} == {("127.0.0.1", "POST")}
    assert [line["path"] for line in told] == [f"/engines/u{number}/stop" for number in range(4)]
    assert not [key for key in keys if key in server.log("web")]


# -- what no cache, proxy or browser may be told -------------------------------------------------------------------------------


def test_answer_of_the_api_is_kept_by_no_cache(server, acme, subtests):
    shared = ("/schema/", "/docs/")
    for endpoint in (one for one in ALL if one.path not in shared):
        with subtests.test(f"{endpoint.method} {endpoint.path}"):
            assert send(server, endpoint, keys_of(acme)).headers["Cache-Control"] == "no-store"
    for path in ("/nope", "/%41", "/docs%2F", "/docs/nope", "/static/nope"):
        assert requests.get(server.url + path, timeout=10).headers["Cache-Control"] == "no-store"
    assert raw(server, b"nonsense\r\n\r\n").headers["Cache-Control"] == "no-store"
    for path in shared:
        assert "no-store" not in requests.get(server.url + path, timeout=10).headers.get("Cache-Control", "")


def test_escaped_path_outside_engines_is_not_found(server, acme, subtests):
    escaped = (
        "/%73tatus",
        "/statu%73",
        "/%61dmin/",
        "/admin%2Flogin/",
        "/admin/%6cogin/",
        "/%65ngines",
        "/health%3f",
        "/docs%2f",
        "/operations/%31",
    )
    for path in (*escaped, "//localhost/%73tatus"):
        with subtests.test(path):
            refused(raw(server, line(path, acme)), 404, "NOT_FOUND")


def line(path, acme, *headers, method="GET"):
    """The bytes of a request with this very path."""
    keys = [f"{name}: {key}" for name, key in keys_of(acme).items()]
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *keys, *headers, "Connection: close", "", ""]).encode()


FORWARDER = [
    "SCRIPT_NAME: /status", "Script-Name: /status", "PATH_INFO: /health", "X-Script-Name: /status", "X-Original-URL: /health",
    "X-Rewrite-URL: /health", "X-Forwarded-Prefix: /status", "X-Forwarded-Host: evil.example", "X-Forwarded-Path: /health",
    "X-HTTP-Method-Override: DELETE", "Forwarded: for=203.0.113.9;host=evil.example;proto=https",
]  # fmt: skip


@pytest.mark.parametrize("header", FORWARDER)
def test_header_of_a_forwarder_changes_nothing(server, acme, header):
    """From a client on loopback, which gunicorn itself would believe."""
    expected, found = raw(server, line("/status", acme)), raw(server, line("/status", acme, header))
    assert (found.status_code, found.content) == (expected.status_code, expected.content) == (200, expected.content)


def test_trace_is_not_allowed_on_any_page(server, acme, subtests):
    for path in ("/admin/", "/admin/login/", "/static/fleet/admin.css", "/schema/", "/docs/"):
        with subtests.test(path):
            answer = raw(server, line(path, acme, method="TRACE"))
            assert answer.status_code == 405
            assert "TRACE" not in answer.headers["Allow"]
            assert b"pk-sept-" not in answer.content


# -- what is no request ------------------------------------------------------------------------------------------------------


def raw(server, *parts, end=False):
    """The answer to these very bytes; with `end`, nothing comes after them."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        for part in parts:
            connection.sendall(part)
        if end:
            connection.shutdown(socket.SHUT_WR)
        return answer_on(connection)


def answer_on(connection):
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    response = requests.Response()
    response.status_code, response.headers = answer.status, requests.structures.CaseInsensitiveDict(answer.headers)
    response._content = answer.read()
    return response


HOST = b"Host: localhost\r\n"
POST = b"POST /engines/alice/stop HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
MALFORMED = {
    "nonsense": b"\x00\x01\x02\x03\r\n\r\n",
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "no version": b"GET /health\r\n\r\n",
    "another version": b"GET /health HTTP/9.9\r\n" + HOST + b"\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "method": b"G(T /health HTTP/1.1\r\n" + HOST + b"\r\n",
    "target": b"GET http://[::1/engines/alice HTTP/1.1\r\n" + HOST + b"\r\n",
    "spaces in the target": b"GET /engines/a b HTTP/1.1\r\n" + HOST + b"\r\n",
    "line of 10,000": b"GET /engines/" + b"x" * 10_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    "header of 10,000": b"GET /health HTTP/1.1\r\n" + HOST + b"X-Platform-Key: pk-sept-" + b"x" * 10_000 + b"\r\n\r\n",
    "200 headers": b"GET /health HTTP/1.1\r\n" + HOST + b"".join(b"X-%d: 1\r\n" % number for number in range(200)) + b"\r\n",
    "header's name": b"GET /health HTTP/1.1\r\n" + HOST + b"X Platform Key: pk-sept-secret\r\n\r\n",
    "header without a colon": b"GET /health HTTP/1.1\r\n" + HOST + b"pk-sept-secret\r\n\r\n",
    "NUL in a header": b"GET /health HTTP/1.1\r\n" + HOST + b"X-Platform-Key: pk-sept-\x00\r\n\r\n",
    "header in two lines": b"GET /health HTTP/1.1\r\n" + HOST + b"X-Platform-Key: a\r\n b\r\n\r\n",
    "length that is none": POST + b"Content-Length: abc\r\n\r\n{}",
    "negative length": POST + b"Content-Length: -1\r\n\r\n{}",
    "two lengths": POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "length and chunks": POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "unknown coding": POST + b"Transfer-Encoding: br\r\n\r\n{}",
    "chunk without a size": POST + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n{}\r\n0\r\n\r\n",
    "chunk without an end": POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}abc\r\n0\r\n\r\n",
    "expectation": POST + b"Expect: miracles\r\nContent-Length: 2\r\n\r\n{}",
    "no such host": b"GET /health HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
    "host that cannot be": b"GET /engines HTTP/1.1\r\nHost: a b<c>\r\nConnection: close\r\n\r\n",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_no_request_is_answered_in_json(server, acme, unchanged, name):
    refused(raw(server, MALFORMED[name]), 400, "INVALID_REQUEST")


def test_body_that_ends_early_is_refused(server, acme, unchanged):
    head = f"POST /engines/provision HTTP/1.1\r\nHost: localhost\r\nContent-Type: {JSON}\r\nX-Platform-Key: {acme.key}\r\n"
    refused(raw(server, f"{head}Content-Length: 100\r\n\r\n".encode(), b'{"user_id": "c', end=True), 400, "INVALID_REQUEST")


def test_failure_outside_django_tells_nothing():
    ours, theirs = socket.socketpair()
    ours.sendall(refusals.of_error(RuntimeError("sk-sept-secret")))
    ours.close()
    refused(answer_on(theirs), 500, "INTERNAL_ERROR")


def test_server_serves_on_after_all_that_and_has_no_key_in_its_log(server, acme):
    assert server.call("GET", "/engines/alice", acme.key).status_code == 200
    assert "pk-sept-" not in server.log("web")
    assert ADMIN_KEY not in server.log("web")
