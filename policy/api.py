"""Products over REST, with the admin key."""

from uuid import UUID

from rest_framework import serializers
from rest_framework.decorators import api_view, authentication_classes, permission_classes
from rest_framework.request import Request
from rest_framework.response import Response

from audit import actors
from policy import products
from policy.auth import AdminKeyAuthentication, IsAdmin
from policy.requests import Body, Text, read


class Registration(Body):
    slug = Text()
    display_name = Text()
    policy = serializers.JSONField(default=dict)


class PolicyUpdate(Body):
    policy = serializers.JSONField()


@api_view(["POST"])
@authentication_classes([AdminKeyAuthentication])
@permission_classes([IsAdmin])
def register(request: Request) -> Response:
    """POST /products/register: a new product, with its first platform key in plaintext, this once."""
    body = read(request, Registration)
    product, key = products.register(body["slug"], body["display_name"], body["policy"], by=actors.ADMIN)
    return Response({"product_id": str(product.pk), "slug": product.slug, "platform_api_key": key})


@api_view(["PUT"])
@authentication_classes([AdminKeyAuthentication])
@permission_classes([IsAdmin])
def policy(request: Request, product_id: UUID) -> Response:
    """PUT /products/{product_id}/policy: replaces the policy whole."""
    product = products.update_policy(product_id, read(request, PolicyUpdate)["policy"], by=actors.ADMIN)
    return Response({"policy": product.policy})
