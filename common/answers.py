"""JSON answers, defined once: a `TypedDict`, beside the rendering function, is also the source of the OpenAPI schema.

    class Stopped(TypedDict):
        \"\"\"The engine does not run.\"\"\"

        status: Literal["stopped"]

    def render_stopped() -> Stopped:
        return {"status": "stopped"}

`components(Stopped)` is the schema for `components/schemas` of the OpenAPI document. Import `TypedDict` from `typing_extensions`:
before Python 3.12, pydantic, which makes the schema, cannot read the `TypedDict` of `typing`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, WithJsonSchema
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

Json = dict[str, Any]

Uuid = Annotated[str, WithJsonSchema({"type": "string", "format": "uuid"})]
Time = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]
Url = Annotated[str, WithJsonSchema({"type": "string", "format": "uri", "minLength": 1})]
NonEmpty = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=0)]
Number = Annotated[int, Field(ge=1)]


def choice(values: Iterable[str]) -> WithJsonSchema:
    """Restrict a string to `values`: `Annotated[str, choice(Status.values)]`."""
    return WithJsonSchema({"type": "string", "enum": list(values)})


_ELSEWHERE = "x-schema"  # pydantic refuses `$ref` to a foreign schema


def refer(name: str) -> WithJsonSchema:
    """Give a value the schema `name`, which is written by hand: `Annotated[dict[str, Any], refer("Policy")]`."""
    return WithJsonSchema({_ELSEWHERE: name})


@dataclass(frozen=True)
class OneOf:
    """An answer of several kinds: `name` and `description` are the schema's, `kinds` are TypedDicts."""

    name: str
    description: str
    kinds: tuple[type, ...]


Answer = type | OneOf


def name_of(answer: Answer) -> str:
    """The name of the answer's schema."""
    return answer.name if isinstance(answer, OneOf) else answer.__name__


def description_of(answer: Answer) -> str:
    """The answer's meaning, in a sentence."""
    return answer.description if isinstance(answer, OneOf) else (answer.__doc__ or "")


def reference(answer: Answer) -> Json:
    """A reference to the answer's schema."""
    return {"$ref": f"#/components/schemas/{name_of(answer)}"}


def components(answer: Answer) -> dict[str, Json]:
    """The answer's schema, and the schema of every TypedDict in it, by name."""
    if isinstance(answer, OneOf):
        found = {name: schema for kind in answer.kinds for name, schema in components(kind).items()}
        return {**found, answer.name: {"description": answer.description, "oneOf": [reference(kind) for kind in answer.kinds]}}
    schema = TypeAdapter(answer).json_schema(
        mode="serialization", ref_template="#/components/schemas/{model}", schema_generator=_Generator
    )
    linked: dict[str, Json] = _linked({**schema.pop("$defs", {}), answer.__name__: schema})
    return linked


def _linked(part: Any) -> Any:
    """The part of a schema, with references in place of the marks of `refer`."""
    if isinstance(part, list):
        return [_linked(item) for item in part]
    if not isinstance(part, dict):
        return part
    if _ELSEWHERE in part:
        return {"$ref": f"#/components/schemas/{part[_ELSEWHERE]}"}
    return {key: _linked(value) for key, value in part.items()}


class _Generator(GenerateJsonSchema):
    """pydantic's generator, in the usual form of OpenAPI documents: without titles, and with null as a further type."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def typed_dict_schema(self, schema: core_schema.TypedDictSchema) -> JsonSchemaValue:
        made = super().typed_dict_schema(schema)
        made.pop("title", None)
        return made

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        made = super().nullable_schema(schema)
        options = made.get("anyOf", [])
        if len(options) != 2 or "type" not in options[0] or "enum" in options[0]:
            return made
        kinds = options[0]["type"]
        return {**options[0], "type": [*([kinds] if isinstance(kinds, str) else kinds), "null"]}
