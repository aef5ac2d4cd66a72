"""Audit rows of refusals, limited to two rows per minute and group: a flood of refused calls must not flood the audit log.

A group is an action, a product, an actor and a rule. The first refusal of a group is written as a row at once, and starts a
minute. Further refusals of the group within the minute are counted in Valkey, for all processes together and by Valkey's clock.
After the minute, one more row sums them up, with their `count`. While Valkey is away, every process counts on its own.
"""

import atexit
import contextlib
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any
from uuid import UUID

import redis
import structlog
from django.db import Error, connection, transaction

from audit import trail
from audit.actions import Action
from audit.actors import Actor
from audit.models import AuditRow
from common import times, valkey

MINUTE_S = 60
RETRY_S = 10.0  # between two tries of this process to write a tally, while the database is away
MOST = 1000  # tallies written by one call of `write_due`, at most
_SKEW = timedelta(days=1)  # largest difference between Valkey's clock and the database's clock
_NOW, _DUE, _TALLY = "{refusals}/now/", "{refusals}/due", "{refusals}/tally/"
log = structlog.get_logger(__name__)

# Starts a minute and returns 1, or counts the refusal in the tally of the current minute and returns 0.
# KEYS: the minute's key, which expires after a minute with the start in ms as its value; the sorted set of due tallies.
# ARGV: the group; the refusal's metadata as JSON. A tally is a hash named `<start>/<group>`.
_NOTE = f"""
local since = redis.call('get', KEYS[1])
if not since then
    -- no current minute: this refusal is the first of a new minute
    local time = redis.call('time')
    redis.call('set', KEYS[1], time[1] .. string.format('%03d', math.floor(time[2] / 1000)), 'PX', {MINUTE_S * 1000})
    return 1
end
-- the tally keeps the count, and the metadata of the last refusal
local name = since .. '/' .. ARGV[1]
redis.call('hincrby', '{_TALLY}' .. name, 'count', 1)
redis.call('hset', '{_TALLY}' .. name, 'last', ARGV[2])
-- due at the end of the minute
redis.call('zadd', KEYS[2], since + {MINUTE_S * 1000}, name)
return 0
"""
# Returns name, count and last metadata of up to MOST tallies whose minute ended at least a second ago. KEYS: the due tallies.
_READ_DUE = f"""
local time = redis.call('time')
local found = {{}}
for _, name in ipairs(redis.call('zrangebyscore', KEYS[1], '-inf', time[1] * 1000 - 1000, 'LIMIT', 0, {MOST})) do
    local since, group = string.match(name, '^(%d+)/(.*)$')
    -- Close the minute before reading its tally: after a change of the clock the minute could still be open, and later
    -- refusals would be counted in a tally already written.
    if redis.call('get', '{_NOW}' .. group) == since then redis.call('del', '{_NOW}' .. group) end
    local tally = redis.call('hmget', '{_TALLY}' .. name, 'count', 'last')
    -- a name without a tally is left over from an interrupted removal
    if tally[1] then found[#found + 1] = {{name, tally[1], tally[2]}} else redis.call('zrem', KEYS[1], name) end
end
return found
"""


@dataclass
class _Tally:
    """The refusals of one group within a minute, without the first refusal; `last` is the metadata of the last refusal."""

    group: str
    since: datetime
    count: int
    last: Mapping[str, Any]
    name: str = ""


def record(action: Action, subject: trail.Subject, *, by: Actor, metadata: Mapping[str, Any]) -> None:
    """Write the refusal's row, or count the refusal for the row at the end of the minute.

    `metadata` must have the key `rule`. Raises django.db.Error.
    """
    product_id = str(subject.product_id) if subject.product_id else None
    group = json.dumps([action, product_id, subject.product_slug, by, metadata["rule"]])
    try:
        is_first = valkey.ask(lambda client: _note(client, group, metadata))
    except valkey.Away:
        is_first = _note_here(group, metadata)
    if not is_first:
        return
    try:
        trail.record(action, subject, by=by, metadata=metadata)
    except BaseException:
        _begin_again(group)
        raise


def write_due() -> int:
    """Write the row of every tally whose minute is over; return the number of rows. Concurrent calls write every row once."""
    try:
        due = valkey.ask(_read_due)
    except valkey.Away:
        return 0
    written = sum(_write_once(tally) for tally in due)
    with contextlib.suppress(valkey.Away):  # a later call finds the rows already written, and removes the tallies
        valkey.ask(lambda client: _forget(client, due))
    return written


# -- in Valkey ---------------------------------------------------------------------------------------------------------


@cache
def _script(text: str) -> Any:
    return valkey.client().register_script(text)


def _note(client: redis.Redis, group: str, metadata: Mapping[str, Any]) -> bool:
    """Return True if the refusal starts a minute; otherwise count the refusal in Valkey and return False."""
    return bool(_script(_NOTE)([_NOW + group, _DUE], [group, json.dumps(metadata)], client))


def _begin_again(group: str) -> None:
    """End the minute whose first row could not be written: the next refusal starts a new minute."""
    with _lock:
        _here.pop(group, None)
    with contextlib.suppress(valkey.Away):
        valkey.ask(lambda client: client.delete(_NOW + group))


def _read_due(client: redis.Redis) -> list[_Tally]:
    return [_read(*(part.decode() for part in found)) for found in _script(_READ_DUE)([_DUE], [], client)]


def _read(name: str, count: str, last: str) -> _Tally:
    since, _, group = name.partition("/")
    return _Tally(group, datetime.fromtimestamp(int(since) / 1000, UTC), int(count), json.loads(last), name)


def _forget(client: redis.Redis, tallies: list[_Tally]) -> None:
    if tallies:
        client.delete(*(_TALLY + tally.name for tally in tallies))
        client.zrem(_DUE, *(tally.name for tally in tallies))


# -- in this process, while Valkey is away -----------------------------------------------------------------------------

_here: dict[str, _Tally] = {}
_lock = threading.Lock()


def _note_here(group: str, metadata: Mapping[str, Any]) -> bool:
    """Do the same as `_note` within this process. A timer, or the end of the process, ends the minute."""
    with _lock:
        if (tally := _here.get(group)) is not None:
            tally.count, tally.last = tally.count + 1, metadata
            return False
        _here[group] = tally = _Tally(group, times.database_now(), 0, {})
    _after(MINUTE_S, tally)
    return True


def _after(seconds: float, tally: _Tally) -> None:
    timer = threading.Timer(seconds, _end_here, [tally])
    timer.daemon = True
    timer.start()


def _end_here(tally: _Tally) -> None:
    """End the minute and write its row; try again after RETRY_S while the database is away."""
    with _lock:
        if _here.get(tally.group) is tally:
            del _here[tally.group]
        ended, tally.count = replace(tally), 0
    try:
        if ended.count:
            _write(ended)
    except Error as error:
        log.warning("refusals_not_written", count=ended.count, error=type(error).__name__)
        _after(RETRY_S, ended)
    finally:
        connection.close()


@atexit.register
def _end_all_here() -> None:
    for tally in list(_here.values()):
        _end_here(tally)


# -- the row -----------------------------------------------------------------------------------------------------------


@transaction.atomic
def _write_once(tally: _Tally) -> bool:
    """Write the tally's row unless the row exists: an earlier writer may have died before removing the tally from Valkey."""
    with connection.cursor() as cursor:
        # Concurrent writers of a tally wait for each other: the second writer sees the row of the first.
        cursor.execute("SELECT pg_advisory_xact_lock(hashtext('refusals'), hashtext(%s))", [tally.name])
    action, product_id, _, actor, rule = json.loads(tally.group)
    rows = AuditRow.objects.filter(product_id=product_id, action=action, actor=actor, timestamp__gte=tally.since - _SKEW)
    if rows.filter(metadata__since=times.iso(tally.since), metadata__rule=rule).exists():
        return False
    _write(tally)
    return True


def _write(tally: _Tally) -> None:
    action, product_id, slug, actor, _ = json.loads(tally.group)
    subject = trail.Subject(product_id=UUID(product_id) if product_id else None, product_slug=slug)
    metadata = {**tally.last, "count": tally.count, "since": times.iso(tally.since)}
    trail.record(Action(action), subject, by=Actor(actor), metadata=metadata)
