"""What `manage.py check --deploy` says of a deployment, beside Django's own checks."""

from typing import Any

from django.core import checks
from django.core.checks import CheckMessage, Tags, register

from common.settings import settings


@register(Tags.security, deploy=True)
def check_roles(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """The log is append-only for the application because another role owns it."""
    if settings.DATABASES["owner"]["USER"] != settings.DATABASES["default"]["USER"]:
        return []
    hint = "Give ORCH_DATABASE_OWNER_URL, for this check, migrate and the keeper only, a role of its own; see docs/operations.md."
    message = "The application connects as the owner of its tables: audit_log is not protected from it."
    return [checks.Warning(message, hint=hint, id="fleet.W001")]


@register(Tags.security)
def check_master_key(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """Engine keys can be encrypted; whether what is set is a Fernet key, `common.env` has seen to."""
    if settings.ENV.master_keys:
        return []
    hint = 'Make one: python -c "from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())"'
    return [checks.Error("ORCH_MASTER_KEY is empty.", hint=hint, id="fleet.E001")]


@register(Tags.security, deploy=True)
def check_admin_key(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """The key that registers products cannot be guessed."""
    if len(settings.ENV.admin_key) >= 32:
        return []
    return [
        checks.Warning("ORCH_ADMIN_KEY is shorter than 32 characters.", hint="Use 32 random characters or more.", id="fleet.W002")
    ]
