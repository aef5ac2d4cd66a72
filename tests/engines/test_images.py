"""Which images a product's engines may run, over the API."""

from audit import actors
from audit.models import AuditRow
from engines.models import Engine
from policy import products


def test_provision_of_another_image_is_refused_with_a_row(api, product):
    answer = api.call("POST", "/engines/provision", {"user_id": "alice", "engine_version": "evil:1"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "POLICY_DENIED")
    row = AuditRow.objects.get(action="provision_denied")
    assert row.metadata == {"rule": "images", "limit": "roundhouse-demo-engine:latest", "value": "evil:1"}
    assert not Engine.objects.exists()


def test_provision_without_a_version_takes_the_products_own(api, product, settings):
    products.update_policy(product.pk, {"engine_image": "roundhouse-demo-engine:pinned"}, by=actors.ADMIN)
    api.call("POST", "/engines/provision", {"user_id": "alice"}, Prefer="respond-async")
    assert Engine.objects.get().engine_version == "roundhouse-demo-engine:pinned"


def test_admit_of_an_image_that_is_not_allowed_is_refused_with_its_row(api, product):
    products.update_policy(product.pk, {"images": ["agents/*"]}, by=actors.ADMIN)
    answer = api.call("POST", "/engines/alice/admit", {"auto_provision": True})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "POLICY_DENIED")
    assert AuditRow.objects.get(action="admit_denied").metadata["rule"] == "images"
