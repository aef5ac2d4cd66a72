"""Descriptions of endpoints for the OpenAPI document.

A package describes its endpoints in a `schema` module, beside their views; `fleet.openapi` makes the document.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from django.http import HttpResponseBase
from drf_spectacular.utils import OpenApiParameter

from common.answers import Answer, Json
from common.bodies import Body

UUID: Json = {"type": "string", "format": "uuid"}


@dataclass(frozen=True)
class Endpoint:
    """A method of a path, and its answers.

    Facts about all endpoints are left out: errors possible for any request, keys, request ids, `Idempotency-Key`.
    """

    method: str
    path: str  # in the document's form: `/engines/{user_id}`
    view: Callable[..., HttpResponseBase]  # made by `api_view`
    name: str  # operationId: the name of a client's function
    summary: str
    answer: Answer  # with status 200
    example: Json  # of an answer with status 200
    body: type[Body] | None = None  # of the request
    body_example: Json | None = None
    errors: tuple[str, ...] = ()  # error codes specific to the endpoint
    parameters: tuple[OpenApiParameter, ...] = ()  # of path, query and header
    headers: dict[int, tuple[str, ...]] = field(default_factory=dict)  # of answers, by status: names in HEADERS
    is_read: bool = False  # changes nothing, whatever the method: an `Idempotency-Key` is useless
    is_waiting: bool = False  # may be answered with a 202, or with the failure of an operation
    tag: str = "engines"
    description: str = ""

    @property
    def key(self) -> tuple[str, str]:
        return self.method, self.path


def describe(name: str, description: str, schema: Json, *, required: bool = False, where: Any = OpenApiParameter.QUERY) -> Any:
    """A parameter of a request."""
    return OpenApiParameter(name, schema, where, required=required, description=description)


def describe_id(name: str, description: str) -> Any:
    """A UUID in the path."""
    return describe(name, description, UUID, required=True, where=OpenApiParameter.PATH)


def page_limit(*, default: int, most: int) -> Json:
    """The schema of a `limit`: the number of rows on a page."""
    return {"type": "integer", "minimum": 1, "maximum": most, "default": default}
