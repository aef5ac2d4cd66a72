"""Fixtures of all tests. Nothing of ours is patched; `db` is the run's real PostgreSQL, emptied before each test."""

import contextlib
import os
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import psycopg
import pytest
from django.core.management import call_command
from django.test import Client

from config.processes import Edition
from tests import kinds, servers, waiting
from tests.stack import Stack


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """On CI a skipped test has failed: all it needs is to be installed. A test that fails shows what its stack has logged."""
    report = yield
    stacks = [value for value in getattr(item, "funcargs", {}).values() if isinstance(value, Stack)]
    if report.failed:
        report.sections += [("errors that the stack has logged", stack.errors()) for stack in stacks]
    if report.skipped and os.environ.get("CI"):
        report.outcome = "failed"
        report.longrepr = f"skipped on CI: {report.longrepr}"
    return report


@pytest.fixture(scope="session", autouse=True)
def _engines_in_memory() -> None:
    """This process has its engines in memory, unless a test asks for others; see `engine_processes` and `running_stack`."""
    from django.conf import settings

    settings.ENV = settings.ENV.model_copy(update={"engine_backend": "memory"})


@pytest.fixture(scope="session", autouse=True)
def _quick_hashes() -> None:
    """Passwords are hashed in this process with few iterations; processes of a deployment hash as always."""
    from django.conf import settings

    settings.PASSWORD_HASHERS = ["tests.staff.QuickHasher"]


@pytest.fixture(scope="session", autouse=True)
def _static_files_on_request() -> None:
    """Each test has a client of its own, and each client would list all static files again: 40 ms."""
    from django.conf import settings

    settings.WHITENOISE_AUTOREFRESH = True


@pytest.fixture(scope="session")
@kinds.needs("sql")
def database(django_db_blocker: Any) -> None:
    """The run's servers, up and migrated."""
    servers.SERVERS.start()
    _spare_the_disk()
    servers.MEMORY.start()
    with django_db_blocker.unblock():
        call_command("migrate", verbosity=0)


def _spare_the_disk() -> None:
    """Have PostgreSQL not wait for the disk at each commit. Only a crash of the whole machine would lose something by that."""
    with as_superuser() as connection:
        for setting in ("fsync", "full_page_writes"):
            connection.execute(f"ALTER SYSTEM SET {setting} = off")
        connection.execute("SELECT pg_reload_conf()")


def as_superuser() -> psycopg.Connection[Any]:
    """A connection that passes every guard: the tests' own, never the code's."""
    return psycopg.connect(servers.SERVERS.urls.superuser, autocommit=True)


_EMPTY = """
DO $$ DECLARE filled text; BEGIN
    SET LOCAL session_replication_role = replica;  -- past the guards
    -- Not partition by partition: the keeper may drop one just now. The log last: a stack that several tests share may be
    -- judging an engine just now, and this waits for that engine's row; its audit row is there, and goes, afterwards.
    FOR filled IN
        SELECT relname FROM pg_class
        WHERE relkind IN ('r', 'p') AND NOT relispartition AND relnamespace = 'public'::regnamespace
            AND relname NOT IN ('django_migrations', 'django_content_type', 'auth_permission', 'audit_window', 'audit_action',
                'audit_stretch', 'audit_counting', 'jobs_job')
        ORDER BY relname LIKE 'audit%', oid
    LOOP
        EXECUTE format('DELETE FROM %I', filled);
    END LOOP;
END $$"""


@cache
def _kept_connection() -> psycopg.Connection[Any]:
    """To make one for each test would cost ten times what the statement costs."""
    return as_superuser()


def empty() -> None:
    """Remove every row of ours, past the guards, every message of Valkey, and the call of an earlier test."""
    from common import context, outages, valkey
    from fleet.staff import brakes
    from policy import refusals, tallies

    try:
        _kept_connection().execute(_EMPTY)
    except psycopg.OperationalError:  # the test before has restarted the server
        _kept_connection.cache_clear()
        _kept_connection().execute(_EMPTY)
    valkey.client().flushall()
    valkey._open_until = 0.0  # it may have been away in the test before
    outages.VALKEY._since = outages.POSTGRESQL._since = None
    tallies._known.clear()
    refusals._firsts.clear()
    brakes._here.clear()
    context.enter(None)


@pytest.fixture
def db(database: None, django_db_blocker: Any) -> Iterator[None]:
    """An empty database, and after the test no engine that still runs."""
    empty()
    with django_db_blocker.unblock():
        yield
        empty()  # first: a stack that several tests share would make again what it misses
        _remove_engines()
        from django.db import connections

        connections.close_all()


def _remove_engines() -> None:
    """Remove every engine of this process's backend, and what trouble a test has asked of it."""
    from engines import backends
    from engines.backends.memory import MemoryBackend

    backend = backends.get()
    if isinstance(backend, MemoryBackend):
        backend.reset()
        return
    for engine_id in {instance.ref.engine_id for instance in backend.list()}:
        backend.remove(engine_id)


@contextlib.contextmanager
def engines_on(name: str) -> Iterator[None]:
    """This process has its engines on the backend `name`; none is left there afterwards."""
    from django.conf import settings

    from engines import backends

    layer, usual = settings._wrapped, settings.ENV
    settings.ENV = usual.model_copy(update={"engine_backend": name})
    backends.get.cache_clear()
    try:
        yield
    finally:
        _remove_engines()
        settings.ENV = usual  # what is torn down next asks for the backend again
        layer.ENV = usual  # what the test has overridden since lies on top, and goes
        backends.get.cache_clear()


@pytest.fixture
def superuser(database: None) -> Iterator[psycopg.Connection[Any]]:
    """The superuser's connection, for looking past every guard."""
    with as_superuser() as connection:
        yield connection


@pytest.fixture
def own_database(db: None) -> None:
    """The database is stored as the one of this process's deployment."""
    from engines import deployment

    deployment.store()


@pytest.fixture
def as_deployment(settings: Any) -> Callable[[str], None]:
    """Gives this process another ORCH_DEPLOYMENT, as one that was started on a copy would have."""

    def rename(name: str) -> None:
        settings.ENV = settings.ENV.model_copy(update={"deployment": name})

    return rename


@pytest.fixture
def product(db: None) -> Any:
    """A registered product without limits; `product.key` is its platform key."""
    return make_product()


@pytest.fixture
def other_product(db: None) -> Any:
    """A second product."""
    return make_product("other")


def make_product(slug: str = "acme", policy: dict[str, int] | None = None) -> Any:
    """Register a product; the plaintext of its platform key is put on it as `key`."""
    from audit import actors
    from policy import products

    made, key = products.register(slug, slug.title(), policy or {}, by=actors.ADMIN)
    made.key = key
    return made


@pytest.fixture
def api(product: Any) -> "Api":
    """The REST API as `product` calls it, in this process."""
    return Api(product.key)


class Api(Client):
    """Django's test client with a platform key and JSON both ways."""

    def __init__(self, key: str) -> None:
        super().__init__(headers={"X-Platform-Key": key}, raise_request_exception=False)

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        return self.generic(method, path, *_encode(body), headers={**self.headers_of(), **headers})

    def headers_of(self) -> dict[str, str]:
        return {"X-Platform-Key": self.defaults["HTTP_X_PLATFORM_KEY"]}


def _encode(body: Any) -> tuple[bytes, str]:
    import json

    return (b"", "") if body is None else (json.dumps(body).encode(), "application/json")


@pytest.fixture
def carry_out() -> Callable[[Any], Any]:
    """Carry out an operation in this process, as a worker would; returns it as it is then."""

    def run(operation: Any) -> Any:
        from engines import worker

        worker.run(operation.pk)
        operation.refresh_from_db()
        return operation

    return run


@pytest.fixture
def running_engine(product: Any, carry_out: Callable[[Any], Any]) -> Any:
    """A healthy engine of `product`, user "alice"."""
    return make_running(product, "alice", carry_out)


@pytest.fixture
def make_engine(product: Any, carry_out: Callable[[Any], Any]) -> Callable[[str], Any]:
    """Makes a healthy engine of `product` for the user it is called with."""
    return lambda user_id: make_running(product, user_id, carry_out)


@pytest.fixture
def memory_backend(database: None) -> Iterator[Any]:
    """The memory backend, to make trouble with; this process has seen nothing of its host yet."""
    from engines import backends

    with engines_on("memory"):
        yield backends.get()


@pytest.fixture
def engine_processes(db: None) -> Iterator[None]:
    """Engines of this test are processes of this machine: for tests that call them, or look at their files."""
    with engines_on("subprocess"):
        yield


def make_running(product: Any, user_id: str, carry_out: Callable[[Any], Any]) -> Any:
    """Provision an engine in this process and wait for it."""
    from audit import actors
    from engines import lifecycle

    operation = carry_out(lifecycle.provision(product, user_id, by=actors.product(product.slug)))
    assert operation.state == "succeeded", operation.error_message
    return operation.engine.__class__.objects.select_related("product").get(pk=operation.engine_id)


@pytest.fixture
def stack(db: None) -> Iterator[Stack]:
    """Every process there is, for real, on the test's database; a dead one is started again."""
    with running_stack() as processes:
        yield processes


@pytest.fixture
def memory_stack(db: None) -> Iterator[Stack]:
    """The same with engines in memory: for tests that call no engine, or make trouble for some."""
    with running_stack(ORCH_ENGINE_BACKEND="memory") as processes:
        yield processes


@kinds.needs("deployment")
@contextlib.contextmanager
def running_stack(*names: str, edition: Edition = "full", **environment: str) -> Iterator[Stack]:
    """A stack that serves, with further variables in its environment. This process has its engines where it has them.

    `names`: its processes; without any, all of the edition.
    """
    backend = environment.get("ORCH_ENGINE_BACKEND", os.environ["ORCH_ENGINE_BACKEND"])
    with engines_on(backend), contextlib.closing(Stack(edition, **environment)) as processes:
        processes.start(*(names or processes.names))
        waiting.until(processes.serves, 30, "the web server answers")
        yield processes
