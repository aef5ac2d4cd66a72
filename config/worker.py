"""Celery's own processes: a worker, with what it does when it starts, and beat.

python -m config.worker NAME     NAME is a process of `config.processes`

Not by Celery's command line, which takes half a second of each process to import. The worker called `worker` has beat in it.
"""

import logging
import os
import socket
import sys
import threading
from typing import Any

import structlog
from celery.signals import worker_init, worker_ready, worker_shutdown
from django.conf import settings

from config.celery import app

BEAT_STOP_S = 2.0  # for keeping its schedule; it looks up once a second
log = structlog.get_logger(__name__)


def main(name: str) -> int:
    """Be that process until it is told to end; returns its exit code."""
    os.environ["ORCH_PROCESS"] = name
    os.environ["CELERY_SKIP_CHECKS"] = "1"  # they load every page; `migrate` runs them
    if name == "beat":
        app.Beat(schedule=str(settings.BEAT_SCHEDULE), loglevel="WARNING", quiet=True).run()
        return 0
    return _work(name)


def _work(name: str) -> int:
    queues, threads = settings.CONSUMERS[name]
    worker = app.Worker(
        hostname=f"{name}@{socket.gethostname()}",
        queues=queues,
        pool_cls="threads",
        concurrency=threads,
        prefetch_multiplier=1,  # nothing is reserved: a waiting message is there for whoever is free
        without_gossip=True,  # between workers this is traffic that nobody listens to, and so are the next two
        without_mingle=True,
        without_heartbeat=True,
        loglevel=logging.WARNING,
        quiet=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


@worker_init.connect
def join(**_: Any) -> None:
    """Who probes or boots engines has to reach them from the first message on, or would take them for dead.

    A worker that probes engines first resumes those that died while no worker was there: such an engine has not failed.
    """
    queues, _threads = settings.CONSUMERS[settings.PROCESS]
    if queues == ["keeper"]:
        return
    from engines import reconcile

    reconcile.join()
    if "health" in queues:
        reconcile.begin()


@worker_ready.connect
def begin(**_: Any) -> None:
    """A worker of operations watches itself (engines.worker.renewal); `keeper` does what it missed."""
    if settings.PROCESS in settings.OPERATION_WORKERS:
        from engines.worker import renewal

        renewal.watch(*settings.OPERATION_WORKERS[settings.PROCESS])
    if settings.PROCESS == "worker":
        _start_beat()
    elif settings.PROCESS == "keeper":
        for task in ("audit.tasks.make_partitions", "audit.tasks.prune"):
            app.send_task(task)


def _start_beat() -> None:
    """Beat as a thread of this worker, until the worker ends."""
    from celery.beat import Service

    service = Service(app, max_interval=1, schedule_filename=str(settings.BEAT_SCHEDULE))
    stopping = threading.Event()

    def run() -> None:
        try:
            service.start()
        finally:
            if not stopping.is_set():  # a worker without its beat would look alive, and nothing periodic would be done
                log.error("beat_ended", exc_info=True)
                os._exit(1)  # a supervisor starts the next one

    thread = threading.Thread(target=run, name="beat", daemon=True)

    def stop(**_: Any) -> None:
        stopping.set()
        service.stop()
        thread.join(BEAT_STOP_S)

    worker_shutdown.connect(stop, weak=False)
    thread.start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
