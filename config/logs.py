"""One JSON object per line on stdout, from our own log calls and from every library's."""

import logging
import logging.config

import structlog

from common import context


def configure(level: str) -> None:
    """Send structlog's and the standard library's records through the same processors."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        _add_context,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    formatter = {
        "()": structlog.stdlib.ProcessorFormatter,
        "foreign_pre_chain": shared,
        "processors": [structlog.stdlib.ProcessorFormatter.remove_processors_meta, structlog.processors.JSONRenderer()],
    }
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"json": formatter},
            "handlers": {"stdout": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout", "formatter": "json"}},
            "root": {"handlers": ["stdout"], "level": level},
            "loggers": {
                # At DEBUG it writes whole contexts of pages, and with one of them the key that the page shows once.
                "django.template": {"level": "INFO"},
                # "Task received", from a thread that cannot know for which request; the task's own lines can.
                "celery.worker.strategy": {"level": "WARNING"},
                **{name: {"level": "WARNING"} for name in ("urllib3", "docker", "asyncio")},
            },
        }
    )


def _add_context(_logger: object, _method: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Add the id of the request at hand, and the name of the admin key that it came with."""
    named = {"request_id": context.request_id.get(), "admin_key": context.credential.get()}
    line.update({name: value for name, value in named.items() if value is not None})
    return line
