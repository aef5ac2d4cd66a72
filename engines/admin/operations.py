"""Operations in the admin."""

from typing import Any

from django.contrib import admin
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils.html import format_html

from common import uuids, wording
from common.admin import KeysetAdmin, StaticFilter, labelled
from common.characters import marked
from engines import operations
from engines.admin import timeline
from engines.admin.links import page_of
from engines.models import OPEN, Kind, Operation, OperationState

STATE_BADGES = {
    OperationState.PENDING.value: "warning",
    OperationState.RUNNING.value: "info",
    OperationState.SUCCEEDED.value: "success",
    OperationState.FAILED.value: "danger",
}


class StateFilter(StaticFilter):
    title = "state"
    parameter_name = "state"
    choices_of = {
        "open": ("open (pending or running)", Q(state__in=OPEN)),
        **{state.value: (state.value, Q(state=state)) for state in OperationState},
    }


class KindFilter(StaticFilter):
    title = "kind"
    parameter_name = "kind"
    choices_of = {kind.value: (str(kind.label).lower(), Q(kind=kind)) for kind in Kind}


@admin.register(Operation)
class OperationAdmin(KeysetAdmin):
    page_template = "admin/engines/operation/page.html"
    list_display = ("opened", "kind", "badge", "whose", "actor", "attempt", "took", "error_code")
    list_filter = (StateFilter, KindFilter)
    list_select_related = ("engine",)
    search_fields = ("engine__user_id",)  # without search_fields, Django shows no search box
    search_help_text = "User, operation id or engine id: exact"

    def get_search_results(
        self, request: HttpRequest, queryset: "QuerySet[Operation]", search_term: str
    ) -> tuple["QuerySet[Operation]", bool]:
        term = search_term.strip()
        if not term:
            return queryset, False
        uuid = uuids.parse(term)
        named = Q(engine__user_id=term)
        return queryset.filter(named if uuid is None else named | Q(pk=uuid) | Q(engine_id=uuid)), False

    def get_page(self, request: HttpRequest, found: Operation) -> dict[str, Any]:
        page: dict[str, Any] = {
            "row": describe(found),
            "position": operations.position(found),
            "steps": timeline.steps(found),
            "facts": wording.facts(found.params),
        }
        if request.user.has_perm("audit.view_auditrow"):
            page |= {"entries": timeline.of_operation(found.engine_id, found.pk), "may_search": True}
        return page

    @admin.display(description="Opened (UTC)")
    def opened(self, operation: Operation) -> str:
        return wording.moment(operation.created_at)

    @labelled("State", STATE_BADGES)
    def badge(self, operation: Operation) -> str:
        return operation.state

    @admin.display(description="Engine")
    def whose(self, operation: Operation) -> str:
        return format_html('<a class="rh-link" href="{}">{}</a>', page_of(operation.engine), marked(operation.engine.user_id))

    @admin.display(description="Took")
    def took(self, operation: Operation) -> str:
        return str(describe(operation)["took"])


def describe(operation: Operation) -> dict[str, Any]:
    """The texts and times of an operation for the pages of the admin."""
    ended = operation.finished_at
    return {
        "it": operation,
        "badge": STATE_BADGES.get(operation.state),
        "opened": wording.moment(operation.created_at),
        "finished": wording.moment(ended),
        "took": wording.duration((ended - operation.created_at).total_seconds() * 1000) if ended else "",
        "lease": wording.moment(operation.lease_until),
        "due": wording.moment(operation.due_at),
        "facts": wording.facts(operation.params),
    }
