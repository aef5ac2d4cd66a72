"""Reading what a caller sent, strictly."""

from typing import Any

from rest_framework import serializers
from rest_framework.request import Request


class Body(serializers.Serializer[Any]):
    """A JSON object with these fields and no others; wrong or unknown fields are named in the error."""

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, dict) and (unknown := sorted(set(data) - set(self.fields))):
            known = ", ".join(self.fields) or "none"
            raise serializers.ValidationError({str(name)[:64]: [f"Unknown field. Known fields: {known}."] for name in unknown})
        return super().to_internal_value(data)


def read(request: Request, body: type[Body]) -> dict[str, Any]:
    """The request's JSON body as `body` validates it; an absent body is an empty object. Raises ValidationError, ParseError."""
    data = request.data if request.data != {} or isinstance(request.data, dict) else {}
    serializer = body(data=data)
    serializer.is_valid(raise_exception=True)
    return dict(serializer.validated_data)
