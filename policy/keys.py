"""The functions shared by platform keys and admin keys: create a key, find a key by its plaintext, mark a key as used."""

from datetime import timedelta
from typing import Any, TypeVar, cast

from django.db.models import Q
from django.db.models.functions import Now

from policy import crypto
from policy.models import Key, KeyQuerySet

K = TypeVar("K", bound=Key)

_UNMARKED = Q(last_used_at=None) | Q(last_used_at__lt=Now() - timedelta(minutes=1))

MAX_S = 10 * 365 * 24 * 3600  # longest lifetime of a key with an expiry, in seconds


def make(keys: "KeyQuerySet[K]", prefix: str, expires_in_s: int | None, **columns: Any) -> tuple[K, str]:
    """Insert a key; return the key and its plaintext, which is stored nowhere.

    `columns` are further columns of the model. A key with `expires_in_s` None is valid until revoked.
    """
    plaintext = crypto.make_key(prefix)
    key = keys.create(
        prefix=plaintext.removeprefix(prefix)[: crypto.SHOWN],
        key_hash=crypto.hash_key(plaintext),
        expires_at=None if expires_in_s is None else Now() + timedelta(seconds=expires_in_s),
        **columns,
    )
    key.refresh_from_db()
    return key, plaintext


def find(keys: "KeyQuerySet[K]", plaintext: str) -> K | None:
    """Return the living key with the plaintext, or None, in one read by index. Updates `last_used_at` at most once a minute."""
    digest = crypto.hash_key(plaintext)
    key: Any = keys.living().filter(key_hash=digest).annotate(unmarked=_UNMARKED).first()
    if key is None or not crypto.matches(digest, key.key_hash):
        return None
    if vars(key)["unmarked"]:
        mark_used(key)
    return cast(K, key)


def mark_used(key: Key) -> None:
    """Set the key's `last_used_at` to now, unless the column was updated within the last minute."""
    type(key)._default_manager.filter(_UNMARKED, pk=key.pk).update(last_used_at=Now())
