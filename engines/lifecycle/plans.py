"""Plans: what a verb would do with an engine as it is, and whether it is allowed.

A call takes its locks, makes its plan, and carries the plan out. `admission.explain` makes the same plan without locks and only
shows it. What a plan says holds for as long as what it depends on is locked: the product, the host where it has ceilings, the
engine.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from common.settings import settings
from engines import operations
from engines.errors import EngineAlreadyExists, EngineError
from engines.lifecycle import capacity
from engines.lifecycle.checks import check_can, makes_serve
from engines.models import Engine, Kind, Operation
from policy import decisions, overrides, rules
from policy.decisions import Decision
from policy.models import Product


@dataclass(frozen=True)
class Plan:
    """What every rule says, in the order in which the rules are asked, and what the engine's state leads to.

    `joins` is an open operation that does the same; without it a new operation is opened. `refusal` is the refusal of the
    engine's state, which is asked after the rules. `image` is the image of a new engine.
    """

    decisions: list[Decision]
    joins: Operation | None = None
    refusal: EngineError | None = None
    image: str = ""

    def checked(self) -> Self:
        """The plan itself. Raises the first refusal, if there is one."""
        decisions.check(self.decisions)
        if self.refusal is not None:
            raise self.refusal
        return self


def of_provision(product: Product, user_id: str, asked: str) -> Plan:
    """The plan of a new engine for the user; `asked` is the image that was asked for, or empty."""
    policy, default = overrides.in_force(product), settings.ENV.engine_image
    image = rules.choose_image(policy, asked, default)
    living = Engine.objects.living().filter(product=product)
    existing = living.filter(user_id=user_id).first()
    if existing is not None:
        decided = decisions.on_provision(policy, product.suspension_reason, image, default, None)
        return _of_existing(existing, image, decided)
    decided = decisions.on_provision(policy, product.suspension_reason, image, default, living.count())
    return Plan([*decided, *capacity.decide_room(capacity.memory_mb(product), settings.ENV.engine_disk_mb)], image=image)


def _of_existing(engine: Engine, image: str, decided: list[Decision]) -> Plan:
    """The plan of a provision for a user who has an engine: it joins the open provision with the same image."""
    current = operations.find_open(engine)
    if current is not None and current.kind == Kind.PROVISION and engine.engine_version == image:
        return Plan(decided, joins=current, image=image)
    return Plan(decided, refusal=EngineAlreadyExists("The product has an engine for this user already."), image=image)


def of_verb(engine: Engine, kind: Kind, params: Mapping[str, Any], suspension: str) -> Plan:
    """The plan of any other verb; `suspension` is the reason of the product's suspension, empty while it is not suspended."""
    serves = makes_serve(kind, engine)
    decided = decisions.on_serve(suspension) if serves else []
    try:
        joins = _find_same(engine, kind, params)
    except EngineError as refusal:
        return Plan(decided, refusal=refusal)
    if serves and joins is None:
        decided += capacity.decide_room(engine.memory_mb, 0, but=engine.pk)
    return Plan(decided, joins)


def _find_same(engine: Engine, kind: Kind, params: Mapping[str, Any]) -> Operation | None:
    """The open operation that does the same. Raises the refusal of the engine's state.

    A destroy supersedes any other operation. Any open rotation does the same as a rotation: it makes a new key.
    """
    if kind != Kind.DESTROY:
        check_can(engine, kind)
    current = operations.find_open(engine)
    if kind in (Kind.DESTROY, Kind.ROTATE_KEY) and current is not None and current.kind == kind:
        return current
    return None if kind == Kind.DESTROY or current is None else operations.join(engine, kind, params)
