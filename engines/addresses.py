"""The addresses of an engine: for its product, and for our own probes. `ORCH_ENGINE_REACH` chooses between two ways.

With `port`, engines listen on ports of their host. With `container`, all callers are containers on the engine's network, where
the engine has its container's name and listens on INNER_PORT.
"""

from uuid import UUID

from common.settings import settings
from engines.backends.base import INNER_PORT, instance_name
from engines.models import Engine


def url(engine: Engine) -> str:
    """The address at which the product calls the engine."""
    template: str = settings.ENV.url_template
    return template.format(port=engine.port, container=instance_name(settings.ENV.deployment, engine.pk))


def probe_url(engine_id: UUID, port: int) -> str:
    """The address for our probes, without a slash at its end. Products may get a different address, of a proxy for instance."""
    if settings.ENV.engine_reach == "container":
        return f"http://{instance_name(settings.ENV.deployment, engine_id)}:{INNER_PORT}"
    return f"http://{settings.ENV.engine_host}:{port}"
