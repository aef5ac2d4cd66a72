"""Strict reading of request bodies, and answers in JSON, whatever the `Accept` header says."""

from collections.abc import Iterable, Mapping
from typing import IO, Any

from rest_framework import serializers
from rest_framework.exceptions import ParseError
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.parsers import JSONParser
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request
from rest_framework.utils import json

from common.sizes import MAX_BODY


class Json(JSONParser):
    """Parser of JSON in UTF-8, of at most MAX_BODY bytes; a charset in the `Content-Type` header is ignored."""

    def parse(self, stream: IO[Any], media_type: str | None = None, parser_context: Mapping[str, Any] | None = None) -> Any:
        """The body's value. Raises ParseError for everything but valid JSON; NaN and lone surrogates are refused, too."""
        body = stream.read(MAX_BODY + 1)
        if len(body) > MAX_BODY:
            raise ParseError(f"The body is longer than {MAX_BODY} bytes.")
        try:
            parsed = json.loads(body.decode(), parse_constant=json.strict_constant)
            if b"\\u" in body:  # an escape may be a lone surrogate, which no response and no database can hold
                json.dumps(parsed, ensure_ascii=False).encode()
        except ValueError as error:
            raise ParseError(f"The body is not JSON in UTF-8: {error}.") from error
        except RecursionError as error:
            raise ParseError("The body is nested too deeply.") from error
        return parsed


class OnlyJson(DefaultContentNegotiation):
    """Every answer is JSON: `Accept` is ignored, as in the orchestrator with which our API is compatible."""

    def select_renderer(
        self, request: Request, renderers: Iterable[BaseRenderer], format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        only = next(iter(renderers))
        return only, str(only.media_type)


class Text(serializers.CharField):
    """A JSON string, unchanged: nothing is trimmed, and a number is refused."""

    def __init__(self, **options: Any) -> None:
        super().__init__(trim_whitespace=False, **options)

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.fail("invalid")
        return str(super().to_internal_value(data))


class Flag(serializers.BooleanField):
    """JSON's true or false; numbers and strings are refused."""

    def to_internal_value(self, data: Any) -> bool:
        if not isinstance(data, bool):
            self.fail("invalid", input=data)
        return data


class Whole(serializers.IntegerField):
    """A JSON number without a fraction; strings of digits and booleans are refused."""

    def to_internal_value(self, data: Any) -> int:
        if not isinstance(data, int) or isinstance(data, bool):
            self.fail("invalid")
        return int(super().to_internal_value(data))


class Body(serializers.Serializer[Any]):
    """A JSON object with only the declared fields; the error names wrong and unknown fields."""

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, dict) and (unknown := sorted(set(data) - set(self.fields))):
            known = ", ".join(self.fields) or "none"
            raise serializers.ValidationError({name[:64]: [f"Unknown field. Known fields: {known}."] for name in unknown})
        return super().to_internal_value(data)


def read(request: Request, body: type[Body]) -> dict[str, Any]:
    """The request's JSON body as `body` validates it; an absent body is an empty object. Raises ValidationError, ParseError."""
    serializer = body(data=request.data)
    serializer.is_valid(raise_exception=True)
    return dict(serializer.validated_data)
