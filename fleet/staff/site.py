"""Our site of Django's admin: how staff log in and out, and how pages ask for the password once more."""

from typing import Any, cast

from django.contrib.auth import REDIRECT_FIELD_NAME
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.urls import reverse
from django.utils.decorators import method_decorator
from django.views.decorators.cache import never_cache
from unfold.sites import UnfoldAdminSite


class StaffSite(UnfoldAdminSite):  # type: ignore[misc]  # Unfold ships no types
    @method_decorator(never_cache)
    def login(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """The log-in page; the overview for somebody who is logged in."""
        from fleet.staff.log_in import LogIn, LogInForm  # here, because these load the table of users

        if request.method == "GET" and self.has_permission(request):
            return HttpResponseRedirect(reverse("admin:index"))
        context = {**self.each_context(request), "title": "Log in", "app_path": request.get_full_path(), **(extra_context or {})}
        if REDIRECT_FIELD_NAME not in request.GET and REDIRECT_FIELD_NAME not in request.POST:
            context[REDIRECT_FIELD_NAME] = reverse("admin:index")
        request.current_app = self.name
        page = LogIn.as_view(authentication_form=LogInForm, template_name="admin/login.html", extra_context=context)
        return cast(HttpResponse, page(request))

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
