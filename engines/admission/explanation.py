"""The effect that a product's call would have now: the decisions of a real call, made without a lock and without effect.

The functions of the real call make the decisions, from the present facts. Failures that show only in an attempt are not
foreseen: no free port, a failing backend, a faster caller.
"""

from dataclasses import dataclass, replace

from django.db import connection, transaction

from common.settings import settings
from engines import identifiers, lifecycle
from engines.admission import sight
from engines.admission.sight import Course, Seen
from engines.errors import EngineError
from engines.lifecycle import plans
from engines.lifecycle.plans import Plan
from engines.models import Kind, Operation, OperationState
from engines.operations import params_of
from policy import decisions, overrides, rate_limit, rules
from policy.decisions import Decision
from policy.models import Product

VERBS = {
    "admit": None,
    "provision": Kind.PROVISION,
    "start": Kind.START,
    "stop": Kind.STOP,
    "rotate-key": Kind.ROTATE_KEY,
    "destroy": Kind.DESTROY,
}
"""The calls of a product, by their names in the API."""

ANSWERS = sorted({*Course, *(kind.value for kind in VERBS.values() if kind)})


@dataclass(frozen=True)
class Question:
    """The call to explain. Only a provision has an `engine_version`, only an admit has flags."""

    verb: str
    user_id: str
    engine_version: str = ""
    auto_provision: bool = False
    auto_wake: bool = False


@dataclass(frozen=True)
class Explanation:
    """The decisions of all rules, in the order of the rules; the effect of the call; and, for REFUSE, the refusal.

    `refusal` is the exception that the call would raise, or an admit's `reason`. `egress` is the value in force of the rule that
    decides no call: where the product's engines may open connections.
    """

    decisions: list[Decision]
    would: str
    refusal: Exception | str = ""
    egress: str | list[str] = rules.NO_EGRESS

    @property
    def allowed(self) -> bool:
        """Whether no rule refuses. The engine's state may still refuse."""
        return all(decision.allowed for decision in self.decisions)


def explain(product: Product, question: Question) -> Explanation:
    """The effect that the call would have now. Raises InvalidUserId, ImageUnknown.

    The transaction is read-only: PostgreSQL itself refuses any change.
    """
    identifiers.check_user_id(question.user_id)
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        egress = rules.choose_egress(overrides.in_force(product), settings.ENV.engine_internet)
        return replace(_explain(product, question, VERBS[question.verb]), egress=egress)


def _explain(product: Product, question: Question, kind: Kind | None) -> Explanation:
    if kind is None:
        return _admit(product, question)
    return _provision(product, question) if kind == Kind.PROVISION else _verb(product, question.user_id, kind)


def _conclude(plan: Plan, would: str) -> Explanation:
    """The explanation of a plan: `would` is the effect unless the plan refuses or joins."""
    refused = next((decision.refusal for decision in plan.decisions if decision.refusal), plan.refusal)
    return Explanation(plan.decisions, Course.REFUSE if refused else Course.JOIN if plan.joins else would, refused or "")


def _admit(product: Product, question: Question) -> Explanation:
    policy = overrides.in_force(product)
    decided = decisions.on_admit(policy, product.suspension_reason, rate_limit.peek(str(product.pk), policy))
    seen = sight.see(product, question.user_id)
    course = sight.choose(seen, auto_provision=question.auto_provision, auto_wake=question.auto_wake)
    if course == Course.CANCEL_SLEEP and _is_claimed(seen):  # too late to cancel: the admit waits until the engine sleeps
        course = Course.WAKE if question.auto_wake else Course.REFUSE
    if course == Course.PROVISION:
        if all(decision.allowed for decision in decided):
            identifiers.check_new_user_id(question.user_id)
        plan = plans.of_provision(product, question.user_id, question.engine_version)
        decided += [each for each in plan.decisions if each.rule != "suspended"]
    elif course == Course.WAKE and seen is not None:
        engine = lifecycle.find(product, question.user_id)  # in whole: an admit reads few columns
        decided.append(lifecycle.decide_disk(engine))
        decided += lifecycle.decide_room(seen.engine.memory_mb, 0, but=seen.engine.pk)
    refused = next((decision.refusal for decision in decided if decision.refusal), None)
    reason = sight.reason_against(seen) if course == Course.REFUSE else ""
    return Explanation(decided, Course.REFUSE if refused else course, refused or reason)


def _is_claimed(seen: Seen | None) -> bool:
    if seen is None or seen.open_id is None:
        return False
    return Operation.objects.filter(pk=seen.open_id, state=OperationState.RUNNING).exists()


def _provision(product: Product, question: Question) -> Explanation:
    identifiers.check_new_user_id(question.user_id)
    asked = identifiers.check_image(question.engine_version)
    return _conclude(plans.of_provision(product, question.user_id, asked), Kind.PROVISION)


def _verb(product: Product, user_id: str, kind: Kind) -> Explanation:
    try:
        engine = lifecycle.find(product, user_id)
    except EngineError as refusal:
        return Explanation([], Course.REFUSE, refusal)
    return _conclude(plans.of_verb(engine, kind, params_of(), product.suspension_reason), kind)
