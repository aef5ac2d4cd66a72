"""Lists of the admin with filters, positions and names that cannot be: a page, a redirect or 400, and never 500."""

import pytest
from django.contrib import admin
from django.contrib.auth.models import Group
from django.urls import reverse

from audit import actors
from policy import admin_keys
from tests.engines.registry import put_engine, put_operation
from tests.staff import hire, log_in

HUGE = "9" * 20
LISTS = {
    model._meta.label: reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")
    for model in admin.site._registry
}
LOOKUPS = {
    "exact": "\0",
    "year": HUGE,
    "range": HUGE,
    "in": f"{HUGE},x",
    "gte": "NaN",
    "isnull": "maybe",
    "regex": "(",
    "iregex": "[[",
    "contains": "\0",
    "date": "9999-99-99",
    "unknown": "1",
}
PARAMETERS = {
    "p": HUGE,
    "o": f"{HUGE}.-{HUGE}",
    "e": "1",
    "all": "\0",
    "q": "\0'(" + "x" * 3_000,
    "older": "\0",
    "newer": HUGE,
    "_to_field": "password",
    "_popup": "\0",
    "_facets": "x",
    "": "",
    "x" * 3_000: "1",
    "id\0": "1",
    "password__startswith": "a",
    "groups__id__exact": HUGE,
    "is_staff__exact": "\0",
    "status": HUGE,
    "actor": b"\xed\xb3\xbf",  # half a character
}


@pytest.fixture
def client(product):
    """A superuser, and a row in every list."""
    put_operation(put_engine(product))
    admin_keys.issue("bob", by=actors.ADMIN)
    Group.objects.create(name="night shift")
    client = log_in("root", superuser=True)
    client.raise_request_exception = False
    return client


def fields(model):
    """The names of a key, a time and a relation of the model, as far as it has them."""
    found = {type(field).__name__: field.name for field in model._meta.get_fields() if field.name != "id"}
    return ["id", *(found[kind] for kind in ("DateTimeField", "ForeignKey", "ManyToManyField") if kind in found)]


@pytest.mark.parametrize("label", LISTS)
def test_list_refuses_what_cannot_be(client, label):
    model = next(model for model in admin.site._registry if model._meta.label == label)
    asked = [(f"{field}__{lookup}", value) for field in fields(model) for lookup, value in LOOKUPS.items()]
    answers = {name: client.get(LISTS[label], {name: value}).status_code for name, value in (*asked, *PARAMETERS.items())}
    assert {name: code for name, code in answers.items() if code not in (200, 302, 400)} == {}
    assert {answers[name] for name, _ in asked} == {400}
    page = client.get(LISTS[label], dict(asked[:1]))
    assert "Not understood" in page.text
    assert page["Content-Type"].startswith("text/html")


def test_lists_of_staff_take_their_own_filters(client):
    group = Group.objects.get(name="night shift")
    hire("carl").groups.add(group)
    for query in ("is_superuser__exact=0", f"groups__id__exact={group.pk}", "q=carl"):
        page = client.get(f"{LISTS['auth.User']}?{query}").text
        assert ">carl<" in page
        assert ">root</a></th>" not in page
    assert "night shift" in client.get(f"{LISTS['auth.Group']}?q=night").text
