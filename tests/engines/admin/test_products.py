"""Products suspended, resumed and deleted in the admin; what a tombstone's page still offers."""

import pytest
from django.contrib.messages import get_messages

from audit import actors
from audit.models import AuditRow
from engines import lifecycle
from engines.models import Operation
from policy import products
from policy.models import Product
from tests.engines.registry import put_engine
from tests.staff import log_in

LIST = "/admin/policy/product/"
SUSPEND, DELETE, OPERATE = "policy.suspend_product", "policy.delete_product", "policy.operate_product"


def page(product):
    return f"{LIST}{product.pk}/change/"


def said(response):
    return str(list(get_messages(response.wsgi_request))[-1])


def last_row():
    row = AuditRow.objects.order_by("-id")[0]
    return row.action, row.actor, row.metadata


def test_suspend_and_resume_ask_for_a_reason_and_say_what_came_of_it(product):
    put_engine(product)
    client = log_in("rita", SUSPEND)
    address = f"{LIST}{product.pk}/suspend/"
    assert "The product learns that it is suspended, not why." in client.get(address).text
    assert client.post(address, {"reason": ""}).context["form"].errors.keys() == {"reason"}
    sent = client.post(address, {"reason": "unpaid", "stop_engines": "on"})
    assert sent["Location"] == page(product)
    assert "1 engines are being stopped" in said(sent)
    assert Operation.objects.get().actor == "admin:rita"
    text = client.get(page(product)).text
    assert "unpaid" in text
    assert "suspended" in client.get(LIST).text
    client.post(f"{LIST}{product.pk}/resume/", {"reason": "paid"})
    assert last_row() == ("product_resume", "admin:rita", {"reason": "paid"})
    assert "unpaid" not in client.get(page(product)).text


def test_delete_asks_and_is_refused_while_engines_live(product):
    engine = put_engine(product)
    client = log_in("rita", DELETE)
    address = f"{LIST}{product.pk}/remove/"
    assert "Nobody can register the slug again" in client.get(address).text
    assert "destroy them first" in said(client.post(address))
    assert products.get(product.pk)
    engine.operations.all().delete()
    engine.delete()
    assert client.post(address)["Location"] == LIST
    assert last_row() == ("product_delete", "admin:rita", {})


def test_deleted_product_is_in_no_list_and_its_page_offers_nothing(product):
    client = log_in("rita", SUSPEND, DELETE, OPERATE)
    lifecycle.delete_product(product.pk, by=actors.ADMIN)
    for query in ({}, {"q": "acme"}, {"q": str(product.pk)}):
        assert f"{product.pk}/change/" not in client.get(LIST, query).text
    text = client.get(page(product)).text
    assert "deleted" in text
    for name in ("suspend/", "resume/", "remove/", "policy/", "issue_key/", "rotate_keys/", "replace_env/", "grant_override/"):
        assert f"{product.pk}/{name}" not in text
        assert client.post(f"{LIST}{product.pk}/{name}", {"reason": "x"}).status_code == 404, name


@pytest.mark.parametrize(("name", "permission"), [("suspend/", SUSPEND), ("resume/", SUSPEND), ("remove/", DELETE)])
def test_verb_without_its_permission_has_no_button_and_is_forbidden(product, name, permission):
    if name == "resume/":
        products.suspend(product.pk, "unpaid", by=actors.ADMIN)
    others = {SUSPEND, DELETE, OPERATE} - {permission}
    client = log_in("rita", *others)
    assert name not in client.get(page(product)).text
    assert client.get(f"{LIST}{product.pk}/{name}").status_code == 403
    assert client.post(f"{LIST}{product.pk}/{name}", {"reason": "x"}).status_code == 403
    assert name in log_in("sue", permission).get(page(product)).text
    before = Product.objects.get()
    assert (before.deleted_at, bool(before.suspended_at)) == (None, name == "resume/")


@pytest.mark.parametrize("name", ["suspend/", "resume/", "remove/"])
def test_verb_is_a_post_with_a_token(product, name):
    client = log_in("rita", SUSPEND, DELETE, enforce_csrf_checks=True)
    assert client.post(f"{LIST}{product.pk}/{name}", {"reason": "x"}).status_code == 403
    assert Product.objects.get().suspended_at is None
