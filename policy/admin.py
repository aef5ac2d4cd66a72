"""Products and admin keys in the admin. A plaintext key is shown in a single response and never stored."""

from typing import Any
from uuid import UUID

from django.contrib import admin, messages
from django.db.models import Q, QuerySet
from django.forms import Form
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.urls import URLPattern, path, reverse

from audit import actors
from common import characters, uuids, wording
from common.admin import ReadOnlyAdmin, labelled
from policy import admin_keys, environments, overrides, products
from policy.errors import (
    AdminKeyExists,
    AdminKeyNotFound,
    InvalidAdminKeyName,
    InvalidProduct,
    OverrideNotFound,
    PlatformKeyNotFound,
    ProductSlugExists,
)
from policy.forms import HOUR_S, EnvForm, NewAdminKey, NewKey, OverrideForm, PolicyForm, Registration, Rotation
from policy.models import AdminKey, PlatformKey, PolicyOverride, Product, ProductQuerySet
from policy.rules import RULES

OPERATE = "policy.operate_product"
OPERATE_ADMIN_KEYS = "policy.operate_adminkey"
ONCE = "Copy the key now: it is shown on this page only, and never again."
WARNING = "Requests with this key are refused from the next request on. A revoked key cannot be restored."


END_OVERRIDE = "From the next request on, the rule has the policy's value again."


@admin.display(description="Display name")
def display_name(product: Product) -> str:
    """The column of the products' names for people."""
    return characters.marked(product.display_name)


class ProductAdmin(ReadOnlyAdmin):
    """Base of the admin of products. `engines.admin` adds actions on a product with its engines, and registers the subclass."""

    page_template = "admin/policy/product/page.html"
    list_display = ("slug", display_name, "state", "limits", "created")
    search_fields = ("slug",)  # only makes Django show the search field; get_search_results decides the search
    search_help_text = "Slug or id: exact"

    def get_urls(self) -> list[URLPattern]:
        own = (
            ("register/", self.register, "register"),
            ("<uuid:product_id>/policy/", self.update_policy, "policy"),
            ("<uuid:product_id>/grant_override/", self.grant_override, "grant_override"),
            ("<uuid:product_id>/end_override/<uuid:override_id>/", self.end_override, "end_override"),
            ("<uuid:product_id>/issue_key/", self.issue_key, "issue_key"),
            ("<uuid:product_id>/rotate_keys/", self.rotate_keys, "rotate_keys"),
            ("<uuid:product_id>/replace_env/", self.replace_env, "replace_env"),
            ("<uuid:product_id>/revoke_key/<uuid:key_id>/", self.revoke_key, "revoke_key"),
        )
        paths = [path(route, self.admin_site.admin_view(view), name=f"policy_product_{name}") for route, view, name in own]
        return [*paths, *super().get_urls()]

    def get_search_results(
        self, request: HttpRequest, queryset: ProductQuerySet, search_term: str
    ) -> tuple["QuerySet[Product]", bool]:
        term = search_term.strip()
        uuid = uuids.parse(term)
        living = queryset.living()  # pages of deleted products are reached only by links, as from the audit log
        return (living.filter(Q(slug=term) if uuid is None else Q(pk=uuid)) if term else living), False

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        may = request.user.has_perm(OPERATE)
        response: HttpResponse = super().changelist_view(request, {**(extra_context or {}), "may_operate": may})
        return response

    def get_page(self, request: HttpRequest, found: Product) -> dict[str, Any]:
        return {
            "may_operate": request.user.has_perm(OPERATE) and found.deleted_at is None,
            "form": PolicyForm(initial=found.policy),
            "rules": [(name, wording.value(found.policy.get(name, "-")), rule.meaning) for name, rule in RULES.items()],
            "overrides": [_override(override) for override in found.overrides.living()],
            "created": wording.moment(found.created_at),
            "suspended": wording.moment(found.suspended_at),
            "deleted": wording.moment(found.deleted_at),
            "keys": [_row(key) for key in found.keys.all()],
            "env": environments.find(found.pk),
        }

    # -- actions -------------------------------------------------------------------------------------------------------

    def register(self, request: HttpRequest) -> HttpResponse:
        """Show the form; if valid, register the product and show its first platform key once."""
        self.check_permission(request, request.user.has_perm(OPERATE))
        if page := self.ask_again(request):
            return page
        form = Registration(request.POST if request.method == "POST" else None)
        if form.is_valid():
            try:
                product, key = products.register(
                    form.cleaned_data["slug"], form.cleaned_data["display_name"], form.policy(), by=actors.of_user(request.user)
                )
            except InvalidProduct as error:
                field, _, rule = str(error).partition(": ")
                form.add_error(field, rule)
            except ProductSlugExists as error:
                form.add_error("slug", str(error))
            else:
                return self._show_key(request, product, f"{product.slug} is registered. Its platform key:", key)
        return self.render(request, "admin/policy/product/register.html", title="Register product", form=form)

    def update_policy(self, request: HttpRequest, product_id: UUID) -> HttpResponse:
        """Replace the policy by the form's values; an unchanged policy gets no audit row."""
        product = self._operated(request, product_id)
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        form = PolicyForm(request.POST)
        if not form.is_valid():
            context = {**self.get_page(request, product), "form": form}
            return self.render(request, self.page_template, product, status=400, **context)
        if form.policy() == product.policy:
            messages.info(request, "The policy is unchanged.")
        else:
            products.update_policy(product.pk, form.policy(), by=actors.of_user(request.user))
            messages.success(request, "The policy is replaced, and in force from the next request on.")
        return HttpResponseRedirect(page_of(product))

    def grant_override(self, request: HttpRequest, product_id: UUID) -> HttpResponse:
        """Show the form; if valid, give a rule a temporary value."""
        product = self._operated(request, product_id)
        form = OverrideForm(request.POST if request.method == "POST" else None)
        if not form.is_valid():
            return self._show_form(request, product, form, f"Override a rule of {product.slug}", "Grant")
        cleaned = form.cleaned_data
        seconds = cleaned["hours"] * HOUR_S
        made = overrides.grant(
            product.pk,
            cleaned["rule"],
            cleaned["value"],
            reason=cleaned["reason"],
            expires_in_s=seconds,
            by=actors.of_user(request.user),
        )
        messages.success(request, f"{made.rule} is {wording.value(made.value)} until {wording.moment(made.expires_at)} UTC.")
        return HttpResponseRedirect(page_of(product))

    def end_override(self, request: HttpRequest, product_id: UUID, override_id: UUID) -> HttpResponse:
        """Show a confirmation page; on POST, end the override."""
        product = self._operated(request, product_id)
        override = get_object_or_404(PolicyOverride, pk=override_id, product=product)
        if request.method != "POST":
            title = f"End the override of {override.rule}"
            return self.render(
                request, "admin/confirm.html", product, title=title, warning=END_OVERRIDE, label="End", back=page_of(product)
            )
        try:
            overrides.end(product.pk, override.pk, by=actors.of_user(request.user))
            messages.success(request, f"The override of {override.rule} has ended.")
        except OverrideNotFound as refusal:
            messages.error(request, str(refusal))
        return HttpResponseRedirect(page_of(product))

    def issue_key(self, request: HttpRequest, product_id: UUID) -> HttpResponse:
        """Show the form; if valid, issue one more platform key and show the key once."""
        product = self._operated(request, product_id)
        if page := self.ask_again(request):
            return page
        form = NewKey(request.POST if request.method == "POST" else None)
        if not form.is_valid():
            return self._show_form(request, product, form, f"Issue a platform key of {product.slug}", "Issue")
        scopes, expires_in_s = form.cleaned_data["scopes"], form.expires_in_s()
        _, plaintext = products.issue_key(product, by=actors.of_user(request.user), scopes=scopes, expires_in_s=expires_in_s)
        return self._show_key(request, product, f"A new platform key of {product.slug}:", plaintext)

    def rotate_keys(self, request: HttpRequest, product_id: UUID) -> HttpResponse:
        """Show the form; if valid, issue a platform key in place of all living keys, and show the new key once."""
        product = self._operated(request, product_id)
        if page := self.ask_again(request):
            return page
        form = Rotation(request.POST if request.method == "POST" else None)
        if not form.is_valid():
            return self._show_form(request, product, form, f"Rotate the platform keys of {product.slug}", "Rotate")
        overlap_s, expires_in_s = form.overlap_s(), form.expires_in_s()
        _, plaintext, replaced = products.rotate_key(
            product.pk, by=actors.of_user(request.user), overlap_s=overlap_s, expires_in_s=expires_in_s
        )
        words = f"A new platform key of {product.slug}, in place of {', '.join(map(str, replaced)) or 'none'}:"
        return self._show_key(request, product, words, plaintext)

    def replace_env(self, request: HttpRequest, product_id: UUID) -> HttpResponse:
        """Show the form; if valid, replace the variables of new instances of the product's engines."""
        product = self._operated(request, product_id)
        form = EnvForm(request.POST if request.method == "POST" else None)
        if not form.is_valid():
            return self._show_form(request, product, form, f"Replace the engine environment of {product.slug}", "Replace")
        newest = environments.replace(product.pk, form.cleaned_data["env"], by=actors.of_user(request.user))
        messages.success(request, f"The engine environment is version {newest.version if newest else 0}.")
        return HttpResponseRedirect(page_of(product))

    def revoke_key(self, request: HttpRequest, product_id: UUID, key_id: UUID) -> HttpResponse:
        """Show a confirmation page; on POST, revoke the platform key."""
        product = self._operated(request, product_id)
        key = get_object_or_404(PlatformKey, pk=key_id, product=product)
        if request.method != "POST":
            title = f"Revoke key {key}"
            return self.render(
                request, "admin/confirm.html", product, title=title, warning=WARNING, label="Revoke", back=page_of(product)
            )
        try:
            products.revoke_key(key.pk, by=actors.of_user(request.user))
            messages.success(request, f"The key {key} is revoked.")
        except PlatformKeyNotFound as refusal:
            messages.error(request, str(refusal))
        return HttpResponseRedirect(page_of(product))

    def _show_form(self, request: HttpRequest, product: Product, form: Form, title: str, label: str) -> HttpResponse:
        return self.render(request, "admin/form.html", product, title=title, form=form, label=label, back=page_of(product))

    def _show_key(self, request: HttpRequest, product: Product, words: str, key: str) -> HttpResponse:
        return self.render_once(request, product, title=words, key=key, note=ONCE, back=page_of(product))

    def _operated(self, request: HttpRequest, product_id: UUID) -> Product:
        """Return the product to users with the permission OPERATE. Raises PermissionDenied, Http404."""
        return self.get_product(request, product_id, OPERATE)

    def get_product(self, request: HttpRequest, product_id: UUID, permission: str) -> Product:
        """Return the living product to users with `permission`. Raises PermissionDenied, Http404."""
        self.check_permission(request, request.user.has_perm(permission))
        return get_object_or_404(Product.objects.living(), pk=product_id)

    # -- columns -------------------------------------------------------------------------------------------------------

    @labelled("State", {"active": "success", "suspended": "warning"})
    def state(self, product: Product) -> str:
        return "suspended" if product.suspended_at else "active"

    @admin.display(description="Policy")
    def limits(self, product: Product) -> str:
        return ", ".join(f"{name} {wording.value(worth)}" for name, worth in product.policy.items()) or "no limits"

    @admin.display(description="Registered (UTC)")
    def created(self, product: Product) -> str:
        return wording.moment(product.created_at)


@admin.register(AdminKey)
class AdminKeyAdmin(ReadOnlyAdmin):
    page_template = "admin/policy/adminkey/page.html"
    list_display = ("name", "prefix", "created", "used", "expires", "revoked")

    def get_urls(self) -> list[URLPattern]:
        own = (("issue/", self.issue, "issue"), ("<uuid:key_id>/revoke/", self.revoke, "revoke"))
        paths = [path(route, self.admin_site.admin_view(view), name=f"policy_adminkey_{name}") for route, view, name in own]
        return [*paths, *super().get_urls()]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        may = request.user.has_perm(OPERATE_ADMIN_KEYS)
        response: HttpResponse = super().changelist_view(request, {**(extra_context or {}), "may_operate": may})
        return response

    def get_page(self, request: HttpRequest, found: AdminKey) -> dict[str, Any]:
        return {"may_operate": request.user.has_perm(OPERATE_ADMIN_KEYS), "row": _row(found)}

    def issue(self, request: HttpRequest) -> HttpResponse:
        """Show the form; if valid, issue an admin key and show the key once."""
        self.check_permission(request, request.user.has_perm(OPERATE_ADMIN_KEYS))
        if page := self.ask_again(request):
            return page
        form, back = NewAdminKey(request.POST if request.method == "POST" else None), reverse("admin:policy_adminkey_changelist")
        if form.is_valid():
            try:
                key, plaintext = admin_keys.issue(
                    form.cleaned_data["name"], by=actors.of_user(request.user), expires_in_s=form.expires_in_s()
                )
            except (AdminKeyExists, InvalidAdminKeyName) as error:
                form.add_error("name", str(error).removeprefix("name: "))
            else:
                return self.render_once(request, key, title=f"Admin key {key.name}:", key=plaintext, note=ONCE, back=back)
        return self.render(request, "admin/form.html", title="Issue admin key", form=form, label="Issue", back=back)

    def revoke(self, request: HttpRequest, key_id: UUID) -> HttpResponse:
        """Show a confirmation page; on POST, revoke the admin key."""
        self.check_permission(request, request.user.has_perm(OPERATE_ADMIN_KEYS))
        key = get_object_or_404(AdminKey, pk=key_id)
        back = reverse("admin:policy_adminkey_change", args=[key.pk])
        if request.method != "POST":
            title = f"Revoke admin key {key.name}"
            return self.render(request, "admin/confirm.html", key, title=title, warning=WARNING, label="Revoke", back=back)
        try:
            admin_keys.revoke(key.pk, by=actors.of_user(request.user))
            messages.success(request, f"The admin key {key.name} is revoked.")
        except AdminKeyNotFound as refusal:
            messages.error(request, str(refusal))
        return HttpResponseRedirect(back)

    # -- columns -------------------------------------------------------------------------------------------------------

    @admin.display(description="Issued (UTC)")
    def created(self, key: AdminKey) -> str:
        return wording.moment(key.created_at)

    @admin.display(description="Last used")
    def used(self, key: AdminKey) -> str:
        return wording.moment(key.last_used_at)

    @admin.display(description="Expires")
    def expires(self, key: AdminKey) -> str:
        return wording.moment(key.expires_at)

    @admin.display(description="Revoked")
    def revoked(self, key: AdminKey) -> str:
        return wording.moment(key.revoked_at)


def page_of(product: Product) -> str:
    """Return the address of the product's page."""
    return reverse("admin:policy_product_change", args=[product.pk])


def _override(override: PolicyOverride) -> dict[str, Any]:
    """Return a living override as context of the product's page."""
    times = {"created": wording.moment(override.created_at), "expires": wording.moment(override.expires_at)}
    return {"it": override, "value": wording.value(override.value), **times}


def _row(key: PlatformKey | AdminKey) -> dict[str, Any]:
    """Return a key as context of the admin's pages, which never show the hash."""
    return {
        "it": key,
        "created": wording.moment(key.created_at),
        "used": wording.moment(key.last_used_at),
        "expires": wording.moment(key.expires_at),
        "revoked": wording.moment(key.revoked_at),
    }
