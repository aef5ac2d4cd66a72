"""`Idempotency-Key`: a mutating call sent twice has one effect, and both calls get the same answer.

The key's row is inserted in the transaction of the effect: either both are committed, or neither. A second call with the key
waits for the transaction of the first call, and is then answered from the row. The row holds the id of the operation, or the
answer itself (encrypted, because some answers contain a plaintext key). A refused call stores no key, and neither does an admit
without an operation. A key is valid for one caller, method and path, and for one day. A caller has at most about MOST_KEPT keys:
the oldest of more keys are forgotten before the day is over.

Semantics as in draft-ietf-httpapi-idempotency-key-header.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from django.db import transaction
from django.db.models import Count

from common import statements
from policy import crypto
from policy.errors import IdempotencyMismatch, InvalidIdempotencyKey
from policy.models import IdempotencyKey, IdempotencyKeyQuerySet

if TYPE_CHECKING:
    # Not at run time: workers import this module to purge keys, and run without Django REST framework.
    from rest_framework.request import Request

HEADER = "Idempotency-Key"
# Keys of a caller, in a table that all callers share. More are only left by a caller with over 5 new keys a second, all day.
MOST_KEPT = 500_000
T = TypeVar("T")


@dataclass(frozen=True)
class Kept:
    """The data stored under a key to answer a repeated call: the id of the operation, or the whole answer."""

    operation_id: UUID | None = None
    answer: dict[str, Any] | None = None

    def named(self) -> UUID:
        """Return the operation's id; only for calls that requested an operation."""
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
    """Call `effect` once per `Idempotency-Key` and return its result; a request without the header always calls `effect`.

    With a key, `effect` runs inside a transaction opened here, and must change nothing outside the database. `keep` turns the
    result into the data stored under the key; `replay` turns stored data back into a result. `refusals` are the errors of
    `effect` whose audit rows must be committed: the key's row is deleted, and the error is raised after the commit. Raises
    InvalidIdempotencyKey, IdempotencyMismatch, and the errors of `effect`.
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
    if refused is not None:  # raised after the commit: an error inside the block would roll back the refusal's audit row
        raise refused
    return result


def recall(request: "Request", caller: str) -> Kept | None:
    """Return the data stored by an earlier call under the request's key; None without a key or without committed data.

    For a call that decides only later whether to have an effect. Raises InvalidIdempotencyKey, IdempotencyMismatch.
    """
    scope = _scope(request, caller)
    return None if scope is None else _read(scope, _fingerprint(request))


def purge(most: int = MOST_KEPT) -> int:
    """Delete keys older than KEPT_HOURS, and all but the `most` newest keys of each caller; return the number of deleted keys."""
    with statements.limited(statements.JOB_S):
        return _purge(most)


def _purge(most: int) -> int:
    deleted = IdempotencyKey.objects.too_old().delete()[0]
    counts = IdempotencyKey.objects.values("caller").annotate(keys=Count("pk")).order_by()
    for caller in counts.filter(keys__gt=most).values_list("caller", flat=True):
        newest_first = IdempotencyKey.objects.filter(caller=caller).order_by("-pk").values_list("pk", flat=True)
        deleted += IdempotencyKey.objects.filter(caller=caller, pk__lt=newest_first[most - 1]).delete()[0]
    return deleted


@dataclass(frozen=True)
class _Scope:
    """The scope of a key: the caller, method and path, together with the key itself."""

    caller: str
    method: str
    path: str
    key: str

    def rows(self) -> IdempotencyKeyQuerySet:
        """Return a query for the key's row: one row or none."""
        return IdempotencyKey.objects.filter(**vars(self))


def _scope(request: "Request", caller: str) -> _Scope | None:
    """Return the scope of the request's key; None without a key. Raises InvalidIdempotencyKey."""
    key = request.headers.get(HEADER)
    if key is None:
        return None
    if not 1 <= len(key) <= 255 or not key.isascii() or not key.isprintable():
        raise InvalidIdempotencyKey(f"{HEADER}: must be 1 to 255 printable ASCII characters.")
    return _Scope(caller, request.method or "", request.path_info, key)


def _fingerprint(request: "Request") -> str:
    """Return the SHA-256 of the body in hex, independent of the order of its JSON keys."""
    return hashlib.sha256(json.dumps(request.data, sort_keys=True, default=str).encode()).hexdigest()


def _claim(scope: _Scope, fingerprint: str) -> Kept | None:
    """Take the key for the transaction and return None, or return the data stored by an earlier call. Raises IdempotencyMismatch.

    The insert waits for the transaction of a concurrent call with the key. Afterwards the row of the concurrent call holds data,
    or the row is gone and the insert succeeds.
    """
    scope.rows().void().delete()  # an expired or empty row must not block the insert
    IdempotencyKey.objects.bulk_create([IdempotencyKey(**vars(scope), fingerprint=fingerprint)], ignore_conflicts=True)
    return _read(scope, fingerprint)


def _read(scope: _Scope, fingerprint: str) -> Kept | None:
    """Return the data stored under the key, or None. Raises IdempotencyMismatch for data of a request with another body."""
    row = scope.rows().valid().first()
    if row is None:
        return None
    if row.fingerprint != fingerprint:
        raise IdempotencyMismatch(f"This {HEADER} was used for another request; use a new key for a new request.")
    return Kept(row.operation_id, json.loads(crypto.decrypt(row.answer_ciphertext)) if row.answer_ciphertext else None)


def _keep(scope: _Scope, kept: Kept) -> None:
    ciphertext = crypto.encrypt(json.dumps(kept.answer)) if kept.answer is not None else ""
    scope.rows().update(operation_id=kept.operation_id, answer_ciphertext=ciphertext)
