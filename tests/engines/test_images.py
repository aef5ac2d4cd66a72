"""Which images a product's engines may run, over the API."""

from audit import actors
from audit.models import AuditRow
from engines.models import Engine
from policy import products
from tests.envelopes import assert_error


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


TRICKS = [
    "acme/agent:x/../../other:1", "acme/agent:x/../../../containers", "acme/agent:../other", "acme/agent:1?x", "acme/agent:1#x",
    "acme/agent:%2e%2e/other", "ab36c51b6172", "ab36", "a" * 64, "sha256:ab36c51b6172", "Acme/agent:1", "acme/agent:1\u200d",
]  # fmt: skip


def test_image_outside_the_grammar_is_refused_whatever_the_policy_allows(api, product, subtests):
    products.update_policy(product.pk, {"images": ["acme/agent:*", "*"]}, by=actors.ADMIN)
    for image in TRICKS:
        with subtests.test(image=image):
            body = {"user_id": "alice", "engine_version": image}
            for answer in (
                api.call("POST", "/engines/provision", body),
                api.call("POST", "/policy/explain", {"verb": "provision", **body}),
            ):
                error = assert_error(answer, 400, "INVALID_REQUEST")
                assert error["message"].startswith("engine_version: must be the name of an image")
    assert not Engine.objects.exists()


def test_policy_from_before_the_grammar_allows_nothing_by_what_is_outside_of_it(api, product):
    product.policy = {"images": ["acme/agent:[12]", "ab36c51b6172"]}
    product.save()
    for image in ("acme/agent:1", "acme/agent:[12]", "ab36c51b6172:1"):
        answer = api.call("POST", "/engines/provision", {"user_id": "alice", "engine_version": image})
        assert answer.status_code in (400, 403)
    assert not Engine.objects.exists()
