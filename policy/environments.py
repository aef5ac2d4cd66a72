"""The variables that a product's engines get, beside those of the deployment: encrypted, written whole, never shown.

Every change makes a new version. An instance is made with the version that was the newest when it was asked for, whenever and
however often a worker makes it; `engines` remembers which, and removes versions that nobody needs any more.
"""

import json
import re
from collections.abc import Mapping
from uuid import UUID

from cryptography.fernet import InvalidToken
from django.db import transaction

from audit.actions import Action
from audit.actors import Actor
from policy import audit_rows, crypto, products
from policy.errors import EngineEnvUnreadable, InvalidEngineEnv
from policy.models import EngineEnv

NAME_PATTERN = r"[A-Z_][A-Z0-9_]{0,63}"
MAX_NAMES = 100
MAX_VALUE = 32 * 1024  # bytes
RESERVED = frozenset(
    {"ENGINE_KEY_HASH", "PORT", "BIND", "SQLITE_DB_PATH", "CATALOG_DIR"}  # what we tell the engine
    | {"PATH", "LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP"}  # what decides which code runs
)


def check(env: object) -> dict[str, str]:
    """The variables as they are stored. Raises InvalidEngineEnv."""
    if not isinstance(env, Mapping):
        raise InvalidEngineEnv("env: must be a JSON object of names and values, {} for none.")
    if len(env) > MAX_NAMES:
        raise InvalidEngineEnv(f"env: at most {MAX_NAMES} names, not {len(env)}.")
    for name, value in env.items():
        if not re.fullmatch(NAME_PATTERN, name):
            raise InvalidEngineEnv(f"env: {name[:64]!r} is no name; it must match {NAME_PATTERN}.")
        if name in RESERVED:
            raise InvalidEngineEnv(f"env.{name}: is reserved, as are {', '.join(sorted(RESERVED - {name}))}.")
        if not isinstance(value, str) or "\0" in value or len(value.encode()) > MAX_VALUE:
            raise InvalidEngineEnv(f"env.{name}: must be a string of at most {MAX_VALUE} bytes without NUL.")
    return dict(env)


@transaction.atomic
def replace(product_id: UUID, env: object, *, by: Actor) -> EngineEnv | None:
    """Make `env` the newest version and return it; one that says nothing new is left at that, without a row.

    None: the product has no variables and never had. Raises ProductNotFound, InvalidEngineEnv.
    """
    checked = check(env)
    product = products.lock(product_id)
    newest = find(product_id)
    if checked == _values(newest):
        return newest
    version = newest.version + 1 if newest else 1
    made = EngineEnv.objects.create(
        product=product, version=version, names=sorted(checked), ciphertext=crypto.encrypt(json.dumps(checked))
    )
    audit_rows.record(Action.ENGINE_ENV_UPDATE, product, by=by, metadata={"version": version, "names": made.names})
    made.refresh_from_db(fields=["created_at"])
    return made


def find(product_id: UUID) -> EngineEnv | None:
    """The newest version; None when there never was one."""
    return EngineEnv.objects.filter(product_id=product_id).first()


def newest_version(product_id: UUID) -> int:
    """Its number, 0 when there never was one."""
    return EngineEnv.objects.filter(product_id=product_id).values_list("version", flat=True).first() or 0


def read(product_id: UUID, version: int) -> dict[str, str]:
    """The variables of that version; none for version 0. Raises EngineEnvUnreadable."""
    if version == 0:
        return {}
    found = EngineEnv.objects.filter(product_id=product_id, version=version).first()
    values = _values(found) if found else None
    if values is None:
        raise EngineEnvUnreadable(
            f"Version {version} of the product's engine environment cannot be read; replace it by a new one."
        )
    return values


def _values(found: EngineEnv | None) -> dict[str, str] | None:
    """None when no master key opens it; nothing at all is no variable."""
    if found is None:
        return {}
    try:
        return dict(json.loads(crypto.decrypt(found.ciphertext)))
    except InvalidToken:
        return None
