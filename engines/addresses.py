"""Where an engine is reached: by products, and by our own probes. `ORCH_ENGINE_REACH` says which way.

By `port`, engines listen on ports of their host. By `container`, whoever calls them is a container on their network, where an
engine has its container's name and listens on INNER_PORT.
"""

from uuid import UUID

from common.settings import settings
from engines.backends.base import INNER_PORT, instance_name
from engines.models import Engine


def url(engine: Engine) -> str:
    """Where the product reaches the engine."""
    template: str = settings.ENV.url_template
    return template.format(port=engine.port, container=instance_name(settings.ENV.deployment, engine.pk))


def probe_url(engine_id: UUID, port: int) -> str:
    """Where we reach it, without a slash at its end. Products may be told another way in, through a proxy for instance."""
    if settings.ENV.engine_reach == "container":
        return f"http://{instance_name(settings.ENV.deployment, engine_id)}:{INNER_PORT}"
    return f"http://{settings.ENV.engine_host}:{port}"
