"""The command line on the real stack, as a process."""

import json
import signal
import threading
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from uuid import UUID

import pytest

from engines.backends.base import Ref
from roundhouse_client import ApiError, Client, cli
from tests import servers
from tests.engines.registry import put_engine


def test_engine_is_provisioned_listed_and_destroyed(shell):
    assert json.loads(shell.run("provision", "alice", "--json").stdout)["status"] == "running"
    listed = shell.run("engines", "list").stdout
    assert "alice" in listed
    assert "sk-sept-" not in listed
    assert "sk-sept-" in shell.run("engines", "get", "alice").stdout
    assert shell.run("stop", "alice").stdout.split() == ["status", "stopped"]
    assert "engine_stopped" in shell.run("admit", "alice", expect=1).stdout
    assert json.loads(shell.run("--json", "engines", "start", "alice").stdout)["status"] == "running"
    assert "api_key" in shell.run("rotate-key", "alice").stdout
    assert "running" in shell.run("status").stdout
    assert "destroyed" in shell.run("destroy", "alice").stdout
    assert shell.run("engines", "list").stdout == ""


def test_list_is_json_lines(shell, acme):
    for user_id in ("a", "b"):
        put_engine(acme, user_id)
    lines = shell.run("engines", "list", "--json", "--status", "running").stdout.splitlines()
    assert {json.loads(line)["user_id"] for line in lines} == {"a", "b"}


def test_list_names_an_engine_whose_disk_is_exceeded(shell, acme):
    put_engine(acme, "a", disk_used_mb=1600)
    put_engine(acme, "b", disk_used_mb=16)
    a, b = sorted(shell.run("engines", "list").stdout.splitlines(), key=lambda line: line.split()[1])
    assert a.endswith("  disk 1600 of 1024 MB")
    assert "disk" not in b


def test_refusal_is_told_on_stderr(shell):
    told = shell.run("engines", "get", "nobody", expect=1)
    assert told.stdout == ""
    assert "ENGINE_NOT_FOUND" in told.stderr
    assert "request id: " in told.stderr


class Crowded(BaseHTTPRequestHandler):
    """Has no place for a request to wait."""

    def do_POST(self):
        error = {"code": "UNAVAILABLE", "message": "It goes on.", "details": {"operation_id": "the-operation"}}
        body = json.dumps({"error": error}).encode()
        self.send_response(503)
        for name, value in (("Retry-After", "2"), ("Content-Length", str(len(body)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_crowded_server_is_told_with_the_operation_and_the_time_of_a_retry(capsys, monkeypatch):
    monkeypatch.setenv("ROUNDHOUSE_PLATFORM_KEY", "k")
    with ThreadingHTTPServer(("127.0.0.1", 0), Crowded) as crowded:
        threading.Thread(target=crowded.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{crowded.server_port}"
        assert cli.main(["--url", url, "--retries", "0", "start", "alice"]) == cli.UNAVAILABLE
        with Client(url, "k", retries=0) as client, pytest.raises(ApiError) as refused:
            client.start("alice")
        crowded.shutdown()
    told = capsys.readouterr().err
    assert "the-operation" in told
    assert "retry after: 2 s" in told
    assert (refused.value.operation_id, refused.value.retry_after_s) == ("the-operation", 2)


def test_wait_that_is_over_names_the_operation(shell):
    told = shell.run("provision", "alice", "--wait", "0", expect=3).stderr
    operation = told.split()[-1]
    assert operation in shell.run("operation", operation).stdout


def test_nobody_there_is_another_exit_code(shell):
    assert "refused" in shell.run("status", "--url", "http://127.0.0.1:1", "--retries", "0", expect=3).stderr


def test_missing_key_is_named(shell):
    del shell.environment["ROUNDHOUSE_PLATFORM_KEY"]
    assert "set ROUNDHOUSE_PLATFORM_KEY" in shell.run("status", expect=2).stderr
    shell.run("health")


def test_wrong_usage_is_refused(shell):
    shell.run("fly", expect=2)
    shell.run("engines", "get", "..", expect=2)


FOLLOWED = {  # what one of the first lines has, and a later one once the engine was restarted
    "logs": (["logs", "-f", "-n", "1", "alice"], "boot 1", "boot 2"),
    "audit": (["audit", "-f", "-n", "20"], "provision", "stop"),  # a probe's row may be the newest
}


@pytest.mark.parametrize("what", FOLLOWED)
def test_what_is_followed_goes_on_until_interrupted(server, acme, shell, what):
    command, first, later = FOLLOWED[what]
    shell.run("provision", "alice")
    process = shell.start(*command)
    with ThreadPoolExecutor(1) as pool:
        try:
            assert first in pool.submit(read_until, process.stdout, first).result(30)
            new = pool.submit(read_until, process.stdout, later)
            for verb in ("stop", "start"):
                assert server.call("POST", f"/engines/alice/{verb}", acme.key).status_code == 200
            assert later in new.result(30)
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=20)
        finally:
            process.kill()  # so that nobody goes on reading from it
    assert process.returncode == 130


def read_until(lines, word):
    """The first of the lines that has the word."""
    return next(line for line in lines if word in line)


HOSTILE = "\x1b]0;title\x07 \x1b[2J\x9b31m \u202egnp.exe\u2066 over\rwritten\x08 \u200btab\there \x7f é 日本 \\x1b"
SHOWN = r"\x1b]0;title\x07 \x1b[2J\x9b31m \u202egnp.exe\u2066 over\rwritten\x08 \u200btab" + "\there \\x7f é 日本 \\x1b"


def test_log_line_is_shown_as_text_on_a_terminal_and_is_unchanged_in_a_pipe(shell):
    engine_id = json.loads(shell.run("provision", "alice", "--json").stdout)["engine_id"]
    servers.MEMORY.backend.say(Ref(UUID(engine_id), 1), HOSTILE)
    assert shell.run_on_terminal("logs", "alice").splitlines()[-1].replace("\t", "") == SHOWN.replace("\t", "")
    assert HOSTILE.replace("\r", "\n") in shell.run("logs", "alice").stdout  # a pipe in text mode reads "\r" as "\n"
    assert json.loads(shell.run_on_terminal("logs", "alice", "--json").splitlines()[-1]) == HOSTILE
    shell.environment |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # a terminal without "é"
    assert r"\xe9 \u65e5\u672c" in shell.run_on_terminal("logs", "alice")


def test_text_of_others_is_shown_as_text_on_a_terminal(shell, acme):
    put_engine(acme, "alice\U0001f469\u200d\U0001f680", engine_version=HOSTILE)
    reason = "late\x1b[31m\nstatus  active"
    written = [
        shell.run_on_terminal("engines", "list"),
        shell.run_on_terminal("products", "suspend", str(acme.pk), reason),
        shell.run_on_terminal("audit"),
        shell.run_on_terminal("engines", "get", "\x9bnobody", expect=1),
        shell.run_on_terminal("fly\x1b[2J", expect=2),
    ]
    for text in written:
        assert not [
            character for character in text if character not in "\n\t" and unicodedata.category(character) in ("Cc", "Cf")
        ]
    assert r"late\x1b[31m\nstatus  active" in written[1]


def test_audit_of_all_products_needs_an_option_and_names_whom_the_caller_acts_for(shell, acme):
    shell.run("provision", "alice", "--on-behalf-of", "ada")
    own, of_one, of_all = (
        [json.loads(line) for line in shell.run("audit", "--json", *options).stdout.splitlines()]
        for options in ((), ("--product-id", str(acme.pk)), ("--all", "-n", "1000"))
    )
    assert {row["product_slug"] for row in own} == {row["product_slug"] for row in of_one} == {acme.slug}
    assert {row["on_behalf_of"] for row in own if row["action"] == "provision"} == {"ada"}
    assert {row["id"] for row in own} <= {row["id"] for row in of_all}


def test_audit_is_printed_oldest_first(shell):
    shell.run("provision", "alice")
    told = shell.run("audit", "--user-id", "alice").stdout.splitlines()
    assert [line.split()[1] for line in told[:2]] == ["provision_requested", "provision"]  # a probe may have followed


def test_operator_keeps_products_and_keys(shell):
    made = json.loads(shell.run("products", "register", "initech", "Initech", "--policy", '{"max_engines": 1}', "--json").stdout)
    assert made["platform_api_key"].startswith("pk-sept-")
    product = made["product_id"]
    assert json.loads(shell.run("products", "policy", product, "{}", "--json").stdout) == {}
    shell.run("products", "env", product, '{"MODEL": "x"}')
    assert "MODEL" in shell.run("products", "env", product).stdout
    key = json.loads(shell.run("keys", "issue", product, "--scope", "read", "--json").stdout)
    shell.run("keys", "rotate", product, "--overlap", "5")
    shell.run("keys", "revoke", product, key["key_id"])
    assert len(shell.run("keys", "list", product, "--json").stdout.splitlines()) == 3
    admin = json.loads(shell.run("admin-keys", "issue", "bob", "--json").stdout)
    assert admin["name"] in shell.run("admin-keys", "list").stdout
    shell.run("admin-keys", "revoke", admin["key_id"])


def test_operator_suspends_and_resumes_a_product(shell, acme):
    suspended = json.loads(shell.run("products", "suspend", str(acme.pk), "unpaid", "--stop-engines", "--json").stdout)
    assert (suspended["reason"], suspended["stopping"]) == ("unpaid", 0)
    assert "PRODUCT_SUSPENDED" in shell.run("admit", "alice", expect=1).stderr
    shell.run("products", "resume", str(acme.pk), "paid")
    assert "engine_not_found" in shell.run("admit", "alice", expect=1).stdout


def test_operator_overrides_a_rule_for_a_time(shell, acme):
    command = ("products", "override", str(acme.pk), "images", '["acme/*"]', "60", "a new image", "--json")
    granted = json.loads(shell.run(*command).stdout)
    assert granted["value"] == ["acme/*"]
    shell.run("products", "end-override", str(acme.pk), granted["override_id"])
    assert "a new image" in shell.run("products", "overrides", str(acme.pk)).stdout


def test_operator_deletes_a_product(shell, acme):
    assert json.loads(shell.run("products", "delete", str(acme.pk), "--json").stdout)["status"] == "deleted"
    assert "INVALID_PLATFORM_KEY" in shell.run("status", expect=1).stderr


def test_explain_says_what_would_happen(shell, acme):
    assert "provision" in shell.run("explain", "provision", "alice").stdout
    assert "POLICY_DENIED" in shell.run("explain", "provision", "alice", "--image", "acme/agent:1", expect=1).stdout
    assert json.loads(shell.run("explain", "admit", "alice", "--provision", "--json").stdout)["would"] == "provision"
    put_engine(acme)
    assert json.loads(shell.run("explain", "stop", "alice", "--product", str(acme.pk), "--json").stdout)["would"] == "stop"
    assert "EngineNotFound" not in shell.run("explain", "start", "bob", expect=1).stdout
    shell.run("explain", "fly", "alice", expect=1)
