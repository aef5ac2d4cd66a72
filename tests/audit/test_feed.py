"""The log in the order of commits: every row once, whatever was open, restored or promoted meanwhile."""

import random
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import parse_qs, urlsplit

import dj_database_url
import psycopg
import pytest
from django.conf import settings
from django.db import connections
from django.db.models.expressions import RawSQL
from django.test import Client

from audit import feed
from audit.actions import Action
from audit.models import AuditRow
from common import cursors
from tests import servers
from tests.audit.test_api import follow, get, ids, write, write_bulk
from tests.conftest import Api, make_product
from tests.copies import promote, restored
from tests.waiting import until

INSERT = "INSERT INTO audit_log (timestamp, action, product_id) VALUES (now(), %s, %s)"


@pytest.fixture
def operator(db):
    return Client(headers={"X-Admin-Key": settings.ENV.admin_key})


def after(api, position, **query):
    return get(api, after=position, **query)


def cursor_of(page):
    return parse_qs(urlsplit(page["next"]).query)["after"][0]


def test_feed_gives_every_row_once_in_the_order_of_commits(api, product):
    written = write(product, 5)
    pages = [after(api, "start", limit=2)]
    while pages[-1]["results"]:
        pages.append(follow(api, pages[-1]["next"]))
    assert [number for page in pages for number in ids(page)][-5:] == written  # the product's registration comes first
    assert {page["previous"] for page in pages} == {None}
    later = write(product, 1)
    assert ids(follow(api, pages[-1]["next"])) == later


def test_feed_misses_no_row_of_a_transaction_that_was_open_for_long(api, product):
    """The row with the lowest number and the earliest times appears last."""
    start = after(api, "now")
    with psycopg.connect(servers.SERVERS.urls.database) as slow:
        slow.execute(INSERT, ["stop", product.pk])
        quick = write(product, 2)
        held = follow(api, start["next"])
        assert held["results"] == []
    page = follow(api, held["next"])
    assert [row["action"] for row in page["results"]] == ["stop", "start", "start"]
    assert ids(page)[1:] == quick
    assert follow(api, page["next"])["results"] == []


def test_feed_gives_every_row_once_while_transactions_overlap(api, product):
    start, written = cursor_of(after(api, "now")), []

    def write_slowly(seed):
        chance = random.Random(seed)
        with psycopg.connect(servers.SERVERS.urls.database) as writer:
            for _ in range(12):
                for _ in range(chance.randrange(1, 4)):
                    written.append(writer.execute(f"{INSERT} RETURNING id", ["stop", product.pk]).fetchone()[0])
                time.sleep(chance.random() / 50)  # so that transactions overlap in many ways
                writer.commit()

    with ThreadPoolExecutor(4) as pool:
        writers, seen = [pool.submit(write_slowly, seed) for seed in range(4)], []
        is_over = False
        while not is_over:
            are_done = all(each.done() for each in writers)  # asked first: the page may be older
            page = after(api, start, limit=7)
            start, seen = cursor_of(page), seen + ids(page)
            is_over = are_done and not page["results"]
    for each in writers:
        each.result()
    assert len(seen) == len(set(seen))
    assert sorted(seen) == sorted(written)


def test_feed_of_a_product_has_its_own_rows_only(api, operator, product):
    other = make_product("other")
    own, foreign = write(product, 1), write(other, 1)
    assert ids(after(api, "start"))[-1:] == own
    assert foreign[0] not in ids(after(api, "start"))
    assert ids(after(operator, "start", action="start")) == own + foreign
    taken_over = cursor_of(after(Api(other.key), "start"))
    assert ids(after(api, taken_over)) == []  # a cursor is a place, and no right to see anything


def test_feed_filters(api, product):
    write(product, 2)
    wanted = write(product, 1, user_id="bob", action=Action.STOP)
    assert ids(after(api, "start", user_id="bob")) == ids(after(api, "start", action="stop")) == wanted
    assert ids(get(api, "/engines/bob/audit", after="start")) == wanted
    assert ids(after(api, "start", until="2020-01-01T00:00:00Z")) == []


def test_filter_that_matches_nothing_gets_on_by_a_bounded_number_of_rows(api, product, superuser):
    write_bulk(superuser, product, 2 * feed.SCAN + 10)
    last = write(product, 1, action=Action.STOP)
    pages = [after(api, "start", action="stop")]
    while not pages[-1]["results"]:
        pages.append(follow(api, pages[-1]["next"]))
    assert (len(pages), ids(pages[-1])) == (3, last)


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ({"after": "yesterday"}, "after"),
        ({"after": ""}, "after"),
        ({"after": cursors.hide("older.1764000000000000.15")}, "after"),
        ({"after": "now", "cursor": cursors.hide("older.1764000000000000.15")}, "cursor"),
        ({"after": "now", "wait": "31"}, "wait"),
        ({"after": "now", "wait": "-1"}, "wait"),
        ({"wait": "5"}, "wait"),
        ({"after": "now", "limit": "0"}, "limit"),
    ],
)
def test_feed_refuses_what_is_no_position_and_no_wait(api, query, named):
    assert named in get(api, expect=400, **query)["error"]["details"]["fields"]


def test_cursor_of_the_feed_is_no_cursor_of_a_page(api):
    assert "cursor" in get(api, expect=400, cursor=cursor_of(after(api, "now")))["error"]["details"]["fields"]


# -- waiting -------------------------------------------------------------------------------------------------------------------


def test_feed_waits_for_a_row(api, product):
    start = cursor_of(after(api, "now"))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(after, api, start, wait=20)
        until(lambda: feed._places._taken, 10, "the reader waits")
        written = write(product, 1)
        assert ids(waiting.result(20)) == written


def test_feed_without_a_row_answers_after_the_wait(api, product):
    start = cursor_of(after(api, "now"))
    began = time.monotonic()
    assert after(api, start, wait=1)["results"] == []
    assert time.monotonic() - began >= 1


def test_reader_without_a_place_to_wait_is_answered_at_once(api, product):
    start = cursor_of(after(api, "now"))
    taken = [feed._places.take("somebody") for _ in range(feed._places._count)]
    with ThreadPoolExecutor(1) as pool:
        try:
            # The place that another owner has to give back does not come back: its holder is no reader.
            assert pool.submit(after, api, start, wait=30).result(10)["results"] == []
        finally:
            for place in taken:
                place.give_back()


def test_reader_gives_its_place_to_another_product(api, product):
    start, other = cursor_of(after(api, "now")), Api(make_product("other").key)
    with ThreadPoolExecutor(feed._places._count + 1) as pool:
        waiting = [pool.submit(after, api, start, wait=30) for _ in range(feed._places._count)]
        until(lambda: len(feed._places._taken) == feed._places._count, 10, "all places are taken")
        second = pool.submit(after, other, "now", wait=1)
        until(lambda: any(each.done() for each in waiting), 10, "a place is given back")
        assert second.result(10)["results"] == []
        write(product, 1)
        assert sum(len(each.result(10)["results"]) for each in waiting) >= len(waiting) - 1


# -- stretches -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def cluster(tmp_path):
    """Another cluster, with a restored dump of the run's database; the alias `restored` leads to it."""
    with restored(tmp_path) as cluster:
        parsed = dj_database_url.parse(cluster.urls.database)
        connections.databases["restored"] = {**connections.databases["default"], **parsed, "OPTIONS": {}}
        yield cluster
        connections["restored"].close()
        del connections.databases["restored"]


def read(position, using="restored"):
    page = feed.read(AuditRow.objects.using(using), position, 100, shown=RawSQL("action", ()))
    return page.rows, page.reached


def insert(cluster, *actions):
    connections["restored"].close()
    with psycopg.connect(cluster.urls.database, autocommit=True) as writer:
        for action in actions:
            writer.execute(INSERT, [action, None])


@pytest.mark.embedded
def test_restore_and_promotion_begin_a_new_stretch(product, request):
    write(product, 3)
    _, before = read("start", "default")
    cluster = request.getfixturevalue("cluster")
    write(product, 2)  # after the dump: these rows are not in the restored log
    _, lost = read(before, "default")

    # A reader of the first cluster goes on in the second with the first row that was written there.
    assert [read(place)[0] for place in (before, lost)] == [[], []]
    insert(cluster, "stop", "wake")
    assert [read(place)[0] for place in (before, lost)] == [["stop", "wake"], ["stop", "wake"]]
    rows, reached = read("start")
    assert rows[-5:] == ["start"] * 3 + ["stop", "wake"]
    assert read(reached)[0] == []

    # A recovery to an earlier time ends with a promotion: ids of transactions may come again, with other rows.
    promote(cluster)
    insert(cluster, "sleep")
    assert read(reached)[0] == ["sleep"]
    assert read("start")[0] == [*rows, "sleep"]
    assert read("7.1.1.99.0")[0] == ["sleep"]  # of a third cluster: the rows before the last stretch were read there
