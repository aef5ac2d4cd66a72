"""The OpenAPI description of this floor's endpoints: engines and their operations."""

from typing import Any

from django.core.validators import RegexValidator
from drf_spectacular.utils import OpenApiParameter
from rest_framework import serializers

from audit.schema import PAGE_LIMIT, PATH_USER_ID, USER_ID, Endpoint, Json, describe
from common.bodies import Text
from engines.admission import REASONS
from engines.api import admit, bodies, engines, logs, operations, products
from engines.models import Kind, OperationState, Queue, Status
from policy.schema import PRODUCT_ID

LIVING = [status.value for status in Status if status != Status.DESTROYED]
ADMIT_REASONS = ["engine_not_found", *REASONS.values(), "engine_busy"]

PREFER = describe(
    "Prefer",
    "`respond-async`: do not wait, take a 202. `wait=N`: wait up to N seconds, then take a 202. Left out: wait as long as it"
    " takes, within the endpoint's deadline.",
    {"type": "string", "example": "wait=10"},
    where=OpenApiParameter.HEADER,
)

# -- answers -------------------------------------------------------------------------------------------------------------


class Engine(serializers.Serializer[Any]):
    """An engine, without its key."""

    engine_id = serializers.UUIDField()
    user_id = serializers.CharField()
    status = serializers.ChoiceField(choices=LIVING)
    url = serializers.URLField(help_text="Where the product reaches the engine; may change when it starts again.")
    engine_version = serializers.CharField(help_text="Its image.")
    created_at = serializers.DateTimeField()
    last_health_at = serializers.DateTimeField(allow_null=True, help_text="Last probe that found it healthy.")


class EngineWithKey(Engine):
    """An engine, with its key."""

    api_key = serializers.RegexField("^sk-sept-", help_text="Goes into `X-Engine-Key` of requests to the engine.")


class Engines(serializers.Serializer[Any]):
    """Engines of the product, newest first, and how many match in all."""

    engines = Engine(many=True)
    total = serializers.IntegerField(min_value=0)


class Provisioned(serializers.Serializer[Any]):
    """A new engine, healthy."""

    engine_id = serializers.UUIDField()
    user_id = serializers.CharField()
    status = serializers.ChoiceField(choices=LIVING)
    url = serializers.URLField()
    api_key = serializers.RegexField("^sk-sept-")


class Started(serializers.Serializer[Any]):
    """The engine runs."""

    status = serializers.ChoiceField(choices=["running"])
    url = serializers.URLField()


class Stopped(serializers.Serializer[Any]):
    """The engine does not run."""

    status = serializers.ChoiceField(choices=["stopped"])


class Destroyed(serializers.Serializer[Any]):
    """The engine is gone, with its data and its key."""

    status = serializers.ChoiceField(choices=["destroyed"])
    engine_id = serializers.UUIDField()


class NewEngineKey(serializers.Serializer[Any]):
    """The engine is healthy with its new key."""

    engine_id = serializers.UUIDField()
    user_id = serializers.CharField()
    api_key = serializers.RegexField("^sk-sept-")


class Logs(serializers.Serializer[Any]):
    """What the engine wrote last, oldest first."""

    engine_id = serializers.UUIDField()
    user_id = serializers.CharField()
    lines = serializers.ListField(child=serializers.CharField(allow_blank=True), max_length=logs.MAX_TAIL)


class Step(serializers.Serializer[Any]):
    """How far an operation came, and when."""

    at = serializers.DateTimeField()
    step = serializers.CharField()
    attempt = serializers.IntegerField(min_value=1)


class OperationError(serializers.Serializer[Any]):
    """Why an operation failed."""

    code = serializers.CharField(help_text="A cause: `boot_timeout`, `image_missing`, ...")
    message = serializers.CharField()


class Operation(serializers.Serializer[Any]):
    """What became of a request."""

    operation_id = serializers.UUIDField()
    engine_id = serializers.UUIDField()
    user_id = serializers.CharField()
    kind = serializers.ChoiceField(choices=Kind.values)
    state = serializers.ChoiceField(choices=OperationState.values)
    attempt = serializers.IntegerField(min_value=0)
    queue = serializers.ChoiceField(choices=Queue.values)
    queue_position = serializers.IntegerField(
        min_value=1, allow_null=True, help_text="1 is next; null unless it waits for its turn."
    )
    created_at = serializers.DateTimeField()
    finished_at = serializers.DateTimeField(allow_null=True)
    steps = Step(many=True)
    error = OperationError(allow_null=True)


class Accepted(serializers.Serializer[Any]):
    """The operation goes on; `Location` is its address."""

    operation_id = serializers.UUIDField()
    kind = serializers.ChoiceField(choices=Kind.values)
    state = serializers.ChoiceField(choices=OperationState.values)


class Suspension(serializers.Serializer[Any]):
    """Whether the product is suspended, since when and why."""

    product_id = serializers.UUIDField()
    suspended_at = serializers.DateTimeField(allow_null=True)
    reason = serializers.CharField(allow_null=True)


class Suspended(Suspension):
    """The product is suspended."""

    stopping = serializers.IntegerField(min_value=0, help_text="Engines that are being stopped.")
    busy = serializers.IntegerField(
        min_value=0, help_text="Engines with another operation under way; they are stopped when that is over."
    )


class Deleted(serializers.Serializer[Any]):
    """The product is gone, with its keys."""

    status = serializers.ChoiceField(choices=["deleted"])
    product_id = serializers.UUIDField()


ADMITTED: Json = {
    "description": "Whether the user's request may go to the engine: with the engine, or with the reason why not.",
    "oneOf": [
        {
            "type": "object",
            "properties": {"admitted": {"const": True}, "engine": {"$ref": "#/components/schemas/EngineWithKey"}},
            "required": ["admitted", "engine"],
        },
        {
            "type": "object",
            "properties": {
                "admitted": {"const": False},
                "engine": {"type": "null"},
                "reason": {"type": "string", "enum": ADMIT_REASONS},
            },
            "required": ["admitted", "engine", "reason"],
        },
    ],
}
COMPONENTS = {"Admission": ADMITTED}

# -- bodies of requests --------------------------------------------------------------------------------------------------


class Provision(bodies.Provision):
    """A new engine for a user."""

    user_id = Text(max_length=255, validators=[RegexValidator(USER_ID["pattern"])])
    engine_version = Text(required=False, max_length=255, help_text="Image; the policy's, when left out.")


# -- endpoints -----------------------------------------------------------------------------------------------------------

_ID = "6df437d3-c7e8-4729-beab-981303a832e6"
_URL = "http://127.0.0.1:9794"
_KEY = "sk-sept-9fmSJaVHGitkbVoao2SXJn2ZUoayPdK9t55h1p3lLcA"
_ENGINE = {
    "engine_id": _ID,
    "user_id": "alice",
    "status": "running",
    "url": _URL,
    "engine_version": "roundhouse-demo-engine:latest",
    "created_at": "2026-11-24T03:39:03.191Z",
    "last_health_at": None,
}
ACCEPTED = {"operation_id": "103bc61c-3b64-4582-b9ef-e676666a87c2", "kind": "provision", "state": "pending"}
_FOUND = ("ENGINE_NOT_FOUND",)
_VERB = (*_FOUND, "OPERATION_IN_PROGRESS", "BACKEND_ERROR")
_BOOT = (*_VERB, "PRODUCT_SUSPENDED", "BOOT_TIMEOUT", "CAPACITY_EXHAUSTED", "PORT_EXHAUSTION")
_ONE = "/engines/{user_id}"
_PRODUCT = "/products/{product_id}"

ENDPOINTS = (
    Endpoint(
        "POST", "/engines/provision", engines.provision, "provision", "A new engine, answered once it is healthy",
        body=Provision, body_example={"user_id": "alice"}, answer=Provisioned,
        example={"engine_id": _ID, "user_id": "alice", "status": "running", "url": _URL, "api_key": _KEY},
        errors=("POLICY_DENIED", *_BOOT, "PRODUCT_NOT_FOUND", "ENGINE_ALREADY_EXISTS", "QUOTA_EXCEEDED"),
        parameters=(PREFER,), is_waiting=True,
    ),
    Endpoint(
        "GET", "/engines", engines.engines, "list_engines", "The product's engines, newest first, without their keys",
        answer=Engines, example={"engines": [_ENGINE], "total": 1},
        parameters=(
            describe("status", "Only those in this state.", {"type": "string", "enum": LIVING}),
            describe("limit", "Engines of a page.", PAGE_LIMIT),
            describe("offset", "Skip so many.", {"type": "integer", "minimum": 0, "maximum": 999_999_999, "default": 0}),
        ),
    ),
    Endpoint(
        "GET", _ONE, engines.engine, "get_engine", "One engine, with its key",
        answer=EngineWithKey, example={**_ENGINE, "api_key": _KEY}, errors=_FOUND, parameters=(PATH_USER_ID,),
    ),
    Endpoint(
        "POST", f"{_ONE}/start", engines.start, "start", "Start a stopped, sleeping or failed engine on the data it has",
        answer=Started, example={"status": "running", "url": _URL},
        errors=(*_BOOT, "ENGINE_ALREADY_RUNNING", "ENGINE_NOT_RUNNING"), parameters=(PATH_USER_ID, PREFER), is_waiting=True,
    ),
    Endpoint(
        "POST", f"{_ONE}/stop", engines.stop, "stop", "Stop a running, sleeping or failed engine; its data and key stay",
        answer=Stopped, example={"status": "stopped"}, errors=(*_VERB, "ENGINE_NOT_RUNNING"),
        parameters=(PATH_USER_ID, PREFER), is_waiting=True,
    ),
    Endpoint(
        "POST", f"{_ONE}/rotate-key", engines.rotate_key, "rotate_key", "A new key, answered once the engine is healthy with it",
        answer=NewEngineKey, example={"engine_id": _ID, "user_id": "alice", "api_key": _KEY},
        errors=(*_VERB, "BOOT_TIMEOUT", "CAPACITY_EXHAUSTED", "PORT_EXHAUSTION", "ENGINE_NOT_RUNNING"),
        parameters=(PATH_USER_ID, PREFER), is_waiting=True,
    ),
    Endpoint(
        "POST", f"{_ONE}/admit", admit.admit, "admit", "May a request of this user go to the user's engine now?",
        body=bodies.Admit, body_example={"auto_provision": True}, answer={"$ref": "#/components/schemas/Admission"},
        example={"admitted": True, "engine": {**_ENGINE, "api_key": _KEY}},
        errors=("POLICY_DENIED", *_BOOT, "PRODUCT_NOT_FOUND", "QUOTA_EXCEEDED", "RATE_LIMITED"),
        headers=dict.fromkeys((200, 202, 429), ("RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset")),
        parameters=(PATH_USER_ID, PREFER), is_waiting=True,
    ),
    Endpoint(
        "GET", f"{_ONE}/logs", logs.logs, "get_logs", "The last lines that the engine wrote",
        answer=Logs, example={"engine_id": _ID, "user_id": "alice", "lines": ["listening on 127.0.0.1:9794"]},
        errors=(*_FOUND, "BACKEND_ERROR"),
        parameters=(
            PATH_USER_ID,
            describe(
                "tail", "So many lines.", {"type": "integer", "minimum": 1, "maximum": logs.MAX_TAIL, "default": logs.TAIL}
            ),
        ),
    ),
    Endpoint(
        "DELETE", _ONE, engines.engine, "destroy", "End the engine, its data and its key, for good",
        answer=Destroyed, example={"status": "destroyed", "engine_id": _ID}, errors=_VERB,
        parameters=(PATH_USER_ID, PREFER), is_waiting=True,
    ),
    Endpoint(
        "GET", "/operations/{operation_id}", operations.operation, "get_operation", "What became of a request",
        answer=Operation,
        example={
            "operation_id": "103bc61c-3b64-4582-b9ef-e676666a87c2",
            "engine_id": _ID,
            "user_id": "alice",
            "kind": "provision",
            "state": "running",
            "attempt": 1,
            "queue": "lifecycle",
            "queue_position": None,
            "created_at": "2026-11-24T03:39:04.580Z",
            "finished_at": None,
            "steps": [{"at": "2026-11-24T03:39:04.588Z", "step": "claimed", "attempt": 1}],
            "error": None,
        },
        parameters=(
            describe(
                "operation_id", "The operation.", {"type": "string", "format": "uuid"}, required=True, where=OpenApiParameter.PATH
            ),
        ),
        tag="operations",
    ),
    Endpoint(
        "POST", f"{_PRODUCT}/suspend", products.suspend, "suspend_product", "Refuse what would make the product's engines serve",
        body=bodies.NewSuspension, body_example={"reason": "unpaid", "stop_engines": True}, answer=Suspended,
        example={"product_id": _ID, "suspended_at": "2026-11-24T08:39:04.580Z", "reason": "unpaid", "stopping": 12, "busy": 1},
        errors=("PRODUCT_NOT_FOUND",), parameters=(PRODUCT_ID,), tag="products",
    ),
    Endpoint(
        "POST", f"{_PRODUCT}/resume", products.resume, "resume_product", "End the suspension",
        body=bodies.Resumption, body_example={"reason": "paid"}, answer=Suspension,
        example={"product_id": _ID, "suspended_at": None, "reason": None},
        errors=("PRODUCT_NOT_FOUND",), parameters=(PRODUCT_ID,), tag="products",
    ),
    Endpoint(
        "DELETE", _PRODUCT, products.product, "delete_product", "Delete a product without living engines, for good",
        answer=Deleted, example={"status": "deleted", "product_id": _ID},
        errors=("PRODUCT_NOT_FOUND", "PRODUCT_HAS_ENGINES"), parameters=(PRODUCT_ID,), tag="products",
    ),
)  # fmt: skip
