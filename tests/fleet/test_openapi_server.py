"""Whatever requests the OpenAPI document leads to, the real stack answers as the document says, and never with another's."""

import itertools
from collections import defaultdict
from urllib.parse import quote
from uuid import uuid4

import pytest
import requests
import schemathesis
from django.conf import settings as project
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import CHECKS

from tests.conftest import empty, make_product, running_stack
from tests.stack import WORKERS

EXAMPLES = 25  # of each operation, beside those made to cover its parameters

BEFORE = {"/engines/{user_id}/start": "stop", "/engines/{user_id}/stop": "start", "/engines/{user_id}/rotate-key": "start"}
IDS = ("product_id", "key_id", "override_id", "operation_id")

config = schemathesis.Config.from_dict(
    {
        "seed": 1,
        "generation": {
            "deterministic": True,
            "with-security-parameters": False,
            "allow-extra-parameters": False,
            # What no HTTP client can send in a header is no question to the document; all else may hold anything.
            "exclude-header-characters": "".join(chr(code) for code in range(256) if not 0x20 <= code < 0x7F),
        },
    }
)
schema = schemathesis.openapi.from_path(project.BASE_DIR / "docs" / "openapi.json", config=config)
CHECKED = [
    CHECKS.get_one(name)
    for name in (
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_headers_conformance",
        "response_schema_conformance",
        "negative_data_rejection",
        "unsupported_method",
    )
]


class Tenants:
    """A product that calls, another one that must not be seen, and a third for the operator to change."""

    def __init__(self, stack):
        self.stack = stack
        self.own, self.other, self.spare = make_product("own", {"max_engines": 3}), make_product("other"), make_product("spare")
        self.own_ids = self._make(self.own, "alice", "a/b ü?")
        self.other_ids = self._make(self.other, "bob-of-other")
        self.turns = defaultdict(itertools.count)
        self.answers = defaultdict(set)

    def _make(self, product, *user_ids):
        """Engines for these users; identifiers of them, by the parameter that takes them."""
        made = defaultdict(list, user_id=list(user_ids), product_id=[str(product.pk)])
        for user_id in user_ids:
            body = {"user_id": user_id}
            provisioned = self.stack.call("POST", "/engines/provision", product.key, body)
            assert provisioned.status_code == 200, provisioned.text
            made["engine_id"].append(provisioned.json()["engine_id"])
            made["secret"].append(provisioned.json()["api_key"])
        for row in self.stack.call("GET", "/audit", product.key).json()["results"]:
            made["operation_id"] += [row["operation_id"]] if row["operation_id"] else []
        return made

    def secrets(self):
        """What no answer to `own` may hold."""
        ids = self.other_ids
        return {*ids["engine_id"], *ids["operation_id"], *ids["product_id"], *ids["secret"], self.other.key}

    def aim(self, case):
        """Every third request as it was made, every third at what is the caller's own, every third at what is another's."""
        turn = next(self.turns[case.operation.label])
        if turn % 3 == 0:
            return
        ids = {1: self.own_ids, 2: self.other_ids}[turn % 3]
        if is_for_the_operator(case):
            ends_it = case.operation.label == "DELETE /products/{product_id}"  # and may end none that others are aimed at
            ids = {"product_id": [str((make_product(f"over-{turn}") if ends_it else self.spare).pk)]}
        for parameters in (case.path_parameters, case.query):
            for name in set(parameters) & set(ids):
                value = ids[name][turn % len(ids[name])]
                parameters[name] = quote(value, safe="") if parameters is case.path_parameters else value
        if case.meta.generation.mode.is_positive and isinstance(case.body, dict) and "product_id" in case.body:
            case.body["product_id"] = ids["product_id"][0]  # in a body that is wrong it may be what is
        if ids is self.own_ids and (verb := BEFORE.get(case.path)):
            self.stack.call("POST", f"/engines/{case.path_parameters['user_id']}/{verb}", self.own.key)


def is_for_the_operator(case):
    """Whether it takes an admin key only; what takes either is asked by the product."""
    return case.operation.definition.raw.get("security") == [{"admin_key": []}]


@pytest.fixture(scope="module")
def tenants(database, django_db_blocker):
    """The stack with its tenants, for the whole module."""
    empty()
    environment = {"ORCH_ENGINE_BACKEND": "memory", "ORCH_OPS_CONCURRENCY": "8"}
    with django_db_blocker.unblock(), running_stack("web", *WORKERS, "health", **environment) as stack:
        yield Tenants(stack)


@schema.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate])
def test_answers_are_as_the_document_says(tenants, case):
    tenants.aim(case)
    keys = {"X-Admin-Key": project.ENV.admin_key} if is_for_the_operator(case) else {"X-Platform-Key": tenants.own.key}
    response = case.call_and_validate(base_url=tenants.stack.url, headers=keys, checks=CHECKED, timeout=60)
    tenants.answers[case.operation.label].add(response.status_code)
    if not is_for_the_operator(case):
        asked = f"{response.request.url} {case.body}"  # what we sent may be told back to us
        assert not [secret for secret in tenants.secrets() if secret in response.text and secret not in asked]


def test_every_operation_was_answered_with_success(tenants):
    """The requests above went deeper than to refusals."""
    if tenants.answers:  # this test may run alone
        fed_no_id = ("products/{product_id}/platform-keys/{key_id}", "products/{product_id}/overrides/{override_id}")
        failing = {f"DELETE /{path}" for path in (*fed_no_id, "admin-keys/{key_id}")}
        assert {label for label, statuses in tenants.answers.items() if 200 not in statuses} <= failing


def test_nothing_is_answered_without_a_key(tenants):
    for operation in schema.get_all_operations():
        case = operation.ok().Case(path_parameters={"user_id": "bob-of-other", **dict.fromkeys(IDS, str(uuid4()))})
        response = requests.request(case.method, tenants.stack.url + case.formatted_path, timeout=10)
        assert response.status_code == (200 if case.path == "/health" else 401), case.path
