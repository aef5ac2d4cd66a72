"""Engines in the admin. A staff member's action opens an operation and returns at once; a worker carries the operation out."""

from collections.abc import Iterable
from functools import partial
from typing import Any
from uuid import UUID

import structlog
from cryptography.fernet import InvalidToken
from django.contrib import admin, messages
from django.contrib.admin import helpers
from django.core.exceptions import BadRequest
from django.db import InterfaceError, OperationalError
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html, format_html_join

from audit import actors
from common import times, uuids, wording
from common.admin import KeysetAdmin, StaticFilter, labelled
from common.characters import marked
from engines import lifecycle, operations
from engines.addresses import url
from engines.admin import timeline, verbs
from engines.admin.forms import Reason
from engines.admin.links import page_of
from engines.admin.operations import describe
from engines.admin.verbs import Verb
from engines.api.answers import render_disk
from engines.errors import EngineError, EngineNotFound
from engines.models import NO_VOLUME, Engine, Status
from policy.errors import PolicyError

log = structlog.get_logger(__name__)
STATUS_BADGES = {
    Status.PROVISIONING.value: "warning",
    Status.RUNNING.value: "success",
    Status.SLEEPING.value: "info",
    Status.FAILED.value: "danger",
    Status.DESTROYING.value: "warning",
}
_SEEN = "The audit log records that you saw the key."
RECENT = 20  # number of operations on an engine's page


class StatusFilter(StaticFilter):
    title = "status"
    parameter_name = "status"
    choices_of = {
        "living": ("living (all but destroyed)", Q(destroyed_at=None)),
        **{status.value: (status.value, Q(status=status)) for status in Status},
    }


class DiffersFilter(StaticFilter):
    title = "instance"
    parameter_name = "instance"
    choices_of = {
        "differs": ("differs from settings or registry", Q(destroyed_at=None) & ~Q(differs__in=["", NO_VOLUME])),
        "no_volume": ("has no volume any more", Q(destroyed_at=None, differs=NO_VOLUME)),
    }


@admin.display(description="User id")
def user_id(engine: Engine) -> str:
    """The column of the user ids."""
    return marked(engine.user_id)


@admin.register(Engine)
class EngineAdmin(KeysetAdmin):
    page_template = "admin/engines/engine/page.html"
    list_display = (user_id, "badge", "product_slug", "engine_version", "port", "disk", "created", "last_active")
    list_filter = (StatusFilter, DiffersFilter)
    list_select_related = ("product",)
    search_fields = ("user_id",)  # get_search_results decides; without search_fields, Django shows no search box
    search_help_text = "User, engine id, product's slug or id: exact"

    def get_urls(self) -> list[URLPattern]:
        operate, reveal = self.admin_site.admin_view(self.operate), self.admin_site.admin_view(self.reveal)
        own = [
            path(f"<uuid:engine_id>/{name}/", operate, {"verb": verb}, name=f"engines_engine_{name}")
            for name, verb in verbs.VERBS.items()
        ]
        return [*own, path("<uuid:engine_id>/reveal_key/", reveal, name="engines_engine_reveal_key"), *super().get_urls()]

    def get_search_results(
        self, request: HttpRequest, queryset: "QuerySet[Engine]", search_term: str
    ) -> tuple["QuerySet[Engine]", bool]:
        term = search_term.strip()
        if not term:
            return queryset, False
        uuid = uuids.parse(term)
        named = Q(user_id=term) | Q(product__slug=term)
        return queryset.filter(named if uuid is None else named | Q(pk=uuid) | Q(product_id=uuid)), False

    # -- the page of an engine -----------------------------------------------------------------------------------------

    def get_page(self, request: HttpRequest, found: Engine) -> dict[str, Any]:
        page: dict[str, Any] = {
            "badge": STATUS_BADGES.get(found.status),
            "url": url(found) if found.destroyed_at is None else "",
            "verbs": verbs.offered(request.user, found),
            "may_reveal": verbs.may_reveal(request.user, found),
            "moments": self._moments(found),
            "instance": _instance(found),
            "disk": render_disk(found, lifecycle.disk_mb(found.product)) if found.destroyed_at is None else None,
        }
        if request.user.has_perm("engines.view_operation"):
            recent = list(found.operations.all()[: RECENT + 1])
            page |= {
                "operations": [describe(operation) for operation in recent[:RECENT]],
                "more_operations": len(recent) > RECENT,
            }
            current = operations.find_open(found)
            page |= {"open": current and describe(current), "steps": timeline.steps(current) if current else []}
        if request.user.has_perm("audit.view_auditrow"):
            page |= self._lifetime(found, request.GET.get("before", ""))
        return page

    def _lifetime(self, engine: Engine, before: str) -> dict[str, Any]:
        try:
            told = timeline.read(engine, before)
        except ValueError as error:
            raise BadRequest("before: not a cursor of this page") from error
        in_state = "" if before or told.since is None else _since(told.since)
        return {"timeline": told, "before": before, "in_state": in_state}

    def _moments(self, engine: Engine) -> list[tuple[str, str]]:
        fields = {
            "created": engine.created_at,
            "first running": engine.provisioned_at,
            "last active": engine.last_active_at,
            "last healthy": engine.last_health_at,
            "volume measured": engine.disk_measured_at,
            "disk exceeded": engine.disk_exceeded_at,
            "next restart": engine.next_restart_at,
            "gave up restarting": engine.gave_up_at,
            "destroyed": engine.destroyed_at,
        }
        return [(name, wording.moment(moment)) for name, moment in fields.items() if moment is not None]

    # -- actions of staff ----------------------------------------------------------------------------------------------

    def operate(self, request: HttpRequest, engine_id: UUID, verb: Verb) -> HttpResponse:
        """Request `verb`. A GET shows the confirmation page of a verb with a warning."""
        self.check_permission(request, request.user.has_perm(verb.permission))
        engine = self.get_engine(engine_id)
        if request.method != "POST" and not verb.warning:
            return HttpResponseNotAllowed(["POST"])
        form = Reason(request.POST if request.method == "POST" else None)
        if form.is_valid():
            self._request(request, verb, [engine], form.cleaned_data["reason"])
            return HttpResponseRedirect(page_of(engine))
        title = f"{verb.label} {marked(engine.user_id)}"
        return self.confirm(request, verb, engine, title=title, form=form, back=page_of(engine))

    def confirm(self, request: HttpRequest, verb: Verb, engine: Engine | None, **context: Any) -> HttpResponse:
        """The confirmation page of `verb`, for an engine or, with None, for selected engines."""
        return self.render(request, "admin/confirm.html", engine, label=verb.label, warning=verb.warning, **context)

    def reveal(self, request: HttpRequest, engine_id: UUID) -> HttpResponse:
        """Show the engine's key once. The `key_reveal` row is written before."""
        self.check_permission(request, request.user.has_perm(verbs.REVEAL))
        engine = self.get_engine(engine_id)
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        if page := self.ask_again(request):
            return page
        try:
            key = lifecycle.reveal_key(engine, by=actors.of_user(request.user))
        except EngineNotFound as refusal:
            messages.error(request, str(refusal))
            return HttpResponseRedirect(page_of(engine))
        except InvalidToken:
            messages.error(request, "The key cannot be decrypted: it was stored under another master key.")
            return HttpResponseRedirect(page_of(engine))
        return self.render_once(
            request, engine, title=f"Key of {marked(engine.user_id)}", key=key, back=page_of(engine), note=_SEEN
        )

    def get_engine(self, engine_id: UUID) -> Engine:
        """The engine, destroyed or not. Raises Http404."""
        return get_object_or_404(Engine.objects.select_related("product"), pk=engine_id)

    def _request(self, request: HttpRequest, verb: Verb, engines: Iterable[Engine], reason: str = "") -> None:
        """Request `verb` for every engine. A refusal becomes a message, and does not stop the remaining engines."""
        opened = []
        for engine in engines:
            try:
                operation = verb.call(engine, by=actors.of_user(request.user), reason=reason)
            except (EngineError, PolicyError) as refusal:
                messages.error(request, f"{marked(engine.user_id)}: {refusal}")
            except (OperationalError, InterfaceError):  # each further engine would wait for a connection, too
                messages.error(request, f"{marked(engine.user_id)}: the database is not available just now; nothing was begun.")
                break
            except Exception:
                log.exception("staff_verb_failed", verb=verb.kind.value, engine_id=str(engine.pk))
                messages.error(request, f"{marked(engine.user_id)}: an internal error occurred; the log has the details.")
            else:
                opened.append((reverse("admin:engines_operation_change", args=[operation.pk]), marked(engine.user_id)))
        if opened:
            links = format_html_join(", ", '<a class="rh-link" href="{}">{}</a>', opened)
            messages.success(request, format_html("{}: operation opened for {}", verb.label, links))

    # -- actions on selected engines -----------------------------------------------------------------------------------

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        if request.GET.get("_popup"):
            return {}
        return {
            verb.kind.value: (partial(_act_on_selected, verb=verb), verb.kind.value, f"{verb.label} selected engines")
            for verb in verbs.permitted(request.user)
        }

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        if request.method == "POST":
            verb = verbs.VERBS.get(request.POST.get("action", ""))
            self.check_permission(request, verb is not None and request.user.has_perm(verb.permission))
            if not all(uuids.parse(key) for key in request.POST.getlist(helpers.ACTION_CHECKBOX_NAME)):
                raise BadRequest("a selected id is not the id of an engine")
        response: HttpResponse = super().changelist_view(request, extra_context)
        return response

    # -- columns -------------------------------------------------------------------------------------------------------

    @labelled("Status", STATUS_BADGES)
    def badge(self, engine: Engine) -> str:
        return engine.status

    @admin.display(description="Product")
    def product_slug(self, engine: Engine) -> str:
        return engine.product.slug

    @admin.display(description="Disk (MB)")
    def disk(self, engine: Engine) -> str:
        used = "–" if engine.disk_used_mb is None else f"{engine.disk_used_mb} of {engine.disk_mb}"
        return f"{used} ⚠ exceeded" if engine.disk_exceeded_at is not None and engine.destroyed_at is None else used

    @admin.display(description="Created (UTC)")
    def created(self, engine: Engine) -> str:
        return wording.moment(engine.created_at)

    @admin.display(description="Last active (UTC)")
    def last_active(self, engine: Engine) -> str:
        return wording.moment(engine.last_active_at)


def _instance(engine: Engine) -> str:
    """What staff should know of a living engine's instance; empty for an instance that is as it should be."""
    if engine.destroyed_at is not None or not engine.differs:
        return ""
    if engine.differs == NO_VOLUME:
        return "its volume is gone, with its data; a start begins without data"
    return f"differs in {engine.differs.replace(',', ', ')}; is made anew at its next start"


def _act_on_selected(site: EngineAdmin, request: HttpRequest, queryset: "QuerySet[Engine]", *, verb: Verb) -> HttpResponse | None:
    """Django's action on engines with a ticked box; never on engines of further pages."""
    selected = request.POST.getlist(helpers.ACTION_CHECKBOX_NAME)
    engines = list(queryset.filter(pk__in=selected)[: site.list_per_page])
    form = Reason(request.POST if "confirmed" in request.POST or not verb.warning else None)
    if form.is_valid():
        site._request(request, verb, engines, form.cleaned_data["reason"])
        return None
    repeated: dict[str, Any] = {"action": verb.kind.value, "selected": selected, "checkbox": helpers.ACTION_CHECKBOX_NAME}
    title = f"{verb.label} {len(engines)} selected engines"
    return site.confirm(request, verb, None, title=title, form=form, engines=engines, back=request.get_full_path(), **repeated)


def _since(moment: Any) -> str:
    return wording.duration(max(0.0, (times.database_now() - moment).total_seconds() * 1000))
