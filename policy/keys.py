"""What platform keys and admin keys have in common: how one is made, when it lives, and how it is found by its plaintext."""

from datetime import timedelta
from typing import Any, TypeVar, cast

from django.db.models import Q
from django.db.models.functions import Now

from policy import crypto
from policy.models import Key, KeyQuerySet

K = TypeVar("K", bound=Key)

_UNMARKED = Q(last_used_at=None) | Q(last_used_at__lt=Now() - timedelta(minutes=1))

MAX_S = 10 * 365 * 24 * 3600  # the longest life of a key with an end


def make(keys: "KeyQuerySet[K]", prefix: str, expires_in_s: int | None, **columns: Any) -> tuple[K, str]:
    """Insert a key; returns it with its plaintext, which is kept nowhere. `expires_in_s` None: it lives until it is revoked."""
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
    """The living one of `keys` with this plaintext, in one read by index. Marks its last use, at most once a minute."""
    digest = crypto.hash_key(plaintext)
    key: Any = keys.living().filter(key_hash=digest).annotate(unmarked=_UNMARKED).first()
    if key is None or not crypto.matches(digest, key.key_hash):
        return None
    if vars(key)["unmarked"]:
        mark_used(key)
    return cast(K, key)


def mark_used(key: Key) -> None:
    """Note that the key was used just now, unless somebody has done so within the last minute."""
    type(key)._default_manager.filter(_UNMARKED, pk=key.pk).update(last_used_at=Now())
