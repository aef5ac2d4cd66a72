"""Base classes of our models in the admin: read-only lists and pages. Views change a model only by calling a verb."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from django.contrib import messages
from django.contrib.admin import ShowFacets, SimpleListFilter
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.utils import unquote
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import PermissionDenied
from django.db.models import Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseNotAllowed
from django.template.response import TemplateResponse
from unfold.admin import ModelAdmin
from unfold.decorators import display

from common import keyset, statements
from common.keyset import Page
from common.statements import TookTooLong

OLDER, NEWER = "older", "newer"  # query parameters of a list: the position of a page


class AsksAgain(ModelAdmin):  # type: ignore[misc]  # Unfold ships no types
    """A model with pages that ask for the password once more."""

    def ask_again(self, request: HttpRequest) -> HttpResponse | None:
        """A page that asks for the password once more; None for whoever proved within 10 minutes who they are.

        For a view that shows a secret, or changes who may do what; after its check of permissions.
        """
        page: HttpResponse | None = self.admin_site.ask_again(request)
        return page


class ReadOnlyAdmin(AsksAgain):
    """A model shown read-only. The page of an object is `page_template`, with the context of `get_page`."""

    page_template = ""
    show_full_result_count = False
    show_facets = ShowFacets.NEVER
    list_per_page = 50
    sortable_by = ()

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def lookup_allowed(self, lookup: str, value: Any, request: HttpRequest | None = None) -> bool:
        """Allow only the parameters of the list's filters: a lookup typed into the address could scan the whole table."""
        return any(lookup == item.parameter_name for item in self.list_filter)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        found = self.find(request, object_id)
        if request.method not in ("GET", "HEAD"):
            return HttpResponseNotAllowed(["GET", "HEAD"])
        return self.render(request, self.page_template, found, **self.get_page(request, found), **(extra_context or {}))

    def history_view(self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Refuse with 404: the history of our models is the audit log, and Django's own log is empty."""
        raise Http404

    def find(self, request: HttpRequest, object_id: str) -> Any:
        """The object with the id `object_id`. Raises PermissionDenied without the view permission, Http404 for an unknown id."""
        self.check_permission(request, self.has_view_permission(request))
        found = self.get_object(request, unquote(object_id))
        if found is None:
            raise Http404(f"No {self.opts.verbose_name} has the id {object_id}.")
        return found

    def check_permission(self, request: HttpRequest, allowed: bool) -> None:
        """Raise PermissionDenied unless `allowed`."""
        if not allowed:
            raise PermissionDenied

    def get_page(self, request: HttpRequest, found: Any) -> dict[str, Any]:
        """Context of the object's page."""
        return {}

    def render(
        self, request: HttpRequest, template: str, original: Any = None, *, status: int = 200, **context: Any
    ) -> HttpResponse:
        """A page of the admin, about the object `original` or about no object."""
        request.current_app = self.admin_site.name  # as Django's own admin views do
        about = {"opts": self.opts, "original": original, "title": str(original or "")}
        return TemplateResponse(request, template, {**self.admin_site.each_context(request), **about, **context}, status=status)

    def render_once(self, request: HttpRequest, original: Any, **secret: Any) -> HttpResponse:
        """A page with a key in plaintext, shown only once: no browser or proxy may store the response."""
        response = self.render(request, "admin/shown_once.html", original, **secret)
        response["Cache-Control"] = "no-store"
        return response


class KeysetChangeList(ChangeList):
    """Django's changelist, paged by the `sort_key` of the admin class."""

    older_url = newer_url = ""

    def get_queryset(self, request: HttpRequest, exclude_parameters: list[str | None] | None = None) -> "QuerySet[Any]":
        for name in (OLDER, NEWER):  # a position is not a filter, and links of filters start at the newest page
            self.filter_params.pop(name, None)
        return super().get_queryset(request, exclude_parameters)

    def get_results(self, request: HttpRequest) -> None:
        page = self._read(request)
        self.result_list = page.rows
        self.result_count = self.full_result_count = len(page.rows)
        self.show_full_result_count = self.can_show_all = self.multi_page = False
        self.show_admin_actions = True
        self.paginator = self.model_admin.get_paginator(request, self.queryset, self.list_per_page)
        self.older_url = self.get_query_string({OLDER: page.older}) if page.older else ""
        self.newer_url = self.get_query_string({NEWER: page.newer}) if page.newer else ""

    def _read(self, request: HttpRequest) -> Page:
        positions = {name: request.GET.get(name, "") for name in (OLDER, NEWER)}
        try:
            with statements.limited():
                return self._read_whole(**positions)
        except TookTooLong:
            messages.error(request, "The search takes too long. Choose a period, or search for a single engine or user.")
            return Page([])
        except ValueError as error:
            raise IncorrectLookupParameters(error) from error

    def _read_whole(self, *, older: str, newer: str) -> Page:
        """A page of rows; the newest page is always full, even if only few rows are newer than the position `newer`."""
        key, size = self.model_admin.sort_key, self.list_per_page  # type: ignore[attr-defined]
        page = keyset.read(self.queryset, key, size, older=older, newer=newer)
        return keyset.read(self.queryset, key, size) if newer and not older and not page.newer else page


class KeysetAdmin(ReadOnlyAdmin):
    """A model with too many rows to count: the list is paged by `sort_key`, the field names of a time and of the id."""

    sort_key: keyset.Key = ("created_at", "id")
    change_list_template = "admin/keyset_change_list.html"

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[KeysetChangeList]:
        return KeysetChangeList

    def get_ordering(self, request: HttpRequest) -> tuple[str, ...]:
        return tuple(f"-{name}" for name in self.sort_key)


Column = TypeVar("Column", bound=Callable[..., Any])


def labelled(description: str, variants: Mapping[str, str]) -> Callable[[Column], Column]:
    """Decorator: show the values of a list's column as labels; `variants` maps a value to a variant of Unfold's label."""

    def mark(column: Column) -> Column:
        display(description=description, label=dict(variants))(column)
        return column

    return mark


class StaticFilter(SimpleListFilter):
    """A filter with choices fixed in code: value → (label, condition). An unknown value does not filter."""

    choices_of: Mapping[str, tuple[str, Q]] = {}

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(value, words) for value, (words, _) in self.choices_of.items()]

    def value(self) -> str | None:
        given = super().value()
        return given if given in self.choices_of else None

    def queryset(self, request: HttpRequest, queryset: "QuerySet[Any]") -> "QuerySet[Any]":
        value = self.value()
        return queryset if value is None else queryset.filter(self.choices_of[value][1])
