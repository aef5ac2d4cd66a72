"""Products (API tenants), their platform keys and engine environments, and the operator's admin keys."""

import uuid
from datetime import datetime, timedelta
from typing import ClassVar, Self, TypeVar

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

KEPT_HOURS = 24  # validity of an `Idempotency-Key`
_TOO_OLD = Q(created_at__lt=Now() - timedelta(hours=KEPT_HOURS))
_EMPTY = Q(operation_id=None, answer_ciphertext="")
SLUG_PATTERN = r"[a-z0-9][a-z0-9-]{1,62}"


class ProductQuerySet(models.QuerySet["Product"]):
    """Queries for products."""

    def living(self) -> Self:
        """Select products not deleted."""
        return self.filter(deleted_at=None)

    def locked(self) -> Self:
        """Lock the selected rows for the transaction; new rows with a foreign key to a locked row do not wait."""
        return self.select_for_update(no_key=True)


class Product(models.Model):
    """An API tenant. Written by `policy.products`; the column `overridden` is written by `policy.overrides`."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    slug = models.TextField(unique=True)
    display_name = models.TextField()
    policy = models.JSONField(default=dict, blank=True, help_text="An object of rules; `{}` is no limits.")
    overridden = models.JSONField(
        default=dict,
        db_default=models.Value({}, models.JSONField()),
        help_text="Rules with an override: its `value` and `until` when. Read by `policy.overrides`.",
    )
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    suspended_at = models.DateTimeField(null=True, help_text="Since then its users are not admitted.")
    suspension_reason = models.TextField(default="", db_default="", blank=True, help_text="For operators.")
    stops_engines = models.BooleanField(
        default=False, db_default=False, help_text="While it is suspended, its engines are stopped as soon as they can be."
    )
    deleted_at = models.DateTimeField(null=True, help_text="Set on the tombstone, which keeps the slug taken.")

    read_at: datetime | None = None  # the database's time of reading the row, set by some queries of `policy.products`

    objects = ProductQuerySet.as_manager()

    class Meta:
        ordering = ("slug",)
        permissions: ClassVar = [
            ("operate_product", "Can register products, edit policies, issue and revoke keys"),
            ("suspend_product", "Can suspend and resume products"),
            ("delete_product", "Can delete products without engines"),
        ]
        default_permissions = ("view",)
        constraints: ClassVar = [
            models.CheckConstraint(condition=Q(slug__regex=rf"^{SLUG_PATTERN}$"), name="product_slug_form"),
            models.CheckConstraint(condition=~Q(slug__in=["system", "admin"]), name="product_slug_not_reserved"),
            models.CheckConstraint(
                condition=(Q(suspended_at=None) & Q(suspension_reason=""))
                | (Q(suspended_at__isnull=False) & ~Q(suspension_reason="")),
                name="product_suspended_for_a_reason",
            ),
        ]

    def __str__(self) -> str:
        return self.slug


class Scope(models.TextChoices):
    """The scopes of a platform key; the permission classes of `policy.auth` require them."""

    ADMIT = "admit"
    LIFECYCLE = "lifecycle"
    READ = "read"


KeyModel = TypeVar("KeyModel", bound="Key")


class KeyQuerySet(models.QuerySet[KeyModel]):
    """Queries for platform keys or admin keys."""

    def living(self) -> Self:
        """Select keys neither revoked nor expired."""
        return self.filter(Q(expires_at=None) | Q(expires_at__gt=Now()), revoked_at=None)

    def unrevoked(self) -> Self:
        """Select keys not revoked, including expired keys."""
        return self.filter(revoked_at=None)


class Key(models.Model):
    """Base of both kinds of keys. Only the hash of a key is stored, and a few characters to tell keys apart.

    `prefix` holds the characters after `…k-sept-`. The string `k-sept-` itself is never stored, and thus a search of the database
    for the string proves the absence of plaintext keys.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    prefix = models.TextField()
    key_hash = models.TextField(unique=True)
    created_at = models.DateTimeField(db_default=Now())
    last_used_at = models.DateTimeField(null=True)
    expires_at = models.DateTimeField(null=True)
    revoked_at = models.DateTimeField(null=True)

    class Meta:
        abstract = True

    def __str__(self) -> str:
        return f"{self.prefix}…"


class PlatformKey(Key):
    """A key of a product. Written by `policy.products` and `policy.keys`."""

    product = models.ForeignKey(Product, on_delete=models.PROTECT, related_name="keys")
    scopes = ArrayField(models.TextField(choices=Scope.choices), db_default=Scope.values)

    objects = KeyQuerySet["PlatformKey"].as_manager()

    class Meta:
        ordering = ("-created_at",)
        default_permissions = ("view",)
        constraints: ClassVar = [
            models.CheckConstraint(condition=Q(key_hash__regex=r"^[0-9a-f]{64}$"), name="platform_key_hash_form"),
            models.CheckConstraint(
                condition=Q(scopes__contained_by=Scope.values) & Q(scopes__len__gte=1), name="platform_key_scopes_known"
            ),
        ]


class AdminKey(Key):
    """A named key of the operator, in addition to ORCH_ADMIN_KEY. Written by `policy.admin_keys` and `policy.keys`."""

    name = models.TextField(help_text="Names the key in the audit log.")

    objects = KeyQuerySet["AdminKey"].as_manager()

    class Meta:
        ordering = ("-created_at",)
        default_permissions = ("view",)
        permissions: ClassVar = [("operate_adminkey", "Can issue and revoke admin keys")]
        constraints: ClassVar = [
            models.CheckConstraint(condition=Q(key_hash__regex=r"^[0-9a-f]{64}$"), name="admin_key_hash_form"),
            models.UniqueConstraint(fields=["name"], condition=Q(revoked_at=None), name="admin_key_name_once"),
        ]


class EngineEnv(models.Model):
    """One version of the variables of a product's engines. Created by `policy.environments`; names and values never change.

    New instances get the newest version. `engines.environments` deletes an older version once no engine or operation uses it.
    """

    product = models.ForeignKey(Product, on_delete=models.PROTECT, related_name="engine_envs")
    version = models.IntegerField()
    names = ArrayField(models.TextField())
    ciphertext = models.TextField(help_text="Fernet token of a JSON object: names and values.")
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        ordering = ("-version",)
        default_permissions = ()
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["product", "version"], name="engine_env_version_once"),
        ]

    def __str__(self) -> str:
        return f"version {self.version}"


class PolicyOverrideQuerySet(models.QuerySet["PolicyOverride"]):
    """Queries for overrides."""

    def open(self) -> Self:
        """Select overrides without an audit row for their end, including expired overrides."""
        return self.filter(ended_at=None)

    def living(self) -> Self:
        """Select overrides in effect now."""
        return self.open().filter(expires_at__gt=Now())

    def expired(self) -> Self:
        """Select expired overrides without an audit row for their end."""
        return self.open().filter(expires_at__lte=Now())


class PolicyOverride(models.Model):
    """A temporary value of one rule of a product's policy. Written by `policy.overrides` only."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    product = models.ForeignKey(Product, on_delete=models.PROTECT, related_name="overrides")
    rule = models.TextField()
    value = models.JSONField()
    reason = models.TextField()
    granted_by = models.TextField(help_text="Actor, as in the audit log.")
    created_at = models.DateTimeField(db_default=Now())
    expires_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True, help_text="Null until its end has a row; it has no effect after `expires_at`.")

    objects = PolicyOverrideQuerySet.as_manager()

    class Meta:
        ordering = ("-created_at",)
        default_permissions = ()
        indexes: ClassVar = [models.Index(fields=["expires_at"], condition=Q(ended_at=None), name="policy_override_due")]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["product", "rule"], condition=Q(ended_at=None), name="policy_override_one_open_per_rule"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.rule} {self.pk}"


class IdempotencyKeyQuerySet(models.QuerySet["IdempotencyKey"]):
    """Queries for idempotency keys."""

    def too_old(self) -> Self:
        """Select keys older than KEPT_HOURS."""
        return self.filter(_TOO_OLD)

    def void(self) -> Self:
        """Select keys too old or without stored data: a later call may take a void key."""
        return self.filter(_TOO_OLD | _EMPTY)

    def valid(self) -> Self:
        """Select keys with stored data to answer a repeated call."""
        return self.exclude(_TOO_OLD | _EMPTY)


class IdempotencyKey(models.Model):
    """A mutating call that may be repeated with its `Idempotency-Key`. Written by `policy.idempotency`."""

    id = models.BigAutoField(primary_key=True)
    caller = models.TextField(help_text="`admin`, or the product's id.")
    method = models.TextField()
    path = models.TextField()
    key = models.TextField()
    fingerprint = models.TextField(help_text="SHA-256 of the body; another body under the key is refused.")
    created_at = models.DateTimeField(db_default=Now())
    operation_id = models.UUIDField(null=True, help_text="What the call asked for; its answer is rebuilt from there.")
    answer_ciphertext = models.TextField(db_default="", help_text="The answer, where it cannot be rebuilt: a Fernet token.")

    objects = IdempotencyKeyQuerySet.as_manager()

    class Meta:
        default_permissions = ()
        indexes: ClassVar = [models.Index(fields=["created_at"], name="idempotency_key_age")]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["caller", "method", "path", "key"], name="idempotency_key_once"),
        ]

    def __str__(self) -> str:
        return self.key


class KeyCheck(models.Model):
    """A single row, which shows whether a process has the master keys of the data. Written by `policy.key_check`."""

    id = models.SmallIntegerField(primary_key=True, default=1)
    ciphertext = models.TextField(help_text="Fernet token of a fixed text.")

    class Meta:
        default_permissions = ()  # no page shows the row
        constraints = (models.CheckConstraint(condition=Q(id=1), name="key_check_is_one_row"),)

    def __str__(self) -> str:
        return "key check"
