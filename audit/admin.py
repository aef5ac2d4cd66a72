"""The audit log in the admin: a read-only list, paged without counting rows."""

from datetime import timedelta
from typing import Any

from django.contrib import admin
from django.db.models import F, Q, QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html

from audit import actors, badges, search
from audit.actions import Action, Retention
from audit.catalogue import CATALOGUE
from audit.models import AuditRow
from common import characters, times, wording
from common.admin import KeysetAdmin, StaticFilter, labelled


class ActionFilter(StaticFilter):
    title = "action"
    parameter_name = "action"
    # All rows of an action have one retention class; naming the class keeps PostgreSQL from reading the other class's partitions.
    choices_of = {action.value: (action.value, Q(action=action, retention=CATALOGUE[action].retention)) for action in Action}


class ActorFilter(StaticFilter):
    title = "actor"
    parameter_name = "actor"
    choices_of = {
        "system": ("the fleet itself", Q(actor=actors.SYSTEM)),
        "admin": ("the admin key", Q(actor=actors.ADMIN)),
        "staff": ("staff", Q(actor__startswith=actors.staff(""))),
        "product": ("a product", Q(actor=F("product_slug"))),
    }


class RetentionFilter(StaticFilter):
    title = "class"
    parameter_name = "retention"
    choices_of = {kind.value: (kind.value, Q(retention=kind)) for kind in Retention}


class SinceFilter(StaticFilter):
    title = "time"
    parameter_name = "since"
    spans = {
        "1h": ("past hour", timedelta(hours=1)),
        "1d": ("past day", timedelta(days=1)),
        "7d": ("past 7 days", timedelta(days=7)),
        "30d": ("past 30 days", timedelta(days=30)),
        "90d": ("past 90 days", timedelta(days=90)),
    }
    choices_of = {value: (words, Q()) for value, (words, _) in spans.items()}

    def queryset(self, request: HttpRequest, queryset: "QuerySet[Any]") -> "QuerySet[Any]":
        value = self.value()
        return queryset if value is None else queryset.filter(timestamp__gte=times.database_now() - self.spans[value][1])


@admin.register(AuditRow)
class AuditRowAdmin(KeysetAdmin):
    sort_key = ("timestamp", "id")
    page_template = "admin/audit/auditrow/page.html"
    list_display = ("when", "what", "whose", "product", "move", "who", "took", "details")
    list_filter = (SinceFilter, ActorFilter, RetentionFilter, ActionFilter)
    list_fullwidth = True
    search_fields = ("user_id",)  # only makes Django show the search field; get_search_results decides the search
    search_help_text = search.HELP

    def get_search_results(
        self, request: HttpRequest, queryset: "QuerySet[Any]", search_term: str
    ) -> tuple["QuerySet[Any]", bool]:
        term = search_term.strip()
        return (queryset.filter(search.read(term, queryset)) if term else queryset), False

    def get_page(self, request: HttpRequest, found: AuditRow) -> dict[str, Any]:
        entry = CATALOGUE.get(found.action) if found.action in CATALOGUE else None  # type: ignore[call-overload]
        return {
            "entry": entry,
            "badge": badges.of(found.action),
            "facts": wording.facts(found.metadata),
            "started": wording.moment(found.timestamp),
            "took": wording.duration(found.duration_ms),
            "written": wording.moment(found.written_at),
        }

    @admin.display(description="Started (UTC)")
    def when(self, row: AuditRow) -> str:
        return wording.moment(row.timestamp)

    @labelled("Action", {action.value: badges.of(action) for action in Action})
    def what(self, row: AuditRow) -> str:
        return row.action

    @admin.display(description="User", empty_value="-")
    def whose(self, row: AuditRow) -> str | None:
        shown = None if row.user_id is None else characters.marked(row.user_id)
        if row.engine_id is None:
            return shown
        return format_html(
            '<a class="rh-link" href="{}">{}</a>', reverse("admin:engines_engine_change", args=[row.engine_id]), shown
        )

    @admin.display(description="Product", empty_value="-")
    def product(self, row: AuditRow) -> str | None:
        return row.product_slug

    @admin.display(description="State")
    def move(self, row: AuditRow) -> str:
        if row.from_status == row.to_status:
            return row.to_status or "-"
        return f"{row.from_status or '∅'} → {row.to_status}"

    @admin.display(description="Actor")
    def who(self, row: AuditRow) -> str:
        return characters.marked(f"{row.actor} for {row.on_behalf_of}" if row.on_behalf_of else row.actor)

    @admin.display(description="Took")
    def took(self, row: AuditRow) -> str:
        return wording.duration(row.duration_ms)

    @admin.display(description="Details")
    def details(self, row: AuditRow) -> str:
        return ", ".join(f"{name} {value}" for name, value in wording.facts(row.metadata)) or "-"
