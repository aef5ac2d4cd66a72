"""The OpenAPI document: complete, valid, true of the code, and served."""

import json
import re
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml
from django.conf import settings
from django.test import Client
from drf_spectacular.drainage import GENERATOR_STATS
from drf_spectacular.validation import validate_schema

from common.bodies import Body
from fleet import errors
from fleet.openapi import document, errors as responses

DOCUMENT = document.make()
OPERATIONS = [(method, path, operation) for path, item in DOCUMENT["paths"].items() for method, operation in item.items()]


def test_everything_routed_is_described_and_nothing_else():
    assert sorted(endpoint.key for endpoint in document.ENDPOINTS) == sorted(document.routed())


def test_document_is_valid_and_made_without_warnings():
    validate_schema(DOCUMENT)
    document.Generator().get_schema(public=True)
    assert not GENERATOR_STATS._warn_cache
    assert not GENERATOR_STATS._error_cache


def test_every_name_is_a_function_of_its_own():
    names = [endpoint.name for endpoint in document.ENDPOINTS]
    assert len(names) == len(set(names))
    assert all(re.fullmatch("[a-z_]+", name) for name in names)


def test_every_parameter_of_a_path_is_described():
    for _, path, operation in OPERATIONS:
        described = {parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "path"}
        assert described == set(re.findall(r"{(\w+)}", path)), path


def test_every_reference_leads_somewhere():
    for kind, name in re.findall(r"#/components/(\w+)/([\w.-]+)", json.dumps(DOCUMENT)):
        assert name in DOCUMENT["components"][kind]


def test_bodies_have_the_fields_of_the_views():
    for endpoint in document.ENDPOINTS:
        if endpoint.body is not None:
            assert issubclass(endpoint.body, Body)
            if endpoint.body.__module__.endswith(".schema"):  # says more of the fields than the view's own does
                assert endpoint.body().fields.keys() == endpoint.body.__base__().fields.keys(), endpoint.name


def test_view_of_an_endpoint_answers_its_method():
    for endpoint in document.ENDPOINTS:
        assert endpoint.method.lower() in endpoint.view.cls.http_method_names, endpoint.name


# -- errors ----------------------------------------------------------------------------------------------------------------


def test_every_code_has_one_sample():
    there = {code for _, _, code in errors.TABLE} | {"BOOT_TIMEOUT", "INTERNAL_ERROR"}
    assert [errors.classify(sample)[1] for sample in responses.SAMPLES].count("BOOT_TIMEOUT") == 1
    assert set(responses.CODES) == there
    assert len(responses.SAMPLES) == len(there)


def test_every_code_is_an_answer_of_some_operation():
    named = set()
    for _, _, operation in OPERATIONS:
        for response in operation["responses"].values():
            named |= set(response.get("$ref", "").rpartition("/")[2].split("."))
    assert set(responses.CODES) - named == {"METHOD_NOT_ALLOWED"}  # an answer to what is no operation


# -- examples --------------------------------------------------------------------------------------------------------------


def check(schema, instance):
    """The instance has the form of the schema, whose references are those of the document."""
    whole = {**schema, "components": DOCUMENT["components"]}
    jsonschema.Draft202012Validator(whole, format_checker=jsonschema.FormatChecker()).validate(instance)


def contents():
    for method, path, operation in OPERATIONS:
        yield f"{method} {path}", operation.get("requestBody")
        for status, response in operation["responses"].items():
            name = response.get("$ref", "").rpartition("/")[2]
            yield f"{method} {path} {status}", DOCUMENT["components"]["responses"][name] if name else response


@pytest.mark.parametrize(("where", "message"), [pytest.param(*found, id=found[0]) for found in contents() if found[1]])
def test_every_body_and_answer_has_an_example_of_its_form(where, message):
    content = message["content"]["application/json"]
    assert content["examples"]
    for example in content["examples"].values():
        name = example.get("$ref", "").rpartition("/")[2]
        check(content["schema"], (DOCUMENT["components"]["examples"][name] if name else example)["value"])


# -- served ----------------------------------------------------------------------------------------------------------------


def test_version_is_the_projects():
    project = tomllib.loads(Path(settings.BASE_DIR, "pyproject.toml").read_text())["project"]
    assert DOCUMENT["info"]["version"] == project["version"]


def test_schema_is_served_without_a_key():
    response = Client().get("/schema/")
    assert response.headers["Content-Type"] == "application/json"
    assert response.json() == DOCUMENT


@pytest.mark.parametrize(("query", "accept"), [("?format=yaml", "*/*"), ("", "application/yaml")])
def test_schema_is_served_as_yaml(query, accept):
    response = Client().get(f"/schema/{query}", headers={"Accept": accept})
    assert response.headers["Content-Type"].startswith("application/yaml")
    assert yaml.safe_load(response.content) == DOCUMENT


def test_docs_are_served_without_a_key_under_a_policy_of_their_own():
    response = Client().get("/docs/")
    assert response.status_code == 200
    policy = response.headers["Content-Security-Policy"]
    assert "script-src 'self';" in f"{policy};"
    assert "unsafe" not in policy
    assert "default-src 'none'" in Client().get("/schema/").headers["Content-Security-Policy"]
    assert "script-src" not in Client().get("/schema/").headers["Content-Security-Policy"]


def test_docs_name_nothing_from_elsewhere():
    page = Client().get("/docs/").content.decode()
    assert "//" not in page.replace("<!DOCTYPE html>", "")
    for path in re.findall(r'(?:src|href)="([^"]+)"', page):
        assert Client().get(path).status_code == 200, path
