"""Whoever reaches Valkey can lose counts and change numbers, but can neither make up what was counted nor stop other counts."""

import json
from datetime import timedelta

import pytest
from cryptography.fernet import Fernet

from audit.models import AuditRow
from common import times, valkey
from policy import crypto, refusals, tallies
from policy.tallies import Minute
from tests import floods
from tests.policy.test_refusals import counts, refuse

DUE = "{refusals}/due"


def spoil(pattern, value="garbage"):
    """Put a text at each key of the pattern, whatever was there."""
    client = valkey.client()
    for key in client.keys(pattern):
        client.set(key, value)


def tally():
    """The name and the key of the only tally."""
    (name,) = valkey.client().zrange(DUE, 0, -1)
    return name, b"{refusals}/tally/" + name


def said(caplog):
    """The reasons for which entries were dropped."""
    lines = [record.msg for record in caplog.records if record.name == tallies.__name__]
    return {reason for line in lines if line["event"] == "refusals_dropped" for reason in line["reasons"]}


# -- users ---------------------------------------------------------------------------------------------------------------


def test_row_names_twenty_users_and_counts_the_refusals_of_the_others(db):
    refuse()
    for number in range(25):
        refuse(number + 1, user_id=f"user.{number}")  # a dot, as in a signed field
    assert floods.written() == 1
    metadata = AuditRow.objects.get(metadata__has_key="count").metadata
    assert metadata["users"] == {f"user.{number}": number + 1 for number in range(20)}
    assert metadata["count"] == sum(range(26))
    assert metadata["more"] == sum(range(21, 26))


def test_refusal_without_a_user_is_counted_among_the_others(db):
    refuse(3, user_id=None)
    assert floods.written() == 1
    metadata = AuditRow.objects.get(metadata__has_key="count").metadata
    assert (metadata["count"], metadata["users"], metadata["more"]) == (2, {}, 2)


# -- forgeries -----------------------------------------------------------------------------------------------------------


def set_field(name, value):
    valkey.client().hset(tally()[1], name, value)


def of_another_group(field):
    """The field as it is signed for another group and the same minute."""
    group = json.dumps(["policy_update", None, "acme", "admin", "rate_limit_rpm"])
    start = int(tally()[0].partition(b"/")[0])
    minute, last = Minute(group, start), '{"rule": "images"}'
    return {"group": group, "head": minute.head, "last": f"{minute.sign('last', last)}.{last}"}[field]


def rename(name):
    old, key = tally()
    valkey.client().rename(key, b"{refusals}/tally/" + name)
    valkey.client().zrem(DUE, old)
    valkey.client().zadd(DUE, {name: 1})


FORGED = {
    "another actor": lambda: set_field("group", of_another_group("group")),
    "the head of another group": lambda: set_field("head", of_another_group("head")),
    "metadata of another group": lambda: set_field("last", of_another_group("last")),
    "metadata without a signature": lambda: set_field("last", '{"rule": "rate_limit_rpm", "limit": 0, "value": 0}'),
    "no signature": lambda: set_field("head", tally()[0].partition(b"/")[0]),
    "no head": lambda: valkey.client().hdel(tally()[1], "head"),
    "not text": lambda: set_field("last", b"\xff\xfe"),
    "more than is possible": lambda: set_field("count", tallies.PLAUSIBLE + 1),
    "less than one": lambda: set_field("count", 0),
    "negative": lambda: set_field("count", -5),
    "no number": lambda: set_field("count", "1e3"),
    "digits without end": lambda: set_field("count", "9" * 5000),
    "far too long": lambda: set_field("last", "x" * 1_000_000),
    "too many fields": lambda: valkey.client().hset(tally()[1], mapping={f"x{number}": 1 for number in range(100)}),
    "another type": lambda: spoil("{refusals}/tally/*"),
    "another name": lambda: rename(b"1" + tally()[0]),
}


@pytest.mark.parametrize("kind", FORGED)
def test_forged_tally_is_dropped_and_the_others_are_written(db, kind, caplog):
    refuse(3)
    FORGED[kind]()
    refuse(4, rule="images")
    floods.end_minutes()
    assert refusals.write_due() == 1
    assert counts(metadata__rule="images") == [None, 3]
    assert counts(metadata__rule="rate_limit_rpm") == [None]
    assert set(AuditRow.objects.values_list("actor", "action")) == {("acme", "admit_denied")}
    assert said(caplog)
    assert refusals.write_due() == 0
    assert valkey.client().zcard(DUE) == 0


GARBAGE = ["", "x", "1/", "/0", "1/zz", "../../x", "\0", "1/" + "0" * 10_000, b"\xff\xfe/00", "1" * 400 + "/00"]


def test_garbage_among_the_due_tallies_stops_nothing(db, caplog):
    refuse(3)
    client = valkey.client()
    client.zadd(DUE, dict.fromkeys(GARBAGE, 1))
    floods.end_minutes()
    assert refusals.write_due() == 1
    assert counts() == [None, 2]
    assert client.keys("*") == []
    (line,) = [record.msg for record in caplog.records if record.name == tallies.__name__]
    assert line["entries"] > 5  # in one line: garbage must not flood the log either


def test_entries_of_another_type_are_removed_and_counting_goes_on(db):
    refuse(2)
    spoil("{refusals}/*")
    refuse(3)
    assert floods.written() == 1
    assert counts() == [None, None, 2]
    valkey.client().set(DUE, "garbage")
    assert refusals.write_due() == 0
    refuse(3)
    assert floods.written() == 1


def test_counts_that_are_no_numbers_are_removed_and_counting_goes_on(db):
    refuse(5)
    set_field("count", "garbage")
    refuse(3)
    assert floods.written() == 1
    assert counts() == [None, 3]


def test_user_that_was_not_refused_is_left_out(db, caplog):
    refuse(3)
    minute = Minute(valkey.client().hget(tally()[1], "group").decode(), int(tally()[0].partition(b"/")[0]))
    other = Minute(minute.group, minute.start + 1)
    set_field(f"user.{other.sign('user', 'bob')}.bob", 1)
    set_field(f"user.{minute.sign('user', 'bob')}.carol", 1)
    set_field("user..dave", 1)
    assert floods.written() == 1
    metadata = AuditRow.objects.get(metadata__has_key="count").metadata
    assert (metadata["count"], metadata["users"]) == (2, {"alice": 2})
    assert said(caplog) == {"user is not signed"}


def test_users_are_left_out_when_their_numbers_cannot_be(db):
    refuse(3)
    (field,) = [name for name in valkey.client().hkeys(tally()[1]) if name.startswith(b"user.")]
    set_field(field, 99)
    assert floods.written() == 1
    metadata = AuditRow.objects.get(metadata__has_key="count").metadata
    assert (metadata["count"], metadata["users"], metadata["more"]) == (2, {}, 2)


# -- what was there before, put back -------------------------------------------------------------------------------------


def snapshot():
    client = valkey.client()
    return {key: client.dump(key) for key in client.keys("*")}


def put_back(found):
    for key, value in found.items():
        valkey.client().restore(key, 0, value, replace=True)


def test_tally_put_back_is_not_written_again(db):
    refuse(5)
    floods.end_minutes()
    before = snapshot()
    assert refusals.write_due() == 1
    put_back(before)
    set_key = next(key for key in before if b"/tally/" in key)
    valkey.client().hset(set_key, "count", 999)
    assert refusals.write_due() == 0
    assert counts() == [None, 4]
    assert valkey.client().keys("*") == []


def test_tally_older_than_a_day_is_dropped(db, caplog):
    """Older than any row that retention may have removed: no row could say any more that it was written."""
    refuse(2)
    _, key = tally()
    fields = valkey.client().hgetall(key)
    age = tallies.KEPT + timedelta(minutes=1)
    old = Minute(fields[b"group"].decode(), int((times.database_now() - age).timestamp() * 1_000_000))
    last = fields[b"last"].decode().partition(".")[2]
    valkey.client().flushall()
    valkey.client().hset(
        "{refusals}/tally/" + old.name,
        mapping={"head": old.head, "group": old.group, "count": 7, "last": f"{old.sign('last', last)}.{last}"},
    )
    valkey.client().zadd(DUE, {old.name: 1})
    assert refusals.write_due() == 0
    assert said(caplog) == {"too old"}
    assert counts() == [None]


def test_head_put_back_does_not_hold_up_the_next_first_row(db, caplog):
    refuse()
    (key,) = valkey.client().keys("*/now/*")
    group = next(iter(tallies._known))
    old = Minute(group, int((times.database_now() - timedelta(minutes=2)).timestamp() * 1_000_000))
    for head in (old.head, "garbage", f"{old.start}.{'0' * 32}", b"\xff"):
        valkey.client().set(key, head)
        tallies._known.clear()  # as of a process that has refused nobody in this minute
        refuse()
    assert counts() == [None] * 5
    assert said(caplog) == {"the minute is over", "not a possible number", "minute is not signed", "not text"}


def test_valkey_that_is_wiped_again_and_again_makes_few_rows(db):
    for _ in range(40):
        refuse()
        valkey.client().flushall()
    assert counts() == [None] * refusals.FIRSTS
    for tally in list(refusals._here.values()):
        refusals._end_here(tally)
    assert counts() == [None] * refusals.FIRSTS + [40 - refusals.FIRSTS]
    assert AuditRow.objects.get(metadata__has_key="count").metadata["users"] == {"alice": 40 - refusals.FIRSTS}


# -- the keys ------------------------------------------------------------------------------------------------------------


def test_tally_outlives_a_rotation_of_the_master_key(db, settings):
    refuse(4)
    old, new = settings.ENV.master_key, Fernet.generate_key().decode()
    settings.ENV = settings.ENV.model_copy(update={"master_key": f"{new},{old}"})
    refuse(2)
    assert floods.written() == 1
    assert counts() == [None, 5]


def test_tally_under_a_key_that_is_gone_is_dropped(db, settings, caplog):
    refuse(4)
    settings.ENV = settings.ENV.model_copy(update={"master_key": Fernet.generate_key().decode()})
    assert floods.written() == 0
    assert said(caplog) == {"minute is not signed"}


def test_signature_is_for_its_purpose_only(db):
    signature = crypto.sign("refusals", "text")
    assert crypto.is_signed("refusals", "text", signature)
    assert not crypto.is_signed("logs", "text", signature)
    assert not crypto.is_signed("refusals", "other", signature)
    assert not crypto.is_signed("refusals", "text", "")
