"""The OpenAPI document, made by drf-spectacular from the descriptions of endpoints in the packages' `schema` modules."""

# mypy: disallow-untyped-calls=False
# drf-spectacular is typed only in part.

import json
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from django.urls import URLPattern, get_resolver
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.plumbing import ResolvedComponent
from drf_spectacular.utils import OpenApiExample, OpenApiParameter, OpenApiRequest, OpenApiResponse

from audit import schema as audit
from common import answers
from common.answers import Answer, Json
from common.bodies import Body
from common.endpoints import Endpoint, describe
from engines.api import schema as engines
from engines.api.answers import Accepted
from fleet import schema as fleet
from fleet.openapi import errors
from policy import schema as policy
from policy.auth import AdminKeyAuthentication, AdmitAuthentication, AnyKeyAuthentication, PlatformKeyAuthentication

ENDPOINTS: tuple[Endpoint, ...] = (*engines.ENDPOINTS, *audit.ENDPOINTS, *fleet.ENDPOINTS, *policy.ENDPOINTS)
UNDESCRIBED = frozenset({"/admin/", "/schema/", "/docs/"})
"""Paths outside the API: pages, and the document itself."""

AUTH = {
    PlatformKeyAuthentication: ("platform_key",),
    AdmitAuthentication: ("platform_key",),
    AdminKeyAuthentication: ("admin_key",),
    AnyKeyAuthentication: ("platform_key", "admin_key"),
}
KEYS: dict[str, Json] = {
    "platform_key": {"type": "apiKey", "in": "header", "name": "X-Platform-Key", "description": "Platform key: `pk-sept-...`."},
    "admin_key": {"type": "apiKey", "in": "header", "name": "X-Admin-Key", "description": "The operator's admin key."},
}
REFUSAL = {"platform_key": ("INVALID_PLATFORM_KEY", "INSUFFICIENT_SCOPE"), "admin_key": ("INVALID_ADMIN_KEY",)}

_SECONDS: Json = {"type": "integer", "minimum": 0}
HEADERS: dict[str, Json] = {
    "X-Request-ID": {
        "description": "Id of this request in the audit log and in Roundhouse's logs.",
        "schema": {"type": "string"},
    },
    "X-Call-ID": {
        "description": "Id of this call in the audit log and in Roundhouse's logs: made by Roundhouse, and never used twice.",
        "schema": {"type": "string", "format": "uuid"},
    },
    "Location": {
        "description": "Address of the operation; GET shows its progress.",
        "schema": {"type": "string", "format": "uri-reference"},
    },
    "Retry-After": {
        "description": "Seconds to wait before a retry: with `RATE_LIMITED`, and with `UNAVAILABLE` if only too many requests are"
        " under way.",
        "schema": _SECONDS,
    },
    "WWW-Authenticate": {"description": "Name of the header in which a key was expected.", "schema": {"type": "string"}},
    "RateLimit-Limit": {"description": "Admits allowed per minute; only sent if there is a limit.", "schema": _SECONDS},
    "RateLimit-Remaining": {"description": "Number of admits still allowed now.", "schema": _SECONDS},
    "RateLimit-Reset": {
        "description": "Whole seconds until one more admit is allowed than now; 0 if the whole limit is free.",
        "schema": _SECONDS,
    },
}
ALWAYS = frozenset({"X-Request-ID", "X-Call-ID", "Location", "WWW-Authenticate"})  # required in every answer with the header
BY_STATUS = {202: ("Location",), 401: ("WWW-Authenticate",), 429: ("Retry-After",), 503: ("Retry-After",)}

_HEADER: Any = OpenApiParameter.HEADER
REQUEST_ID = describe(
    "X-Request-ID",
    "Id of this request: 1 to 128 characters of `A-Za-z0-9._:/+=@-`. If it is missing or invalid, Roundhouse makes an id.",
    {"type": "string"},
    where=_HEADER,
)
ON_BEHALF_OF = describe(
    "X-On-Behalf-Of",
    "The person or program that the caller acts for, in the caller's own words: at most 255 printable characters. The audit rows"
    " of the call repeat the text.",
    {"type": "string", "maxLength": 255},
    where=_HEADER,
)
IDEMPOTENCY_KEY = describe(
    "Idempotency-Key",
    "Makes repeating the request safe: if the same request is sent again with the same key within 24 hours, it is not carried out"
    " again, and its answer is that of the first request. An admit keeps the key only if its flags lead to an operation.",
    {"type": "string", "minLength": 1, "maxLength": 255, "pattern": r"^[\x20-\x7e]+$"},
    where=_HEADER,
)


def _respond(answer: Answer, example: Json) -> Any:
    """A response with an example; the schema of its body is a component of the document."""
    examples = [OpenApiExample("example", example, response_only=True)]
    return OpenApiResponse(answers.reference(answer), answers.description_of(answer), examples)


class Described(AutoSchema):
    """An operation of the document (a method of a path), made from an Endpoint."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__()
        self.endpoint = endpoint

    def get_operation_id(self) -> str:
        return self.endpoint.name

    def get_summary(self) -> str:
        return self.endpoint.summary

    def get_description(self) -> str:  # type: ignore[override]  # as drf-spectacular has it
        side = "to_read" if self.method == "GET" else "to_write"
        scopes = {scope for permission in self.view.permission_classes for scope in getattr(permission, side, ())}
        needed = " or ".join(f"`{scope}`" for scope in sorted(scopes))
        told = [self.endpoint.description, f"The platform key needs the scope {needed}." if needed else ""]
        return "\n\n".join(text for text in told if text)

    def get_tags(self) -> list[str]:
        return [self.endpoint.tag]

    def get_auth(self) -> list[Json]:
        return [{name: []} for name in self._keys()]

    def _keys(self) -> list[str]:
        return [key for kind in self.view.authentication_classes for key in AUTH[kind]]

    def get_override_parameters(self) -> list[Any]:
        return [*self.endpoint.parameters, REQUEST_ID, ON_BEHALF_OF, *([IDEMPOTENCY_KEY] if self._changes() else [])]

    def _changes(self) -> bool:
        return self.method != "GET" and not self.endpoint.is_read

    def get_request_serializer(self) -> Any:
        body, example = self.endpoint.body, self.endpoint.body_example
        if body is None:
            return None
        examples = [OpenApiExample("example", example, request_only=True)] if example else []
        return {"application/json": OpenApiRequest(body, examples=examples)}

    def get_response_serializers(self) -> Any:
        answer = self.endpoint.answer
        responses = {200: _respond(answer, self.endpoint.example)}
        return {**responses, 202: _respond(Accepted, engines.ACCEPTED)} if self.endpoint.is_waiting else responses

    def map_renderers(self, attribute: str) -> list[str]:
        return ["application/json"] if attribute == "media_type" else []

    def _get_response_bodies(self, direction: Any = "response") -> Json:
        responses: Json = super()._get_response_bodies(direction)
        for answered, response in responses.items():
            response["headers"] = _refer("headers", self._headers(int(answered)))
        for status, codes in errors.by_status(self._codes()).items():
            responses[str(status)] = self._share(errors.answer(codes), codes, self._headers(status))
        return responses

    def _headers(self, status: int) -> tuple[str, ...]:
        return "X-Request-ID", "X-Call-ID", *BY_STATUS.get(status, ()), *self.endpoint.headers.get(status, ())

    def _share(self, answer: Json, codes: list[str], headers: tuple[str, ...]) -> Json:
        """Make the answer a component, since many operations share the answer, and return a reference."""
        name = ".".join((*codes, *self.endpoint.headers.get(errors.status_of(codes[0]), ())))
        shared = ResolvedComponent(name, ResolvedComponent.RESPONSE, {**answer, "headers": _refer("headers", headers)}, name)
        self.registry.register_on_missing(shared)
        return dict(shared.ref)

    def _codes(self) -> list[str]:
        """The codes of all errors possible for the operation."""
        codes = ["INVALID_REQUEST", "INTERNAL_ERROR", "UNAVAILABLE", *self.endpoint.errors]
        codes += [code for name in self._keys() for code in REFUSAL[name]]
        codes += ["NOT_FOUND"] if "{" in self.path else []
        codes += ["UNSUPPORTED_MEDIA_TYPE"] if self.method != "GET" else []
        codes += ["IDEMPOTENCY_MISMATCH"] if self._changes() else []
        return codes

    def _map_basic_serializer(self, serializer: Any, direction: Any) -> Json:
        schema: Json = super()._map_basic_serializer(serializer, direction)
        kind = serializer if isinstance(serializer, type) else type(serializer)
        if issubclass(kind, Body):
            schema["additionalProperties"] = False  # a Body refuses unknown fields
        if not vars(kind).get("__doc__"):
            schema.pop("description", None)  # inherited from a base class
        return schema


class Generator(SchemaGenerator):
    """drf-spectacular's generator, with ENDPOINTS as the list of endpoints instead of a guess from the views."""

    def _initialise_endpoints(self) -> None:
        components: dict[str, dict[str, Json]] = {"schemas": {"Error": errors.ERROR, **policy.COMPONENTS}}
        for answer in (Accepted, *(endpoint.answer for endpoint in ENDPOINTS)):
            components["schemas"] |= answers.components(answer)
        components |= {"examples": errors.examples(), "securitySchemes": KEYS}
        components |= {"headers": {name: {**header, "required": name in ALWAYS} for name, header in HEADERS.items()}}
        for kind, named in components.items():
            for name, schema in named.items():
                self.registry.register(ResolvedComponent(name, kind, schema, name))

    def _get_paths_and_endpoints(self) -> list[tuple[str, str, str, Any]]:
        return [(endpoint.path, endpoint.path, endpoint.method, self._describe(endpoint)) for endpoint in ENDPOINTS]

    def _describe(self, endpoint: Endpoint) -> Any:
        view = endpoint.view.cls()  # type: ignore[attr-defined]
        self._set_schema_to_view(view, Described(endpoint))
        return view


@cache
def make() -> Json:
    """The OpenAPI document, made on the first call."""
    return dict(_without("x-spec-enum-id", Generator().get_schema(public=True)))


def _without(name: str, part: Any) -> Any:
    """The part of a document without the key `name`, at every depth: only drf-spectacular's own hooks read the key."""
    if isinstance(part, dict):
        return {key: _without(name, value) for key, value in part.items() if key != name}
    return [_without(name, item) for item in part] if isinstance(part, list) else part


def _refer(kind: str, names: Iterable[str]) -> Json:
    return {name: {"$ref": f"#/components/{kind}/{name}"} for name in names}


def text() -> str:
    """The document as JSON text, for a file."""
    return json.dumps(make(), indent=1, ensure_ascii=False) + "\n"


def routed() -> Iterator[tuple[str, str]]:
    """Method and path of every route of the API; ENDPOINTS has to describe all of them."""
    for pattern in get_resolver().url_patterns:
        path = "/" + _template(str(pattern.pattern))
        if path in UNDESCRIBED or not isinstance(pattern, URLPattern):
            continue
        view = getattr(pattern.callback, "cls", None)
        methods = view.http_method_names if view else ["post"]  # functions around views: `provision_or_engine`, `lean_admit`
        yield from ((method.upper(), path) for method in methods if method not in ("options", "head"))


def _template(route: str) -> str:
    """A route in the form of the document: `<user:user_id>` becomes `{user_id}`."""
    return "".join(
        part if index % 2 == 0 else "{" + part.partition(":")[2] + "}"
        for index, part in enumerate(route.replace(">", "<").split("<"))
    )
