"""Products in the admin: suspension, resumption and deletion of a product together with its engines."""

from typing import Any
from uuid import UUID

from django.contrib import messages
from django.forms import Form
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path, reverse

from audit import actors
from engines import lifecycle
from engines.admin.forms import Resumption, Suspension
from engines.errors import ProductHasEngines
from policy import products
from policy.admin import ProductAdmin, page_of
from policy.models import Product

SUSPEND = "policy.suspend_product"
DELETE = "policy.delete_product"
WARNING = (
    "The keys of the product are refused from the next request on, and its engine environments are removed for good. The audit"
    " log keeps its rows. Nobody can register the slug again."
)


class ProductWithEnginesAdmin(ProductAdmin):
    def get_urls(self) -> list[URLPattern]:
        own = (("suspend", self.suspend), ("resume", self.resume), ("remove", self.remove))
        paths = [
            path(f"<uuid:product_id>/{name}/", self.admin_site.admin_view(view), name=f"policy_product_{name}")
            for name, view in own
        ]
        return [*paths, *super().get_urls()]

    def get_page(self, request: HttpRequest, found: Product) -> dict[str, Any]:
        lives = found.deleted_at is None
        may = {
            "may_suspend": lives and request.user.has_perm(SUSPEND),
            "may_delete": lives and request.user.has_perm(DELETE),
        }
        return {**super().get_page(request, found), **may}

    def suspend(self, request: HttpRequest, product_id: UUID) -> HttpResponse:
        """Show the form; then suspend the product: calls that would make its engines serve are refused from then on."""
        product = self.get_product(request, product_id, SUSPEND)
        form = Suspension(request.POST if request.method == "POST" else None)
        if not form.is_valid():
            return self._render_form(request, product, form, "Suspend")
        done = lifecycle.suspend_product(product.pk, by=actors.of_user(request.user), **form.cleaned_data)
        told = (
            f" {done.stopping} engines are being stopped, {done.busy} busy engines will be stopped later."
            if form.cleaned_data["stop_engines"]
            else ""
        )
        messages.success(request, f"{product.slug} is suspended: {done.product.suspension_reason}.{told}")
        return HttpResponseRedirect(page_of(product))

    def resume(self, request: HttpRequest, product_id: UUID) -> HttpResponse:
        """Show the form; then end the suspension of the product."""
        product = self.get_product(request, product_id, SUSPEND)
        form = Resumption(request.POST if request.method == "POST" else None)
        if not form.is_valid():
            return self._render_form(request, product, form, "Resume")
        products.resume(product.pk, form.cleaned_data["reason"], by=actors.of_user(request.user))
        messages.success(request, f"{product.slug} is not suspended any more. No engine was started.")
        return HttpResponseRedirect(page_of(product))

    def remove(self, request: HttpRequest, product_id: UUID) -> HttpResponse:
        """Show the confirmation page; then delete a product without engines."""
        product = self.get_product(request, product_id, DELETE)
        if request.method != "POST":
            title, back = f"Delete {product.slug}", page_of(product)
            return self.render(request, "admin/confirm.html", product, title=title, warning=WARNING, label="Delete", back=back)
        try:
            lifecycle.delete_product(product.pk, by=actors.of_user(request.user))
        except ProductHasEngines as refusal:
            messages.error(request, str(refusal))
            return HttpResponseRedirect(page_of(product))
        messages.success(request, f"{product.slug} is deleted.")
        return HttpResponseRedirect(reverse("admin:policy_product_changelist"))

    def _render_form(self, request: HttpRequest, product: Product, form: Form, label: str) -> HttpResponse:
        title, back = f"{label} {product.slug}", page_of(product)
        return self.render(request, "admin/form.html", product, title=title, form=form, label=label, back=back)
