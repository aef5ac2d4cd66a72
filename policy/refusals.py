"""Audit rows of refusals, limited to two rows per minute and group: a flood of refused calls must not flood the audit log.

A group is an action, a product, an actor and a rule. The first refusal of a group is written as a row at once, and starts a
minute. Further refusals of the group within the minute are counted in Valkey (`policy.tallies`), for all processes together and
by Valkey's clock. After the minute, one more row sums them up, with their `count` and their `users`. While Valkey is away, every
process counts on its own.
"""

import atexit
import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import structlog
from django.db import DataError, Error, IntegrityError, connection, transaction

from audit import trail
from audit.actions import Action
from audit.actors import Actor
from audit.models import AuditRow
from common import times, valkey
from policy import tallies
from policy.tallies import MINUTE_S, Tally

RETRY_S = 10.0  # between two tries of this process to write a tally, while the database is away
FIRSTS = 10  # first rows of a group that a process writes within a minute, at most, even if Valkey begins more minutes
_GROUPS = 10_000  # groups whose first rows a process counts
_SKEW = timedelta(days=1)  # largest change of the database's clock
log = structlog.get_logger(__name__)


def record(
    action: Action, subject: trail.Subject, *, by: Actor, metadata: Mapping[str, Any], counted_as: str | None = None
) -> None:
    """Write the refusal's row, or count the refusal for the row at the end of the minute.

    `metadata` must have the key `rule`. The row at the end of the minute counts the refusal under `counted_as` in its `users`;
    without `counted_as`, under the user id of `subject`. Raises django.db.Error.
    """
    counted_as = counted_as or subject.user_id
    product_id = str(subject.product_id) if subject.product_id else None
    group = json.dumps([action, product_id, subject.product_slug, by, metadata["rule"]])
    try:
        is_first = tallies.note(group, metadata, counted_as)
    except valkey.Away:
        is_first = _note_here(group, metadata, counted_as)
    else:
        is_first = is_first and (_may_begin(group) or _note_here(group, metadata, counted_as, may_begin=False))
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
        due = tallies.read_due()
    except valkey.Away:
        return 0
    written = sum(_try_to_write(tally) for tally in due)
    with contextlib.suppress(valkey.Away):  # a later call finds the rows already written, and removes the tallies
        tallies.forget(due)
    return written


def _try_to_write(tally: Tally) -> bool:
    """`_write_once`; False, with a log line, for a tally that no row can hold: the other tallies have to be written."""
    try:
        return _write_once(tally)
    except (ValueError, TypeError, DataError, IntegrityError) as error:  # such as an action of another version of our code
        log.warning("refusals_dropped", entries=1, reasons=[f"{type(error).__name__}: {error}"])
        return False


def _begin_again(group: str) -> None:
    """End the minute whose first row could not be written: the next refusal starts a new minute."""
    with _lock:
        _here.pop(group, None)
    with contextlib.suppress(valkey.Away):
        tallies.end(group)


# -- in this process ---------------------------------------------------------------------------------------------------

_here: dict[str, Tally] = {}
_firsts: dict[str, tuple[float, int]] = {}  # by group: the start of a minute (monotonic clock), and its first rows
_lock = threading.Lock()


def _may_begin(group: str) -> bool:
    """Whether one more first row of the group is within FIRSTS: who wipes Valkey again and again must not flood the log."""
    with _lock:
        if len(_firsts) >= _GROUPS:
            _firsts.clear()
        began, rows = _firsts.get(group, (time.monotonic(), 0))
        if time.monotonic() - began > MINUTE_S:
            began, rows = time.monotonic(), 0
        _firsts[group] = (began, rows + 1)
        return rows < FIRSTS


def _note_here(group: str, metadata: Mapping[str, Any], user_id: str | None, *, may_begin: bool = True) -> bool:
    """Do the same as `tallies.note` within this process; without `may_begin`, count also the refusal that begins the minute.

    A timer, or the end of the process, ends the minute.
    """
    with _lock:
        tally = _here.get(group)
        is_new = tally is None
        if tally is None:
            _here[group] = tally = Tally(group, times.database_now(), 0, {})
        if not is_new or not may_begin:
            tally.add(metadata, user_id)
    if is_new:
        _after(MINUTE_S, tally)
    return is_new and may_begin


def _after(seconds: float, tally: Tally) -> None:
    timer = threading.Timer(seconds, _end_here, [tally])
    timer.daemon = True
    timer.start()


def _end_here(tally: Tally) -> None:
    """End the minute and write its row; try again after RETRY_S while the database is away."""
    with _lock:
        if _here.get(tally.group) is tally:
            del _here[tally.group]
        ended, tally.count, tally.users = replace(tally), 0, Counter()
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
def _write_once(tally: Tally) -> bool:
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


def _write(tally: Tally) -> None:
    action, product_id, slug, actor, _ = json.loads(tally.group)
    subject = trail.Subject(product_id=UUID(product_id) if product_id else None, product_slug=slug)
    counted = {"count": tally.count, "since": times.iso(tally.since), "users": dict(tally.users), "more": tally.more}
    trail.record(Action(action), subject, by=Actor(actor), metadata={**tally.last, **counted})
