"""Who may use which page and which action of the admin: every page, by every role.

A new page is a line in PAGES, and a new action on selected rows a line in ACTIONS; a test fails until the line is there. The line
says who may: a permission, or ANYBODY, STAFF, SUPERUSER or CLOSED. Which roles have the permission is in `fleet.staff.roles`. If
the route names an object of a new kind, `put_objects` has to make one.
"""

import re

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.auth.models import Group, User
from django.contrib.sessions.models import Session
from django.test import Client, RequestFactory
from django.urls.resolvers import RegexPattern

from audit import actors
from audit.models import AuditRow
from engines.models import Kind, OperationState
from fleet.staff import roles
from policy import admin_keys, environments, overrides
from tests.conftest import make_product
from tests.engines.registry import put_engine, put_operation, put_unregistered
from tests.staff import prove

ANYBODY = "anybody"
STAFF = "any staff"
SUPERUSER = "superusers"
CLOSED = "nobody"

ADMIN_KEYS, OPERATE_ADMIN_KEYS = "policy.view_adminkey", "policy.operate_adminkey"
ENGINES, OPERATE, OPERATIONS = "engines.view_engine", "engines.operate_engine", "engines.view_operation"
UNREGISTERED = "engines.view_unregisteredengine"
ADOPT, FORGET = "engines.adopt_unregisteredengine", "engines.forget_unregisteredengine"
JOBS = "jobs.view_job"
ROTATE, DESTROY, REVEAL = "engines.rotate_engine_key", "engines.destroy_engine", "engines.reveal_engine_key"
PRODUCTS, OPERATE_PRODUCTS = "policy.view_product", "policy.operate_product"
SUSPEND, DELETE = "policy.suspend_product", "policy.delete_product"
ROWS, USERS, CHANGE_USERS, GROUPS = "audit.view_auditrow", "auth.view_user", "auth.change_user", "auth.view_group"


def looked_at(model, permission):
    """The pages that Django makes for a model which the admin only shows, with `permission`."""
    return {
        f"{model}/": permission,
        f"{model}/add/": CLOSED,
        f"{model}/<path:object_id>/": STAFF,  # leads to the page itself
        f"{model}/<path:object_id>/change/": permission,
        f"{model}/<path:object_id>/delete/": CLOSED,
        f"{model}/<path:object_id>/history/": CLOSED,
    }


PAGES = {
    "": STAFF,
    "login/": ANYBODY,
    "provider/": ANYBODY,
    "provider/callback/": ANYBODY,
    "login/code/": ANYBODY,  # leads to the log-in, unless a log-in is under way
    "second-factor/": STAFF,
    "second-factor/set-up/": STAFF,
    "second-factor/recovery-codes/": STAFF,
    "second-factor/remove/": STAFF,
    "logout/": ANYBODY,
    "password_change/": STAFF,
    "password_change/done/": STAFF,
    "jsi18n/": STAFF,
    "search/": STAFF,
    "search/?s=e&extended": STAFF,
    "autocomplete/": (CLOSED, STAFF),  # a POST is answered with 405
    "autocomplete/?app_label=auth&model_name=user&field_name=groups": (GROUPS, STAFF),
    "autocomplete/?app_label=engines&model_name=operation&field_name=engine": (ENGINES, STAFF),
    "autocomplete/?app_label=engines&model_name=engine&field_name=product": (PRODUCTS, STAFF),
    "no-such-page/": CLOSED,
    # users and groups
    "auth/": USERS,
    **looked_at("auth/user", USERS),
    "auth/user/add/": SUPERUSER,
    "auth/user/<path:object_id>/change/": (USERS, CHANGE_USERS),
    "auth/user/<id>/password/": SUPERUSER,
    "auth/user/<int:user_id>/second-factor/": SUPERUSER,
    **looked_at("auth/group", GROUPS),
    "auth/group/add/": SUPERUSER,
    "auth/group/<path:object_id>/change/": (GROUPS, SUPERUSER),
    "auth/group/<path:object_id>/delete/": SUPERUSER,
    # the audit log
    "audit/": ROWS,
    **looked_at("audit/auditrow", ROWS),
    # engines and operations
    "engines/": ENGINES,
    **looked_at("engines/engine", ENGINES),
    "engines/engine/": (ENGINES, CLOSED),  # a POST needs an action: see ACTIONS
    "engines/engine/<uuid:engine_id>/start/": OPERATE,
    "engines/engine/<uuid:engine_id>/stop/": OPERATE,
    "engines/engine/<uuid:engine_id>/sleep/": OPERATE,
    "engines/engine/<uuid:engine_id>/wake/": OPERATE,
    "engines/engine/<uuid:engine_id>/restart/": OPERATE,
    "engines/engine/<uuid:engine_id>/rotate_key/": ROTATE,
    "engines/engine/<uuid:engine_id>/reveal_key/": REVEAL,
    "engines/engine/<uuid:engine_id>/destroy/": DESTROY,
    **looked_at("engines/operation", OPERATIONS),
    **looked_at("engines/unregisteredengine", UNREGISTERED),
    "engines/unregisteredengine/": (UNREGISTERED, CLOSED),  # as above
    "engines/unregisteredengine/<uuid:engine_id>/adopt/": ADOPT,
    "engines/unregisteredengine/<uuid:engine_id>/forget/": FORGET,
    # periodic jobs
    "jobs/": JOBS,
    **looked_at("jobs/job", JOBS),
    # products and admin keys
    "policy/": PRODUCTS,
    **looked_at("policy/product", PRODUCTS),
    "policy/product/register/": OPERATE_PRODUCTS,
    "policy/product/<uuid:product_id>/policy/": OPERATE_PRODUCTS,
    "policy/product/<uuid:product_id>/grant_override/": OPERATE_PRODUCTS,
    "policy/product/<uuid:product_id>/end_override/<uuid:override_id>/": OPERATE_PRODUCTS,
    "policy/product/<uuid:product_id>/issue_key/": OPERATE_PRODUCTS,
    "policy/product/<uuid:product_id>/rotate_keys/": OPERATE_PRODUCTS,
    "policy/product/<uuid:product_id>/revoke_key/<uuid:key_id>/": OPERATE_PRODUCTS,
    "policy/product/<uuid:product_id>/replace_env/": OPERATE_PRODUCTS,
    "policy/product/<uuid:product_id>/suspend/": SUSPEND,
    "policy/product/<uuid:product_id>/resume/": SUSPEND,
    "policy/product/<uuid:product_id>/remove/": DELETE,
    **looked_at("policy/adminkey", ADMIN_KEYS),
    "policy/adminkey/issue/": OPERATE_ADMIN_KEYS,
    "policy/adminkey/<uuid:key_id>/revoke/": OPERATE_ADMIN_KEYS,
}
"""Route of a page, or a route with a query → who may use the page; or who may GET, and who may POST."""

ACTIONS = {
    "engines/engine/ start": OPERATE,
    "engines/engine/ stop": OPERATE,
    "engines/engine/ sleep": OPERATE,
    "engines/engine/ wake": OPERATE,
    "engines/engine/ restart": OPERATE,
    "engines/engine/ rotate_key": ROTATE,
    "engines/engine/ destroy": DESTROY,
    "engines/unregisteredengine/ adopt": ADOPT,
    "engines/unregisteredengine/ forget": FORGET,
}
"""Route of a list, and an action on its selected rows → who may."""

BODY = {
    "reason": "a test", "confirmed": "yes", "post": "yes",
    "slug": "harbor", "display_name": "Harbor", "max_engines": "7",
    "rule": "pids", "value": "70", "hours": "1",
    "scopes": ["read"], "overlap_hours": "0", "env": "A=1", "name": "night shift",
    "username": "nina", "email": "nina@example.com", "is_active": "on", "is_staff": "on", "is_superuser": "on",
}  # fmt: skip
"""What a POST sends: enough for any form that sets no password. So a page that forgot its check would change something."""

NO_PAGE = {"engines.view_host", "policy.view_platformkey"}
OUTSIDE = ("a user who is no staff", "nobody who is logged in")
PEOPLE = (*roles.NAMES, "a superuser", "staff without a role", *OUTSIDE)


# -- what there is -----------------------------------------------------------------------------------------------------


def routes(patterns, prefix=""):
    """The route of every page of the admin."""
    for found in patterns:
        route = f"{prefix}{found.pattern}"
        if hasattr(found, "url_patterns"):
            yield from routes(found.url_patterns, route)
        elif found.name == "app_list":  # a single expression for all apps
            yield from {f"{model._meta.app_label}/" for model in admin.site._registry}
        else:
            yield "no-such-page/" if isinstance(found.pattern, RegexPattern) else route


def actions(superuser):
    """Every action on selected rows, with the route of its list. A superuser is offered all of them."""
    request = RequestFactory().get("/")
    request.user = superuser
    for model, page in admin.site._registry.items():
        for name in page.get_actions(request):
            yield f"{model._meta.app_label}/{model._meta.model_name}/ {name}"


def both(needs):
    """Who may GET, and who may POST."""
    return needs if isinstance(needs, tuple) else (needs, needs)


def calls(ids):
    """Each line of the tables as calls: the method, the route, what the call sends, and who may. The log-out comes last."""
    for line, need in ACTIONS.items():
        route, action = line.split()
        yield "POST", route, {**BODY, "action": action, "_selected_action": str(ids[route.strip("/")])}, need
    for route, needs in sorted(PAGES.items(), key=lambda line: line[0] == "logout/"):
        to_get, to_post = both(needs)
        yield "GET", route, {}, to_get
        yield "POST", route, BODY, to_post


# -- who asks, and for what --------------------------------------------------------------------------------------------


def log_in(person):
    """The client of the person."""
    client = Client()
    if person == "nobody who is logged in":
        return client
    if person == "a superuser":
        user = User.objects.create_superuser("rita")
    else:
        user = User.objects.create_user("rita", is_staff=person not in OUTSIDE)
        user.groups.set(Group.objects.filter(name=person))
    client.force_login(user)
    return prove(client)


def may(person, need):
    if need in (ANYBODY, CLOSED) or person in OUTSIDE:
        return need == ANYBODY
    if need == STAFF or person == "a superuser":
        return True
    return any(line.permission == need and person in line.roles for line in roles.TABLE)


def put_objects():
    """An id for each placeholder of a route: by `app/model`, or by `app/model name` where `name` is not the model's own id."""
    product = make_product()
    engine, by = put_engine(product), actors.ADMIN
    environments.replace(product.pk, {"A": "0"}, by=by)
    override = overrides.grant(product.pk, "pids", 70, reason="a test", expires_in_s=60, by=by)
    key, _ = admin_keys.issue("monitor", by=by)
    return {
        "auth/user": User.objects.create_user("otto").pk,
        "auth/group": Group.objects.create(name="day shift").pk,
        "audit/auditrow": AuditRow.objects.latest("pk").pk,
        "engines/engine": engine.pk,
        "engines/operation": put_operation(engine, Kind.STOP, OperationState.FAILED, finished_at=engine.created_at).pk,
        "engines/unregisteredengine": put_unregistered("zoe", product_slug="").pk,  # stays: its product is not known
        "jobs/job": "reconcile",
        "policy/adminkey": key.pk,
        "policy/product": product.pk,
        "policy/product key_id": product.keys.get().pk,
        "policy/product override_id": override.pk,
    }


def address(route, ids):
    model = re.match(r"(\w+(/\w+)?)?", route)[0]
    return "/admin/" + re.sub(r"<(?:\w+:)?(\w+)>", lambda name: str(ids.get(f"{model} {name[1]}", ids[model])), route)


def everything():
    """All rows of all tables but the sessions', which end with use."""
    models = [model for model in apps.get_models(include_auto_created=True) if model is not Session]
    return {model._meta.label: list(model._base_manager.order_by("pk").values()) for model in models}


def verdict(response):
    if response.get("Location", "").startswith("/admin/login/?next="):
        return "to the log-in page"
    if "admin/staff/confirm_password.html" in [template.name for template in response.templates]:
        return "asked for the password"
    return "denied" if response.status_code in (403, 404) else "allowed"


def faults(person, client, ids, *, allowed):
    """What is not as the tables say: of the calls that the person may make, or of all others."""
    expected = "allowed" if allowed else "to the log-in page" if person in OUTSIDE else "denied"
    for method, route, body, need in calls(ids):
        if may(person, need) == allowed:
            send = client.get if method == "GET" else client.post
            told = verdict(send(address(route, ids), body))
            if told != expected:
                yield f"{method} {route} {body.get('action', '')}, for {need}: {told}"


# -- tests -------------------------------------------------------------------------------------------------------------


def test_table_has_every_page():
    found = list(routes(admin.site.get_urls()))
    assert sorted({route.partition("?")[0] for route in PAGES}) == sorted(found)


def test_table_has_every_action(db):
    assert sorted(ACTIONS) == sorted(actions(User.objects.create_superuser("root")))


def test_table_needs_the_permissions_that_roles_give():
    needed = {need for needs in (*PAGES.values(), *ACTIONS.values()) for need in both(needs)} - {
        ANYBODY,
        STAFF,
        SUPERUSER,
        CLOSED,
    }
    assert needed == {line.permission for line in roles.TABLE} - NO_PAGE


@pytest.fixture
def provider(settings):
    """Single sign-on is on, with a provider that does not answer: its pages say so."""
    settings.ENV = settings.ENV.model_copy(update={"oidc_issuer": "http://127.0.0.1:9"})


@pytest.mark.parametrize("person", PEOPLE)
@pytest.mark.usefixtures("provider")
def test_pages_are_for_those_whom_the_table_names(db, person):
    roles.bring()
    ids, client = put_objects(), log_in(person)
    before = everything()
    assert list(faults(person, client, ids, allowed=False)) == []
    assert everything() == before
    assert list(faults(person, client, ids, allowed=True)) == []
