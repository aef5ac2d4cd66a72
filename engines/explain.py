"""What would happen if a product asked for something now: the decisions of a real call, made without a lock and without effect.

Each is made by the function that the real call asks, of facts as they are just now. What only an attempt can show is not
foreseen: that no port is free, that the backend fails, or that somebody else is faster.
"""

from dataclasses import dataclass

from django.db import connection, transaction

from common.settings import settings
from engines import admission, hosts, lifecycle, names, operations
from engines.admission import Step
from engines.errors import EngineError
from engines.models import Engine, Kind, Operation, OperationState
from policy import decisions, overrides, rate_limit
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
"""What a product can ask for, as the API names it."""

OUTCOMES = sorted({*Step, *(kind.value for kind in VERBS.values() if kind)})


@dataclass(frozen=True)
class Question:
    """What is asked for. `engine_version` is of a provision only, the flags of an admit."""

    verb: str
    user_id: str
    engine_version: str = ""
    auto_provision: bool = False
    auto_wake: bool = False


@dataclass(frozen=True)
class Explanation:
    """What every rule says, in the order in which they are asked; what would be done; and, for REFUSE, why.

    `refusal` is what the call would raise, or an admit's `reason`.
    """

    decisions: list[Decision]
    would: str
    refusal: Exception | str = ""

    @property
    def allowed(self) -> bool:
        """Whether no rule refuses. The engine's state may do so all the same."""
        return all(decision.allowed for decision in self.decisions)


def explain(product: Product, question: Question) -> Explanation:
    """What the call would do now; PostgreSQL itself refuses to let it change anything. Raises InvalidUserId, ImageUnknown."""
    names.check_user_id(question.user_id)
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        kind = VERBS[question.verb]
        if kind is None:
            return _admit(product, question)
        return _provision(product, question) if kind == Kind.PROVISION else _verb(product, question.user_id, kind)


def _conclude(decided: list[Decision], would: str, refusal: Exception | str = "") -> Explanation:
    """`refusal` is that of the engine's state, which is asked after the rules."""
    refused = next((decision.refusal for decision in decided if decision.refusal), refusal)
    return Explanation(decided, Step.REFUSE if refused else would, refused)


def _admit(product: Product, question: Question) -> Explanation:
    policy = overrides.in_force(product)
    decided = decisions.on_admit(policy, product.suspension_reason, rate_limit.look(str(product.pk), policy))
    seen = admission.look(product, question.user_id)
    step = admission.plan(seen, auto_provision=question.auto_provision, auto_wake=question.auto_wake)
    if step == Step.CANCEL_SLEEP and _is_claimed(seen):  # too late for that: the admit waits until it sleeps
        step = Step.WAKE if question.auto_wake else Step.REFUSE
    if step == Step.PROVISION:
        decided += [each for each in _new_engine(product, question) if each.rule != "suspended"]
    elif step == Step.WAKE and seen is not None:
        decided += hosts.decide_room(seen.engine.memory_mb, 0, but=seen.engine.pk)
    return _conclude(decided, step, admission.refusal(seen) if step == Step.REFUSE else "")


def _is_claimed(seen: admission.Seen | None) -> bool:
    if seen is None or seen.open_id is None:
        return False
    return Operation.objects.filter(pk=seen.open_id, state=OperationState.RUNNING).exists()


def _new_engine(product: Product, question: Question) -> list[Decision]:
    decided = lifecycle.decide_provision(product, question.user_id, question.engine_version)[2]
    return decided + hosts.decide_room(lifecycle.memory_mb(product), settings.ENV.engine_disk_mb)


def _provision(product: Product, question: Question) -> Explanation:
    asked = names.check_image(question.engine_version)
    existing, image, decided = lifecycle.decide_provision(product, question.user_id, asked)
    if existing is None:
        return _conclude(_new_engine(product, question), Kind.PROVISION)
    try:
        lifecycle.join_provision(existing, image)
    except EngineError as refusal:
        return _conclude(decided, Step.REFUSE, refusal)
    return _conclude(decided, Step.JOIN)


def _verb(product: Product, user_id: str, kind: Kind) -> Explanation:
    try:
        engine = lifecycle.find(product, user_id)
    except EngineError as refusal:
        return _conclude([], Step.REFUSE, refusal)
    serves = lifecycle.makes_serve(kind, engine)
    decided = decisions.on_serve(product.suspension_reason) if serves else []
    try:
        would = Step.JOIN if _joins(engine, kind) else kind
    except EngineError as refusal:
        return _conclude(decided, Step.REFUSE, refusal)
    if serves and would == kind:
        decided += hosts.decide_room(engine.memory_mb, 0, but=engine.pk)
    return _conclude(decided, would)


def _joins(engine: Engine, kind: Kind) -> bool:
    """Whether an operation like it is open already. Raises the refusal that fits when it cannot be asked for."""
    if kind != Kind.DESTROY:
        lifecycle.check_can(engine, kind)
    current = operations.find_open(engine)
    if kind in (Kind.DESTROY, Kind.ROTATE_KEY) and current is not None and current.kind == kind:
        return True
    return kind != Kind.DESTROY and operations.join(engine, kind, lifecycle.params_of()) is not None  # it supersedes any other
