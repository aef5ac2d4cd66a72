"""The OpenAPI description of the endpoints in `fleet.api`."""

from audit import api as log, schema as audit
from common.endpoints import UUID, Endpoint, describe
from fleet import api, metrics, status

_FILTERS_OF_OPERATOR = (
    describe("product_id", "Only with an admin key: only rows of this product.", UUID),
    describe(
        "request_id",
        "Only with an admin key: only rows of requests with this `X-Request-ID`.",
        {"type": "string", "minLength": 1},
    ),
    describe("call_id", "Only with an admin key: only rows of this call. Give `since`, too: there is no index.", UUID),
    describe("key_id", "Only with an admin key: only rows of calls with this key. Give `since`, too: there is no index.", UUID),
)

ENDPOINTS = (
    Endpoint(
        "POST", "/policy/explain", api.explain, "explain", "Explain the effect of a call without making it",
        body=api.Explain, body_example={"verb": "provision", "user_id": "alice"}, answer=api.Explanation,
        example={
            "allowed": False,
            "decisions": [
                {"rule": "suspended", "allowed": True, "limit": "active", "value": "active", "headroom": None},
                {"rule": "images", "allowed": True, "limit": "acme/agent:*", "value": "acme/agent:2", "headroom": None},
                {"rule": "max_engines", "allowed": False, "limit": 3, "value": 3, "headroom": 0},
            ],
            "would": "refuse",
            "refusal": "QUOTA_EXCEEDED",
            "egress": ["api.example.com:443", "203.0.113.0/24:8000-8010"],
        },
        errors=("PRODUCT_NOT_FOUND",), tag="products", is_read=True,
        description="With an admin key, `product_id` names the product. With a platform key, the product is the caller."
        " `engine_version` is allowed only with the verb `provision`, and the flags only with the verb `admit`.",
    ),
    Endpoint(
        "GET", "/audit", api.audit, "list_audit", "List rows of the audit log, newest first or in the order of commits",
        answer=log.Rows, example=audit.PAGE, parameters=(*audit.FILTERS, *_FILTERS_OF_OPERATOR), tag="record",
        description="With a platform key, the product's own rows. With an admin key, every row, with all that is known of the"
        " calls.",
    ),
    Endpoint(
        "GET", "/status", api.status, "get_status", "Count the product's engines by state",
        answer=status.Status,
        example={
            "total": 2,
            "by_status": {"provisioning": 0, "running": 1, "sleeping": 0, "stopped": 0, "failed": 1, "destroying": 0},
            "health": "degraded",
            "unhealthy_count": 1,
        },
        tag="fleet",
    ),
    Endpoint(
        "GET", "/metrics", api.metrics, "get_metrics", "Get the product's figures of the last hour, and totals",
        answer=metrics.Metrics,
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
        "GET", "/health", api.health, "get_health", "Check whether this process can serve",
        answer=status.Health, tag="fleet",
        example={"status": "ok", "audit_partitions": "ok", "disk": "ok", "hosts": "ok", "jobs": "ok"},
        description="The answer is 503 while the database cannot be reached or a migration is missing.",
    ),
)  # fmt: skip
