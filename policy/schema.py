"""The OpenAPI description of the endpoints in `policy.api`."""

from django.core.validators import RegexValidator
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from common.bodies import Text
from common.endpoints import Endpoint, describe_id
from policy import answers, api
from policy.models import SLUG_PATTERN

COMPONENTS = {"Policy": answers.POLICY}


@extend_schema_field({"$ref": "#/components/schemas/Policy"})
class PolicyField(serializers.JSONField):
    """A policy, in the form checked by `policy.rules`."""


# -- bodies of requests, with more detail for the document than the views' own bodies -----------------------------------


class Registration(api.Registration):
    """A new product."""

    slug = Text(validators=[RegexValidator(f"^{SLUG_PATTERN}$")], help_text="`admin`, `anonymous` and `system` are not allowed.")
    display_name = Text(max_length=255)
    policy = PolicyField(required=False)


class PolicyUpdate(api.PolicyUpdate):
    """The whole policy."""

    policy = PolicyField()


@extend_schema_field({"type": "object", "additionalProperties": {"type": "string"}})
class EnvField(serializers.JSONField):
    """Variables by name."""


class EnvUpdate(api.EnvUpdate):
    """All variables of a product's engines; variables that are left out are removed."""

    env = EnvField()


@extend_schema_field(answers.VALUE)
class ValueField(serializers.JSONField):
    """A value of the rule."""


class NewOverride(api.NewOverride):
    """A temporary value for a rule."""

    value = ValueField()


# -- endpoints -----------------------------------------------------------------------------------------------------------

PRODUCT_ID = describe_id("product_id", "Id of the product.")
_KEY_ID = describe_id("key_id", "Id of the key.")
_TIMES = {
    "created_at": "2026-11-24T03:39:03.191Z",
    "expires_at": None,
    "last_used_at": "2026-11-24T03:41:00.007Z",
    "revoked_at": None,
}
_KEY = {
    "key_id": "6f1f7a0e-6d5f-4a57-a1a0-54a3a8a3d2a1",
    "prefix": "1_cRSK",
    "scopes": ["admit", "lifecycle", "read"],
    **_TIMES,
}
_ADMIN_KEY = {"key_id": "cf2d0f2c-2a5b-4f0e-9d7e-8f4f0c1d8c55", "name": "ann", "prefix": "9fmSJa", **_TIMES}
_PLAINTEXT = "pk-sept-1_cRSKGF7826mXsFpqwBNWsQwdBXw6B70L82hU5EE_U"
_NAMED = "/products/{product_id}"
_POLICY = {"max_engines": 1000, "rate_limit_rpm": 600}
_ENV = {"version": 2, "names": ["MODEL", "REGION"], "updated_at": "2026-11-24T03:39:03.191Z"}

_OVERRIDE_ID = describe_id("override_id", "Id of the override.")
_GRANT = {"rule": "max_engines", "value": 2000, "reason": "launch week"}
_OVERRIDE = {
    "override_id": "0d0ee7f3-3b0a-4c4e-8f6b-1a2f8f5f7f10",
    **_GRANT,
    "granted_by": "admin",
    "created_at": "2026-11-24T08:39:03.191Z",
    "expires_at": "2026-12-01T08:39:03.191Z",
    "ended_at": None,
}

ENDPOINTS = (
    Endpoint(
        "POST", "/products/register", api.register, "register_product", "Register a product and issue its first platform key",
        body=Registration, body_example={"slug": "acme", "display_name": "Acme", "policy": _POLICY}, answer=answers.Registered,
        example={"product_id": "f610ffa1-91e3-4c70-bb8d-ffab8ee91953", "slug": "acme", "platform_api_key": _PLAINTEXT},
        errors=("PRODUCT_SLUG_EXISTS",), tag="products",
    ),
    Endpoint(
        "PUT", f"{_NAMED}/policy", api.policy, "replace_policy", "Replace the whole policy, from the next request on",
        body=PolicyUpdate, body_example={"policy": _POLICY}, answer=answers.PolicySeen, example={"policy": _POLICY},
        errors=("PRODUCT_NOT_FOUND",), parameters=(PRODUCT_ID,), tag="products",
    ),
    Endpoint(
        "GET", f"{_NAMED}/overrides", api.all_overrides, "list_overrides", "List the product's overrides, newest first",
        answer=answers.Overrides, example={"overrides": [_OVERRIDE]},
        errors=("PRODUCT_NOT_FOUND",), parameters=(PRODUCT_ID,), tag="products",
    ),
    Endpoint(
        "POST", f"{_NAMED}/overrides", api.all_overrides, "grant_override", "Give a rule a temporary value",
        body=NewOverride, body_example={**_GRANT, "expires_in_s": 604800}, answer=answers.Override, example=_OVERRIDE,
        errors=("PRODUCT_NOT_FOUND",), parameters=(PRODUCT_ID,), tag="products",
    ),
    Endpoint(
        "DELETE", f"{_NAMED}/overrides/{{override_id}}", api.override, "end_override", "End an override early",
        answer=answers.Override, example={**_OVERRIDE, "ended_at": "2026-11-25T07:00:11.020Z"},
        errors=("PRODUCT_NOT_FOUND",), parameters=(PRODUCT_ID, _OVERRIDE_ID), tag="products",
    ),
    Endpoint(
        "GET", f"{_NAMED}/platform-keys", api.platform_keys, "list_platform_keys", "List the platform keys, newest first",
        answer=answers.PlatformKeys, example={"platform_keys": [_KEY]},
        errors=("PRODUCT_NOT_FOUND",), parameters=(PRODUCT_ID,), tag="keys",
    ),
    Endpoint(
        "POST", f"{_NAMED}/platform-keys", api.platform_keys, "issue_platform_key", "Issue a further platform key",
        body=api.NewKey, body_example={"scopes": ["admit"], "expires_in_s": 86400}, answer=answers.IssuedPlatformKey,
        example={**_KEY, "platform_api_key": _PLAINTEXT},
        errors=("PRODUCT_NOT_FOUND",), parameters=(PRODUCT_ID,), tag="keys",
    ),
    Endpoint(
        "DELETE", f"{_NAMED}/platform-keys/{{key_id}}", api.platform_key, "revoke_platform_key", "Revoke a platform key",
        answer=answers.PlatformKey, example={**_KEY, "revoked_at": "2026-11-24T03:41:05.320Z"},
        errors=("PRODUCT_NOT_FOUND",), parameters=(PRODUCT_ID, _KEY_ID), tag="keys",
    ),
    Endpoint(
        "POST", f"{_NAMED}/rotate-platform-key", api.rotate_platform_key, "rotate_platform_key",
        "Issue a platform key to replace one or all; replaced keys stay valid for the overlap",
        body=api.Rotation, body_example={"overlap_s": 3600}, answer=answers.RotatedPlatformKey,
        example={
            **_KEY,
            "platform_api_key": _PLAINTEXT,
            "replaced": [
                {
                    "key_id": "3f8b5f3d-7c39-4b56-9d3d-4c1ddac5c9b0",
                    "prefix": "hQ2xT0",
                    "expires_at": "2026-11-24T04:39:03.191Z",
                }
            ],
        },
        errors=("PRODUCT_NOT_FOUND",), parameters=(PRODUCT_ID,), tag="keys",
    ),
    Endpoint(
        "GET", f"{_NAMED}/engine-env", api.engine_env, "get_engine_env", "List the names of the engines' variables",
        answer=answers.EngineEnv, example=_ENV, errors=("PRODUCT_NOT_FOUND",), parameters=(PRODUCT_ID,), tag="products",
    ),
    Endpoint(
        "PUT", f"{_NAMED}/engine-env", api.engine_env, "replace_engine_env", "Replace all variables of the product's engines",
        body=EnvUpdate, body_example={"env": {"MODEL": "large", "REGION": "eu"}}, answer=answers.EngineEnv, example=_ENV,
        errors=("PRODUCT_NOT_FOUND",), parameters=(PRODUCT_ID,), tag="products",
    ),
    Endpoint(
        "GET", "/admin-keys", api.all_admin_keys, "list_admin_keys", "List the named admin keys, newest first",
        answer=answers.AdminKeys, example={"admin_keys": [_ADMIN_KEY]}, tag="keys",
    ),
    Endpoint(
        "POST", "/admin-keys", api.all_admin_keys, "issue_admin_key", "Issue a further admin key",
        body=api.NewAdminKey, body_example={"name": "ann"}, answer=answers.IssuedAdminKey,
        example={**_ADMIN_KEY, "admin_api_key": "ak-sept-9fmSJaVHGitkbVoao2SXJn2ZUoayPdK9t55h1p3lLcA"},
        errors=("ADMIN_KEY_EXISTS",), tag="keys",
    ),
    Endpoint(
        "DELETE", "/admin-keys/{key_id}", api.admin_key, "revoke_admin_key", "Revoke an admin key",
        answer=answers.AdminKey, example={**_ADMIN_KEY, "revoked_at": "2026-11-24T03:41:05.320Z"},
        parameters=(_KEY_ID,), tag="keys",
    ),
)  # fmt: skip
