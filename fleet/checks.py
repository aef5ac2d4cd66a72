"""Checks of a deployment (`manage.py check --deploy`), in addition to Django's own checks."""

from typing import Any

from django.core import checks
from django.core.checks import CheckMessage, Tags, register

from common.settings import settings


@register(Tags.security, deploy=True)
def check_roles(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """Warn unless a separate role owns the tables: only then is the audit log append-only for the application."""
    if settings.DATABASES["owner"]["USER"] != settings.DATABASES["default"]["USER"]:
        return []
    hint = "Set ORCH_DATABASE_OWNER_URL with a separate role, for check, migrate and the keeper only; see docs/operations.md."
    message = "The application connects as the owner of its tables: audit_log is not protected from the application."
    return [checks.Warning(message, hint=hint, id="fleet.W001")]


@register(Tags.security, deploy=True)
def check_disk_quota(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """Say where volumes are only measured: an engine can fill the disk between two measurements."""
    if settings.ENV.engine_disk_quota or settings.ENV.engine_backend != "docker":
        return []
    hint = "With the daemon's data on XFS, mounted with pquota, set ORCH_ENGINE_DISK_QUOTA=true; see docs/operations.md."
    message = "Engines' volumes have no quota: they are only measured, and an engine may fill the disk before it is stopped."
    return [checks.Info(message, hint=hint, id="fleet.I001")]


@register(Tags.security)
def check_master_key(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """Report an empty master key: engine keys cannot be encrypted. `common.env` refuses a key not in Fernet's format."""
    if settings.ENV.master_keys:
        return []
    hint = 'Make a key: python -c "from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())"'
    return [checks.Error("ORCH_MASTER_KEY is empty.", hint=hint, id="fleet.E001")]


@register(Tags.security, deploy=True)
def check_admin_key(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """Warn of a short admin key: a guessed key could register products."""
    if len(settings.ENV.admin_key) >= 32:
        return []
    return [
        checks.Warning("ORCH_ADMIN_KEY is shorter than 32 characters.", hint="Use 32 random characters or more.", id="fleet.W002")
    ]
