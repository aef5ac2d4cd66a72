"""Whatever is wrong with a request, the answer is the envelope with the right code: no HTML, no traceback, no 5xx."""

import itertools
import json
import uuid
from urllib.parse import urlencode

import pytest
from django.conf import settings
from hypothesis import HealthCheck, given, settings as hypothesis_settings, strategies as st

from policy import products
from policy.models import PlatformKey
from tests import examples
from tests.engines.registry import put_engine
from tests.envelopes import assert_error
from tests.refused_writes import refusing
from tests.staff import log_in

ANY_ID = "00000000-0000-4000-8000-000000000000"
PRODUCTS = [
    ("POST", "/engines/provision"),
    ("GET", "/engines"),
    ("GET", "/engines/alice"),
    ("DELETE", "/engines/alice"),
    ("POST", "/engines/alice/start"),
    ("POST", "/engines/alice/stop"),
    ("POST", "/engines/alice/rotate-key"),
    ("POST", "/engines/alice/admit"),
    ("GET", "/engines/alice/audit"),
    ("GET", f"/operations/{ANY_ID}"),
    ("GET", "/audit"),
    ("GET", "/status"),
    ("GET", "/metrics"),
]
ADMINS = [("POST", "/products/register"), ("PUT", f"/products/{ANY_ID}/policy")]
WITH_BODY = [(method, path) for method, path in PRODUCTS if method == "POST"] + ADMINS
ADMIN_KEY = {"X-Admin-Key": settings.ENV.admin_key}


def send(api, method, path, content=b"", content_type="application/json", **headers):
    """One request with the raw body, with both keys."""
    return api.generic(method, path, content, content_type, headers={**api.headers_of(), **ADMIN_KEY, **headers})


# -- keys ----------------------------------------------------------------------------------------------------------------


def test_product_endpoint_refuses_a_key_that_is_none(client, product, subtests):
    revoked = products.issue_key(product, by="admin")
    products.revoke_key(revoked[0].pk, by="admin")
    wrong = (
        {},
        {"X-Platform-Key": ""},
        {"X-Platform-Key": "pk-sept-" + "x" * 43},
        {"X-Platform-Key": product.key + " x"},
        {"X-Platform-Key": product.key.upper()},
        {"X-Platform-Key": "ключ".encode().decode("latin-1")},
        {"X-Platform-Key": PlatformKey.objects.first().key_hash},
        {"X-Platform-Key": revoked[1]},
        {"Authorization": f"Bearer {product.key}"},
        ADMIN_KEY,
    )
    for (method, path), headers in itertools.product(PRODUCTS, wrong):
        if path == "/audit" and headers is ADMIN_KEY:  # takes either key
            continue
        with subtests.test(method=method, path=path, headers=headers):
            response = client.generic(method, path, headers=headers)
            assert_error(response, 401, "INVALID_PLATFORM_KEY")
            assert response.headers["WWW-Authenticate"] == "X-Platform-Key"


def test_admin_endpoint_refuses_a_key_that_is_none(client, product, subtests):
    wrong = ({}, {"X-Admin-Key": ""}, {"X-Admin-Key": "x"}, {"X-Admin-Key": product.key}, {"X-Platform-Key": product.key})
    for (method, path), headers in itertools.product(ADMINS, wrong):
        with subtests.test(method=method, path=path, headers=headers):
            response = client.generic(method, path, b"{}", "application/json", headers=headers)
            assert_error(response, 401, "INVALID_ADMIN_KEY")
            assert response.headers["WWW-Authenticate"] == "X-Admin-Key"


def test_admin_endpoint_needs_the_admin_key_alone(client, db):
    body = {"slug": "acme", "display_name": "Acme"}
    assert client.post("/products/register", body, "application/json", headers=ADMIN_KEY).status_code == 200


def test_admin_endpoint_stays_shut_while_no_admin_key_is_set(client, db, settings):
    settings.ENV = settings.ENV.model_copy(update={"admin_key": ""})
    for headers in ({}, {"X-Admin-Key": ""}):
        assert_error(client.post("/products/register", {}, "application/json", headers=headers), 401, "INVALID_ADMIN_KEY")


# -- paths and methods ---------------------------------------------------------------------------------------------------


NO_PATHS = [
    "/", "/engines/", "/engine", "/engines/a/b/c", "/engines/alice/admit/", "/status/", "/operations/1", f"/operations/{ANY_ID}/",
    "/products", "/products/1/policy", "/administrator", "/admin.php", "/static/none.css", "/favicon.ico", "/%00", "/%ff",
    "/engines//admit", "/health/x",
]  # fmt: skip


def test_path_that_is_none_is_not_found(api, subtests):
    for path, method in itertools.product(NO_PATHS, ("GET", "POST")):
        with subtests.test(method=method, path=path):
            assert_error(send(api, method, path), 404, "NOT_FOUND")


def test_operation_that_is_none_is_not_found(api):
    assert_error(send(api, "GET", f"/operations/{uuid.uuid4()}"), 404, "NOT_FOUND")


def test_method_that_is_none_is_not_allowed(api, subtests):
    for path in {path for _, path in PRODUCTS + ADMINS} | {"/health"}:
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "TRACE", "BREW"} - allowed(path):
            with subtests.test(method=method, path=path):
                response = send(api, method, path)
                assert response.status_code == 405
                assert set(response.headers["Allow"].split(", ")) <= allowed(path) | {"OPTIONS"}
                if method != "HEAD":
                    assert_error(response, 405, "METHOD_NOT_ALLOWED")


def allowed(path):
    if path == "/health":
        return {"GET", "HEAD"}
    named = {"GET", "DELETE"} if path == "/engines/provision" else set()
    return named | {method for method, known in PRODUCTS + ADMINS if known == path}


def test_host_that_is_not_ours_is_refused(api):
    assert_error(send(api, "GET", "/admin/", Host="evil.example"), 400, "INVALID_REQUEST")


# -- bodies --------------------------------------------------------------------------------------------------------------

BROKEN = {
    "broken": b'{"user_id": ',
    "not json": b"user_id=alice",
    "trailing": b"{} {}",
    "nan": b'{"user_id": NaN}',
    "infinity": b'{"policy": {"max_engines": Infinity}}',
    "not utf-8": b'{"user_id": "\xff"}',
    "half a character": b'{"\\ud800": 1, "user_id": "\\udc00"}',
    "huge number": b'{"user_id": ' + b"9" * 5000 + b"}",
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "deep object": b'{"policy":' * 50_000 + b"1" + b"}" * 50_000,
    "long": b'{"user_id": "' + b"x" * 1_100_000 + b'"}',
    "a list": b'[{"user_id": "alice"}]',
    "an empty list": b"[]",
    "a string": b'"alice"',
    "a number": b"1",
    "false": b"false",
    "null": b"null",
    "unknown field": b'{"user": "alice"}',
    "unknown field of any name": '{"\\u0000<script>émoji 😀": 1}'.encode(),
}


def test_body_that_is_wrong_is_refused(api, product, subtests):
    put_engine(product)
    for (method, path), (name, body) in itertools.product(WITH_BODY, BROKEN.items()):
        with subtests.test(name, method=method, path=path):
            assert_error(send(api, method, path, body), 400, "INVALID_REQUEST")


def test_body_of_another_type_is_refused(api, subtests):
    types = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "x", "")
    for (method, path), content_type in itertools.product(WITH_BODY, types):
        with subtests.test(method=method, path=path, content_type=content_type):
            assert_error(send(api, method, path, b'{"user_id": "alice"}', content_type), 415, "UNSUPPORTED_MEDIA_TYPE")


def test_body_is_utf8_whatever_the_header_says(api, subtests):
    for number, charset in enumerate(["utf-8", "latin-1", "utf-16", "zip", "base64", "idna", "nonsense"]):
        with subtests.test(charset=charset):
            body = json.dumps({"user_id": f"élise{number}"}, ensure_ascii=False).encode()
            response = send(
                api, "POST", "/engines/provision", body, f"application/json; charset={charset}", Prefer="respond-async"
            )
            assert response.status_code == 202, response.content
            assert api.call("GET", "/engines?limit=1").json()["engines"][0]["user_id"] == f"élise{number}"


def test_unknown_and_wrong_fields_are_named(api, product):
    put_engine(product)
    cases = [
        ("/engines/alice/admit", {"auto_wak": True}, "auto_wak"),
        ("/engines/alice/admit", {"auto_wake": "perhaps"}, "auto_wake"),
        ("/engines/alice/admit", {"auto_wake": None}, "auto_wake"),
        ("/engines/alice/admit", {"auto_provision": []}, "auto_provision"),
        ("/engines/alice/stop", {"force": True}, "force"),
        ("/engines/provision", {}, "user_id"),
        ("/engines/provision", {"user_id": "bob", "engine_version": 3}, "engine_version"),
        ("/engines/provision", {"user_id": "bob", "engine_version": None}, "engine_version"),
        ("/engines/provision", {"user_id": "bob", "product_id": ANY_ID}, "product_id"),
    ]
    for path, body, field in cases:
        error = assert_error(api.call("POST", path, body), 400, "INVALID_REQUEST")
        assert error["details"]["fields"].keys() == {field}


# fmt: off
USER_IDS = [
    None, 1, True, [], {}, ["alice"], "", "\0", "a\0b", "x" * 256, "x" * 10_000, "👩\u200d👧" * 86, "line\nbreak", "tab\t", "\x7f",  # noqa: E501
    ".", "..", "\u202e", "a\u202ab", "\u2066", "\u2069", "\u200b", "\u200e", "\ufeff", "\u2028", "\u00a0", "\u3000", "\ue000",
    "\x85", "\uffff", "\U000e0001", "\U0010ffff",
    "ali\u200dce", "alice\u200d", "ali\u200cce", "ali\U000e0061ce", "\u3164", "\u115f",
    "alice\u034f", "alice\ufe0f", "❤\ufe0e", "👩\u200d👩", "👩\u200d", "1\u200d2", "🦊\ufe0f",
    "🏴\U000e0061\U000e007f", "مي\u200c", "\u2800",
    "\u00ad", "\u180e", "a\u094d\u200cb",
]
TAKEN_IDS = [
    "x" * 255, "a", "with space", "ünïcödé", "日本", "🦊", "a/b?c#d&e=f%20+;:@,", "%2F", "<b>", "'\"", "👩\u200d👧", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "❤️\u200d🔥", "🫨",  # noqa: E501
    "می\u200cخواهم", "क\u094d\u200dष", "1\ufe0f\u20e3", "🇩🇪", "👍🏽", "🧑\u200d🩰",
]
# fmt: on


def test_user_id_that_cannot_be_is_refused(api, subtests):
    for user_id in USER_IDS:
        with subtests.test(user_id=repr(user_id)):
            error = assert_error(api.call("POST", "/engines/provision", {"user_id": user_id}), 400, "INVALID_REQUEST")
            assert "user_id" in str(error)


def test_user_id_of_printable_characters_is_taken(api, subtests):
    for user_id in TAKEN_IDS:
        with subtests.test(user_id=user_id):
            assert api.call("POST", "/engines/provision", {"user_id": user_id}, Prefer="respond-async").status_code == 202
            assert api.call("GET", "/engines?limit=1").json()["engines"][0]["user_id"] == user_id


def test_user_id_in_the_path_that_cannot_be_is_refused(api, subtests):
    of_users = [(method, path) for method, path in PRODUCTS if "/alice" in path and not path.endswith("/audit")]
    for (method, path), segment in itertools.product(of_users, ("%00", "a%00b", "%0A", "x" * 256)):
        with subtests.test(method=method, path=path, segment=segment):
            assert_error(send(api, method, path.replace("alice", segment)), 400, "INVALID_REQUEST")


def test_engine_version_that_cannot_be_is_refused(api, subtests):
    for engine_version in ("", " ", "a b", "x" * 256, "a\0", "a\nb"):
        with subtests.test(engine_version=engine_version):
            body = {"user_id": "alice", "engine_version": engine_version}
            error = assert_error(api.call("POST", "/engines/provision", body), 400, "INVALID_REQUEST")
            assert "engine_version" in str(error)


# -- headers -------------------------------------------------------------------------------------------------------------


def test_answer_is_json_whatever_the_caller_accepts(api, subtests):
    for accept in ("text/html", "application/xml", "text/html,*/*;q=0.1", "nonsense", "application/json;version=9"):
        with subtests.test(accept=accept):
            assert send(api, "GET", "/status?format=xml", Accept=accept).json()["total"] == 0
            assert_error(send(api, "GET", "/engines/none", Accept=accept), 404, "ENGINE_NOT_FOUND")


def test_request_id_is_taken_and_returned(api, subtests):
    for path in ("/status", "/engines/none", "/none", "/health"):
        with subtests.test(path=path):
            assert send(api, "GET", path, **{"X-Request-ID": "req-1:a/b.c"}).headers["X-Request-ID"] == "req-1:a/b.c"


def test_request_id_that_is_none_is_replaced(api, subtests):
    for offered in ("", "x" * 129, "a b", "é", "a\tb", "<script>", '"'):
        with subtests.test(offered=offered):
            assert uuid.UUID(send(api, "GET", "/none", **{"X-Request-ID": offered}).headers["X-Request-ID"])


def test_request_ids_made_differ(api):
    assert len({send(api, "GET", "/none").headers["X-Request-ID"] for _ in range(5)}) == 5


def test_failure_of_our_own_tells_nothing_about_itself(api, product):
    put_engine(product, key_ciphertext="of another master key")
    error = assert_error(send(api, "GET", "/engines/alice"), 500, "INTERNAL_ERROR")
    assert error["message"] == "Something went wrong on our side; quote the request id when you report it."


# -- anything ------------------------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = [
    "user_id",
    "engine_version",
    "auto_provision",
    "auto_wake",
    "slug",
    "display_name",
    "policy",
    "max_engines",
    "rate_limit_rpm",
]
BODIES = st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=8), VALUES, max_size=4)
QUERIES = st.dictionaries(
    st.sampled_from(["status", "limit", "offset", "since", "until", "cursor", "action", "engine_id"]),
    st.text(max_size=12),
    max_size=3,
)


@given(verb=st.sampled_from(PRODUCTS + ADMINS), body=BODIES, query=QUERIES)
@hypothesis_settings(
    max_examples=examples.number(150), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_nothing_that_can_be_sent_is_a_failure_of_ours(api, verb, body, query):
    method, path = verb
    content = json.dumps(body).encode() if (method, path) in WITH_BODY else b""
    response = api.generic(
        method, path, content, "application/json", QUERY_STRING=_encoded(query),
        headers={**api.headers_of(), **ADMIN_KEY, "Prefer": "respond-async"},
    )  # fmt: skip
    assert response.status_code < 500, response.content
    if response.status_code >= 400:
        assert_error(response, response.status_code, response.json()["error"]["code"])


def _encoded(query):
    return urlencode({name: value.encode("utf-8", "replace") for name, value in query.items()})


# -- a database that does not do what it is asked ------------------------------------------------------------------------

HALF_AWAY = {
    "25006": "read-only",
    "53100": "disk full",
    "53200": "out of memory",
    "53300": "too many connections",
    "55P03": "lock time-out",
    "57014": "statement time-out",
    "57P01": "shutting down",
    "57P03": "in recovery",
    "58030": "input/output error",
    "08006": "connection failure",
    "26000": "prepared statement lost",
    "40001": "conflict with recovery",
}


@pytest.mark.parametrize("sqlstate", HALF_AWAY)
def test_request_is_told_to_try_again_whatever_keeps_the_database_from_writing(api, product, superuser, sqlstate):
    with refusing(superuser, "engines_operation", sqlstate):
        assert_error(api.call("POST", "/engines/provision", {"user_id": "alice"}), 503, "UNAVAILABLE")
    assert api.call("GET", "/engines").json()["total"] == 0
    assert api.call("POST", "/engines/provision", {"user_id": "alice"}, Prefer="respond-async").status_code == 202


@pytest.mark.parametrize("table", ["audit_log", "policy_product"])
def test_admin_has_a_page_that_says_to_try_again_while_the_database_is_read_only(product, superuser, table):
    staff = log_in("rita", superuser=True, raise_request_exception=False)
    with refusing(superuser, table, "25006", on="INSERT OR UPDATE"):
        page = staff.post(f"/admin/policy/product/{product.pk}/suspend/", {"reason": "unpaid"})
    assert page.status_code == 503
    assert "Traceback" not in page.text
