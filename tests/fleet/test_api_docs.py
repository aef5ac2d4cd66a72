"""docs/api.md names what there is, and nothing else."""

import re
from pathlib import Path

from audit.api import FIELDS, KNOWN
from config.urls import urlpatterns
from engines.admission import REASONS
from fleet.errors import TABLE

TEXT = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
HEADINGS = re.findall(r"^### ([A-Z]+) (/\S*)$", TEXT, re.MULTILINE)


def paths():
    """Every path of the API as the documentation writes it, with its view."""
    for pattern in urlpatterns:
        path = "/" + re.sub(r"<\w+:(\w+)>", r"{\1}", str(pattern.pattern))
        if path != "/admin/":
            yield path, pattern.callback


def test_every_path_has_a_section_and_every_section_a_path():
    assert {path for _, path in HEADINGS} == {path for path, _ in paths()}
    assert "`/admin/`" in TEXT


def test_every_method_has_a_section():
    described = set(HEADINGS)
    for path, view in paths():
        if hasattr(view, "cls"):  # made by DRF: it knows its methods
            methods = {name.upper() for name in view.cls.http_method_names} - {"OPTIONS", "HEAD"}
            assert {(method, path) for method in methods} <= described


def test_errors_are_those_of_the_table():
    there = {(code, status) for _, status, code in TABLE} | {("BOOT_TIMEOUT", 504), ("INTERNAL_ERROR", 500)}
    told = {(code, int(status)) for code, status in re.findall(r"^\| `([A-Z_]+)` \| (\d{3}) \|", TEXT, re.MULTILINE)}
    assert told <= there
    assert {code for code, _ in told} == {code for code, _ in there}


def test_no_other_code_is_named():
    assert set(re.findall(r"\d{3} `([A-Z_]+)`", TEXT)) <= {code for _, _, code in TABLE} | {"BOOT_TIMEOUT", "INTERNAL_ERROR"}


def test_reasons_fields_and_parameters_are_named():
    for name in [*REASONS.values(), "engine_not_found", "engine_busy", *FIELDS, *KNOWN]:
        assert f"`{name}`" in TEXT, name
