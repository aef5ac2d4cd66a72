"""The fleet over REST: status, metrics, the audit log and explanations, and the health of the process."""

from typing import Annotated, Any

from django.http import HttpResponse
from pydantic import Field, WithJsonSchema
from rest_framework import serializers
from rest_framework.decorators import api_view, authentication_classes, permission_classes
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from typing_extensions import TypedDict

from audit import api as log
from common.answers import Count, NonEmpty, choice
from common.bodies import Body, Flag, Text, read
from engines import admission
from engines.admission import Question
from engines.admission.explanation import ANSWERS, VERBS
from engines.api.answers import ADMIT_REASONS
from fleet import metrics as figures, status as state
from fleet.errors import classify, envelope
from policy import decisions, products, rules
from policy.answers import EGRESS
from policy.auth import AnyKeyAuthentication, IsProductOrAdmin, MayExplain
from policy.errors import ProductNotFound
from policy.models import Product

Measure = Annotated[int | str, WithJsonSchema({"type": ["integer", "number", "string"]})]
_ONLY_OF = {"engine_version": "provision", "auto_provision": "admit", "auto_wake": "admit"}


class Explain(Body):
    verb = serializers.ChoiceField(choices=list(VERBS))
    user_id = Text(max_length=255)
    engine_version = Text(required=False, max_length=255)
    auto_provision = Flag(required=False)
    auto_wake = Flag(required=False)
    product_id = serializers.UUIDField(required=False)


@api_view(["GET"])
def status(request: Request) -> Response:
    """GET /status."""
    assert isinstance(request.auth, Product)
    return Response(state.of_product(request.auth))


@api_view(["GET"])
def metrics(request: Request) -> Response:
    """GET /metrics."""
    assert isinstance(request.auth, Product)
    return Response(figures.of_product(request.auth))


@api_view(["GET", "HEAD"])
@authentication_classes([])
@permission_classes([])
def health(request: Request) -> Response:
    """GET /health: 200 while the database can be written and every migration is applied."""
    if reason := state.unavailable():
        return Response(envelope("UNAVAILABLE", f"Not able to serve: {reason}."), status=503)
    return Response(state.of_process())


@api_view(["GET"])
@authentication_classes([AnyKeyAuthentication])
@permission_classes([IsProductOrAdmin])
def audit(request: Request) -> HttpResponse:
    """GET /audit: the product's own rows or, with an admin key, every row, with all that is known of the calls."""
    return log.all_rows(request) if request.auth == "admin" else log.own_rows(request)


# -- explain -----------------------------------------------------------------------------------------------------------


@api_view(["POST"])
@authentication_classes([AnyKeyAuthentication])
@permission_classes([MayExplain])
def explain(request: Request) -> Response:
    """POST /policy/explain: the effect of a call and the deciding rule; nothing is changed, and no `Idempotency-Key` is kept."""
    body = read(request, Explain)
    for field, verb in _ONLY_OF.items():
        if field in body and body["verb"] != verb:
            raise ValidationError({field: [f"Allowed only with the verb {verb}."]})
    product = _asked_about(request, body.pop("product_id", None))
    explained = admission.explain(product, Question(**body))
    return Response(_render(explained, is_operator=not isinstance(request.auth, Product)))


def _asked_about(request: Request, product_id: Any) -> Product:
    """The calling product or, with an admin key, the product named in the body. Raises ProductNotFound, ValidationError."""
    if not isinstance(request.auth, Product):
        if product_id is None:
            raise ValidationError({"product_id": ["This field is required with an admin key."]})
        return products.get(product_id)
    if product_id not in (None, request.auth.pk):
        raise ProductNotFound(f"No product of yours has the id {product_id}.")
    return request.auth


_HIDDEN = "; always null where a product asks about a limit of the host"


class Decision(TypedDict):
    """The decision of a rule."""

    rule: Annotated[NonEmpty, Field(description="A key of the policy, `suspended`, or a limit of the host: `host_...`.")]
    allowed: bool
    limit: Annotated[Measure | None, Field(description=f"Null if there is no limit{_HIDDEN}.")]
    value: Annotated[Measure | None, Field(description=f"The value compared with the limit; null if unknown{_HIDDEN}.")]
    headroom: Annotated[Count | None, Field(description=f"How many more the limit allows now; null if not counted{_HIDDEN}.")]


def _is_own(decision: decisions.Decision) -> bool:
    """Whether the rule is about the product alone. Figures of a host would tell how full the host is over all products."""
    return decision.rule in rules.RULES or decision.rule == decisions.SUSPENDED


def _render_decision(decision: decisions.Decision, *, has_measures: bool) -> Decision:
    return {
        "rule": decision.rule,
        "allowed": decision.allowed,
        "limit": decision.limit if has_measures else None,
        "value": decision.value if has_measures else None,
        "headroom": decision.headroom if has_measures else None,
    }


class Explanation(TypedDict):
    """The effect that a call would have; nothing was changed."""

    allowed: Annotated[bool, Field(description="True if no rule refuses. The engine's state may still refuse.")]
    decisions: Annotated[list[Decision], Field(description="In the order of the rules: the first refusal decides.")]
    would: Annotated[str, choice(ANSWERS)]
    refusal: Annotated[
        NonEmpty | None,
        Field(description=f"If `would` is `refuse`: the error's code, or an admit's reason ({', '.join(ADMIT_REASONS)})."),
    ]
    egress: Annotated[str | list[str], WithJsonSchema(EGRESS), Field(description="Where the product's engines may connect to.")]


def _render(explained: admission.Explanation, *, is_operator: bool) -> Explanation:
    refusal = explained.refusal
    return {
        "allowed": explained.allowed,
        "decisions": [
            _render_decision(decision, has_measures=is_operator or _is_own(decision)) for decision in explained.decisions
        ],
        "would": explained.would,
        "refusal": (refusal if isinstance(refusal, str) else classify(refusal)[1]) or None,
        "egress": explained.egress,
    }
