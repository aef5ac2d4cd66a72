"""Users and groups in the admin. Users are deactivated, never deleted or renamed, because the record names them."""

from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.utils import unquote
from django.contrib.auth.admin import GroupAdmin as DjangoGroupAdmin, UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group, Permission, User
from django.core.exceptions import PermissionDenied
from django.db import connection
from django.db.models import Exists, OuterRef, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html
from unfold.forms import AdminPasswordChangeForm

from audit import actors
from common.admin import AsksAgain
from common.settings import settings
from fleet.staff import accounts, identities, record, roles, second_factor, sessions
from fleet.staff.forms import NewUser, UserForm
from fleet.staff.models import SecondFactor
from fleet.staff.second_factor import NotSetUp

LAST = "This is the last active superuser, who needs a password. Make another user a superuser first."
REMOVAL = "The next log-in asks for the password alone. Be sure that it was this user who asked you for the removal."

admin.site.index_title = "Overview"
admin.site.unregister(User)
admin.site.unregister(Group)


class RecordedAdmin(AsksAgain):
    """Base of both pages: each change is recorded in its own transaction, and asks for the password once more."""

    def lookup_allowed(self, lookup: str, value: Any, request: HttpRequest | None = None) -> bool:
        """Allow only the parameters of the list's filters: an expression typed into the address could be wrong, or slow."""
        return lookup in {f"{name}__exact" for name in self.list_filter} | {f"{name}__id__exact" for name in self.list_filter}

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Any:
        """As Django's. For a change the object is locked, and as it is now: no stale value is written over another's change."""
        found = super().get_object(request, object_id, from_field)
        if found is None or request.method != "POST" or not connection.in_atomic_block:
            return found
        self.model.objects.select_for_update().get(pk=found.pk)
        accounts.check_actor(request.user)
        return super().get_object(request, object_id, from_field)

    def changeform_view(self, request: HttpRequest, object_id: str | None = None, *args: Any, **kwargs: Any) -> HttpResponse:
        """As Django's. A new object asks for the password before its form, because no page repeats a new password."""
        is_asking = request.method == "POST" or object_id is None
        if is_asking and self._may_save(request, object_id) and (page := self.ask_again(request)):
            return page
        response: HttpResponse = super().changeform_view(request, object_id, *args, **kwargs)
        return response

    def _may_save(self, request: HttpRequest, object_id: str | None) -> bool:
        if object_id is None:
            return bool(self.has_add_permission(request))
        return bool(self.has_change_permission(request, self.get_object(request, unquote(object_id))))

    def formfield_for_manytomany(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        """Offer the permissions that a page asks for, and not all that Django makes."""
        if db_field.related_model is Permission:
            kwargs["queryset"] = roles.permissions()
        return super().formfield_for_manytomany(db_field, request, **kwargs)

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        form.before = record.snapshot(obj)
        super().save_model(request, obj, form, change)

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        super().save_related(request, form, formsets, change)
        record.change(form.instance, form.before, by=actors.of_user(request.user))

    def history_view(self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Refuse with 404: the history is the audit log."""
        raise Http404

    # The audit log has the rows, in place of Django's own log.

    def log_addition(self, request: HttpRequest, obj: Any, message: Any) -> None: ...

    def log_change(self, request: HttpRequest, obj: Any, message: Any) -> None: ...

    def log_deletions(self, request: HttpRequest, queryset: Any) -> None: ...


@admin.register(User)
class UserAdmin(DjangoUserAdmin, RecordedAdmin):  # type: ignore[misc, type-arg]
    form = UserForm
    add_form = NewUser
    change_password_form = AdminPasswordChangeForm
    list_display = (
        "username", "email", "first_name", "last_name", "is_active", "is_staff", "is_superuser", "has_second_factor"
    )  # fmt: skip

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(self.remove_second_factor)
        return [path("<int:user_id>/second-factor/", view, name="auth_user_second_factor"), *super().get_urls()]

    def get_queryset(self, request: HttpRequest) -> "QuerySet[User]":
        having = SecondFactor.objects.confirmed().filter(user=OuterRef("pk"))
        users: QuerySet[User] = super().get_queryset(request).annotate(second_factor_set_up=Exists(having))
        return users

    def has_add_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.is_superuser)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        allowed = request.user.has_perm(accounts.CHANGE)
        return allowed and (obj is None or accounts.may_change(request.user, obj))

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def lookup_allowed(self, lookup: str, value: Any, request: HttpRequest | None = None) -> bool:
        """As for all our lists, in place of Django's own exceptions for users."""
        return RecordedAdmin.lookup_allowed(self, lookup, value, request)

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        super().save_related(request, form, formsets, change)
        if not form.instance.is_active:
            sessions.end_all(form.instance.pk)  # or they would go on once the user is active again

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        own = ("username", "last_login", "date_joined", "second_factor_state", "second_factor_removal") if obj else ()
        linked = () if self._may_link(request) else ("subject",)  # takes the field from the form
        return (*own, *linked) if request.user.is_superuser else (*own, *linked, *accounts.FOR_SUPERUSERS)

    def _may_link(self, request: HttpRequest) -> bool:
        """Whether the page has the user's subject at the provider of single sign-on."""
        return bool(request.user.is_superuser and settings.ENV.oidc_issuer)

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        super().save_model(request, obj, form, change)
        if "subject" in form.changed_data:
            identities.link(obj, form.cleaned_data["subject"], by=actors.of_user(request.user))

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """Django's and the second factor, without the password for whoever may not set it."""
        found = super().get_fieldsets(request, obj)
        if obj is not None:
            lost = request.user.is_superuser and obj != request.user and obj.second_factor_set_up
            shown = ("second_factor_state", "second_factor_removal") if lost else ("second_factor_state",)
            found = [*found, ("Second factor", {"fields": shown})]
        if obj and self._may_link(request):
            found = [*found, ("Single sign-on", {"fields": ("subject",)})]
        if obj is None or request.user.is_superuser:
            return found
        return [
            (title, {**options, "fields": tuple(name for name in options["fields"] if name != "password")})
            for title, options in found
        ]

    def user_change_password(self, request: HttpRequest, id: str, form_url: str = "") -> HttpResponse:  # noqa: A002 (Django's)
        """The page on which superusers set the password of a user."""
        user = self.get_object(request, unquote(id))
        if not request.user.is_superuser:
            raise PermissionDenied
        if user is None:
            raise Http404
        if page := self.ask_again(request):
            return page
        with accounts.recorded(user, by=actors.of_user(request.user)):
            if request.POST.get("usable_password") == "false" and accounts.is_last_superuser(user):
                messages.error(request, LAST)
                return HttpResponseRedirect(request.get_full_path())
            response: HttpResponse = super().user_change_password(request, id, form_url)
        return response

    # -- second factors ------------------------------------------------------------------------------------------------

    @admin.display(description="Second factor", boolean=True)
    def has_second_factor(self, user: Any) -> bool:
        """The column of the list."""
        return bool(user.second_factor_set_up)

    @admin.display(description="State")
    def second_factor_state(self, user: Any) -> str:
        """A field of a user's page."""
        return "Set up" if user.second_factor_set_up else "Not set up"

    @admin.display(description="Lost")
    def second_factor_removal(self, user: Any) -> str:
        """The link on a user's page for superusers."""
        url = reverse("admin:auth_user_second_factor", args=(user.pk,))
        return format_html('<a class="rh-link" href="{}">Remove the second factor</a>', url)

    def remove_second_factor(self, request: HttpRequest, user_id: int) -> HttpResponse:
        """Show a confirmation page; on POST, remove the second factor of a user who has lost it. For superusers."""
        if not request.user.is_superuser:
            raise PermissionDenied
        user = self.get_object(request, str(user_id))
        if user is None:
            raise Http404
        if user == request.user:
            return HttpResponseRedirect(reverse("admin:second_factor_remove"))
        if page := self.ask_again(request):
            return page
        back = reverse("admin:auth_user_change", args=(user.pk,))
        if request.method != "POST":
            title = f"Remove the second factor of {user.get_username()}"
            context = {"title": title, "warning": REMOVAL, "label": "Remove", "back": back}
            return TemplateResponse(request, "admin/confirm.html", {**self.admin_site.each_context(request), **context})
        try:
            second_factor.remove(user, by=actors.of_user(request.user))
            messages.success(request, f"{user.get_username()} has no second factor any more.")
        except NotSetUp as refused:
            messages.error(request, str(refused))
        return HttpResponseRedirect(back)


@admin.register(Group)
class GroupAdmin(DjangoGroupAdmin, RecordedAdmin):  # type: ignore[misc]
    """Groups, changed by superusers only. The groups of roles are changed by nobody: the code says what they permit."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.is_superuser)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return bool(request.user.is_superuser) and (obj is None or obj.name not in roles.NAMES)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.has_change_permission(request, obj)

    def delete_view(self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        may = self.has_delete_permission(request, self.get_object(request, unquote(object_id)))
        if may and (page := self.ask_again(request)):
            return page
        response: HttpResponse = super().delete_view(request, object_id, extra_context)
        return response

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        """No action on selected groups: Django's own would delete the groups of roles, too."""
        return {}

    def delete_model(self, request: HttpRequest, obj: Group) -> None:
        record.removal(obj, by=actors.of_user(request.user))
        super().delete_model(request, obj)
