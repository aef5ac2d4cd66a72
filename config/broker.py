"""Celery's way through Valkey: kombu's transport, which no message of a stranger stops.

Whoever reaches Valkey can put anything into our queues. With kombu alone, a worker ends at text that is not JSON, at a message
without its parts, and at a queue of another type. Here such an entry is logged and dropped.

A message is a hint: the name of a task, and ids that the task looks up in PostgreSQL. Nothing else in a message is believed:

- Only JSON is read (`CELERY_ACCEPT_CONTENT`).
- Nobody controls a worker through Valkey (`CELERY_WORKER_ENABLE_REMOTE_CONTROL`).
- Where a message goes is not looked up: exchange and queue have the same name.
- Messages that a worker holds are not kept in Valkey: the operation's row is the queue, and a lost message is only a delay.
"""

from collections.abc import Callable
from queue import Empty
from typing import Any

import kombu
import redis
import structlog
from celery.app.amqp import AMQP as CELERYS_AMQP
from kombu.transport import TRANSPORT_ALIASES, redis as kombu_redis, virtual

from common import valkey
from common.outages import VALKEY

RECONNECT_S = 1.0  # between two tries to connect to Valkey; kombu's own pauses grow to 30 s, and it gives up after 100 tries
TASKS = ("engines.tasks.", "policy.tasks.", "audit.tasks.", "config.tasks.")  # how the names of our tasks begin

log = structlog.get_logger(__name__)


_Channel: Any = kombu_redis.Channel  # the types of kombu leave out most of the class
_QoS: Any = virtual.QoS


class QoS(_QoS):  # type: ignore[misc]
    """The messages in a worker's hands: put back into their queues when the worker ends, and when its connection ends."""

    def restore_unacked(self) -> list[Any]:
        """Put the messages back. A message that Valkey does not take is lost, and that is only a delay.

        kombu gets no message to keep: it would log an error, and write the message into a file in /tmp.
        """
        if lost := super().restore_unacked():
            log.info("messages_lost", count=len(lost))
        return []


class Channel(_Channel):  # type: ignore[misc]
    """kombu's channel, except for what it reads from Valkey."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.QoS = QoS

    def get_table(self, exchange: str) -> list[tuple[str, str, str]]:
        """Routing key, pattern and queue of the exchange, which kombu would read from Valkey."""
        return [(exchange, "", exchange)]

    def _queue_bind(self, *_: Any) -> None:
        """Write nothing to Valkey: `get_table` knows all."""

    def _put(self, queue: str, message: Any, **options: Any) -> None:
        """Put the message into the queue, also where something of another type has the queue's key."""
        try:
            super()._put(queue, message, **options)
        except redis.ResponseError as error:
            if not valkey.is_complaint(error):
                raise
            self._remove_foreign([queue], error)
            super()._put(queue, message, **options)

    def basic_consume(self, queue: str, no_ack: bool, callback: Callable[[Any], Any], *args: Any, **options: Any) -> Any:
        """Consume messages; a message at which `callback` fails is dropped, and gives its place back."""

        def receive(message: Any) -> Any:
            try:
                _check(message.headers)
                return callback(message)
            except self.connection_errors:
                raise
            except Exception as error:  # noqa: BLE001 (whatever a stranger's message makes Celery stumble over)
                _dropped(queue, error)
                message.reject()

        return super().basic_consume(queue, no_ack, receive, *args, **options)

    def _brpop_read(self, **options: Any) -> Any:
        """Hand the next message to its consumer; what is no message is dropped."""
        queues, not_ours = list(self.active_queues), (Empty, *self.connection_errors)
        try:
            message = super()._brpop_read(**options)
        except not_ours as error:
            if isinstance(error, Empty):
                VALKEY.answered()
            raise
        except redis.ResponseError as error:
            if not valkey.is_complaint(error):
                raise
            self._remove_foreign(queues, error)
        except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            _dropped("", error)
        else:
            VALKEY.answered()
            return message
        raise Empty

    def _remove_foreign(self, queues: list[str], complaint: redis.ResponseError) -> None:
        """Remove the queues' keys of another type than a list."""
        keys = [self._q_for_pri(queue, priority) for queue in queues for priority in self.priority_steps]
        with self.conn_or_acquire() as client:
            foreign = [key for key in keys if client.type(key) not in (b"none", b"list")]
            if foreign:
                client.delete(*foreign)
        log.warning("valkey_entry_removed", keys=foreign, error=str(complaint))


def _check(headers: dict[str, Any]) -> None:
    """Raise ValueError for a task of Celery's own, and for a message that is to wait, which would hold a place until then."""
    task = headers.get("task")
    if not isinstance(task, str) or not task.startswith(TASKS):
        raise ValueError(f"not a task of ours: {task}")
    if headers.get("eta"):
        raise ValueError("no task of ours waits in a worker")


def _dropped(queue: str, error: Exception) -> None:
    log.warning("message_dropped", queue=queue, error=f"{type(error).__name__}: {error}"[:200])


class Transport(kombu_redis.Transport):
    """kombu's transport with our channel."""

    Channel = Channel


_Connection: Any = kombu.Connection  # the types of kombu say nothing of retries without end


class Connection(_Connection):  # type: ignore[misc]
    """kombu's connection, which a consumer tries to make again every RECONNECT_S, with a log line per outage."""

    def ensure_connection(self, errback: Any = None, max_retries: Any = None, **options: Any) -> Any:
        """Connect, however long this takes. `errback` would only log each try."""
        pauses = {"interval_start": RECONNECT_S, "interval_step": 0.0, "interval_max": RECONNECT_S}
        made = super().ensure_connection(lambda error, _pause: VALKEY.failed(error), None, **(options | pauses))
        VALKEY.answered()
        return made


class Amqp(CELERYS_AMQP):
    """How Celery connects to the broker: with our connection."""

    Connection = BrokerConnection = Connection


def install() -> None:
    """Make `redis://`, `rediss://` and `redis+socket://` mean our transport, in this process."""
    TRANSPORT_ALIASES.update(dict.fromkeys(("redis", "rediss"), f"{__name__}:Transport"))
