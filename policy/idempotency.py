"""`Idempotency-Key`: a mutating call that is sent again does what it did once, and answers the same.

The key's row is inserted in the transaction of the effect, so both are there or neither. A second call with the key waits for
the first one's transaction and is then answered from the row: from the operation it names, or from the answer it keeps
(encrypted, for what is shown once). A refusal is no effect: it keeps no key; nor does an admit that asked for no operation.
Scope: caller, method and path. Keys are kept for a day.

Semantics as in draft-ietf-httpapi-idempotency-key-header.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from django.db import connection, transaction

from policy import crypto
from policy.errors import IdempotencyMismatch, InvalidIdempotencyKey

if TYPE_CHECKING:
    from rest_framework.request import Request  # at run time workers purge keys, and do without the framework

HEADER = "Idempotency-Key"
KEPT_HOURS = 24
T = TypeVar("T")


@dataclass(frozen=True)
class Kept:
    """What a replay is answered from: the operation, or the whole answer."""

    operation_id: UUID | None = None
    answer: dict[str, Any] | None = None

    def named(self) -> UUID:
        """The operation's id, of a call that asked for one."""
        assert self.operation_id is not None
        return self.operation_id


def once(
    request: "Request",
    caller: str,
    effect: Callable[[], T],
    *,
    keep: Callable[[T], Kept],
    replay: Callable[[Kept], T],
    refusals: tuple[type[Exception], ...],
) -> T:
    """The result of `effect`, which is called once per key; without the header, of `effect` as it is.

    `effect` changes the database only, in the transaction that this opens. `refusals` are the errors that leave their audit
    rows but no effect. Raises InvalidIdempotencyKey, IdempotencyMismatch, and what `effect` raises.
    """
    scope = _scope(request, caller)
    if scope is None:
        return effect()
    refused: Exception | None = None
    with transaction.atomic():
        kept = _claim(scope, _fingerprint(request))
        if kept is not None:
            return replay(kept)
        try:
            result = effect()
        except refusals as refusal:
            _forget(scope)
            refused = refusal
        else:
            _keep(scope, keep(result))
    if refused is not None:  # raised after the commit: inside, the row of the refusal would be rolled back
        raise refused
    return result


def recall(request: "Request", caller: str) -> Kept | None:
    """What an earlier call under the request's key has left; None without a key, and while nothing is committed under it.

    For a call that may come to an effect only later. Raises InvalidIdempotencyKey, IdempotencyMismatch.
    """
    scope = _scope(request, caller)
    return None if scope is None else _read(scope, _fingerprint(request))


def purge() -> int:
    """Forget the keys that are older than a day; returns how many."""
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM policy_idempotencykey WHERE created_at < now() - make_interval(hours => %s)", [KEPT_HOURS])
        return int(cursor.rowcount)


_SCOPE = "caller = %s AND method = %s AND path = %s AND key = %s"
_OVER = "(created_at < now() - make_interval(hours => %s) OR (operation_id IS NULL AND answer_ciphertext = ''))"
"""Too old, or with nothing kept under it: admits once left such rows, and do while the version before this one still runs."""


def _scope(request: "Request", caller: str) -> tuple[str, ...] | None:
    """What the request's key holds for; None without one. Raises InvalidIdempotencyKey."""
    key = request.headers.get(HEADER)
    if key is None:
        return None
    if not 1 <= len(key) <= 255 or not key.isascii() or not key.isprintable():
        raise InvalidIdempotencyKey(f"{HEADER}: must be 1 to 255 printable ASCII characters.")
    return caller, request.method or "", request.path_info, key


def _fingerprint(request: "Request") -> str:
    """SHA-256 of the body, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(request.data, sort_keys=True, default=str).encode()).hexdigest()


def _claim(scope: tuple[str, ...], fingerprint: str) -> Kept | None:
    """Take the key for this transaction, or say what the call that has it left. Waits while that one is under way."""
    with connection.cursor() as cursor:
        cursor.execute(f"DELETE FROM policy_idempotencykey WHERE {_SCOPE} AND {_OVER}", [*scope, KEPT_HOURS])
        cursor.execute(
            "INSERT INTO policy_idempotencykey (caller, method, path, key, fingerprint) VALUES (%s, %s, %s, %s, %s)"
            " ON CONFLICT DO NOTHING",
            [*scope, fingerprint],
        )
        if cursor.rowcount == 1:
            return None
    return _read(scope, fingerprint)


def _read(scope: tuple[str, ...], fingerprint: str) -> Kept | None:
    """What is kept under the key. Raises IdempotencyMismatch when that is another request's."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT fingerprint, operation_id, answer_ciphertext FROM policy_idempotencykey WHERE {_SCOPE} AND NOT {_OVER}",
            [*scope, KEPT_HOURS],
        )
        row = cursor.fetchone()
    if row is None:
        return None
    theirs, operation_id, ciphertext = row
    if theirs != fingerprint:
        raise IdempotencyMismatch(f"This {HEADER} was used for another request; use a new key for a new request.")
    return Kept(operation_id, json.loads(crypto.decrypt(ciphertext)) if ciphertext else None)


def _keep(scope: tuple[str, ...], kept: Kept) -> None:
    ciphertext = crypto.encrypt(json.dumps(kept.answer)) if kept.answer is not None else ""
    with connection.cursor() as cursor:
        cursor.execute(
            f"UPDATE policy_idempotencykey SET operation_id = %s, answer_ciphertext = %s WHERE {_SCOPE}",
            [kept.operation_id, ciphertext, *scope],
        )


def _forget(scope: tuple[str, ...]) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"DELETE FROM policy_idempotencykey WHERE {_SCOPE}", scope)
