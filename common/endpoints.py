"""How an endpoint is described in the OpenAPI document.

Each floor describes its endpoints beside their views, in its `schema` module; `fleet.openapi` makes the document of them.
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
    """One method of one path, and how it may be answered.

    What every endpoint has in common is not said here: errors that any request may meet, keys, request ids, `Idempotency-Key`.
    """

    method: str
    path: str  # as the document writes it: `/engines/{user_id}`
    view: Callable[..., HttpResponseBase]  # made by `api_view`
    name: str  # operationId: what a client would call its function
    summary: str
    answer: Answer  # of a 200
    example: Json  # of the answer
    body: type[Body] | None = None  # of the request
    body_example: Json | None = None
    errors: tuple[str, ...] = ()  # codes of its own
    parameters: tuple[OpenApiParameter, ...] = ()  # of path, query and header
    headers: dict[int, tuple[str, ...]] = field(default_factory=dict)  # of answers by status: names among the HEADERS
    is_read: bool = False  # changes nothing, whatever its method: an `Idempotency-Key` would mean nothing
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
    """The schema of a `limit`: how many a page has."""
    return {"type": "integer", "minimum": 1, "maximum": most, "default": default}
