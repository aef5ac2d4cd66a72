"""A product's engine environment: written whole, never shown, and given to the instances that are made from then on."""

from datetime import timedelta
from pathlib import Path

import pytest
from django.conf import settings
from django.db.models.functions import Now
from django.test import Client

from audit import actors
from audit.models import AuditRow
from engines import backends, environments as old_environments, lifecycle, specs
from engines.backends.base import BackendError, Ref
from engines.backends.process import store
from engines.models import Engine
from policy import crypto, environments
from policy.models import EngineEnv
from tests.conftest import Api
from tests.engines.crew import in_parallel
from tests.engines.registry import put_engine, put_operation
from tests.envelopes import assert_error
from tests.staff import log_in

ANY_ID = "00000000-0000-4000-8000-000000000000"
SECRET = "s3cret-value"


@pytest.fixture
def admin(db):
    """The REST API as the operator calls it."""
    return Client(headers={"X-Admin-Key": settings.ENV.admin_key})


def address(product):
    return f"/products/{product.pk}/engine-env"


def put(admin, product, env):
    return admin.put(address(product), {"env": env}, "application/json")


def replace(product, **env):
    return environments.replace(product.pk, env, by=actors.ADMIN)


def variables(engine):
    """What the engine's process was started with."""
    engine.refresh_from_db()
    process = store.read_record(settings.ENGINES_ROOT / str(engine.pk), engine.mark).process
    environ = Path(f"/proc/{process.pid}/environ").read_text()
    return dict(part.partition("=")[::2] for part in environ.split("\0") if part)


# -- over the API --------------------------------------------------------------------------------------------------------


def test_put_answers_with_names_and_get_with_the_same(admin, product):
    assert admin.get(address(product)).json() == {"version": 0, "names": [], "updated_at": None}
    response = put(admin, product, {"TOKEN": SECRET, "_A1": ""})
    assert response.json() == admin.get(address(product)).json()
    assert response.json() | {"updated_at": ""} == {"version": 1, "names": ["TOKEN", "_A1"], "updated_at": ""}
    row = AuditRow.objects.get(action="engine_env_update")
    assert (row.actor, row.product_slug) == ("admin", "acme")
    assert row.metadata == {"version": 1, "names": ["TOKEN", "_A1"]}


def test_put_replaces_all_and_counts_versions(admin, product):
    for version, env in enumerate(({"A": "1"}, {"B": "2"}, {}, {"B": "2"}), 1):
        body = put(admin, product, env).json()
        assert (body["version"], body["names"]) == (version, list(env))
        assert environments.read(product.pk, version) == env
    assert AuditRow.objects.filter(action="engine_env_update").count() == 4


def test_put_of_what_is_there_is_no_new_version(admin, product):
    first = put(admin, product, {"A": "1"}).json()
    assert put(admin, product, {"A": "1"}).json() == first
    assert AuditRow.objects.filter(action="engine_env_update").count() == 1


def test_put_at_once_makes_a_version_each(product):
    results = in_parallel(lambda n: replace(product, A=str(n)).version, range(8))
    assert sorted(results) == list(range(1, 9))


def test_values_are_in_no_answer_no_row_and_not_in_the_database(admin, product, superuser):
    texts = [put(admin, product, {"TOKEN": SECRET}).text, admin.get(address(product)).text]
    texts += [str(vars(row)) for row in AuditRow.objects.all()]
    texts += [str(row) for row in superuser.execute("SELECT * FROM policy_engineenv").fetchall()]
    assert not any(SECRET in text for text in texts)


@pytest.mark.parametrize(
    "name", ["", "a", "1A", "A-B", "A B", "A=B", "É", "A" * 65, "A\n", "PATH", "PORT", "ENGINE_KEY_HASH", "LD_PRELOAD"]
)
def test_put_refuses_a_name_that_cannot_be(admin, product, name):
    error = assert_error(put(admin, product, {"GOOD": "1", name: SECRET}), 400, "INVALID_REQUEST")
    assert error["message"].startswith("env")
    assert SECRET not in str(error)
    assert not EngineEnv.objects.exists()


@pytest.mark.parametrize("value", [1, None, True, [], {}, f"{SECRET}\0", SECRET * 3000, "é" * 16385])
def test_put_refuses_a_value_that_cannot_be_and_does_not_repeat_it(admin, product, value):
    error = assert_error(put(admin, product, {"TOKEN": value}), 400, "INVALID_REQUEST")
    assert error["message"] == "env.TOKEN: must be a string of at most 32768 bytes without NUL."


@pytest.mark.parametrize("env", [[], "A=1", None, 1, {f"A{n}": "" for n in range(101)}])
def test_put_refuses_what_is_no_environment(admin, product, env):
    assert_error(put(admin, product, env), 400, "INVALID_REQUEST")


def test_put_takes_what_just_fits(admin, product):
    assert put(admin, product, {f"A{n}": "x" * 1000 for n in range(99)} | {"B": "x" * 32768}).status_code == 200


def test_endpoint_is_the_operators(admin, product):
    for method in ("GET", "PUT"):
        none = admin.generic(method, f"/products/{ANY_ID}/engine-env", b'{"env": {}}', "application/json")
        assert_error(none, 404, "PRODUCT_NOT_FOUND")
        assert_error(Api(product.key).call(method, address(product), {"env": {}}), 401, "INVALID_ADMIN_KEY")


# -- in engines ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("engine_processes")
def test_new_engine_gets_the_newest_version_and_remembers_it(product, make_engine):
    replace(product, TOKEN="one")
    replace(product, TOKEN="two", EXTRA="x")
    engine = make_engine("alice")
    got = variables(engine)
    assert (got["TOKEN"], got["EXTRA"], engine.env_version) == ("two", "x", 2)
    assert got["ENGINE_KEY_HASH"] == engine.key_hash


@pytest.mark.usefixtures("engine_processes")
def test_engine_keeps_its_version_until_its_key_is_rotated(product, make_engine, carry_out):
    engine = make_engine("alice")
    replace(product, TOKEN="one")
    for verb in (lifecycle.restart, lifecycle.stop, lifecycle.start):
        carry_out(verb(engine, by=actors.SYSTEM))
    assert "TOKEN" not in variables(engine)
    assert engine.env_version == 0
    carry_out(lifecycle.rotate_key(engine, by=actors.SYSTEM))
    assert variables(engine)["TOKEN"] == "one"
    assert engine.env_version == 1


@pytest.mark.usefixtures("engine_processes")
def test_instance_that_is_lost_is_made_again_as_it_was(product, make_engine, carry_out):
    replace(product, TOKEN="one")
    engine = make_engine("alice")
    replace(product, TOKEN="two")
    carry_out(lifecycle.stop(engine, by=actors.SYSTEM))
    backends.get().destroy(specs.ref_of(engine))
    carry_out(lifecycle.start(engine, by=actors.SYSTEM))
    assert variables(engine)["TOKEN"] == "one"
    assert engine.env_version == 1


@pytest.mark.usefixtures("engine_processes")
def test_provision_gives_the_version_of_the_moment_it_was_asked_for(product, carry_out):
    replace(product, TOKEN="one")
    operation = lifecycle.provision(product, "alice", by=actors.SYSTEM)
    replace(product, TOKEN="two")
    carry_out(operation)
    assert variables(operation.engine)["TOKEN"] == "one"


def test_rotation_that_fails_leaves_the_version_of_the_old_key(product, memory_backend, carry_out):
    replace(product, TOKEN="one")
    engine = put_engine(product, env_version=1)
    replace(product, TOKEN="two")
    memory_backend.fail_next("start", BackendError("no"))
    carry_out(lifecycle.rotate_key(engine, by=actors.SYSTEM))
    engine.refresh_from_db()
    assert engine.env_version == 1
    assert [found.ref for found in memory_backend.list()] == [Ref(engine.pk, 1)]


def test_version_that_no_key_opens_fails_the_operation_with_a_word(product, memory_backend, carry_out):
    replace(product, TOKEN="one")
    EngineEnv.objects.update(ciphertext="of another master key")
    operation = carry_out(lifecycle.provision(product, "alice", by=actors.SYSTEM))
    assert (operation.state, operation.error_code, operation.attempt) == ("failed", "engine_env_unreadable", 1)
    assert "replace the environment" in operation.error_message
    replace(product, TOKEN="two")
    assert environments.newest_version(product.pk) == 2


@pytest.mark.usefixtures("engine_processes")
def test_own_variable_wins_over_the_deployments(product, make_engine, settings):
    settings.ENGINE_ENV = {"TOKEN": "everyone's", "REGION": "eu"}
    replace(product, TOKEN="mine")
    got = variables(make_engine("alice"))
    assert (got["TOKEN"], got["REGION"]) == ("mine", "eu")


def test_page_of_an_engine_tells_its_version(product):
    engine = put_engine(product, env_version=7)
    assert "version 7" in log_in("rita").get(f"/admin/engines/engine/{engine.pk}/change/").text


# -- old versions --------------------------------------------------------------------------------------------------------


def versions():
    return sorted(EngineEnv.objects.values_list("version", flat=True))


def test_prune_removes_what_nobody_needs_any_more(product, other_product):
    for n in range(5):
        replace(product, A=str(n))
    replace(other_product, A="0")
    put_engine(product, "alice", env_version=2)
    put_engine(product, "gone", env_version=1, status="destroyed", destroyed_at=Now())
    put_operation(put_engine(product, "bob"), "rotate_key", params={"env_version": 3})
    assert old_environments.prune() == 0  # replaced a moment ago
    EngineEnv.objects.update(created_at=Now() - timedelta(days=2))
    assert old_environments.prune() == 2
    assert versions() == [1, 2, 3, 5]
    Engine.objects.update(env_version=0)
    assert old_environments.prune() == 1
    assert [environments.newest_version(each.pk) for each in (product, other_product)] == [5, 1]


def test_environment_is_encrypted_under_the_master_key(product):
    replace(product, A="1")
    assert crypto.decrypt(EngineEnv.objects.get().ciphertext) == '{"A": "1"}'
