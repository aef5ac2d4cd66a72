"""Plans: the effect of a verb on an engine in its present state, and whether the verb is allowed.

A call takes its locks, makes its plan, and carries the plan out. `admission.explain` makes an equal plan without locks and only
shows the plan. A plan stays valid while its locks are held: on the product, on the host if the host has ceilings, and on the
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
from engines.transitions import STARTS
from policy import decisions, overrides, rules
from policy.decisions import Decision
from policy.models import Product


@dataclass(frozen=True)
class Plan:
    """The decisions of all rules, in the order of the rules, and the consequence of the engine's state.

    `joins` is an open operation with an equal effect; for None a new operation is opened. `refusal` comes from the engine's
    state, which is checked after the rules. `image` is the image of a new engine.
    """

    decisions: list[Decision]
    joins: Operation | None = None
    refusal: EngineError | None = None
    image: str = ""

    def checked(self) -> Self:
        """The plan itself. Raises the first refusal, if any."""
        decisions.check(self.decisions)
        if self.refusal is not None:
            raise self.refusal
        return self


def of_provision(product: Product, user_id: str, asked: str) -> Plan:
    """The plan of a new engine for the user; `asked` is the requested image, or empty."""
    policy, default = overrides.in_force(product), settings.ENV.engine_image
    image = rules.choose_image(policy, asked, default)
    living = Engine.objects.living().filter(product=product)
    existing = living.filter(user_id=user_id).first()
    if existing is not None:
        decided = decisions.on_provision(policy, product.suspension_reason, image, default, None)
        return _of_existing(existing, image, decided)
    decided = decisions.on_provision(policy, product.suspension_reason, image, default, living.count())
    return Plan([*decided, *capacity.decide_room(capacity.memory_mb(product), capacity.disk_mb(product))], image=image)


def _of_existing(engine: Engine, image: str, decided: list[Decision]) -> Plan:
    """The plan of a provision for a user with an engine: join an open provision of an equal image, or refuse."""
    current = operations.find_open(engine)
    if current is not None and current.kind == Kind.PROVISION and engine.engine_version == image:
        return Plan(decided, joins=current, image=image)
    return Plan(decided, refusal=EngineAlreadyExists("The product has an engine for this user already."), image=image)


def of_verb(engine: Engine, kind: Kind, params: Mapping[str, Any], suspension: str) -> Plan:
    """The plan of any verb but provision; `suspension` is the reason of the product's suspension, empty without a suspension."""
    serves = makes_serve(kind, engine)
    decided = decisions.on_serve(suspension) if serves else []
    try:
        joins = _find_same(engine, kind, params)
    except EngineError as refusal:
        return Plan(decided, refusal=refusal)
    if kind in STARTS and joins is None:  # a rotation is no start: an engine that runs needs a new key at any time
        decided.append(capacity.decide_disk(engine))
    if serves and joins is None:
        decided += capacity.decide_room(engine.memory_mb, 0, but=engine.pk)
    return Plan(decided, joins)


def _find_same(engine: Engine, kind: Kind, params: Mapping[str, Any]) -> Operation | None:
    """The open operation with an equal effect, or None. Raises the refusal of the engine's state.

    A destroy joins an open destroy, and supersedes any operation of a different kind. A rotation joins any open rotation, because
    every rotation makes a new key.
    """
    if kind != Kind.DESTROY:
        check_can(engine, kind)
    current = operations.find_open(engine)
    if kind in (Kind.DESTROY, Kind.ROTATE_KEY) and current is not None and current.kind == kind:
        return current
    return None if kind == Kind.DESTROY or current is None else operations.join(engine, kind, params)
