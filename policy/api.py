"""Products and admin keys over REST, with an admin key."""

from collections.abc import Callable
from functools import wraps
from typing import cast
from uuid import UUID

from rest_framework import serializers
from rest_framework.decorators import api_view, authentication_classes, permission_classes
from rest_framework.permissions import SAFE_METHODS
from rest_framework.request import Request
from rest_framework.response import Response

from audit import actors
from common.bodies import Body, Text, Whole, read
from policy import admin_keys, answers, environments, idempotency, keys, overrides, products, rules
from policy.auth import AdminKeyAuthentication, IsAdmin
from policy.errors import AdminKeyNotFound, PlatformKeyNotFound
from policy.idempotency import Kept
from policy.models import AdminKey, Scope


class Registration(Body):
    slug = Text()
    display_name = Text()
    policy = serializers.JSONField(default=dict)


class PolicyUpdate(Body):
    policy = serializers.JSONField()


class NewKey(Body):
    scopes = serializers.ListField(
        child=serializers.ChoiceField(choices=Scope.choices), min_length=1, max_length=len(Scope), required=False
    )
    expires_in_s = Whole(min_value=1, max_value=keys.MAX_S, required=False)


class Rotation(NewKey):
    key_id = serializers.UUIDField(required=False)
    overlap_s = Whole(min_value=0, max_value=keys.MAX_S, required=False)


class NewAdminKey(Body):
    name = Text()
    expires_in_s = Whole(min_value=1, max_value=keys.MAX_S, required=False)


class EnvUpdate(Body):
    env = serializers.JSONField()


class NewOverride(Body):
    rule = serializers.ChoiceField(choices=list(rules.RULES))
    value = serializers.JSONField()
    reason = Text(max_length=products.MAX_REASON)
    expires_in_s = Whole(min_value=1, max_value=overrides.MAX_S)


class Nothing(Body):
    pass


def operator_view(*methods: str) -> Callable[[Callable[..., Response]], Callable[..., Response]]:
    """Make a view an endpoint for holders of an admin key; a change is made once per `Idempotency-Key`."""

    def make(view: Callable[..., Response]) -> Callable[..., Response]:
        @wraps(view)
        def answer(request: Request, **ids: UUID) -> Response:
            return view(request, **ids) if request.method in SAFE_METHODS else _once(request, lambda: view(request, **ids))

        return api_view(list(methods))(authentication_classes([AdminKeyAuthentication])(permission_classes([IsAdmin])(answer)))

    return make


def _once(request: Request, effect: Callable[[], Response]) -> Response:
    """The answer of `effect`, called once per `Idempotency-Key`; kept encrypted, since the answer may contain a key."""
    key = cast(AdminKey | None, request.user)
    return idempotency.once(
        request,
        str(key.pk) if key else actors.ADMIN,
        effect,
        keep=lambda response: Kept(answer=response.data),
        replay=_replay,
        refusals=(),
    )


def _replay(kept: Kept) -> Response:
    """The kept answer. Raises PlatformKeyNotFound or AdminKeyNotFound if the key in the answer is revoked or expired."""
    answer = kept.answer or {}
    if "platform_api_key" in answer and products.authenticate(answer["platform_api_key"]) is None:
        raise PlatformKeyNotFound("The platform key in the first answer has been revoked or has expired; issue a new key.")
    if "admin_api_key" in answer and admin_keys.authenticate(answer["admin_api_key"]) is None:
        raise AdminKeyNotFound("The admin key in the first answer has been revoked or has expired; issue a new key.")
    return Response(answer)


# -- products ----------------------------------------------------------------------------------------------------------


@operator_view("POST")
def register(request: Request) -> Response:
    """POST /products/register: a new product, with the plaintext of its first platform key."""
    body = read(request, Registration)
    product, key = products.register(body["slug"], body["display_name"], body["policy"], by=actors.ADMIN)
    return Response(answers.render_registered(product, key))


@operator_view("PUT")
def policy(request: Request, product_id: UUID) -> Response:
    """PUT /products/{product_id}/policy: replace the whole policy."""
    product = products.update_policy(product_id, read(request, PolicyUpdate)["policy"], by=actors.ADMIN)
    return Response(answers.render_policy(product))


@operator_view("GET", "POST")
def all_overrides(request: Request, product_id: UUID) -> Response:
    """GET and POST /products/{product_id}/overrides: list all overrides, newest first; grant an override."""
    if request.method == "GET":
        return Response(answers.render_overrides(overrides.of(products.get(product_id))))
    return Response(answers.render_override(overrides.grant(product_id, by=actors.ADMIN, **read(request, NewOverride))))


@operator_view("DELETE")
def override(request: Request, product_id: UUID, override_id: UUID) -> Response:
    """DELETE /products/{product_id}/overrides/{override_id}: end the override; the policy decides from the next request on."""
    read(request, Nothing)
    return Response(answers.render_override(overrides.end(product_id, override_id, by=actors.ADMIN)))


@operator_view("GET", "PUT")
def engine_env(request: Request, product_id: UUID) -> Response:
    """GET and PUT /products/{product_id}/engine-env: list the names of the engines' variables; replace all variables."""
    if request.method == "GET":
        return Response(answers.render_env(environments.find(products.get(product_id).pk)))
    return Response(answers.render_env(environments.replace(product_id, read(request, EnvUpdate)["env"], by=actors.ADMIN)))


# -- platform keys -----------------------------------------------------------------------------------------------------


@operator_view("GET", "POST")
def platform_keys(request: Request, product_id: UUID) -> Response:
    """GET and POST /products/{product_id}/platform-keys: list the keys, newest first; issue a key, with its plaintext."""
    product = products.get(product_id)
    if request.method == "GET":
        return Response(answers.render_keys(product.keys.all()))
    key, plaintext = products.issue_key(product, by=actors.ADMIN, **read(request, NewKey))
    return Response(answers.render_issued_key(key, plaintext))


@operator_view("POST")
def rotate_platform_key(request: Request, product_id: UUID) -> Response:
    """POST /products/{product_id}/rotate-platform-key: issue a key, with its plaintext, to replace living keys."""
    key, plaintext, replaced = products.rotate_key(product_id, by=actors.ADMIN, **read(request, Rotation))
    return Response(answers.render_rotated_key(key, plaintext, replaced))


@operator_view("DELETE")
def platform_key(request: Request, product_id: UUID, key_id: UUID) -> Response:
    """DELETE /products/{product_id}/platform-keys/{key_id}: revoke the key, from the next request on."""
    read(request, Nothing)
    return Response(answers.render_key(products.revoke_key(products.find_key(product_id, key_id).pk, by=actors.ADMIN)))


# -- admin keys --------------------------------------------------------------------------------------------------------


@operator_view("GET", "POST")
def all_admin_keys(request: Request) -> Response:
    """GET and POST /admin-keys: list the named admin keys, newest first; issue a key, with its plaintext."""
    if request.method == "GET":
        return Response(answers.render_admin_keys(AdminKey.objects.all()))
    body = read(request, NewAdminKey)
    key, plaintext = admin_keys.issue(body.pop("name"), by=actors.ADMIN, **body)
    return Response(answers.render_issued_admin_key(key, plaintext))


@operator_view("DELETE")
def admin_key(request: Request, key_id: UUID) -> Response:
    """DELETE /admin-keys/{key_id}: revoke the key, from the next request on."""
    read(request, Nothing)
    return Response(answers.render_admin_key(admin_keys.revoke(key_id, by=actors.ADMIN)))
