"""The OpenAPI description of the endpoints in `engines.api`."""

from django.core.validators import RegexValidator
from drf_spectacular.utils import OpenApiParameter

from common import image_references
from common.answers import Json
from common.bodies import Text
from common.endpoints import Endpoint, describe, describe_id, page_limit
from engines.api import admit, answers, bodies, engines, logs, operations, products
from policy.schema import PRODUCT_ID

USER_ID: Json = {"type": "string", "minLength": 1, "maxLength": 255, "pattern": r"^(?!\.{1,2}$)"}
PATH_USER_ID = describe(
    "user_id",
    "The product's id of the user: 1 to 255 printable characters, not `.` or `..` alone; percent-encoded as one path segment.",
    {**USER_ID, "example": "alice"},
    required=True,
    where=OpenApiParameter.PATH,
)
PREFER = describe(
    "Prefer",
    "`respond-async`: do not wait; an unfinished operation is answered with a 202. `wait=N`: wait up to N seconds before a 202."
    " Without the header: wait until the operation is finished; after the endpoint's deadline the answer is an error.",
    {"type": "string", "example": "wait=10"},
    where=OpenApiParameter.HEADER,
)

# -- bodies of requests --------------------------------------------------------------------------------------------------


class Provision(bodies.Provision):
    """A new engine for a user."""

    user_id = Text(
        max_length=255,
        validators=[RegexValidator(USER_ID["pattern"])],
        help_text="1 to 255 printable characters, not `.` or `..` alone; no character that does not show, such as a joiner"
        " outside an emoji.",
    )
    engine_version = Text(
        required=False,
        max_length=image_references.LONGEST,
        validators=[RegexValidator(image_references.CHARACTERS)],
        help_text="The image. Without it: the policy's image.",
    )


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
_DISK = {"disk": {"used_mb": 212, "limit_mb": 1024, "exceeded": False, "measured_at": "2026-11-24T03:39:12.004Z"}}
ACCEPTED = {"operation_id": "103bc61c-3b64-4582-b9ef-e676666a87c2", "kind": "provision", "state": "pending"}
_FOUND = ("ENGINE_NOT_FOUND",)
_VERB = (*_FOUND, "OPERATION_IN_PROGRESS", "BACKEND_ERROR")
_BOOT = (*_VERB, "PRODUCT_SUSPENDED", "DISK_EXCEEDED", "BOOT_TIMEOUT", "CAPACITY_EXHAUSTED", "PORT_EXHAUSTION")
_ONE = "/engines/{user_id}"
_PRODUCT = "/products/{product_id}"

ENDPOINTS = (
    Endpoint(
        "POST", "/engines/provision", engines.provision, "provision", "Create an engine; answered once the engine is healthy",
        body=Provision, body_example={"user_id": "alice"}, answer=answers.Provisioned,
        example={"engine_id": _ID, "user_id": "alice", "status": "running", "url": _URL, "api_key": _KEY},
        errors=("POLICY_DENIED", *_BOOT, "PRODUCT_NOT_FOUND", "ENGINE_ALREADY_EXISTS", "QUOTA_EXCEEDED"),
        parameters=(PREFER,), is_waiting=True,
    ),
    Endpoint(
        "GET", "/engines", engines.engines, "list_engines", "List the product's engines without their keys, newest first",
        answer=answers.Engines, example={"engines": [{**_ENGINE, **_DISK}], "total": 1},
        parameters=(
            describe("status", "Only engines in this state.", {"type": "string", "enum": answers.LIVING}),
            describe("limit", "Number of engines per page.", page_limit(default=100, most=1000)),
            describe("offset", "Engines to skip.", {"type": "integer", "minimum": 0, "maximum": 999_999_999, "default": 0}),
        ),
    ),
    Endpoint(
        "GET", _ONE, engines.engine, "get_engine", "Get an engine with its key",
        answer=answers.EngineWithKey, example={**_ENGINE, **_DISK, "api_key": _KEY}, errors=_FOUND, parameters=(PATH_USER_ID,),
    ),
    Endpoint(
        "POST", f"{_ONE}/start", engines.start, "start", "Start a stopped, sleeping or failed engine with its existing data",
        answer=answers.Started, example={"status": "running", "url": _URL},
        errors=(*_BOOT, "ENGINE_ALREADY_RUNNING", "ENGINE_NOT_RUNNING"), parameters=(PATH_USER_ID, PREFER), is_waiting=True,
    ),
    Endpoint(
        "POST", f"{_ONE}/stop", engines.stop, "stop", "Stop a running, sleeping or failed engine; its data and key are kept",
        answer=answers.Stopped, example={"status": "stopped"}, errors=(*_VERB, "ENGINE_NOT_RUNNING"),
        parameters=(PATH_USER_ID, PREFER), is_waiting=True,
    ),
    Endpoint(
        "POST", f"{_ONE}/rotate-key", engines.rotate_key, "rotate_key", "Give an engine a new key; answered once it is healthy",
        answer=answers.NewEngineKey, example={"engine_id": _ID, "user_id": "alice", "api_key": _KEY},
        errors=(*_VERB, "BOOT_TIMEOUT", "CAPACITY_EXHAUSTED", "PORT_EXHAUSTION", "ENGINE_NOT_RUNNING"),
        parameters=(PATH_USER_ID, PREFER), is_waiting=True,
    ),
    Endpoint(
        "POST", f"{_ONE}/admit", admit.admit, "admit", "Decide whether a request of the user may go to the user's engine now",
        body=bodies.Admit, body_example={"auto_provision": True}, answer=answers.ADMISSION,
        example={"admitted": True, "engine": {**_ENGINE, **_DISK, "api_key": _KEY}},
        errors=("POLICY_DENIED", *_BOOT, "PRODUCT_NOT_FOUND", "QUOTA_EXCEEDED", "RATE_LIMITED"),
        headers=dict.fromkeys((200, 202, 429), ("RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset")),
        parameters=(PATH_USER_ID, PREFER), is_waiting=True,
    ),
    Endpoint(
        "GET", f"{_ONE}/logs", logs.logs, "get_logs", "Get the last lines of the engine's log",
        answer=answers.Logs, example={"engine_id": _ID, "user_id": "alice", "lines": ["listening on 127.0.0.1:9794"]},
        errors=(*_FOUND, "BACKEND_ERROR"),
        parameters=(
            PATH_USER_ID,
            describe(
                "tail", "Number of lines.", {"type": "integer", "minimum": 1, "maximum": logs.MAX_TAIL, "default": logs.TAIL}
            ),
        ),
    ),
    Endpoint(
        "DELETE", _ONE, engines.engine, "destroy", "Destroy an engine, its data and its key permanently",
        answer=answers.Destroyed, example={"status": "destroyed", "engine_id": _ID}, errors=_VERB,
        parameters=(PATH_USER_ID, PREFER), is_waiting=True,
    ),
    Endpoint(
        "GET", "/operations/{operation_id}", operations.operation, "get_operation", "Get the state and progress of an operation",
        answer=answers.Operation,
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
            "notice": None,
        },
        parameters=(
            describe_id("operation_id", "Id of the operation."),
        ),
        tag="operations",
    ),
    Endpoint(
        "POST", f"{_PRODUCT}/suspend", products.suspend, "suspend_product",
        "Suspend a product: refuse its admits, provisions and starts",
        body=bodies.NewSuspension, body_example={"reason": "unpaid", "stop_engines": True}, answer=answers.Suspended,
        example={"product_id": _ID, "suspended_at": "2026-11-24T08:39:04.580Z", "reason": "unpaid", "stopping": 12, "busy": 1},
        errors=("PRODUCT_NOT_FOUND",), parameters=(PRODUCT_ID,), tag="products",
    ),
    Endpoint(
        "POST", f"{_PRODUCT}/resume", products.resume, "resume_product", "End the suspension of a product",
        body=bodies.Resumption, body_example={"reason": "paid"}, answer=answers.Suspension,
        example={"product_id": _ID, "suspended_at": None, "reason": None},
        errors=("PRODUCT_NOT_FOUND",), parameters=(PRODUCT_ID,), tag="products",
    ),
    Endpoint(
        "DELETE", _PRODUCT, products.product, "delete_product", "Permanently delete a product without living engines",
        answer=answers.Deleted, example={"status": "deleted", "product_id": _ID},
        errors=("PRODUCT_NOT_FOUND", "PRODUCT_HAS_ENGINES"), parameters=(PRODUCT_ID,), tag="products",
    ),
)  # fmt: skip
