"""The OpenAPI description of this floor's endpoints: a product's figures, and health."""

from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from audit.schema import Endpoint
from engines.admission.explanation import OUTCOMES
from engines.api.schema import ADMIT_REASONS, LIVING
from fleet import api


@extend_schema_field({"type": ["integer", "number", "string"]})
class MeasureField(serializers.JSONField):
    """A number, or words."""


class ByStatus(serializers.Serializer[Any]):
    """Engines by state."""

    def get_fields(self) -> dict[str, serializers.Field[Any, Any, Any, Any]]:
        return {status: serializers.IntegerField(min_value=0) for status in LIVING}


class Status(serializers.Serializer[Any]):
    """The product's engines by state."""

    total = serializers.IntegerField(min_value=0)
    by_status = ByStatus()
    health = serializers.ChoiceField(choices=["ok", "degraded", "critical"])
    unhealthy_count = serializers.IntegerField(min_value=0)


class Metrics(serializers.Serializer[Any]):
    """The last hour, and two totals of all time."""

    provisions_1h = serializers.IntegerField(min_value=0)
    crashes_1h = serializers.IntegerField(min_value=0)
    restarts_1h = serializers.IntegerField(min_value=0)
    avg_boot_ms = serializers.IntegerField(min_value=0, allow_null=True, help_text="Null without a provision in the hour.")
    total_provisions = serializers.IntegerField(min_value=0)
    total_destroys = serializers.IntegerField(min_value=0)


class UnreachableHost(serializers.Serializer[Any]):
    """A host whose runtime does not answer."""

    name = serializers.CharField()
    unreachable_since = serializers.DateTimeField()


class Health(serializers.Serializer[Any]):
    """This process can serve; what else is said never decides that."""

    status = serializers.ChoiceField(choices=["ok"])
    audit_partitions = serializers.ChoiceField(choices=["ok", "low"])
    hosts = serializers.CharField(help_text="`ok`, or on how many hosts engines are unknown.")
    unreachable_hosts = UnreachableHost(many=True, required=False)


class Decision(serializers.Serializer[Any]):
    """What one rule says."""

    rule = serializers.CharField(help_text="A key of the policy, `suspended`, or a ceiling of the host: `host_...`.")
    allowed = serializers.BooleanField()
    limit = MeasureField(allow_null=True, help_text="Null where nothing limits.")
    value = MeasureField(allow_null=True, help_text="What is measured against it; null while that cannot be said.")
    headroom = serializers.IntegerField(allow_null=True, min_value=0, help_text="How many more fit now.")


class Explanation(serializers.Serializer[Any]):
    """What would happen; nothing did."""

    allowed = serializers.BooleanField(help_text="No rule refuses; the engine's state may.")
    decisions = Decision(many=True, help_text="In the order in which they are asked: the first that refuses decides.")
    would = serializers.ChoiceField(choices=OUTCOMES)
    refusal = serializers.CharField(
        allow_null=True, help_text=f"Of `refuse`: the error's code, or an admit's reason ({', '.join(ADMIT_REASONS)})."
    )


ENDPOINTS = (
    Endpoint(
        "POST", "/policy/explain", api.explain, "explain", "What would happen, and by which rule; nothing does",
        body=api.Explain, body_example={"verb": "provision", "user_id": "alice"}, answer=Explanation,
        example={
            "allowed": False,
            "decisions": [
                {"rule": "suspended", "allowed": True, "limit": "active", "value": "active", "headroom": None},
                {"rule": "images", "allowed": True, "limit": "acme/agent:*", "value": "acme/agent:2", "headroom": None},
                {"rule": "max_engines", "allowed": False, "limit": 3, "value": 3, "headroom": 0},
            ],
            "would": "refuse",
            "refusal": "QUOTA_EXCEEDED",
        },
        errors=("PRODUCT_NOT_FOUND",), tag="products", is_read=True,
        description="With an admin key `product_id` says whose; a product is told of itself. `engine_version` is of a provision,"
        " the flags of an admit.",
    ),
    Endpoint(
        "GET", "/status", api.status, "get_status", "The product's engines by state",
        answer=Status,
        example={
            "total": 2,
            "by_status": {"provisioning": 0, "running": 1, "sleeping": 0, "stopped": 0, "failed": 1, "destroying": 0},
            "health": "degraded",
            "unhealthy_count": 1,
        },
        tag="fleet",
    ),
    Endpoint(
        "GET", "/metrics", api.metrics, "get_metrics", "The product's last hour, and totals",
        answer=Metrics,
        example={
            "provisions_1h": 1,
            "crashes_1h": 0,
            "restarts_1h": 0,
            "avg_boot_ms": 210,
            "total_provisions": 1,
            "total_destroys": 0,
        },
        tag="fleet",
    ),
    Endpoint(
        "GET", "/health", api.health, "get_health", "Whether this process can serve",
        answer=Health, example={"status": "ok", "audit_partitions": "ok", "hosts": "ok"}, tag="fleet",
        description="503 while the database cannot be reached, or a migration is missing.",
    ),
)  # fmt: skip
