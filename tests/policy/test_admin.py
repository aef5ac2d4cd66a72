"""Products in the admin: registered, limited, given keys; by whom, and with what said when it is wrong."""

import re
from datetime import timedelta

import pytest
from django.contrib.messages import get_messages
from django.utils.html import escape

from audit.models import AuditRow
from policy import environments, overrides, products
from policy.models import PlatformKey, PolicyOverride, Product
from policy.rules import RULES
from tests.staff import log_in

LIST = "/admin/policy/product/"
REGISTER = f"{LIST}register/"
OPERATE = "policy.operate_product"
KEY = re.compile(r'id="key">(pk-sept-[\w-]+)<')


def page(product):
    return f"{LIST}{product.pk}/change/"


def errors(response):
    """Field → its errors, of the form on the page."""
    return {name: list(found) for name, found in response.context["form"].errors.items()}


def last_row():
    row = AuditRow.objects.order_by("-id")[0]
    return row.action, row.actor, row.metadata


def test_register_makes_a_product_and_shows_its_key_this_once(db):
    client = log_in("rita", OPERATE)
    response = client.post(REGISTER, {"slug": "harbor", "display_name": "Harbor", "max_engines": "10", "rate_limit_rpm": ""})
    key = KEY.search(response.text)[1]
    assert "no-store" in response["Cache-Control"]
    assert key not in f"{response.cookies} {dict(client.session)}"
    product = products.authenticate(key).product
    assert (product.slug, product.display_name, product.policy) == ("harbor", "Harbor", {"max_engines": 10})
    assert set(AuditRow.objects.values_list("action", "actor")) == {
        ("policy_register", "admin:rita"), ("platform_key_issue", "admin:rita"),
    }  # fmt: skip
    for address in (LIST, page(product), "/admin/audit/auditrow/"):
        assert key not in client.get(address).text


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("slug", "", "required"), ("slug", "Harbor", "2 to 63"), ("slug", "a", "2 to 63"), ("slug", "a" * 64, "at most 63"),
        ("slug", "system", "not be admin, anonymous or system"), ("slug", "acme", "exists"),
        ("slug", "ok\x00", "Null characters"),
        ("display_name", "", "required"), ("display_name", "x" * 256, "at most 255"), ("display_name", "a\nb", "printable"),
        ("max_engines", "-1", "whole number"), ("max_engines", "1.5", "whole number"),
        ("rate_limit_rpm", "many", "whole number"), ("rate_limit_rpm", "1000000001", "whole number"),
    ],
)  # fmt: skip
def test_register_names_the_field_that_is_wrong(product, field, value, words):
    client = log_in("rita", OPERATE)
    response = client.post(REGISTER, {"slug": "harbor", "display_name": "Harbor", field: value})
    assert response.status_code == 200
    assert words in " ".join(errors(response)[field])
    assert len(errors(response)) == 1
    assert Product.objects.count() == 1


def test_policy_is_replaced_by_what_the_fields_say(product):
    client = log_in("rita", OPERATE)
    post = f"{LIST}{product.pk}/policy/"
    assert client.post(post, {"max_engines": "5", "rate_limit_rpm": "60"})["Location"] == page(product)
    assert last_row() == ("policy_update", "admin:rita", {"max_engines": 5, "rate_limit_rpm": 60})
    client.post(post, {"runtime": "runc"})
    assert Product.objects.get().policy == {"runtime": "runc"}
    client.post(post, {"max_engines": "0", "rate_limit_rpm": ""})
    assert Product.objects.get().policy == {"max_engines": 0}
    text = client.get(page(product)).text
    assert re.search(r'name="max_engines"[^>]*value="0"|value="0"[^>]*name="max_engines"', text)


def test_policy_has_a_field_for_every_rule(product):
    text = log_in("rita", OPERATE).get(page(product)).text
    for name, rule in RULES.items():
        assert f'name="{name}"' in text
        assert escape(rule.meaning) in text


def test_policy_that_is_as_it_was_writes_no_row(product):
    before = AuditRow.objects.count()
    response = log_in("rita", OPERATE).post(f"{LIST}{product.pk}/policy/", {"max_engines": "", "rate_limit_rpm": ""})
    assert [str(message) for message in get_messages(response.wsgi_request)] == ["The policy is unchanged."]
    assert AuditRow.objects.count() == before


def test_policy_that_is_wrong_changes_nothing_and_says_where(product):
    response = log_in("rita", OPERATE).post(f"{LIST}{product.pk}/policy/", {"max_engines": "lots", "rate_limit_rpm": "1"})
    assert response.status_code == 400
    assert errors(response) == {"max_engines": ["Must be a whole number from 0 to 1000000000."]}
    assert "Must be a whole number from 0 to" in response.text
    assert Product.objects.get().policy == {}


# -- overrides -----------------------------------------------------------------------------------------------------------------


def test_grant_override_is_in_force_and_on_the_page_until_it_is_ended(product):
    client = log_in("rita", OPERATE)
    address = f"{LIST}{product.pk}/grant_override/"
    assert 'value="24"' in client.get(address).text
    sent = {"rule": "images", "value": "acme/*, other/*", "hours": "2", "reason": "launch"}
    assert client.post(address, sent)["Location"] == page(product)
    override = PolicyOverride.objects.get()
    assert (override.value, override.granted_by) == (["acme/*", "other/*"], "admin:rita")
    assert override.expires_at - override.created_at == timedelta(hours=2)
    assert overrides.in_force(Product.objects.get()) == {"images": ["acme/*", "other/*"]}
    assert "acme/*, other/*" in client.get(page(product)).text
    end = f"{LIST}{product.pk}/end_override/{override.pk}/"
    assert "the rule has the policy" in client.get(end).text
    client.post(end)
    assert last_row()[:2] == ("policy_override_end", "admin:rita")
    assert "Every rule has the policy" in client.get(page(product)).text
    again = client.post(end)
    assert "no living override" in str(list(get_messages(again.wsgi_request))[-1])


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [("rule", "colour", "valid choice"), ("value", "", "required"), ("value", "many", "whole number"), ("value", "-1", "whole"),
     ("hours", "0", "greater than or equal to 1"), ("hours", "8785", "less than"), ("reason", "", "required"),
     ("reason", "x" * 201, "at most 200")],
)  # fmt: skip
def test_grant_override_names_the_field_that_is_wrong(product, field, value, words):
    sent = {"rule": "max_engines", "value": "5", "hours": "1", "reason": "launch", field: value}
    response = log_in("rita", OPERATE).post(f"{LIST}{product.pk}/grant_override/", sent)
    assert words in " ".join(errors(response)[field])
    assert not PolicyOverride.objects.exists()


def test_end_override_of_another_product_is_not_found(product, other_product):
    made = overrides.grant(other_product.pk, "pids", 70, reason="launch", expires_in_s=60, by="admin")
    assert log_in("rita", OPERATE).post(f"{LIST}{product.pk}/end_override/{made.pk}/").status_code == 404
    assert overrides.in_force(Product.objects.get(pk=other_product.pk)) == {"pids": 70}


# -- keys and environment ------------------------------------------------------------------------------------------------------


def test_issue_key_shows_another_key_this_once(product):
    client = log_in("rita", OPERATE)
    assert client.get(f"{LIST}{product.pk}/issue_key/").context["form"].initial == {}
    response = client.post(f"{LIST}{product.pk}/issue_key/", {"scopes": ["read"], "expires_in_days": "7"})
    key = KEY.search(response.text)[1]
    assert "no-store" in response["Cache-Control"]
    assert products.authenticate(key).product == products.authenticate(product.key).product == product
    issued = products.authenticate(key)
    assert (issued.scopes, issued.expires_at - issued.created_at) == (["read"], timedelta(days=7))
    assert last_row()[:2] == ("platform_key_issue", "admin:rita")
    text = client.get(page(product)).text
    assert key not in text
    assert text.count(">Revoke<") == 2


@pytest.mark.parametrize(("field", "values"), [("scopes", []), ("scopes", ["all"]), ("expires_in_days", ["0"])])
def test_issue_key_names_the_field_that_is_wrong(product, field, values):
    sent = {"scopes": ["read"], field: values}
    response = log_in("rita", OPERATE).post(f"{LIST}{product.pk}/issue_key/", sent)
    assert errors(response).keys() == {field}
    assert PlatformKey.objects.count() == 1


def test_rotate_keys_shows_a_key_in_place_of_those_there_are(product):
    client = log_in("rita", OPERATE)
    assert 'value="24"' in client.get(f"{LIST}{product.pk}/rotate_keys/").text
    response = client.post(f"{LIST}{product.pk}/rotate_keys/", {"overlap_hours": "0"})
    key = KEY.search(response.text)[1]
    assert "no-store" in response["Cache-Control"]
    assert products.authenticate(product.key) is None
    assert products.authenticate(key).product == product
    assert last_row()[:2] == ("platform_key_rotate", "admin:rita")
    assert key not in client.get(page(product)).text


def test_replace_env_takes_lines_and_never_shows_a_value(product):
    client = log_in("rita", OPERATE)
    address = f"{LIST}{product.pk}/replace_env/"
    sent = client.post(address, {"env": "TOKEN=s3cret=\u2028value\x85 \n\nREGION=eu\r\n"})
    assert sent["Location"] == page(product)
    assert environments.read(product.pk, 1) == {"TOKEN": "s3cret=\u2028value\x85 ", "REGION": "eu"}
    assert last_row() == ("engine_env_update", "admin:rita", {"version": 1, "names": ["REGION", "TOKEN"]})
    for text in (client.get(page(product)).text, client.get(address).text):
        assert "s3cret" not in text
    assert "TOKEN" in client.get(page(product)).text


@pytest.mark.parametrize("env", ["TOKEN", "token=s3cret", "PATH=s3cret", "A=1\nA=s3cret", "=s3cret", "A=s3cret\nB"])
def test_replace_env_that_is_wrong_changes_nothing_and_shows_no_value(product, env):
    response = log_in("rita", OPERATE).post(f"{LIST}{product.pk}/replace_env/", {"env": env})
    assert errors(response).keys() == {"env"}
    assert "s3cret" not in response.text
    assert environments.newest_version(product.pk) == 0


def test_revoke_key_asks_and_then_ends_it(product):
    client, key = log_in("rita", OPERATE), PlatformKey.objects.get()
    address = f"{LIST}{product.pk}/revoke_key/{key.pk}/"
    assert "Requests with this key are refused" in client.get(address).text
    assert products.authenticate(product.key).product == product
    client.post(address)
    assert products.authenticate(product.key) is None
    assert last_row() == ("platform_key_revoke", "admin:rita", {"key_id": str(key.pk), "prefix": key.prefix})
    again = client.post(address)
    assert "revoked already" in str(list(get_messages(again.wsgi_request))[-1])
    assert ">Revoke<" not in client.get(page(product)).text


def test_revoke_key_of_another_product_is_not_found(product, other_product):
    key = PlatformKey.objects.get(product=other_product)
    assert log_in("rita", OPERATE).post(f"{LIST}{product.pk}/revoke_key/{key.pk}/").status_code == 404
    assert products.authenticate(other_product.key).product == other_product


def test_page_lists_keys_without_what_would_open_anything(product):
    text = log_in("rita", OPERATE).get(page(product)).text
    key = PlatformKey.objects.get()
    assert key.prefix in text
    assert key.key_hash not in text
    assert product.key not in text


def test_everything_without_the_permission_has_no_button_and_is_forbidden(product):
    client, key = log_in("rita"), PlatformKey.objects.get()
    made = overrides.grant(product.pk, "pids", 70, reason="launch", expires_in_s=60, by="admin")
    listed, shown = client.get(LIST), client.get(page(product))
    assert (listed.status_code, shown.status_code) == (200, 200)
    for text in (listed.text, shown.text):
        assert not re.search(
            r"register/|issue_key/|rotate_keys/|replace_env/|revoke_key/|grant_override/|end_override/|/policy/\"", text
        )
    names = ("policy/", "issue_key/", "rotate_keys/", "replace_env/", f"revoke_key/{key.pk}/", "grant_override/")
    for name in (*names, f"end_override/{made.pk}/"):
        assert client.post(f"{LIST}{product.pk}/{name}").status_code == 403, name
    assert client.get(REGISTER).status_code == client.post(REGISTER).status_code == 403
    assert Product.objects.count() == PlatformKey.objects.count() == 1
    assert products.authenticate(product.key).product == product


def test_everything_that_changes_is_a_post_with_a_token(product):
    client = log_in("rita", OPERATE, enforce_csrf_checks=True)
    assert client.get(f"{LIST}{product.pk}/policy/").status_code == 405
    for name in ("policy/", "issue_key/", "rotate_keys/", "replace_env/", "grant_override/"):
        assert client.post(f"{LIST}{product.pk}/{name}").status_code == 403, name
    assert client.post(REGISTER, {"slug": "harbor", "display_name": "Harbor"}).status_code == 403
    assert Product.objects.count() == PlatformKey.objects.count() == 1


def test_nothing_is_added_changed_or_deleted_by_django_even_for_a_superuser(product):
    client = log_in("root", superuser=True)
    assert client.post(f"{LIST}add/", {"slug": "harbor", "display_name": "Harbor"}).status_code == 403
    assert client.post(page(product), {"slug": "harbor"}).status_code == 405
    assert client.post(f"{LIST}{product.pk}/delete/", {"post": "yes"}).status_code == 403
    client.post(LIST, {"action": "delete_selected", "_selected_action": [product.pk], "post": "yes"})
    assert Product.objects.get().slug == "acme"


def test_list_finds_by_slug_or_id_exactly(product, other_product):
    client = log_in("rita")
    for term, found in (
        ("acme", [product]),
        (str(other_product.pk), [other_product]),
        ("acm", []),
        ("", [product, other_product]),
    ):
        keys = re.findall(r"field-slug[^>]*><a[^>]*?/([0-9a-f-]{36})/change/", client.get(LIST, {"q": term}).text)
        assert keys == [str(it.pk) for it in found], term
