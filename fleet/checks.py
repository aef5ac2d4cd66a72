"""Checks of a deployment (`manage.py check --deploy`), in addition to Django's own checks."""

from collections.abc import Sequence
from contextlib import suppress
from ipaddress import ip_address
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlsplit

from django.core import checks
from django.core.checks import CheckMessage, Tags, register
from django.db import Error

from audit import partitions
from audit.partitions import OWNER
from common.pooled.base import unpooled
from common.pooled.sessions import NoSession
from common.settings import settings
from engines import deployment
from policy import key_check


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
def check_key_of_data(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """Report master keys that are not the ones of the database's data. A database that is away is no fault of the settings."""
    with suppress(Error), unpooled() as connection:
        if settings.ENV.master_keys and not key_check.fits(connection):
            return [checks.Error(f"{key_check.WRONG}.", id="fleet.E003")]
    return []


@register(Tags.security, deploy=True)
def check_deployment(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """Report a database of another deployment. A database that is away is no fault of the settings."""
    with suppress(Error), unpooled() as connection:
        if fault := deployment.find(connection).fault:
            return [checks.Error(f"{fault[0].upper()}{fault[1:]}.", id="fleet.E004")]
    return []


@register(Tags.security, deploy=True)
def check_valkey(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """Warn of a Valkey that anybody on the network can use, read or pretend to be."""
    url = urlsplit(settings.ENV.redis_url)
    if url.scheme == "unix":  # the folder of the socket decides who reaches Valkey
        return []
    found: list[CheckMessage] = []
    if not url.password:
        message = "Valkey has no password: whoever reaches its port can read and change what is queued and counted."
        found.append(
            checks.Warning(message, hint="Set `requirepass` in Valkey, and the password in ORCH_REDIS_URL.", id="fleet.W003")
        )
    if not _is_here(url.hostname) and not _checks_certificate(url):
        message = "Valkey is on another host, without TLS or without a check of its certificate."
        found.append(checks.Warning(message, hint=f"Use rediss://... in ORCH_REDIS_URL; {_ELSE}", id="fleet.W004"))
    return found


def _checks_certificate(url: SplitResult) -> bool:
    options = dict(parse_qsl(url.query))
    checks_host = options.get("ssl_check_hostname", "true").lower() in ("true", "yes", "1")
    return (
        url.scheme == "rediss"
        and options.get("ssl_cert_reqs", "required").removeprefix("CERT_").lower() == "required"
        and checks_host
    )


@register(Tags.security, deploy=True)
def check_postgresql(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """Warn of a PostgreSQL on another host whose identity is not checked: passwords and keys' hashes cross the network."""
    urls = {"default": "ORCH_DATABASE_URL"} | ({"owner": "ORCH_DATABASE_OWNER_URL"} if settings.ENV.database_owner_url else {})
    return [
        checks.Warning(
            f"PostgreSQL is on another host, and {variable} has no sslmode=verify-full.",
            hint=f"Add ?sslmode=verify-full&sslrootcert=FILE to the URL; {_ELSE}",
            id="fleet.W005",
        )
        for alias, variable in urls.items()
        if not _is_here(settings.DATABASES[alias]["HOST"])
        and settings.DATABASES[alias]["OPTIONS"].get("sslmode") != "verify-full"
    ]


@register(Tags.database, deploy=True)
def check_owner_session(app_configs: Any, databases: Sequence[str] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """With `--database owner`: report a pooler between the owner and PostgreSQL. While the database is away, report nothing."""
    if OWNER not in (databases or ()):
        return []
    try:
        partitions.check_session()
    except NoSession as error:
        return [checks.Error(str(error), hint="See PgBouncer in docs/operations.md.", id="fleet.E002")]
    return []


@register(Tags.security, deploy=True)
def check_hosts(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """Warn of a wildcard for all hosts: links in answers would name whatever host a caller has put into the request."""
    if "*" not in settings.ENV.allowed_hosts.split(","):
        return []
    hint = "Name each host that callers use, health checks included."
    return [checks.Warning("ORCH_ALLOWED_HOSTS=* accepts requests for any host.", hint=hint, id="fleet.W006")]


_ELSE = "if the server is on this machine, name its host in ORCH_SAME_HOST."


def _is_here(host: str | None) -> bool:
    """Whether a connection to `host` stays on this machine: a socket's folder, loopback, or a host in ORCH_SAME_HOST."""
    if not host or host.startswith("/") or host == "localhost" or host in settings.ENV.same_host.split(","):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
