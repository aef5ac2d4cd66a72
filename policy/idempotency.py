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

from django.db import transaction

from policy import crypto
from policy.errors import IdempotencyMismatch, InvalidIdempotencyKey
from policy.models import IdempotencyKey, IdempotencyKeyQuerySet

if TYPE_CHECKING:
    from rest_framework.request import Request  # at run time workers purge keys, and do without the framework

HEADER = "Idempotency-Key"
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
            scope.rows().delete()
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
    """Forget the keys that are older than KEPT_HOURS; returns how many."""
    return IdempotencyKey.objects.too_old().delete()[0]


@dataclass(frozen=True)
class _Scope:
    """What a key holds for: one caller, method and path."""

    caller: str
    method: str
    path: str
    key: str

    def rows(self) -> IdempotencyKeyQuerySet:
        """The key's row, if it is there."""
        return IdempotencyKey.objects.filter(**vars(self))


def _scope(request: "Request", caller: str) -> _Scope | None:
    """What the request's key holds for; None without a key. Raises InvalidIdempotencyKey."""
    key = request.headers.get(HEADER)
    if key is None:
        return None
    if not 1 <= len(key) <= 255 or not key.isascii() or not key.isprintable():
        raise InvalidIdempotencyKey(f"{HEADER}: must be 1 to 255 printable ASCII characters.")
    return _Scope(caller, request.method or "", request.path_info, key)


def _fingerprint(request: "Request") -> str:
    """SHA-256 of the body, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(request.data, sort_keys=True, default=str).encode()).hexdigest()


def _claim(scope: _Scope, fingerprint: str) -> Kept | None:
    """Take the key for this transaction, or say what an earlier call has left under it.

    The insert waits while another call with the key is under way. That call then has left something under the key, or its row is
    gone.
    """
    scope.rows().void().delete()
    IdempotencyKey.objects.bulk_create([IdempotencyKey(**vars(scope), fingerprint=fingerprint)], ignore_conflicts=True)
    return _read(scope, fingerprint)


def _read(scope: _Scope, fingerprint: str) -> Kept | None:
    """What is kept under the key; None when there is nothing. Raises IdempotencyMismatch when another request left it."""
    row = scope.rows().valid().first()
    if row is None:
        return None
    if row.fingerprint != fingerprint:
        raise IdempotencyMismatch(f"This {HEADER} was used for another request; use a new key for a new request.")
    return Kept(row.operation_id, json.loads(crypto.decrypt(row.answer_ciphertext)) if row.answer_ciphertext else None)


def _keep(scope: _Scope, kept: Kept) -> None:
    ciphertext = crypto.encrypt(json.dumps(kept.answer)) if kept.answer is not None else ""
    scope.rows().update(operation_id=kept.operation_id, answer_ciphertext=ciphertext)
