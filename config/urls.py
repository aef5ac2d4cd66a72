"""All URL paths of the API, its documentation and the admin."""

from django.contrib import admin
from django.urls import path, register_converter

from audit import api as audit
from engines.api import admit, engines, logs, operations, products
from engines.api.paths import UserId
from fleet import api as fleet
from fleet.openapi import views
from policy import api as policy

register_converter(UserId, "user")

urlpatterns = [
    path("engines/provision", engines.provision_or_engine),
    path("engines", engines.engines),
    path("engines/<user:user_id>", engines.engine),
    path("engines/<user:user_id>/start", engines.start),
    path("engines/<user:user_id>/stop", engines.stop),
    path("engines/<user:user_id>/rotate-key", engines.rotate_key),
    path("engines/<user:user_id>/admit", admit.lean_admit),
    path("engines/<user:user_id>/logs", logs.logs),
    path("engines/<user:user_id>/audit", audit.rows),
    path("operations/<uuid:operation_id>", operations.operation),
    path("audit", fleet.audit),
    path("status", fleet.status),
    path("metrics", fleet.metrics),
    path("policy/explain", fleet.explain),
    path("products/register", policy.register),
    path("products/<uuid:product_id>", products.product),
    path("products/<uuid:product_id>/policy", policy.policy),
    path("products/<uuid:product_id>/overrides", policy.all_overrides),
    path("products/<uuid:product_id>/overrides/<uuid:override_id>", policy.override),
    path("products/<uuid:product_id>/platform-keys", policy.platform_keys),
    path("products/<uuid:product_id>/platform-keys/<uuid:key_id>", policy.platform_key),
    path("products/<uuid:product_id>/rotate-platform-key", policy.rotate_platform_key),
    path("products/<uuid:product_id>/engine-env", policy.engine_env),
    path("products/<uuid:product_id>/suspend", products.suspend),
    path("products/<uuid:product_id>/resume", products.resume),
    path("admin-keys", policy.all_admin_keys),
    path("admin-keys/<uuid:key_id>", policy.admin_key),
    path("health", fleet.health),
    path("schema/", views.schema),
    path("docs/", views.docs),
    path("admin/", admin.site.urls),
]

handler400 = "fleet.errors.bad_request"
handler403 = "fleet.errors.forbidden"
handler404 = "fleet.errors.not_found"
handler500 = "fleet.errors.server_error"
