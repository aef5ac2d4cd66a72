"""Several master keys, and everything encrypted brought under the first: killed in the middle, beside others who write."""

import base64
import contextlib
import io
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from cryptography.fernet import Fernet, InvalidToken
from django.conf import settings as current
from django.core.management import CommandError, call_command
from django.db import connection
from pydantic import ValidationError

from audit import actors
from audit.models import AuditRow
from common.env import Env
from engines.models import Engine, Host, Status
from fleet import master_key
from policy import crypto, environments
from tests import waiting
from tests.engines.registry import put_engine
from tests.stack import Stack

MANY = 6 * master_key.BATCH  # tokens: calls are answered in the middle of their rotation
NEW, NEWER = (base64.urlsafe_b64encode(bytes([number] * 32)).decode() for number in (1, 2))


@pytest.fixture
def use(settings):
    """Makes these the master keys of the process, the first first."""
    usual = settings.ENV
    return lambda *keys: setattr(settings, "ENV", usual.model_copy(update={"master_key": ",".join(keys)}))


@pytest.fixture
def old():
    """The key under which everything is encrypted as the test begins."""
    return current.ENV.master_key


def rotate(*arguments):
    """The command's output, line by line."""
    out = io.StringIO()
    call_command("rotate_master_key", *arguments, stdout=out)
    return out.getvalue().splitlines()


def put_many(product, count):
    host, _ = Host.objects.get_or_create(name="local")
    token = crypto.encrypt("sk-sept-many")
    Engine.objects.bulk_create(
        Engine(
            product=product, host=host, user_id=f"user-{n}", status=Status.STOPPED, engine_version="image:1", port=n,
            key_hash="0" * 64, key_ciphertext=token,
        )
        for n in range(count)
    )  # fmt: skip


def under_old_key():
    return sum(master_key.inspect(column).outdated for column in master_key.columns())


# -- settings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [NEW, f"{NEW},{NEWER}", f" {NEW} , {NEW},", ""])
def test_setting_takes_fernet_keys(given):
    assert len(Env(master_key=given).master_keys) == len([part for part in given.split(",") if part.strip()])


@pytest.mark.parametrize(
    ("given", "words"), [("x", "key 1 of 1"), (f"{NEW},{NEW[:-4]}", "key 2 of 2"), (f"{NEW};{NEW}", "key 1 of 1"), ("é", "key 1")]
)
def test_setting_refuses_what_is_none_without_repeating_it(given, words):
    with pytest.raises(ValidationError) as refused:
        Env(master_key=given)
    assert f"ORCH_MASTER_KEY: {words}" in str(refused.value)
    assert NEW[:40] not in str(refused.value)


def test_first_key_encrypts_and_all_decrypt(use, old):
    token = crypto.encrypt("sk-sept-x")
    use(NEW, old)
    assert crypto.decrypt(token) == "sk-sept-x"
    assert not crypto.is_current(token)
    fresh = crypto.encrypt("sk-sept-y")
    use(NEW)
    assert crypto.decrypt(fresh) == "sk-sept-y"
    with pytest.raises(InvalidToken):
        crypto.decrypt(token)


# -- the command ---------------------------------------------------------------------------------------------------------


def test_every_column_of_tokens_is_found():
    assert {str(column) for column in master_key.columns()} == {
        "engines_engine.key_ciphertext", "engines_engine.pending_key_ciphertext", "policy_engineenv.ciphertext",
        "policy_idempotencykey.answer_ciphertext", "policy_keycheck.ciphertext", "staff_secondfactor.secret_ciphertext",
    }  # fmt: skip


def test_rotate_brings_everything_under_the_first_key(product, use, old, client):
    engine = put_engine(product, pending_key_hash="0" * 64, pending_key_ciphertext=crypto.encrypt("sk-sept-pending"))
    plain = crypto.decrypt(engine.key_ciphertext)
    environments.replace(product.pk, {"A": "1"}, by=actors.ADMIN)
    headers = {"X-Admin-Key": current.ENV.admin_key, "Idempotency-Key": "one"}
    answer = client.post("/products/register", {"slug": "b-1", "display_name": "B"}, "application/json", headers=headers).json()
    use(NEW, old)
    with pytest.raises(CommandError, match="4 tokens are not under the first"):
        rotate("--check")
    lines = rotate()
    assert "engines_engine.key_ciphertext: 1 read, 1 re-encrypted" in lines
    assert lines[-1] == "4 re-encrypted. Everything is under the first master key."
    assert rotate("--check")[-1] == "Everything is under the first master key; the other keys can be removed."
    use(NEW)
    engine.refresh_from_db()
    assert crypto.decrypt(engine.key_ciphertext) == plain
    assert crypto.decrypt(engine.pending_key_ciphertext) == "sk-sept-pending"
    assert environments.read(product.pk, 1) == {"A": "1"}
    again = client.post("/products/register", {"slug": "b-1", "display_name": "B"}, "application/json", headers=headers)
    assert again.json() == answer
    row = AuditRow.objects.get(action="master_key_rotate")
    assert (row.actor, row.metadata) == ("system", {"reencrypted": 4, "unreadable": 0})


def test_rotate_again_changes_nothing(product, use, old):
    engine = put_engine(product)
    use(NEW, old)
    rotate()
    engine.refresh_from_db()
    assert rotate()[-1].startswith("0 re-encrypted")
    assert Engine.objects.get().key_ciphertext == engine.key_ciphertext


def test_rotate_tells_of_what_no_key_opens_and_leaves_it(product, use, old):
    put_engine(product, "alice", key_ciphertext=Fernet(Fernet.generate_key()).encrypt(b"x").decode())
    put_engine(product, "bob")
    use(NEW, old)
    with pytest.raises(CommandError, match=r"^1 re-encrypted; 1 are under no key of ORCH_MASTER_KEY"):
        rotate()
    assert AuditRow.objects.get(action="master_key_rotate").metadata == {"reencrypted": 1, "unreadable": 1}
    with pytest.raises(CommandError):
        rotate("--check")


def test_rotate_that_was_killed_is_run_again(product, use, old):
    put_many(product, 4 * master_key.BATCH)
    process = subprocess.Popen(
        [sys.executable, "manage.py", "rotate_master_key"], cwd=current.BASE_DIR, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "ORCH_MASTER_KEY": f"{NEW},{old}", "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    first = process.stdout.readline()
    process.kill()
    process.communicate()
    assert f"{master_key.BATCH} re-encrypted" in first
    use(NEW, old)
    left = under_old_key()
    assert 0 < left < 4 * master_key.BATCH
    assert not AuditRow.objects.filter(action="master_key_rotate").exists()
    assert rotate()[-1].startswith(f"{left} re-encrypted")
    assert under_old_key() == 0
    assert {crypto.decrypt(token) for token in Engine.objects.values_list("key_ciphertext", flat=True)} == {"sk-sept-many"}


def test_rotate_never_undoes_what_somebody_writes_meanwhile(product, use, old, superuser):
    busy, free = put_engine(product, "busy"), put_engine(product, "free")
    rotated = crypto.encrypt("sk-sept-rotated")  # by a process that does not know the new key yet
    use(NEW, old)
    with superuser.transaction():
        superuser.execute("UPDATE engines_engine SET key_ciphertext = %s WHERE id = %s", [rotated, busy.pk])
        thread = threading.Thread(target=lambda: (rotate(), connection.close()))
        thread.start()
        waiting.until(lambda: crypto.is_current(Engine.objects.get(pk=free.pk).key_ciphertext), what="it waits for no lock")
        assert thread.is_alive()
    thread.join(30)
    busy.refresh_from_db()
    assert crypto.is_current(busy.key_ciphertext)
    assert crypto.decrypt(busy.key_ciphertext) == "sk-sept-rotated"
    assert AuditRow.objects.get(action="master_key_rotate").metadata == {"reencrypted": 2, "unreadable": 0}


@pytest.mark.usefixtures("engine_processes")
def test_rotate_while_serving_fails_no_call_and_gives_no_wrong_key(product, use, old, running_engine):
    put_many(product, MANY)
    changed = {"ORCH_MASTER_KEY": f"{NEW},{old}", "ORCH_BOOT_TIMEOUT_S": "60"}  # a worker gives way to what serves
    command = [sys.executable, "manage.py", "rotate_master_key"]
    its = {"cwd": current.BASE_DIR, "env": {**os.environ, **changed}, "capture_output": True, "text": True, "timeout": 120}
    with contextlib.closing(Stack(**changed, ORCH_WEB_WORKERS="2")) as stack, ThreadPoolExecutor(3) as pool:
        stack.start("web", "ops")
        waiting.until(stack.serves, 30, "the web server answers")
        over = threading.Event()
        asked = [pool.submit(ask_until, over, stack, product, number) for number in range(2)]
        made = pool.submit(stack.call, "POST", "/engines/provision", product.key, {"user_id": "new"})
        try:
            rotated = subprocess.run(command, check=False, **its)
        finally:
            over.set()
        answers = [answer for each in asked for answer in each.result()]
        answers.append((made.result().status_code, works(made.result().json())))
    assert "re-encrypted. Everything is under the first master key." in rotated.stdout, rotated
    use(NEW, old)
    assert rotate("--check")[-1].startswith("Everything is under the first master key")
    assert len(answers) > 30
    assert set(answers) == {(200, True)}


def ask_until(over, stack, product, number):
    """Admit the engine that runs and read others, until it is over: of each answer its status, and whether its key is right."""
    answers = []
    while not over.is_set():
        admitted = stack.call("POST", "/engines/alice/admit", product.key)
        answers.append((admitted.status_code, admitted.status_code == 200 and works(admitted.json()["engine"])))
        other = stack.call("GET", f"/engines/user-{(number * 997 + len(answers) * 31) % MANY}", product.key)
        answers.append((other.status_code, other.json().get("api_key") == "sk-sept-many"))
    return answers


def works(engine):
    """Whether the engine takes the key."""
    headers = {"X-Engine-Key": engine["api_key"]}
    return requests.post(f"{engine['url']}/execute", json={"input": "hi"}, headers=headers, timeout=10).status_code == 200
