"""Counts refusals in Valkey, for all processes together: how many in a minute of a group, of which users.

A group is an action, a product, an actor and a rule. Its first refusal begins a minute; the further refusals of the minute are
counted in a tally.

Whoever reaches Valkey may write anything there. Of an entry, only its numbers are believed, and only numbers that are possible.
The rest carries signatures of ours (`crypto.sign`), each made for a single group and minute. An entry without them is logged and
dropped, and no other entry suffers. docs/decisions/0909 says what a forger can still do.

{refusals}/now/<digest of the group>    the head of the current minute, `<start in µs>.<signature>`; expires after a minute
{refusals}/tally/<start>/<digest>       a hash: `head`, `group`, `last` (the last refusal's metadata), `count`, and for each of
                                        the first USERS users a field `user.<signature>.<user id>` with a count of its own
{refusals}/due                          the names (`<start>/<digest>`) of the tallies, by the end of their minute
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache, cached_property
from typing import Any

import structlog

from common import times, valkey
from policy import crypto

MINUTE_S = 60
USERS = 20  # users of a tally with a count of their own
KEPT = timedelta(days=1)  # a tally that began earlier is dropped; no row of the audit log is removed as early as that
MOST = 1000  # tallies read by one call of `read_due`, at most
PLAUSIBLE = 10_000_000  # refusals in a minute, at most: Valkey carries out fewer than 150,000 scripts a second
_LAST_START = 10**16  # microseconds since 1970: in the year 2286
_LATE_S = 5.0  # of a minute that is over: time in which its head may still be found, by the clocks of two servers
_TRIES = 3  # heads of the current minute that are tried before the refusal is counted without Valkey
_GROUPS = 10_000  # groups whose minute a process remembers
_LONGEST = 262_144  # bytes of a tally
_NOW, _DUE, _TALLY = "{refusals}/now/", "{refusals}/due", "{refusals}/tally/"
log = structlog.get_logger(__name__)

# Begins a minute and returns nil, or returns the head of the current minute.
# KEYS: the head's key. ARGV: the head of a new minute.
_BEGIN = f"""
local head = redis.call('get', KEYS[1])
if not head then redis.call('set', KEYS[1], ARGV[1], 'PX', {MINUTE_S * 1000}) end
return head
"""
# Counts a refusal and returns 1; if the minute is not current any more, returns the head of the current minute, or nil.
# KEYS: the head's key; the tally; the due tallies. ARGV: the head; the tally's name; the group; the signed metadata; the field of
# the user, or an empty string.
_COUNT = f"""
local head = redis.call('get', KEYS[1])
if head ~= ARGV[1] then return head end
-- Due at the end of the minute, at most a minute from now. LT: no later refusal puts the end off.
local time, left = redis.call('time'), redis.call('pttl', KEYS[1])
local ends = time[1] * 1000 + math.floor(time[2] / 1000) + math.max(0, math.min(left, {MINUTE_S * 1000}))
redis.call('zadd', KEYS[3], 'LT', ends, ARGV[2])
redis.call('hset', KEYS[2], 'head', head, 'group', ARGV[3], 'last', ARGV[4])
-- 3: the fields of every tally, without its users and its count, which may not be there yet
if ARGV[5] ~= '' and (redis.call('hexists', KEYS[2], ARGV[5]) == 1
        or redis.call('hlen', KEYS[2]) - redis.call('hexists', KEYS[2], 'count') < 3 + {USERS}) then
    redis.call('hincrby', KEYS[2], ARGV[5], 1)
end
-- The count comes last: after an error, which ends the script, the refusal is counted anew.
if redis.call('hincrby', KEYS[2], 'count', 1) == 1 then
    redis.call('pexpire', KEYS[2], {KEPT // timedelta(milliseconds=1)})
end
return 1
"""
# Returns the names of up to MOST tallies whose minute ended at least a second ago, each with its fields and values; without
# fields if there is nothing that could be a tally of ours. KEYS: the due tallies.
_READ_DUE = f"""
local time = redis.call('time')
local found = {{}}
for _, name in ipairs(redis.call('zrangebyscore', KEYS[1], '-inf', time[1] * 1000 - 1000, 'LIMIT', 0, {MOST})) do
    local start, digest = string.match(string.sub(name, 1, 100), '^(%d+)/(%x+)$')
    local fields = {{}}
    if start then
        -- Close the minute before reading its tally: after a change of the clock the minute could still be open, and later
        -- refusals would be counted in a tally already written. pcall: the entry may have another type.
        local head = redis.pcall('get', '{_NOW}' .. digest)
        if type(head) == 'string' and string.find(head, start .. '.', 1, true) == 1 then
            redis.call('del', '{_NOW}' .. digest)
        end
        local size = redis.pcall('hlen', '{_TALLY}' .. name)
        if type(size) == 'number' and size <= 4 + {USERS} then fields = redis.call('hgetall', '{_TALLY}' .. name) end
        local bytes = 0
        for _, part in ipairs(fields) do bytes = bytes + #part end
        if bytes > {_LONGEST} then fields = {{}} end
        if size == 0 then
            redis.call('zrem', KEYS[1], name) -- left over from an interrupted removal
        else
            found[#found + 1] = {{name, fields}}
        end
    else
        found[#found + 1] = {{name, fields}}
    end
end
return found
"""
# Removes the head unless another head has taken its place. KEYS: the head's key. ARGV: the head.
_REMOVE_HEAD = "if redis.call('get', KEYS[1]) == ARGV[1] then redis.call('del', KEYS[1]) end"


class _Forged(Exception):
    """An entry is not ours, or cannot be true."""


@dataclass(frozen=True)
class Minute:
    """A minute of a group, with the time at which it began, in microseconds since 1970 by the database's clock."""

    group: str
    start: int

    @cached_property
    def digest(self) -> str:
        """The group in the names of keys."""
        return hashlib.sha256(self.group.encode()).hexdigest()[:32]

    @property
    def name(self) -> str:
        """The tally in the set of due tallies."""
        return f"{self.start}/{self.digest}"

    @cached_property
    def head(self) -> str:
        """The minute with its signature, for Valkey."""
        return f"{self.start}.{self.sign('minute', '')}"

    def sign(self, kind: str, text: str) -> str:
        """The signature of `text`, valid for this group and minute only."""
        return crypto.sign("refusals", json.dumps([self.group, self.start, kind, text]))

    def check(self, kind: str, text: str, signature: str) -> None:
        """Raise _Forged unless the signature of `text` is ours."""
        if not crypto.is_signed("refusals", json.dumps([self.group, self.start, kind, text]), signature):
            raise _Forged(f"{kind} is not signed")


@dataclass
class Tally:
    """The refusals of a group within a minute, without the first refusal.

    `last` is the metadata of the last refusal. `users` has the refusals of at most USERS users, by user id.
    """

    group: str
    since: datetime
    count: int
    last: Mapping[str, Any]
    users: Counter[str] = field(default_factory=Counter)
    name: str = ""

    @property
    def more(self) -> int:
        """The refusals of users without a count of their own."""
        return self.count - self.users.total()

    def add(self, metadata: Mapping[str, Any], user_id: str | None) -> None:
        """Count a refusal."""
        self.count, self.last = self.count + 1, metadata
        if user_id is not None and (user_id in self.users or len(self.users) < USERS):
            self.users[user_id] += 1


# -- counting ----------------------------------------------------------------------------------------------------------

_known: dict[str, tuple[float, Minute]] = {}  # by group: its minute, and when this process found it (monotonic clock)


def note(group: str, metadata: Mapping[str, Any], user_id: str | None) -> bool:
    """Return True if the refusal begins a minute; otherwise count the refusal and return False.

    Raises valkey.Away, and django.db.Error when the time cannot be read.
    """
    found_at, minute = _known.get(group, (0.0, None))
    if minute is not None and time.monotonic() - found_at < MINUTE_S and _count(minute, metadata, user_id):
        return False
    for _ in range(_TRIES):
        minute, is_new = _begin(group)
        if minute is None:
            continue
        _remember(minute)
        if is_new or _count(minute, metadata, user_id):
            return is_new
    raise valkey.Away("no minute of refusals could be begun")


def end(group: str) -> None:
    """End the minute whose first row could not be written: the next refusal begins a new minute. Raises valkey.Away."""
    _known.pop(group, None)
    key = _NOW + Minute(group, 0).digest
    valkey.ask(lambda client: client.delete(key))


def _begin(group: str) -> tuple[Minute | None, bool]:
    """The group's current minute, and whether it begins now; None if a foreign head was found, which is removed."""
    now = times.database_now()
    minute = Minute(group, int(now.timestamp() * 1_000_000))
    key = _NOW + minute.digest
    head = valkey.ask(lambda client: _script(_BEGIN)([key], [minute.head], client), {key: "string"})
    if head is None:
        return minute, True
    try:
        return _read_head(group, head, now), False
    except _Forged as why:
        log.warning("refusals_dropped", entries=1, reasons=[str(why)])
        valkey.ask(lambda client: _script(_REMOVE_HEAD)([key], [head], client), {key: "string"})
        return None, False


def _read_head(group: str, head: bytes, now: datetime) -> Minute:
    """The minute of a head. Raises _Forged, also if the minute is over: an old head put back would hold up the first row."""
    start, _, signature = _text(head).partition(".")
    minute = Minute(group, _number(start, _LAST_START))
    minute.check("minute", "", signature)
    if now.timestamp() - minute.start / 1_000_000 > MINUTE_S + _LATE_S:
        raise _Forged("the minute is over")
    return minute


def _count(minute: Minute, metadata: Mapping[str, Any], user_id: str | None) -> bool:
    """Count the refusal; False if the minute is not the current minute of its group."""
    tally = _TALLY + minute.name
    keys = {_NOW + minute.digest: "string", tally: "hash", _DUE: "zset"}
    last = json.dumps(metadata)
    user = "" if user_id is None else f"user.{minute.sign('user', user_id)}.{user_id}"
    arguments = [minute.head, minute.name, minute.group, f"{minute.sign('last', last)}.{last}", user]
    return bool(valkey.ask(lambda client: _script(_COUNT)([*keys], arguments, client), keys, numbers=[tally]) == 1)


def _remember(minute: Minute) -> None:
    if len(_known) >= _GROUPS:
        _known.clear()
    _known[minute.group] = (time.monotonic(), minute)


@cache
def _script(text: str) -> Any:
    return valkey.client().register_script(text)


# -- reading -----------------------------------------------------------------------------------------------------------


def read_due() -> list[Tally]:
    """The tallies whose minute is over, up to MOST. Entries that are not ours are logged and dropped. Raises valkey.Away."""
    found = valkey.ask(lambda client: _script(_READ_DUE)([_DUE], [], client), {_DUE: "zset"})
    if not found:
        return []
    oldest = times.database_now() - KEPT
    tallies, dropped, reasons = [], [], set()
    for name, fields in found:
        try:
            tallies.append(_read(name, fields, oldest))
        except _Forged as why:
            dropped.append(name)
            reasons.add(str(why))
    if dropped:
        log.warning("refusals_dropped", entries=len(dropped), reasons=sorted(reasons))
        _remove(dropped)
    return tallies


def forget(tallies: Iterable[Tally]) -> None:
    """Remove tallies whose rows are written. Raises valkey.Away."""
    _remove([tally.name.encode() for tally in tallies])


def _remove(names: list[bytes]) -> None:
    if names:
        keys = [_TALLY.encode() + name for name in names]
        valkey.ask(lambda client: (client.delete(*keys), client.zrem(_DUE, *names)), {_DUE: "zset"})


def _read(name: bytes, pairs: list[bytes], oldest: datetime) -> Tally:
    """The tally called `name` of a hash's fields and values. Raises _Forged."""
    fields = dict(zip(map(_text, pairs[::2]), pairs[1::2], strict=True))
    if not fields.keys() >= {"head", "group", "last", "count"}:
        raise _Forged("no tally")
    start, _, signature = _text(fields["head"]).partition(".")
    minute = Minute(_text(fields["group"]), _number(start, _LAST_START))
    if minute.name.encode() != name:
        raise _Forged("the name is another tally's")
    minute.check("minute", "", signature)
    since = datetime.fromtimestamp(minute.start / 1_000_000, UTC)
    if since < oldest:
        raise _Forged("too old")
    signature, _, last = _text(fields["last"]).partition(".")
    minute.check("last", last, signature)
    count = _number(_text(fields["count"]))
    return Tally(minute.group, since, count, json.loads(last), _read_users(minute, fields, count), minute.name)


def _read_users(minute: Minute, fields: Mapping[str, bytes], count: int) -> Counter[str]:
    """The users with signatures of ours, and their counts; no users if they sum up to more than `count`."""
    users: Counter[str] = Counter()
    for name, number in fields.items():
        kind, _, signed = name.partition(".")
        signature, _, user_id = signed.partition(".")
        if kind != "user":
            continue
        try:
            minute.check("user", user_id, signature)
            users[user_id] += _number(_text(number))
        except _Forged as why:
            log.warning("refusals_dropped", entries=1, reasons=[str(why)])
    if users.total() > count:
        log.warning("refusals_dropped", entries=len(users), reasons=["the users' counts are more than the whole"])
        return Counter()
    return users


def _text(found: bytes) -> str:
    """Raises _Forged."""
    try:
        return found.decode()
    except UnicodeDecodeError as error:
        raise _Forged("not text") from error


def _number(text: str, most: int = PLAUSIBLE) -> int:
    """A whole number from 1 to `most`. Raises _Forged."""
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(most)) and 1 <= int(text) <= most):
        raise _Forged("not a possible number")
    return int(text)
