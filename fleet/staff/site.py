"""Our site of Django's admin: how staff log in and out, and how pages ask for the password once more."""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any, cast

from django.contrib.auth import REDIRECT_FIELD_NAME
from django.core.exceptions import BadRequest
from django.core.paginator import InvalidPage
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.urls import URLPattern, URLResolver, path, reverse
from django.utils.decorators import method_decorator
from django.views.decorators.cache import never_cache
from unfold.sites import UnfoldAdminSite

from common.settings import settings

View = Callable[..., HttpResponse]


class StaffSite(UnfoldAdminSite):  # type: ignore[misc]  # Unfold ships no types
    def get_urls(self) -> list[URLPattern | URLResolver]:
        """Django's pages, and those of log-ins and second factors."""
        from fleet.staff import provider
        from fleet.staff.second_factor_pages import PAGES

        own = [
            path("login/code/", self.login_code, name="login_code"),
            path("provider/", provider.start, name="provider"),
            path("provider/callback/", provider.callback, name="provider_callback"),
            *(path(route, self.admin_view(partial(view, self)), name=name) for route, view, name in PAGES),
        ]
        # Without Django's way to an object's page outside the admin: none of our objects has any.
        return [*own, *(url for url in super().get_urls() if getattr(url, "name", "") != "view_on_site")]

    def admin_view(self, view: View, cacheable: bool = False) -> View:
        """As Django's. Whoever lacks a factor of the log-in gets the way to it, whatever the page."""

        @wraps(view)
        def led(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
            from fleet.staff import second_factor_pages

            if any("\0" in value for _, values in request.GET.lists() for value in values):
                raise BadRequest("a parameter has the character NUL, which PostgreSQL stores in no text")
            return second_factor_pages.lead(request) or view(request, *args, **kwargs)

        return cast(View, super().admin_view(led, cacheable))

    def search(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Unfold's search of pages and objects. Raises Http404 for a page of results that there is not."""
        try:
            return cast(HttpResponse, super().search(request, extra_context))
        except InvalidPage as error:
            raise Http404 from error

    @method_decorator(never_cache)
    def login(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """The log-in page; the overview for somebody who is logged in."""
        from fleet.staff.log_in import LogIn, LogInForm  # here, because these load the table of users

        if request.method == "GET" and self.has_permission(request):
            return HttpResponseRedirect(reverse("admin:index"))
        context = {**self.each_context(request), "title": "Log in", "app_path": request.get_full_path(), **(extra_context or {})}
        if REDIRECT_FIELD_NAME not in request.GET and REDIRECT_FIELD_NAME not in request.POST:
            context[REDIRECT_FIELD_NAME] = reverse("admin:index")
        context["provider"] = settings.ENV.oidc_name if settings.ENV.oidc_issuer else ""
        request.current_app = self.name
        page = LogIn.as_view(authentication_form=LogInForm, template_name="admin/login.html", extra_context=context)
        return cast(HttpResponse, page(request))

    @method_decorator(never_cache)
    def login_code(self, request: HttpRequest) -> HttpResponse:
        """The page of the log-in that asks for a code of the second factor."""
        from fleet.staff import code_page

        return code_page.ask(request, self.each_context(request))

    @method_decorator(never_cache)
    def logout(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """End the session, and lead to the log-in page."""
        from fleet.staff import log_in

        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        log_in.end(request)
        return HttpResponseRedirect(reverse("admin:login"))

    def password_change(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """The page on which staff change their own password."""
        from fleet.staff.own_password import OwnPasswordChange

        context = {**self.each_context(request), **(extra_context or {})}
        request.current_app = self.name
        return cast(HttpResponse, OwnPasswordChange.as_view(extra_context=context)(request))

    def ask_again(self, request: HttpRequest) -> HttpResponse | None:
        """A page that asks for the password once more; None for whoever proved within 10 minutes who they are."""
        from fleet.staff import confirmation

        return confirmation.ask(request, self.each_context(request))


def account_menu(request: HttpRequest) -> list[dict[str, str]]:
    """The entries of the menu of one's own account, above the log-out."""
    entries = [{"title": "Second factor", "link": reverse("admin:second_factor")}]
    has_password = request.user.is_authenticated and request.user.has_usable_password()
    return [{"title": "Change password", "link": reverse("admin:password_change")}, *entries] if has_password else entries
