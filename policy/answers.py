"""The JSON bodies of answers: TypedDicts, with the functions to render them."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import Field, WithJsonSchema
from typing_extensions import TypedDict

from common import image_references
from common.answers import Count, Json, NonEmpty, Time, Uuid, choice, refer
from common.env_checks import RUNTIME_PATTERN
from common.times import iso
from policy import models, rules
from policy.models import Product, Scope

_IMAGE: Json = {"type": "string", "maxLength": image_references.LONGEST, "pattern": image_references.CHARACTERS}
_IMAGES: Json = {"type": "string", "maxLength": image_references.LONGEST, "pattern": image_references.CHARACTERS_AND_STARS}
EGRESS: Json = {
    "oneOf": [
        {"type": "string", "enum": [rules.INTERNET, rules.NO_EGRESS]},
        {
            "type": "array",
            "items": {"type": "string", "minLength": 1, "pattern": r"^[^:\s]+:[0-9]+(-[0-9]+)?(/(tcp|udp))?$"},
            "minItems": 1,
            "maxItems": rules.MAX_DESTINATIONS,
        },
    ]
}
_FORMS: dict[Any, Json] = {
    rules.is_whole_number: {"type": "integer", "minimum": 0, "maximum": rules.MAX},
    rules.is_memory: {"type": "integer", "minimum": rules.LEAST_MEMORY_MB, "maximum": rules.MAX},
    rules.is_cpus: {"type": "number", "minimum": rules.LEAST_CPUS, "maximum": rules.MAX},
    rules.is_pids: {"type": "integer", "minimum": rules.LEAST_PIDS, "maximum": rules.MAX},
    rules.is_disk: {"type": "integer", "minimum": rules.LEAST_DISK_MB, "maximum": rules.MAX},
    rules.is_image: _IMAGE,
    rules.is_runtime: {"type": "string", "pattern": f"^{RUNTIME_PATTERN}$"},
    rules.is_image_list: {"type": "array", "items": _IMAGES, "minItems": 1, "maxItems": rules.MAX_IMAGES},
    rules.is_egress: EGRESS,
}
POLICY: Json = {
    "type": "object",
    "description": "The rules of a product. A rule that is left out sets no limit of its own.",
    "properties": {name: {**_FORMS[rule.takes], "description": rule.meaning} for name, rule in rules.RULES.items()},
    "additionalProperties": False,
}
VALUE: Json = {"oneOf": [{"type": "number"}, {"type": "string"}, {"type": "array", "items": {"type": "string"}}]}

Policy = Annotated[Mapping[str, Any], refer("Policy")]
PlatformKeyText = Annotated[NonEmpty, Field(pattern="^pk-sept-", description="The key in plaintext; it cannot be read again.")]


# -- products ----------------------------------------------------------------------------------------------------------


class Registered(TypedDict):
    """A product and its first platform key."""

    product_id: Uuid
    slug: NonEmpty
    platform_api_key: PlatformKeyText


def render_registered(product: Product, plaintext: str) -> Registered:
    """The answer to a registration."""
    return {"product_id": str(product.pk), "slug": product.slug, "platform_api_key": plaintext}


class PolicySeen(TypedDict):
    """The product's policy, without its overrides."""

    policy: Policy


def render_policy(product: Product) -> PolicySeen:
    """The stored policy, without the product's overrides."""
    return {"policy": product.policy}


class Override(TypedDict):
    """A temporary value for a rule of the product's policy."""

    override_id: Uuid
    rule: Annotated[str, choice(rules.RULES)]
    value: Annotated[Any, WithJsonSchema(VALUE)]
    reason: NonEmpty
    granted_by: Annotated[NonEmpty, Field(description="The actor who granted the override, as in the audit log.")]
    created_at: Time
    expires_at: Time
    ended_at: Annotated[Time | None, Field(description="Null until the end is in the audit log, within a minute.")]


def render_override(override: models.PolicyOverride) -> Override:
    """An override, living or ended."""
    return {
        "override_id": str(override.pk),
        "rule": override.rule,
        "value": override.value,
        "reason": override.reason,
        "granted_by": override.granted_by,
        "created_at": iso(override.created_at),
        "expires_at": iso(override.expires_at),
        "ended_at": iso(override.ended_at),
    }


class Overrides(TypedDict):
    """All overrides of the product, including ended overrides, newest first."""

    overrides: list[Override]


def render_overrides(overrides: Iterable[models.PolicyOverride]) -> Overrides:
    """The overrides, in the given order."""
    return {"overrides": [render_override(override) for override in overrides]}


class EngineEnv(TypedDict):
    """The names of the variables; no answer contains their values."""

    version: Count
    names: list[NonEmpty]
    updated_at: Time | None


def render_env(newest: models.EngineEnv | None) -> EngineEnv:
    """The newest engine environment without its values; version 0 if the product has none."""
    if newest is None:
        return {"version": 0, "names": [], "updated_at": None}
    return {"version": newest.version, "names": newest.names, "updated_at": iso(newest.created_at)}


# -- keys --------------------------------------------------------------------------------------------------------------


class _Times(TypedDict):
    created_at: Time
    expires_at: Time | None
    last_used_at: Annotated[Time | None, Field(description="Accurate to a minute.")]
    revoked_at: Time | None


def _times(key: models.Key) -> _Times:
    return {
        "created_at": iso(key.created_at),
        "expires_at": iso(key.expires_at),
        "last_used_at": iso(key.last_used_at),
        "revoked_at": iso(key.revoked_at),
    }


class PlatformKey(_Times):
    """A platform key without its plaintext."""

    key_id: Uuid
    prefix: Annotated[NonEmpty, Field(description="The first characters after `pk-sept-`, to tell keys apart.")]
    scopes: list[Annotated[str, choice(Scope.values)]]


def render_key(key: models.PlatformKey) -> PlatformKey:
    """A platform key for lists: without its plaintext."""
    return {"key_id": str(key.pk), "prefix": key.prefix, "scopes": key.scopes, **_times(key)}


class PlatformKeys(TypedDict):
    """All platform keys of the product, including revoked and expired keys, newest first."""

    platform_keys: list[PlatformKey]


def render_keys(keys: Iterable[models.PlatformKey]) -> PlatformKeys:
    """The keys, in the given order."""
    return {"platform_keys": [render_key(key) for key in keys]}


class IssuedPlatformKey(PlatformKey):
    """A platform key with its plaintext."""

    platform_api_key: PlatformKeyText


def render_issued_key(key: models.PlatformKey, plaintext: str) -> IssuedPlatformKey:
    """A new key with its plaintext, for the answer to its issue only."""
    return {**render_key(key), "platform_api_key": plaintext}


class Replaced(TypedDict):
    """A platform key replaced by a new platform key."""

    key_id: Uuid
    prefix: NonEmpty
    expires_at: Time


class RotatedPlatformKey(IssuedPlatformKey):
    """The new platform key, and the platform keys replaced by the new key."""

    replaced: list[Replaced]


def render_rotated_key(key: models.PlatformKey, plaintext: str, replaced: Iterable[models.PlatformKey]) -> RotatedPlatformKey:
    """The new key with its plaintext, and the replaced keys, for the answer to the rotation only."""
    ends: list[Replaced] = []
    for old in replaced:
        assert old.expires_at is not None  # set by the rotation
        ends.append({"key_id": str(old.pk), "prefix": old.prefix, "expires_at": iso(old.expires_at)})
    return {**render_issued_key(key, plaintext), "replaced": ends}


class AdminKey(_Times):
    """An admin key without its plaintext."""

    key_id: Uuid
    name: NonEmpty
    prefix: Annotated[NonEmpty, Field(description="The first characters after `ak-sept-`, to tell keys apart.")]


def render_admin_key(key: models.AdminKey) -> AdminKey:
    """An admin key for lists: without its plaintext."""
    return {"key_id": str(key.pk), "name": key.name, "prefix": key.prefix, **_times(key)}


class AdminKeys(TypedDict):
    """All named admin keys, including revoked and expired keys, newest first."""

    admin_keys: list[AdminKey]


def render_admin_keys(keys: Iterable[models.AdminKey]) -> AdminKeys:
    """The keys, in the given order."""
    return {"admin_keys": [render_admin_key(key) for key in keys]}


class IssuedAdminKey(AdminKey):
    """An admin key with its plaintext."""

    admin_api_key: Annotated[NonEmpty, Field(description="The key in plaintext; it cannot be read again.")]


def render_issued_admin_key(key: models.AdminKey, plaintext: str) -> IssuedAdminKey:
    """A new key with its plaintext, for the answer to its issue only."""
    return {**render_admin_key(key), "admin_api_key": plaintext}
