"""Logging to stdout, a JSON object per line, for our own log calls and for all libraries."""

import logging
import logging.config

import structlog

from common import context
from common.outages import POSTGRESQL, VALKEY, Dependency

# How the lines begin with which libraries tell of an outage, several a second, by logger.
_OF_OUTAGES: dict[str, tuple[Dependency, tuple[str, ...]]] = {
    "psycopg.pool": (POSTGRESQL, ("error connecting in", "reconnection attempt in pool")),
    "celery.worker.consumer.consumer": (VALKEY, ("consumer: Connection to broker lost", "consumer: Cannot connect")),
}
_AFTERWARDS = ("discarding closed connection", "discarding broken connection")  # one for each connection of the pool


class OutageFilter(logging.Filter):
    """Notes an outage instead of logging each line of it."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to log the record."""
        dependency, beginnings = _OF_OUTAGES[record.name]
        message = record.getMessage()
        if message.startswith(beginnings):
            dependency.failed(message)
            return False
        return not message.startswith(_AFTERWARDS)


def configure(level: str) -> None:
    """Send records of structlog and of the standard library through shared processors, from the threshold `level` upwards."""
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
            "filters": {"outages": {"()": OutageFilter}},
            "handlers": {"stdout": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout", "formatter": "json"}},
            "root": {"handlers": ["stdout"], "level": level},
            "loggers": {
                # At DEBUG, Django logs the whole context of a page, including the plaintext key of a page shown only once.
                "django.template": {"level": "INFO"},
                # "Task received" comes from a thread without the request's id. The task's own lines carry the id.
                "celery.worker.strategy": {"level": "WARNING"},
                **{name: {"level": "WARNING"} for name in ("urllib3", "docker", "asyncio")},
                **{name: {"filters": ["outages"]} for name in _OF_OUTAGES},
            },
        }
    )


def _add_context(_logger: object, _method: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Add the ids of the call at hand, and the name of its admin key; ids that a message of a task brought along stay."""
    if (call := context.known()) is not None:
        named = {"request_id": call.request_id, "call_id": str(call.call_id), "admin_key": call.key_name}
        for name, value in named.items():
            if value is not None:
                line.setdefault(name, value)
    return line
