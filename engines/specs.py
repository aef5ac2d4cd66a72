"""What an engine's instance should be made of by its incarnation: the part of a `Spec` that no later change of a policy moves."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from common.settings import settings
from engines.backends.base import Limits, Ref, Spec
from engines.models import Engine
from policy import environments


def ref_of(engine: Engine) -> Ref:
    """The ref of the engine's valid instance."""
    return Ref.parse(engine.pk, engine.mark)


def of_incarnation(engine: Engine, ref: Ref, key_hash: str, own: Mapping[str, str], memory_mb: int) -> Spec:
    """The spec of an incarnation of the engine. `own` are the variables of the product in the incarnation's version.

    `memory_mb` is the memory that the host counts. All that a policy may ask for beside memory has its default.
    """
    assert engine.port is not None  # every living engine has a port
    env = {**settings.ENGINE_ENV, **own, "ENGINE_KEY_HASH": key_hash}
    limits = Limits(memory_mb or None)
    return Spec(ref, engine.product.slug, engine.engine_version, engine.port, env, limits, user_id=engine.user_id)


def of_valid(engines: Iterable[Engine]) -> list[tuple[Engine, Spec]]:
    """Each living engine with the spec of its valid incarnation, without engines whose variables no master key decrypts.

    The engines' products must be loaded. Sends one query.
    """
    found = list(engines)
    own = environments.read_many({(engine.product_id, engine.env_version) for engine in found})
    readable = [engine for engine in found if (engine.product_id, engine.env_version) in own]
    return [(engine, _valid(engine, own[engine.product_id, engine.env_version])) for engine in readable]


def _valid(engine: Engine, own: Mapping[str, str]) -> Spec:
    spec = of_incarnation(engine, ref_of(engine), engine.key_hash, own, engine.memory_mb)
    return replace(spec, digest=engine.image_digest)
