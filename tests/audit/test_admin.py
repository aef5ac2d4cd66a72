"""The audit log in the admin: how it is searched, paged and guarded, and what that asks of the database."""

import re
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.db import OperationalError, connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from audit import actors, search, trail
from audit.actions import Action
from audit.models import AuditRow
from common import keyset, statements, wording
from tests.staff import log_in

NOBODY = "0d5ff1a5-2a1a-4b92-8d64-3a4c7dbcbd9a"
LIST = "/admin/audit/auditrow/"


@pytest.fixture
def client(db):
    return log_in("rita")


def write(count, *, action=Action.STOP, by=actors.SYSTEM, **subject):
    return [trail.record(action, trail.Subject(**subject), by=by) for _ in range(count)]


def shown(response):
    """Ids of the rows on the page, in its order."""
    return [int(key) for key in re.findall(r'field-when[^>]*><a[^>]*href="/admin/audit/auditrow/(\d+)/change/', response.text)]


def link(response, words):
    found = re.search(rf'href="([^"]+)"[^>]*>{words}<', response.text.replace("← ", "").replace(" →", ""))
    return LIST + found[1].replace("&amp;", "&") if found else None


def pour(superuser, rows=20_000):
    """Rows of many engines and users, half of them of last month, past the writer: only the planner looks at them."""
    superuser.execute(
        "INSERT INTO audit_log (timestamp, engine_id, user_id, product_id, product_slug, action, retention)"
        " SELECT CASE WHEN (n / 2) %% 2 = 0 THEN began + (now() - began) * part ELSE began - interval '28 days' * part END,"
        " md5((n %% 500)::text)::uuid, 'user-' || n %% 500, md5((n %% 5)::text)::uuid, 'p' || n %% 5,"
        " CASE WHEN n %% 2 = 0 THEN 'health_check' ELSE 'stop' END, CASE WHEN n %% 2 = 0 THEN 'probe' ELSE 'standard' END"
        " FROM (SELECT n, (n %% 700 + 1) / 701.0 AS part, date_trunc('month', now(), 'UTC') AS began"
        " FROM generate_series(1, %s) n) rows",
        [rows],
    )
    superuser.execute("ANALYZE audit_log")


def months():
    """A moment of this month, and one of the last."""
    now = datetime.now(UTC)
    return now, now.replace(day=1) - timedelta(days=1)


def page_query(client, address):
    """The statement that read the page's rows."""
    with CaptureQueriesContext(connection) as queries:
        assert client.get(address).status_code == 200
    return next(query["sql"] for query in queries if 'ORDER BY "audit_log"' in query["sql"] and "LIMIT 51" in query["sql"])


def plan(sql):
    with connection.cursor() as cursor:
        cursor.execute("EXPLAIN " + sql)
        return "\n".join(row[0] for row in cursor.fetchall())


# -- paging ------------------------------------------------------------------------------------------------------------


def test_list_pages_both_ways_without_losing_or_repeating_a_row(client):
    written = write(120, user_id="alice")
    first = client.get(LIST)
    second = client.get(link(first, "Older"))
    third = client.get(link(second, "Older"))
    assert shown(first) + shown(second) + shown(third) == written[::-1]
    assert link(first, "Newer") is None
    assert link(third, "Older") is None
    assert shown(client.get(link(third, "Newer"))) == shown(second)
    assert shown(client.get(link(second, "Newer"))) == shown(first)


def test_list_pages_rows_of_one_instant(client, superuser):
    superuser.execute(
        "INSERT INTO audit_log (timestamp, action) SELECT date_trunc('day', now()), 'stop' FROM generate_series(1, 75)"
    )
    first = client.get(LIST)
    second = client.get(link(first, "Older"))
    assert len(set(shown(first)) | set(shown(second))) == 75


def test_list_keeps_its_filter_from_page_to_page(client):
    write(60, user_id="alice")
    write(60, user_id="bob")
    first = client.get(LIST + "?q=user:alice&action=stop")
    older = link(first, "Older")
    assert "q=user%3Aalice" in older
    assert "action=stop" in older
    assert len(shown(client.get(older))) == 10


@pytest.mark.parametrize("cursor", ["x", "2026-01-01T00:00:00_1", "2026-01-01T00:00:00+00:00_x", "_", "9" * 400])
@pytest.mark.parametrize("name", ["older", "newer"])
def test_list_starts_again_at_a_cursor_that_is_none(client, name, cursor):
    response = client.get(LIST, {name: cursor})
    assert response.status_code == 302
    assert response["Location"] == LIST + "?e=1"


def test_list_with_a_position_before_everything_is_empty(client):
    write(3)
    response = client.get(LIST, {"older": f"978307200000000.{'9' * 18}"})
    assert response.status_code == 200
    assert shown(response) == []


# -- what it asks of the database --------------------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["", "?action=stop", "?q=user:alice", "?q=alice", "?since=7d&actor=product&retention=standard"])
def test_list_counts_nothing(client, query):
    write(60, user_id="alice")
    with CaptureQueriesContext(connection) as queries:
        assert client.get(LIST + query).status_code == 200
    asked = [entry["sql"].upper() for entry in queries if "AUDIT_LOG" in entry["sql"].upper()]
    assert asked
    assert not [
        sql for sql in asked if "COUNT(" in sql or "DISTINCT" in sql or "DATE_TRUNC" in sql or "OFFSET" in sql or "LIKE" in sql
    ]
    assert len(queries) <= 9


@pytest.mark.parametrize(
    ("query", "index"),
    [
        ("", "timestamp_id"),
        ("?q=user:user-7", "user_id_timestamp"),
        (f"?q=engine:{NOBODY}", "engine_id_timestamp"),
        ("?q=product:c4ca4238-a0b9-2382-0dcc-509a6f75849b", "product_id_timestamp"),
        (
            "?q=product:c4ca4238-a0b9-2382-0dcc-509a6f75849b&action=stop",
            "product_id_",
        ),  # which of the two is the planner's to choose
    ],
)
def test_list_reads_its_page_from_an_index(client, superuser, query, index):
    pour(superuser)
    told = plan(page_query(client, LIST + query))
    filled = "|".join(f"{month:%Y_%m}" for month in months())
    assert not re.search(rf"Seq Scan on audit_log_\w+_({filled})", told)
    assert index in told


def test_list_reads_only_the_partitions_of_its_filters(client, superuser):
    pour(superuser)
    this, last = (month.strftime("%Y_%m") for month in months())
    assert f"audit_log_standard_{last}" in plan(page_query(client, LIST))
    hour = plan(page_query(client, LIST + "?since=1h&action=stop"))
    assert f"audit_log_standard_{this}" in hour
    assert "probe" not in hour
    if datetime.now(UTC).day > 1:
        assert last not in hour
    deep = keyset.read(AuditRow.objects.all(), ("timestamp", "id"), 50).older
    past = plan(page_query(client, f"{LIST}?older={deep}"))
    assert (datetime.now(UTC).replace(day=1) + timedelta(days=40)).strftime("%Y_%m") not in past


def test_limited_stops_a_query_that_takes_too_long(db):
    with connection.cursor() as cursor:
        cursor.execute("SHOW statement_timeout")
        before = cursor.fetchone()
    with pytest.raises(statements.TookTooLong), statements.limited(0.05), connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(5)")
    with connection.cursor() as cursor:
        cursor.execute("SHOW statement_timeout")
        assert cursor.fetchone() == before


def test_limited_lets_other_errors_through(db):
    with pytest.raises(OperationalError), statements.limited(), connection.cursor() as cursor:
        cursor.execute("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '57P01'; END $$")
    connection.close()


# -- searching and filtering -------------------------------------------------------------------------------------------


def test_search_finds_exactly_what_a_term_names(client):
    engine, product, operation = uuid4(), uuid4(), uuid4()
    ours = {"user_id": "alice", "engine_id": engine, "product_id": product, "product_slug": "acme"}
    row = trail.record(Action.STOP, trail.Subject(**ours), by=actors.staff("rita"), operation_id=operation)
    write(1, user_id="alice2", engine_id=uuid4(), product_id=uuid4(), product_slug="acme2")
    typed = ["user:alice", f"engine:{engine}", f"product:{product}", "product:acme", f"operation:{operation}", "actor:admin:rita"]
    for term in ("alice", "acme", "admin:rita", str(engine), str(product), str(operation), *typed):
        assert shown(client.get(LIST, {"q": term})) == [row], term


def test_search_for_a_user_finds_the_counts_of_refusals_that_name_the_user(client, superuser):
    metadata = {"rule": "r", "limit": 1, "value": 1, "count": 9, "since": "x", "users": {"alice": 5, "bob": 3}, "more": 1}
    row = trail.record(Action.ADMIT_DENIED, trail.Subject(product_slug="acme"), by=actors.product("acme"), metadata=metadata)
    for term in ("alice", "user:alice", "bob"):
        response = client.get(LIST, {"q": term})
        assert shown(response) == [row]
        assert "alice × 5, bob × 3" in response.content.decode()
    assert shown(client.get(LIST, {"q": "user:carol"})) == []
    pour(superuser)
    with CaptureQueriesContext(connection) as queries:
        client.get(LIST, {"q": "user:alice"})
    (told,) = [plan(entry["sql"]) for entry in queries if "'users'" in entry["sql"]]
    assert f"Bitmap Index Scan on audit_log_standard_{months()[0]:%Y_%m}_expr_idx" in told, told


@pytest.mark.parametrize("term", ["alic", "ALICE", "engine:alice", "operation:", NOBODY, "%", "user:", "' OR 1=1 --"])
def test_search_finds_nothing_that_is_not_exact(client, term):
    write(1, user_id="alice", engine_id=uuid4())
    assert shown(client.get(LIST, {"q": term})) == []


def test_search_prefers_the_engine_that_an_id_names(db):
    both = uuid4()
    write(1, product_id=both)
    rows = AuditRow.objects.all()
    assert search.read(str(both), rows).deconstruct() == search.read(f"product:{both}", rows).deconstruct()
    write(1, engine_id=both)
    assert search.read(str(both), rows).deconstruct() == search.read(f"engine:{both}", rows).deconstruct()


def test_filter_actor_tells_the_kinds_apart(client):
    rows = {
        "system": write(1)[0],
        "admin": write(1, by=actors.ADMIN)[0],
        "staff": write(1, by=actors.staff("rita"))[0],
        "product": write(1, by=actors.product("acme"), product_slug="acme")[0],
    }
    for kind, row in rows.items():
        assert shown(client.get(LIST, {"actor": kind})) == [row], kind


def test_filter_with_an_unknown_value_is_no_filter(client):
    written = write(2)
    assert shown(client.get(LIST, {"action": "no_such", "since": "forever"})) == written[::-1]


@pytest.mark.parametrize("lookup", ["user_id__icontains", "metadata__port", "id__in", "timestamp__year", "q2"])
def test_list_refuses_a_lookup_that_is_no_filter(client, lookup):
    assert client.get(LIST, {lookup: "1"}).status_code == 400


# -- pages and permissions ---------------------------------------------------------------------------------------------


def test_page_shows_every_column(client):
    engine, operation = uuid4(), uuid4()
    about = {"user_id": "<alice>", "engine_id": engine, "product_id": uuid4(), "product_slug": "acme", "engine_seq": 7}
    moved = {"from_status": "running", "to_status": "stopped"}
    metadata = {"attempt": 2, "cause": "requested", "reason": "<b>because</b>"}
    row = trail.record(Action.STOP, trail.Subject(**about, **moved), by=actors.SYSTEM, metadata=metadata, operation_id=operation)
    page = client.get(f"{LIST}{row}/change/").text
    for text in (
        "&lt;alice&gt;",
        "acme",
        str(engine),
        str(operation),
        "running",
        "stopped",
        "requested",
        "&lt;b&gt;because",
        "standard",
    ):
        assert text in page, text
    assert "<alice>" not in page


def test_page_of_a_row_that_is_none_is_not_found(client):
    for key in ("1", "x", "9" * 30, "_00"):
        assert client.get(f"{LIST}{key}/change/").status_code == 404


def test_nothing_can_be_added_changed_or_deleted_even_by_a_superuser(db):
    client = log_in("root", superuser=True)
    (row,) = write(1)
    assert client.get(f"{LIST}add/").status_code == 403
    assert client.post(f"{LIST}add/", {"action": "stop"}).status_code == 403
    assert client.post(f"{LIST}{row}/change/", {"action": "start"}).status_code == 405
    assert client.post(f"{LIST}{row}/delete/", {"post": "yes"}).status_code == 403
    client.post(LIST, {"action": "delete_selected", "_selected_action": [row], "post": "yes"})
    assert list(AuditRow.objects.values_list("pk", "action")) == [(row, "stop")]


def test_list_needs_the_permission(db):
    client = Client()
    client.force_login(User.objects.create_user("nobody", is_staff=True))
    (row,) = write(1)
    assert client.get(LIST).status_code == 403
    assert client.get(f"{LIST}{row}/change/").status_code == 403
    client.force_login(User.objects.create_user("outsider"))
    assert client.get(LIST).status_code == 302


# -- words -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("milliseconds", "words"),
    [(None, "-"), (0, "0 ms"), (999, "999 ms"), (2400, "2.4 s"), (60_000, "1 min"), (192_000, "3 min 12 s"), (3_600_000, "1 h"),
     (446_400_000, "5 d 4 h"), (86_460_000, "1 d")],
)  # fmt: skip
def test_duration_names_two_units_at_most(milliseconds, words):
    assert wording.duration(milliseconds) == words


def test_facts_word_each_type():
    assert wording.facts({"is_ok": True, "parts": ["a", "b"], "none": [], "restart_in_s": 1.5}) == [
        ("is ok", "yes"), ("parts", "a, b"), ("none", "none"), ("restart in", "1.5 s"),
    ]  # fmt: skip
