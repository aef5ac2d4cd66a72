import base64
import re
from datetime import UTC, datetime, timedelta
from typing import get_args
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit
from uuid import uuid4

import pytest
from django.conf import settings
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from audit import actors, trail
from audit.actions import About, Action
from audit.catalogue import CATALOGUE, CLAMPED
from audit.models import AuditRow
from common import context, cursors
from common.context import Call
from tests.conftest import Api

CONTRACT = {  # what products were promised before there was this implementation
    "id": int, "timestamp": str, "product_id": str, "user_id": str, "engine_id": str, "action": str, "actor": str,
    "metadata": dict, "duration_ms": int,
}  # fmt: skip
OURS = {  # what the log's layout adds
    "product_slug": str, "from_status": str, "to_status": str, "engine_seq": int, "operation_id": str, "request_id": str,
    "call_id": str, "key_id": str, "client_ip": str, "user_agent": str, "on_behalf_of": str, "written_at": str, "retention": str,
}  # fmt: skip
OF_CALL = ("request_id", "call_id", "key_id", "client_ip", "user_agent", "on_behalf_of")
CALL = Call(uuid4(), "r-7", uuid4(), "ci", "203.0.113.7", "acme-backend/3.1", "ada@acme.example")
COLUMNS = CONTRACT | OURS
FOR_OPERATORS = {"txid", "stretch"}  # columns of the log that products do not see


def write(product, count=1, *, user_id="alice", action=Action.START, started=None, **more):
    subject = trail.Subject(
        product_id=product.pk, product_slug=product.slug, user_id=user_id, engine_id=more.pop("engine_id", None)
    )
    by = more.pop("by", actors.product(product.slug))
    return [trail.record(action, subject, by=by, started=started, **more) for _ in range(count)]


def write_bulk(superuser, product, count, *, spread="1 millisecond"):
    """Many rows, `spread` apart and of a thousand users, by the superuser: quick, and these tests are not about the writer."""
    superuser.execute(
        "INSERT INTO audit_log (timestamp, product_id, product_slug, user_id, engine_id, action) SELECT now() - n * %s::interval,"
        " %s, %s, 'user ' || n %% 1000, gen_random_uuid(), 'start' FROM generate_series(1, %s) n",
        [spread, product.pk, product.slug, count],
    )
    superuser.execute("ANALYZE audit_log")


def get(api, path="/audit", expect=200, **query):
    response = api.get(path, query)
    assert response.status_code == expect, response.content
    return response.json()


def ids(answer):
    return [row["id"] for row in answer["results"]]


def follow(api, link):
    """GET a link as it stands in an answer."""
    parts = urlsplit(link)
    assert (parts.scheme, parts.netloc) == ("http", "testserver")
    response = api.get(f"{parts.path}?{parts.query}")
    assert response.status_code == 200, response.content
    return response.json()


def walk(api, answer, way):
    pages = [answer]
    while pages[-1][way]:
        pages.append(follow(api, pages[-1][way]))
        assert len(pages) < 100
    return pages


# -- rows --------------------------------------------------------------------------------------------------------------


def test_audit_shows_a_row_with_every_column(api, product):
    engine_id, operation_id = uuid4(), uuid4()
    started = datetime.now(UTC) - timedelta(seconds=2)
    with context.of_call(CALL):
        [pk] = write(product, engine_id=engine_id, operation_id=operation_id, started=started, metadata={"port": 9001})
    [row] = get(api, action="start")["results"]
    assert row.keys() == COLUMNS.keys()
    assert row["id"] == pk
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", row["timestamp"])
    assert (row["product_id"], row["engine_id"], row["operation_id"]) == (str(product.pk), str(engine_id), str(operation_id))
    assert (row["user_id"], row["action"], row["actor"], row["metadata"]) == ("alice", "start", "acme", {"port": 9001})
    assert 2000 <= row["duration_ms"] < 10_000
    assert row["retention"] == "standard"
    assert [row[name] for name in OF_CALL] == [
        "r-7", str(CALL.call_id), str(CALL.key_id), "203.0.113.7", "acme-backend/3.1", "ada@acme.example",
    ]  # fmt: skip
    assert datetime.fromisoformat(row["timestamp"]) < datetime.fromisoformat(row["written_at"])


@pytest.mark.parametrize("by", [actors.SYSTEM, actors.ADMIN, actors.staff("ada"), actors.product("other")])
def test_audit_hides_the_call_of_anybody_else(api, product, by):
    with context.of_call(CALL):
        write(product, by=by)
    [row] = get(api, action="start")["results"]
    assert {row[name] for name in OF_CALL} == {None}


def test_audit_leaves_no_column_of_the_log_out(api, running_engine, superuser):
    columns = superuser.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = 'audit_log'::regclass AND attnum > 0 AND NOT attisdropped"
    )
    assert {name for (name,) in columns} == COLUMNS.keys() | FOR_OPERATORS
    [row] = get(api, action="provision")["results"]
    unknown = dict.fromkeys(set(OF_CALL) - {"call_id"}, type(None))  # of no request
    assert {name: type(value) for name, value in row.items()} == COLUMNS | unknown


SAMPLES = {str: "secret", int: 7, float: 7.5, bool: True, list: ["secret"], dict: {"alice": 7}}


def test_audit_shows_of_each_actions_metadata_what_the_catalogue_shows_products(api, product):
    """A key is hidden until the catalogue shows it."""
    for action, entry in CATALOGUE.items():
        full = {key: SAMPLES[(get_args(kind) or (kind,))[-1]] for key, kind in entry.metadata.items()}
        assert set(entry.shown) <= set(full), action
        [pk] = write(product, action=action, metadata=full)
        [row] = get(api, action=action.value, limit=1)["results"]
        assert (row["id"], row["metadata"]) == (pk, {key: full[key] for key in entry.shown})


def test_audit_hides_reasons_key_names_room_and_foreign_containers():
    """The keys that only operators see, by action: a change of this list has to be meant."""
    hidden = {action: set(entry.metadata) - set(entry.shown) for action, entry in CATALOGUE.items()}
    of_no_product = {action for action, entry in CATALOGUE.items() if entry.about is About.FLEET}
    assert {key for action in CATALOGUE.keys() - of_no_product for key in hidden[action]} == {
        "reason", "admin_key", "limit", "value", "container",
    }  # fmt: skip
    assert [action for action, keys in hidden.items() if "limit" in keys] == [Action.CAPACITY_EXHAUSTED]
    assert [action for action, entry in CATALOGUE.items() if "reason" in entry.shown] == [Action.ORPHAN_REMOVED]  # a code
    assert not [action for action in of_no_product if CATALOGUE[action].shown]


def test_audit_shows_no_metadata_of_an_action_or_form_that_the_catalogue_does_not_have(api, product, superuser):
    insert = "INSERT INTO audit_log (timestamp, product_id, product_slug, action, metadata) VALUES (now(), %s, %s, %s, %s)"
    superuser.execute("SET session_replication_role = replica")  # the log refuses such rows
    superuser.execute(insert, [product.pk, product.slug, "newer_action", '{"attempt": 1}'])
    superuser.execute(insert, [product.pk, product.slug, "start", '["attempt"]'])
    superuser.execute(insert, [product.pk, product.slug, "start", f'{{"{CLAMPED}": "2020-01-01T00:00:00Z", "later": 1}}'])
    found = [row["metadata"] for row in get(api, limit=3)["results"]]
    assert found == [{CLAMPED: "2020-01-01T00:00:00Z"}, {}, {}]


def test_audit_shows_everybody_else_as_admin(api, product):
    own = {"attempt": 1}
    with context.of_request("of-the-product"):
        [mine] = write(product, metadata=own)
    with context.of_request("TICKET-1 of the operator"):
        others = [write(product, by=by, metadata={**own, "reason": "no"})[0] for by in (actors.staff("rita"), actors.ADMIN)]
        [fleet] = write(product, by=actors.SYSTEM)
    shown = {row["id"]: (row["actor"], row["request_id"], row["metadata"]) for row in get(api, action="start")["results"]}
    assert shown == {
        mine: ("acme", "of-the-product", own), fleet: ("system", None, {}),
        **dict.fromkeys(others, ("admin", None, own)),
    }  # fmt: skip
    assert sorted(ids(get(api, action="start", actor="admin"))) == others
    assert ids(get(api, action="start", actor="acme")) == [mine]
    for guess in ("admin:rita", "admin:", "rita", "adm", "Admin", "other"):
        assert ids(get(api, actor=guess)) == [], guess


def test_audit_shows_the_newest_first(api, product):
    written = write(product, 3)
    assert ids(get(api))[:3] == written[::-1]


def test_audit_shows_no_row_of_another_product_or_of_none(api, product, other_product):
    [foreign] = write(other_product, engine_id=uuid4())
    trail.record(Action.RETENTION_PRUNE, by=actors.SYSTEM)
    row = AuditRow.objects.get(pk=foreign)
    for answer in (get(api), get(api, user_id="alice"), get(api, "/engines/alice/audit"), get(api, engine_id=str(row.engine_id))):
        assert {found["product_id"] for found in answer["results"]} <= {str(product.pk)}
    assert ids(get(api, "/engines/alice/audit")) == []


def test_audit_cursor_of_another_product_shows_no_row_of_it(api, product, other_product):
    write(other_product, 5)
    link = get(Api(other_product.key), limit=2)["next"]
    stolen = dict(parse_qsl(urlsplit(link).query))["cursor"]
    assert {row["product_id"] for row in get(api, cursor=stolen)["results"]} <= {str(product.pk)}


def test_engine_audit_shows_one_users_rows(api, product):
    [mine] = write(product, user_id="alice")
    write(product, user_id="bob")
    assert ids(get(api, "/engines/alice/audit")) == [mine]
    assert ids(get(api, "/engines/nobody/audit")) == []


def test_audit_refuses_a_caller_without_a_key(api, product):
    response = api.get("/audit", headers={"X-Platform-Key": "pk-sept-none"})
    assert (response.status_code, response.json()["error"]["code"]) == (401, "INVALID_PLATFORM_KEY")


# -- the operator ------------------------------------------------------------------------------------------------------


@pytest.fixture
def operator(db):
    return Client(headers={"X-Admin-Key": settings.ENV.admin_key})


def test_audit_shows_the_operator_every_row_with_its_call(operator, product, other_product):
    with context.of_call(CALL):
        told = {"cause": "requested", "reason": "quiet"}
        written = [*write(product, by=actors.staff("ada"), metadata=told), *write(other_product)]
        written.append(trail.record(Action.RETENTION_PRUNE, by=actors.SYSTEM))
    rows = get(operator)["results"]
    assert [row["id"] for row in rows[:3]] == written[::-1]
    assert {row["product_id"] for row in rows} == {None, str(product.pk), str(other_product.pk)}
    assert rows[2].keys() == COLUMNS.keys() | FOR_OPERATORS
    assert rows[2]["txid"].isdigit()
    assert (rows[2]["actor"], rows[2]["on_behalf_of"], rows[2]["client_ip"]) == ("admin:ada", CALL.on_behalf_of, CALL.client_ip)
    assert rows[2]["metadata"] == told
    assert ids(get(operator, limit=2)) == written[:0:-1]
    assert ids(follow(operator, get(operator, limit=2)["next"]))[0] == written[0]


def test_audit_filters_for_the_operator(operator, product, other_product):
    with context.of_call(CALL):
        [mine] = write(product)
    [other] = write(other_product)
    assert ids(get(operator, action="start", product_id=str(other_product.pk))) == [other]
    [staff] = write(product, by=actors.staff("ada"))
    assert ids(get(operator, actor="admin:ada")) == [staff]
    for name, value in (("request_id", "r-7"), ("call_id", str(CALL.call_id)), ("key_id", str(CALL.key_id))):
        assert ids(get(operator, **{name: value})) == [mine]
    assert "call_id" in get(operator, expect=400, call_id="x")["error"]["details"]["fields"]


@pytest.mark.parametrize("name", ["product_id", "request_id", "call_id", "key_id"])
def test_audit_has_no_filter_of_the_operator_for_a_product(api, name):
    error = get(api, expect=400, **{name: str(uuid4())})["error"]
    assert error["details"]["fields"][name][0].startswith("Unknown parameter.")


def test_audit_of_a_user_is_for_products_only(operator, product):
    assert get(operator, "/engines/alice/audit", expect=401)["error"]["code"] == "INVALID_PLATFORM_KEY"


def test_audit_ends_a_search_of_the_operator_that_takes_too_long(operator, product, superuser):
    """A row that somebody holds is as slow as ten million rows."""
    write(product)
    with superuser.transaction():
        superuser.execute("LOCK TABLE audit_log IN ACCESS EXCLUSIVE MODE")
        fields = get(operator, expect=400, call_id=str(uuid4()))["error"]["details"]["fields"]
    assert fields == {"since": ["The search takes too long. Choose a period with since and until."]}


# -- filters -----------------------------------------------------------------------------------------------------------


def test_audit_of_a_user_has_the_counts_of_refusals_that_name_the_user(api, product, other_product):
    """Was alice refused on Tuesday?"""
    counted = {"rule": "rate_limit_rpm", "limit": 1, "value": 1, "since": "2026-11-24T10:00:00.000Z"}
    both = {**counted, "count": 9, "users": {"alice": 5, "bob": 3}, "more": 1}
    for of in (product, other_product):
        [first] = write(of, action=Action.ADMIT_DENIED)
        [count] = write(of, action=Action.ADMIT_DENIED, user_id=None, metadata=both)
        write(of, action=Action.ADMIT_DENIED, user_id=None, metadata={**both, "users": {"carol": 8}})
        if of == product:
            wanted = [count, first]
    assert ids(get(api, user_id="alice")) == ids(get(api, "/engines/alice/audit")) == wanted
    assert ids(get(api, user_id="bob")) == [wanted[0]]
    assert ids(get(api, user_id="users")) == ids(get(api, user_id="count")) == []
    assert ids(get(api, user_id="alice", until="2026-01-01T00:00:00Z")) == []
    assert ids(get(api, user_id="alice", limit="1")) == wanted[:1]


def test_audit_filters(api, product):
    engine_id = uuid4()
    at = datetime.now(UTC) - timedelta(hours=1)
    [stop] = write(product, action=Action.STOP, user_id="bob", by=actors.SYSTEM, engine_id=engine_id, started=at)
    [start] = write(product, user_id=" bob")
    assert ids(get(api, action="stop")) == [stop]
    assert ids(get(api, actor="system")) == [stop]
    assert ids(get(api, user_id="bob")) == [stop]
    assert ids(get(api, user_id=" bob")) == [start]
    assert ids(get(api, engine_id=str(engine_id))) == [stop]
    assert ids(get(api, action="stop", user_id=" bob")) == []
    assert ids(get(api, user_id="bob", since=at.isoformat())) == [stop]
    assert ids(get(api, user_id="bob", until=at.isoformat())) == []
    assert stop not in ids(get(api, since=(at + timedelta(milliseconds=1)).isoformat()))
    assert ids(get(api, until=(at + timedelta(milliseconds=1)).isoformat().replace("+00:00", "Z"))) == [stop]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("action", "reboot"),
        ("action", ""),
        ("actor", "\0"),
        ("actor", ""),
        ("user_id", "\0"),
        ("user_id", ""),
        ("engine_id", "alice"),
        ("engine_id", ""),
        ("since", "yesterday"),
        ("since", "2026-02-30"),
        ("since", "2026-01-01T00:00:00 00:00"),
        ("until", "1764000000"),
        ("limit", "0"),
        ("limit", "1001"),
        ("limit", "-1"),
        ("limit", "ten"),
        ("limit", "0000000100000"),
        ("limit", "١٠"),
        ("limit", ""),
        ("colour", "blue"),
    ],
)
def test_audit_names_a_bad_parameter(api, name, value):
    for path in ("/audit", "/engines/alice/audit"):
        error = get(api, path, expect=400, **{name: value})["error"]
        assert error["code"] == "INVALID_REQUEST"
        assert list(error["details"]["fields"]) == [name]


@pytest.mark.parametrize(
    "moment",
    ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-01-01T00:00:00+19:42", "2026-01-01", "2026-01-01T00:00"],
)
def test_audit_takes_any_moment(api, moment):
    since, until = (get(api, **{name: moment})["results"] for name in ("since", "until"))
    assert since + until == get(api)["results"]  # each row is on one side of it


def test_engine_audit_refuses_a_name_that_cannot_be(api):
    assert list(get(api, "/engines/a%00b/audit", expect=400)["error"]["details"]["fields"]) == ["user_id"]


# -- pages -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 7, 10, 21, 24, 100])
def test_audit_pages_show_every_row_once_both_ways(api, product, limit):
    same = datetime.now(UTC) - timedelta(minutes=1)
    for started in (same, None, same):
        write(product, 7, started=started)
    everything = ids(get(api, limit=1000))
    assert len(everything) == len(set(everything)) >= 21
    forth = walk(api, get(api, limit=limit), "next")
    assert [pk for page in forth for pk in ids(page)] == everything
    assert forth[0]["previous"] is None
    assert [len(ids(page)) for page in forth[:-1]] == [limit] * (len(forth) - 1)
    back = walk(api, forth[-1], "previous")
    assert [pk for page in reversed(back) for pk in ids(page)] == everything
    assert forth[-1]["next"] is None
    for page in back[1:]:
        assert ids(follow(api, page["next"])) != ids(page)


def test_audit_pages_pass_thousands_of_rows_of_one_moment(api, product, superuser):
    write_bulk(superuser, product, 3500, spread="0")
    pages = walk(api, get(api, limit=1000), "next")
    seen = [pk for page in pages for pk in ids(page)]
    assert len(seen) == len(set(seen)) == AuditRow.objects.count()


def test_audit_pages_keep_the_filters(api, product):
    write(product, 5, user_id="bob & alice/+?=é")
    write(product, 5, user_id="carol")
    pages = walk(api, get(api, user_id="bob & alice/+?=é", limit=2, since="2020-01-01T00:00:00+00:00"), "next")
    assert [len(ids(page)) for page in pages] == [2, 2, 1]


@pytest.mark.parametrize("user_id", ["bob", "bob/audit", "b ü?#%", "..bob"])
def test_engine_audit_pages_lead_to_the_same_user(stack_free_api, product, user_id):
    write(product, 3, user_id=user_id)
    answer = stack_free_api(f"/engines/{urlencode({'': user_id})[1:].replace('+', '%20')}/audit", limit=1)
    for _ in range(2):
        parts = urlsplit(answer["next"])
        answer = stack_free_api(parts.path, **dict(parse_qsl(parts.query)))
        assert [row["user_id"] for row in answer["results"]] == [user_id]
    assert answer["next"] is None


@pytest.fixture
def stack_free_api(api):
    """GET with the target that a real server hands on undecoded."""

    def call(path, **query):
        response = api.get(path, query, RAW_URI=f"{path}?{urlencode(query)}")
        assert response.status_code == 200, response.content
        return response.json()

    return call


def test_audit_page_does_not_move_when_rows_are_written(api, product):
    write(product, 4)
    first = get(api, limit=2)
    expected = ids(follow(api, first["next"]))
    write(product, 3)
    assert ids(follow(api, first["next"])) == expected


@pytest.mark.parametrize(
    "cursor",
    ["", "x", ".", ".1.2", "older", "older.", "older.1", "older.1.", "older.1.2.3", "newest.1.2", "older.-1.2", "older.1.-2",
     "older.999999999999999999.1", "older.1.9999999999999999999", "older.١.2", "b2xkZXIuMS4y", "older.1.2\0", "older.1.2 ",
     "older.0.0", "newer.1764000000000000.15"],
)  # fmt: skip
def test_audit_refuses_a_cursor_that_is_none(api, cursor):
    assert list(get(api, expect=400, cursor=cursor)["error"]["details"]["fields"]) == ["cursor"]


@pytest.mark.parametrize("position", ["older.0.0", "newer.99999999999999999.1", "older.1.999999999999999999"])
def test_audit_page_beyond_the_last_row_is_empty(api, product, position):
    assert get(api, cursor=cursors.hide(position)) == {"results": [], "next": None, "previous": None}


def test_audit_cursor_says_nothing_of_its_position(api, product):
    *_, last = write(product, 3)
    link = get(api, limit=1)["next"]
    [cursor] = parse_qs(urlsplit(link).query)["cursor"]
    row = AuditRow.objects.get(pk=last)
    assert cursors.reveal(cursor) == f"older.{round(row.timestamp.timestamp() * 1_000_000)}.{last}"
    told = cursor.encode() + base64.urlsafe_b64decode(cursor + "==")
    assert str(last).encode() not in told
    assert b"older" not in told
    assert get(api, limit=1)["next"] == link  # the address of a page stays the same
    for changed in (cursor[:-1], cursor + "A", "A" + cursor[1:], cursor[:9] + " " + cursor[9:]):
        assert list(get(api, expect=400, cursor=changed)["error"]["details"]["fields"]) == ["cursor"]


def test_audit_refuses_a_cursor_of_another_secret_key(api, product, settings):
    write(product, 3)
    cursor = dict(parse_qsl(urlsplit(get(api, limit=1)["next"]).query))["cursor"]
    settings.SECRET_KEY = "x" * 50
    get(api, expect=400, cursor=cursor)


# -- plans -------------------------------------------------------------------------------------------------------------


def explain(superuser, api, **query):
    """PostgreSQL's plan of the rows' query, as the API sends it."""
    with CaptureQueriesContext(connection) as captured:
        get(api, **query)
    *_, sql = [found["sql"] for found in captured if 'FROM "audit_log"' in found["sql"]]  # the page comes last
    return "\n".join(line for (line,) in superuser.execute(f"EXPLAIN (COSTS OFF) {sql}").fetchall())


@pytest.mark.parametrize("query", [{}, {"user_id": "user 77"}, {"action": "start"}, {"engine_id": str(uuid4())}])
def test_audit_page_is_read_by_an_index(months, api, product, superuser, query):
    write_bulk(superuser, product, 20_000)
    plan = explain(superuser, api, **query)
    assert re.search(rf"Index .*Scan (using|on) {months.name(0)}", plan), plan
    assert f"Seq Scan on {months.name(0)}" not in plan  # months that are empty are another matter


def test_audit_page_by_cursor_is_read_by_an_index(months, api, product, superuser):
    write_bulk(superuser, product, 20_000)
    cursor = dict(parse_qsl(urlsplit(get(api, limit=1000)["next"]).query))["cursor"]
    plan = explain(superuser, api, cursor=cursor)
    assert re.search(r"Index Cond: .*ROW", plan), plan
    assert f"Seq Scan on {months.name(0)}" not in plan


def test_audit_page_reads_no_month_before_since(months, api, product, superuser):
    months.lay_out(-4, 3)
    plan = explain(superuser, api, since=months.at(0, 0).isoformat())
    assert months.name(0) in plan
    assert months.name(-1) not in plan
    assert months.name(-4) not in plan
    plan = explain(superuser, api, since=months.at(-2, 0).isoformat(), until=months.at(-1, 0).isoformat())
    assert set(re.findall(r"audit_log_standard_\d{4}_\d\d\b(?!_)", plan)) == {months.name(-2)}
