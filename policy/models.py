"""Products (API tenants) and their platform keys."""

import uuid
from typing import ClassVar

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

SLUG_PATTERN = r"[a-z0-9][a-z0-9-]{1,62}"


class Product(models.Model):
    """An API tenant. Written by `policy.products` only."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    slug = models.TextField(unique=True)
    display_name = models.TextField()
    policy = models.JSONField(default=dict, blank=True, help_text="An object of rules; `{}` is no limits.")
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        ordering = ("slug",)
        permissions: ClassVar = [("operate_product", "Can register products, edit policies, issue and revoke keys")]
        default_permissions = ("view",)
        constraints: ClassVar = [
            models.CheckConstraint(condition=Q(slug__regex=rf"^{SLUG_PATTERN}$"), name="product_slug_form"),
            models.CheckConstraint(condition=~Q(slug__in=["system", "admin"]), name="product_slug_not_reserved"),
        ]

    def __str__(self) -> str:
        return self.slug


class PlatformKey(models.Model):
    """A key of a product: only its hash is kept, and a prefix to tell keys apart."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    product = models.ForeignKey(Product, on_delete=models.PROTECT, related_name="keys")
    prefix = models.TextField()
    key_hash = models.TextField(unique=True)
    created_at = models.DateTimeField(db_default=Now())
    last_used_at = models.DateTimeField(null=True)
    revoked_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ("-created_at",)
        default_permissions = ("view",)
        constraints: ClassVar = [
            models.CheckConstraint(condition=Q(key_hash__regex=r"^[0-9a-f]{64}$"), name="platform_key_hash_form"),
        ]

    def __str__(self) -> str:
        return f"{self.prefix}…"
