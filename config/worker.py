"""Celery's own processes: workers, with their work at the start, and beat.

python -m config.worker NAME     NAME is a process of `config.processes`

Celery's command line is not used, because importing it takes half a second per process. The worker named `worker` also runs beat.
"""

import logging
import os
import resource
import signal
import socket
import sys
import threading
from typing import Any

import django
import structlog
from celery.signals import worker_init, worker_ready, worker_shutdown
from django.conf import settings

from config import start_check
from config.celery import app
from fleet import jobs

OPEN_FILES = 8_192  # at least, if the system allows it: a probe in progress has a connection, and 500 engines are probed at once
BEAT_STOP_S = 2.0  # for the look at the database that is under way
log = structlog.get_logger(__name__)


def main(name: str) -> int:
    """Run the process `name` until a signal stops the process; return the exit code."""
    os.environ["ORCH_PROCESS"] = name
    os.environ["CELERY_SKIP_CHECKS"] = "1"  # Django's checks load every page; `migrate` runs the checks
    django.setup()
    start_check.run()
    if name == "beat":
        return _beat()
    return _work(name)


def _beat() -> int:
    """Run beat until a signal stops it."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    django.setup()
    jobs.tick(stopping)
    return 0


def _work(name: str) -> int:
    queues, threads = settings.CONSUMERS[name]
    if name == "keeper" and (wrong := _refused_session()):
        print(f"settings: {wrong}", file=sys.stderr)
        return 2
    if "health" in queues:
        allow_open_files()
    worker = app.Worker(
        hostname=f"{name}@{socket.gethostname()}",
        queues=queues,
        pool_cls="threads",
        concurrency=threads,
        prefetch_multiplier=1,  # no reservations: a waiting message goes to the first free worker
        without_gossip=True,  # gossip, mingle and heartbeats between workers have no listener here
        without_mingle=True,
        without_heartbeat=True,
        loglevel=logging.WARNING,
        quiet=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


def _refused_session() -> str:
    """Why the keeper cannot work with the owner's URL; empty if it can."""
    from audit import partitions
    from common.pooled.sessions import NoSession

    try:
        partitions.check_session()
    except NoSession as error:
        return str(error)
    return ""


def allow_open_files() -> None:
    """Raise this process's limit on open files, which is often 1,024: a probe without a connection would count as failed."""
    limit, highest = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if highest == resource.RLIM_INFINITY else min(OPEN_FILES, highest)
    if limit != resource.RLIM_INFINITY and limit < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, highest))


@worker_init.connect
def join(**_: Any) -> None:
    """Connect the worker to the engines' networks before the first message: unreachable engines would seem dead.

    A worker with probes first resumes engines that died while no worker ran: their death does not count as a failure. Any other
    worker only looks at the runtime: a provision has to know whether the database was restored.
    """
    queues, _threads = settings.CONSUMERS[settings.PROCESS]
    if queues == ["keeper"]:
        return
    from engines import reconcile

    reconcile.join()
    if "health" in queues:
        reconcile.begin()
    else:
        reconcile.look()


@worker_ready.connect
def begin(sender: Any, **_: Any) -> None:
    """Start the watch of operation workers (`engines.worker.renewal`), and beat in `worker`."""
    queues = sorted(queue.name for queue in sender.task_consumer.queues)
    log.info("worker_ready", queues=queues, threads=sender.pool.num_processes)
    if settings.PROCESS in settings.OPERATION_WORKERS:
        from engines.worker import renewal

        renewal.watch(settings.OPERATION_WORKERS[settings.PROCESS][0])
    if settings.PROCESS == "worker":
        _start_beat()


def _start_beat() -> None:
    """Run beat as a thread of the worker until the worker ends."""
    stopping = threading.Event()

    def run() -> None:
        try:
            jobs.tick(stopping)
        finally:
            if not stopping.is_set():  # without beat, the worker would look alive but start no periodic task
                log.error("beat_ended", exc_info=True)
                os._exit(1)  # a supervisor starts a new worker

    thread = threading.Thread(target=run, name="beat", daemon=True)

    def stop(**_: Any) -> None:
        stopping.set()
        thread.join(BEAT_STOP_S)

    worker_shutdown.connect(stop, weak=False)
    thread.start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
