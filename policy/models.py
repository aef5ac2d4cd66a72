"""Products (API tenants), their platform keys and engine environments, and the operator's admin keys."""

import uuid
from datetime import datetime, timedelta
from typing import ClassVar, Self, TypeVar

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

KEPT_HOURS = 24  # for which an `Idempotency-Key` holds
_TOO_OLD = Q(created_at__lt=Now() - timedelta(hours=KEPT_HOURS))
_EMPTY = Q(operation_id=None, answer_ciphertext="")
SLUG_PATTERN = r"[a-z0-9][a-z0-9-]{1,62}"


class ProductQuerySet(models.QuerySet["Product"]):
    """Queries of products."""

    def living(self) -> Self:
        """Every product that is not deleted."""
        return self.filter(deleted_at=None)

    def locked(self) -> Self:
        """Locked for this transaction against other intents, but not against new rows that refer to them."""
        return self.select_for_update(no_key=True)


class Product(models.Model):
    """An API tenant. Written by `policy.products` only."""

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
    suspension_reason = models.TextField(default="", db_default="", blank=True, help_text="Told to the product.")
    stops_engines = models.BooleanField(
        default=False, db_default=False, help_text="While it is suspended, its engines are stopped as soon as they can be."
    )
    deleted_at = models.DateTimeField(null=True, help_text="Set on the tombstone, which keeps the slug taken.")

    read_at: datetime | None = None  # the database's clock when it was read, where the query asked for it

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
    """What a platform key may be used for; `policy.auth` says which endpoint needs which."""

    ADMIT = "admit"
    LIFECYCLE = "lifecycle"
    READ = "read"


KeyModel = TypeVar("KeyModel", bound="Key")


class KeyQuerySet(models.QuerySet[KeyModel]):
    """Queries of keys of one kind."""

    def living(self) -> Self:
        """Every key that is neither revoked nor expired."""
        return self.filter(Q(expires_at=None) | Q(expires_at__gt=Now()), revoked_at=None)

    def unrevoked(self) -> Self:
        """Every key that is not revoked, expired or not."""
        return self.filter(revoked_at=None)


class Key(models.Model):
    """A key of which only the hash is kept, and a few characters to tell keys apart.

    `prefix` begins after `…k-sept-`: that those words are found nowhere shows that no key is kept anywhere.
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
    """A key of a product. Written by `policy.products` only."""

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
    """A named key of the operator, beside ORCH_ADMIN_KEY. Written by `policy.admin_keys` only."""

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
    """One version of the variables that a product's engines get. Written by `policy.environments` only; never changed.

    The newest is what new instances get; an older one stays for as long as an engine that was made with it.
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
    """Queries of overrides."""

    def open(self) -> Self:
        """Every override whose end has no row yet, expired or not."""
        return self.filter(ended_at=None)

    def living(self) -> Self:
        """Every override that has its effect now."""
        return self.open().filter(expires_at__gt=Now())

    def expired(self) -> Self:
        """Every override that expired and whose end has no row yet."""
        return self.open().filter(expires_at__lte=Now())


class PolicyOverride(models.Model):
    """Another value of one rule of a product's policy, for a time. Written by `policy.overrides` only."""

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
    """Queries of idempotency keys."""

    def too_old(self) -> Self:
        """Every key that is not kept any longer."""
        return self.filter(_TOO_OLD)

    def void(self) -> Self:
        """Every key that is too old, or that nothing is kept under: a later call may take such a key."""
        return self.filter(_TOO_OLD | _EMPTY)

    def valid(self) -> Self:
        """Every key that a call is answered from."""
        return self.exclude(_TOO_OLD | _EMPTY)


class IdempotencyKey(models.Model):
    """A mutating call that a caller may send again under the same `Idempotency-Key`. Written by `policy.idempotency` only."""

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
