"""The operator's named admin keys, in addition to ORCH_ADMIN_KEY: revoked at once, without a restart."""

from uuid import UUID

from django.db import IntegrityError, transaction
from django.db.models.functions import Now

from audit.actions import Action
from audit.actors import Actor
from common.times import iso
from policy import audit_rows, crypto, keys
from policy.errors import AdminKeyExists, AdminKeyNotFound, InvalidAdminKeyName
from policy.models import AdminKey

MAX_NAME = 64


def issue(name: str, *, by: Actor, expires_in_s: int | None = None) -> tuple[AdminKey, str]:
    """Create an admin key; return the key and its plaintext, which is stored nowhere.

    Without `expires_in_s` the key is valid until revoked. Raises InvalidAdminKeyName, AdminKeyExists.
    """
    if not 1 <= len(name) <= MAX_NAME or not name.isprintable():
        raise InvalidAdminKeyName(f"name: must be 1 to {MAX_NAME} printable characters.")
    with transaction.atomic():
        try:
            with transaction.atomic():  # around the insert alone: a row that the audit log refuses is no name that exists
                key, plaintext = keys.make(AdminKey.objects.all(), crypto.ADMIN_PREFIX, expires_in_s, name=name)
        except IntegrityError as error:
            raise AdminKeyExists(f"An admin key with the name {name!r} exists; revoke it, or choose another name.") from error
        expiry = {} if key.expires_at is None else {"expires_at": iso(key.expires_at)}
        audit_rows.record(Action.ADMIN_KEY_ISSUE, by=by, metadata={**_named(key), **expiry})
    return key, plaintext


@transaction.atomic
def revoke(key_id: UUID, *, by: Actor) -> AdminKey:
    """Revoke an admin key: every process refuses the next request with the key. Raises AdminKeyNotFound."""
    key = AdminKey.objects.unrevoked().select_for_update().filter(pk=key_id).first()
    if key is None:
        raise AdminKeyNotFound("No admin key has this id, or the key is revoked already.")
    AdminKey.objects.filter(pk=key_id).update(revoked_at=Now())
    audit_rows.record(Action.ADMIN_KEY_REVOKE, by=by, metadata=_named(key))
    key.refresh_from_db(fields=["revoked_at"])
    return key


def authenticate(plaintext: str) -> AdminKey | None:
    """Return the living admin key with the plaintext, or None. Updates `last_used_at` at most once a minute."""
    return keys.find(AdminKey.objects.all(), plaintext)


def _named(key: AdminKey) -> dict[str, str]:
    return {"key_id": str(key.pk), "prefix": key.prefix, "name": key.name}
