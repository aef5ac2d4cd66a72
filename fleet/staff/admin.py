"""Users and groups in the admin. Users are deactivated, never deleted or renamed, because the record names them."""

from typing import Any

from django.contrib import admin
from django.contrib.admin.utils import unquote
from django.contrib.auth.admin import GroupAdmin as DjangoGroupAdmin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group, User
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from unfold.admin import ModelAdmin
from unfold.forms import AdminPasswordChangeForm

from fleet.staff import accounts, record, roles
from fleet.staff.forms import NewUser, UserForm

admin.site.index_title = "Overview"
admin.site.unregister(User)
admin.site.unregister(Group)


class RecordedAdmin(ModelAdmin):  # type: ignore[misc]  # Unfold ships no types
    """Base of both pages: each change is recorded in its own transaction, and asks for the password once more."""

    def ask_again(self, request: HttpRequest) -> HttpResponse | None:
        """The page that asks for the password once more, as in `common.admin`."""
        page: HttpResponse | None = self.admin_site.ask_again(request)
        return page

    def changeform_view(self, request: HttpRequest, object_id: str | None = None, *args: Any, **kwargs: Any) -> HttpResponse:
        if request.method == "POST" and self._may_save(request, object_id) and (page := self.ask_again(request)):
            return page
        response: HttpResponse = super().changeform_view(request, object_id, *args, **kwargs)
        return response

    def _may_save(self, request: HttpRequest, object_id: str | None) -> bool:
        if object_id is None:
            return bool(self.has_add_permission(request))
        return bool(self.has_change_permission(request, self.get_object(request, unquote(object_id))))

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        form.before = record.snapshot(obj)
        super().save_model(request, obj, form, change)

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        super().save_related(request, form, formsets, change)
        record.change(form.instance, form.before, by=record.actor_of(request.user))

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
    list_display = ("username", "email", "first_name", "last_name", "is_active", "is_staff", "is_superuser")

    def has_add_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.is_superuser)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        allowed = request.user.has_perm(accounts.CHANGE)
        return allowed and (obj is None or accounts.may_change(request.user, obj))

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        own = ("username", "last_login", "date_joined") if obj else ()
        return own if request.user.is_superuser else (*own, *accounts.FOR_SUPERUSERS)

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """Django's, without the password for whoever may not set it."""
        found = super().get_fieldsets(request, obj)
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
        with accounts.recorded(user, by=record.actor_of(request.user)):
            response: HttpResponse = super().user_change_password(request, id, form_url)
        return response


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
        record.removal(obj, by=record.actor_of(request.user))
        super().delete_model(request, obj)
