"""The variables of a product's engines, in addition to the deployment's variables: encrypted, replaced as a whole, never shown.

Every change creates a new version. An operation that creates an instance records the newest version at the time of the request,
and all attempts of the operation use the recorded version. The app `engines` stores the number of the version, and removes
versions no longer needed.
"""

import json
import re
from collections.abc import Mapping, Set
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
    {"ENGINE_KEY_HASH", "PORT", "BIND", "SQLITE_DB_PATH", "CATALOG_DIR"}  # set by the fleet itself
    | {"PATH", "LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP"}  # decide which code runs
)


def check(env: object) -> dict[str, str]:
    """Return the variables in their stored form: names mapped to values. Raises InvalidEngineEnv."""
    if not isinstance(env, Mapping):
        raise InvalidEngineEnv("env: must be a JSON object of names and values, {} for none.")
    if len(env) > MAX_NAMES:
        raise InvalidEngineEnv(f"env: at most {MAX_NAMES} names, not {len(env)}.")
    for name, value in env.items():
        if not re.fullmatch(NAME_PATTERN, name):
            raise InvalidEngineEnv(f"env: {name[:64]!r} is not a valid name; names must match {NAME_PATTERN}.")
        if name in RESERVED:
            raise InvalidEngineEnv(f"env.{name}: is reserved, as are {', '.join(sorted(RESERVED - {name}))}.")
        if not isinstance(value, str) or "\0" in value or len(value.encode()) > MAX_VALUE:
            raise InvalidEngineEnv(f"env.{name}: must be a string of at most {MAX_VALUE} bytes without NUL.")
    return dict(env)


@transaction.atomic
def replace(product_id: UUID, env: object, *, by: Actor) -> EngineEnv | None:
    """Store `env` as the newest version and return the version. An unchanged `env` adds no version and no audit row.

    Returns None for an empty `env` of a product without any version. Raises ProductNotFound, InvalidEngineEnv.
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
    """Return the product's newest version, or None for a product without any version."""
    return EngineEnv.objects.filter(product_id=product_id).first()


def newest_version(product_id: UUID) -> int:
    """Return the number of the product's newest version, or 0 for a product without any version."""
    return EngineEnv.objects.filter(product_id=product_id).values_list("version", flat=True).first() or 0


def read(product_id: UUID, version: int) -> dict[str, str]:
    """Return the variables of a version; version 0 has no variables. Raises EngineEnvUnreadable."""
    if version == 0:
        return {}
    found = EngineEnv.objects.filter(product_id=product_id, version=version).first()
    values = _values(found) if found else None
    if values is None:
        raise EngineEnvUnreadable(
            f"Version {version} of the product's engine environment cannot be read; replace the environment."
        )
    return values


def read_many(versions: Set[tuple[UUID, int]]) -> dict[tuple[UUID, int], dict[str, str]]:
    """Return the variables of many versions, by product and version. A version that cannot be read is left out.

    Sends one query, or none where no product has variables.
    """
    stored = {wanted for wanted in versions if wanted[1]}
    read: dict[tuple[UUID, int], dict[str, str]] = {wanted: {} for wanted in versions - stored}
    if stored:
        product_ids, numbers = zip(*stored, strict=True)
        for found in EngineEnv.objects.filter(product_id__in=product_ids, version__in=numbers):
            wanted = (found.product_id, found.version)
            if wanted in stored and (values := _values(found)) is not None:
                read[wanted] = values
    return read


def _values(found: EngineEnv | None) -> dict[str, str] | None:
    """Return the variables of a version: none at all without a version, None when no master key decrypts the version."""
    if found is None:
        return {}
    try:
        return dict(json.loads(crypto.decrypt(found.ciphertext)))
    except InvalidToken:
        return None
