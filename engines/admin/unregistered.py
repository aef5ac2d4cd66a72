"""Unregistered engines in the admin: the runtime has them and the registry does not. Staff adopt or remove each."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.contrib import admin, messages
from django.contrib.admin import helpers
from django.core.exceptions import BadRequest
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html

from audit import actors
from common import uuids, wording
from common.admin import KeysetAdmin, labelled
from common.characters import marked
from engines import unregistered
from engines.admin.forms import Adoption, Reason
from engines.admin.links import page_of
from engines.errors import EngineError
from engines.models import Engine, UnregisteredEngine
from policy.errors import PolicyError

STATES = {"waits for a decision": "warning", "being removed": "danger"}


@dataclass(frozen=True)
class Decision:
    """What staff may decide about an unregistered engine."""

    name: str
    label: str
    warning: str
    carry_out: Callable[..., str]

    @property
    def permission(self) -> str:
        return f"engines.{self.name}_unregisteredengine"


def _adopt(engine: UnregisteredEngine, **given: Any) -> str:
    """Adopt the engine; returns a link to the registered engine, and what happens next."""
    adopted = unregistered.adopt(engine.pk, **given)
    follows = "its start is under way" if adopted.start else "it is stopped"
    if adopted.refusal:
        follows = f"it is stopped, because its start was refused: {adopted.refusal}"
    link = '<a class="rh-link" href="{}">{}</a> is registered again; {}.'
    return format_html(link, page_of(adopted.engine), marked(adopted.engine.user_id), follows)


def _forget(engine: UnregisteredEngine, **given: Any) -> str:
    unregistered.forget(engine.pk, **given)
    return f"{_name(engine)}: the removal is under way."


DECISIONS: Mapping[str, Decision] = {
    "adopt": Decision(
        "adopt",
        "Adopt",
        "The engine is registered again, with its data and a new key: whoever holds the old key has to fetch the new key. If it"
        " runs, it is restarted; otherwise it is stopped afterwards.",
        _adopt,
    ),
    "forget": Decision(
        "forget",
        "Remove with data",
        "The engine and everything on its volume are removed for good. Nothing brings the data back.",
        _forget,
    ),
}


@admin.register(UnregisteredEngine)
class UnregisteredEngineAdmin(KeysetAdmin):
    page_template = "admin/engines/unregisteredengine/page.html"
    list_before_template = "admin/engines/unregisteredengine/before.html"
    list_display = ("engine_id", "user", "product", "what", "state", "found")
    sort_key = ("found_at", "engine_id")

    def get_queryset(self, request: HttpRequest) -> "QuerySet[UnregisteredEngine]":
        return UnregisteredEngine.objects.present()

    def get_urls(self) -> list[URLPattern]:
        decide = self.admin_site.admin_view(self.decide)
        own = [
            path(f"<uuid:engine_id>/{name}/", decide, {"decision": decision}, name=f"engines_unregisteredengine_{name}")
            for name, decision in DECISIONS.items()
        ]
        return [*own, *super().get_urls()]

    def get_page(self, request: HttpRequest, found: UnregisteredEngine) -> dict[str, Any]:
        return {
            "what": self.what(found),
            "state": self.state(found),
            "found": wording.moment(found.found_at),
            "asked": wording.moment(found.asked_at),
            "decisions": [] if found.asked_at else self._permitted(request),
        }

    def _permitted(self, request: HttpRequest) -> list[Decision]:
        return [decision for decision in DECISIONS.values() if request.user.has_perm(decision.permission)]

    # -- decisions of staff --------------------------------------------------------------------------------------------

    def decide(self, request: HttpRequest, engine_id: UUID, decision: Decision) -> HttpResponse:
        """The page that asks for the decision on an engine; after a refusal once more, with the reason and what was typed."""
        self.check_permission(request, request.user.has_perm(decision.permission))
        found = UnregisteredEngine.objects.present().filter(pk=engine_id).first()
        if found is None:
            raise Http404(f"No engine {engine_id} is unregistered.")
        form = self._form(request, decision, found)
        if form.is_valid():
            try:
                messages.success(request, decision.carry_out(found, by=actors.of_user(request.user), **form.cleaned_data))
                return HttpResponseRedirect(reverse("admin:engines_unregisteredengine_changelist"))
            except (EngineError, PolicyError) as refusal:
                form.add_error(None, str(refusal))
        back = reverse("admin:engines_unregisteredengine_change", args=[found.pk])
        return self._confirm(request, decision, found, title=f"{decision.label}: {_name(found)}", form=form, back=back)

    def _form(self, request: HttpRequest, decision: Decision, found: UnregisteredEngine) -> Any:
        given = request.POST if request.method == "POST" else None
        return Adoption(given, found=found) if decision.name == "adopt" else Reason(given)

    def _confirm(self, request: HttpRequest, decision: Decision, found: Any, **context: Any) -> HttpResponse:
        button = "rh-primary" if decision.name == "adopt" else "rh-danger"
        about = {"label": decision.label, "warning": decision.warning, "button": button, **context}
        return self.render(request, "admin/confirm.html", found, **about)

    def _carry_out(self, request: HttpRequest, decision: Decision, engines: Iterable[UnregisteredEngine], **given: Any) -> None:
        """Carry the decision out for every engine. A refusal becomes a message, and does not stop the remaining engines."""
        for engine in engines:
            try:
                messages.success(request, decision.carry_out(engine, by=actors.of_user(request.user), **given))
            except (EngineError, PolicyError) as refusal:
                messages.error(request, f"{_name(engine)}: {refusal}")

    # -- actions on selected engines -----------------------------------------------------------------------------------

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        if request.GET.get("_popup"):
            return {}
        return {
            decision.name: (_decide_on_selected, decision.name, f"{decision.label} selected engines")
            for decision in self._permitted(request)
        }

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        if request.method == "POST":
            decision = DECISIONS.get(request.POST.get("action", ""))
            self.check_permission(request, decision is not None and request.user.has_perm(decision.permission))
            if not all(uuids.parse(key) for key in request.POST.getlist(helpers.ACTION_CHECKBOX_NAME)):
                raise BadRequest("a selected id is not the id of an engine")
        more = {"without_volume": Engine.objects.without_volume().count(), **(extra_context or {})}
        response: HttpResponse = super().changelist_view(request, more)
        return response

    # -- columns -------------------------------------------------------------------------------------------------------

    @admin.display(description="User id")
    def user(self, engine: UnregisteredEngine) -> str:
        return marked(engine.user_id) or "not known"

    @admin.display(description="Product")
    def product(self, engine: UnregisteredEngine) -> str:
        return engine.product_slug or "not known"

    @admin.display(description="The runtime has")
    def what(self, engine: UnregisteredEngine) -> str:
        parts = ["a volume"] if engine.has_volume else []
        if engine.incarnation:
            parts.append("an instance that runs" if engine.runs else "an instance that does not run")
        return " and ".join(parts)

    @labelled("State", STATES)
    def state(self, engine: UnregisteredEngine) -> str:
        return "waits for a decision" if engine.asked_at is None else "being removed"

    @admin.display(description="Found (UTC)")
    def found(self, engine: UnregisteredEngine) -> str:
        return wording.moment(engine.found_at)


def _decide_on_selected(
    site: UnregisteredEngineAdmin, request: HttpRequest, queryset: "QuerySet[UnregisteredEngine]"
) -> HttpResponse | None:
    """Django's action on engines with a ticked box; never on engines of further pages."""
    decision, selected = DECISIONS[request.POST["action"]], request.POST.getlist(helpers.ACTION_CHECKBOX_NAME)
    engines = list(queryset.filter(pk__in=selected)[: site.list_per_page])
    form = Reason(request.POST if "confirmed" in request.POST else None)
    if form.is_valid():
        site._carry_out(request, decision, engines, **form.cleaned_data)
        return None
    repeated: dict[str, Any] = {"action": decision.name, "selected": selected, "checkbox": helpers.ACTION_CHECKBOX_NAME}
    title, named = f"{decision.label}: {len(engines)} engines", [_name(engine) for engine in engines]
    back = request.get_full_path()
    return site._confirm(request, decision, None, title=title, form=form, named=named, back=back, **repeated)


def _name(engine: UnregisteredEngine) -> str:
    return f"{marked(engine.user_id) or 'unknown user'} of {engine.product_slug or 'unknown product'} ({engine.pk})"
