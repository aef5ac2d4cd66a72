"""The OpenAPI description of this floor's endpoints: a product's figures, and health."""

from typing import Any

from rest_framework import serializers

from audit.schema import Endpoint
from engines.schema import LIVING
from fleet import api


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


ENDPOINTS = (
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
