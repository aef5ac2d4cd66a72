"""The scripts that compare benchmarks, count words, and ask for known vulnerabilities."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest

from tests import servers

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


def load(name):
    loader = SourceFileLoader(name.replace("-", "_"), str(SCRIPTS / name))
    module = module_from_spec(spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


def test_bench_against_reads_every_number_by_its_line_and_place():
    figures = load("bench-against").read("Roundhouse    831     11.1  0.62 x\nPASS  p99 3.0 ms\n")
    assert figures == {
        ("Roundhouse # # # x", 0): 831.0,
        ("Roundhouse # # # x", 1): 11.1,
        ("Roundhouse # # # x", 2): 0.62,
        ("PASS p99 # ms", 0): 3.0,
    }


def test_bench_against_reports_the_median_of_the_ratios(capsys):
    key = ("admit # # ms", 1)
    load("bench-against").report({key: [10.0, 10.0, 10.0]}, {key: [10.0, 11.0, 20.0]})
    line = capsys.readouterr().out.splitlines()[1]
    assert line.split()[0] == "1.100"
    assert line.endswith("admit # [#] ms")


@pytest.mark.parametrize(
    ("text", "pointing", "words"),
    [
        ('"""What it is."""\n', 2, 3),
        ("limit = 3  # engines of the product\n", 0, 4),
        ("x = 1  # noqa: E501\n", 0, 0),
        ('limit = 3\n"""One of those."""\n', 2, 3),
    ],
)
def test_pointing_words_counts_docstrings_and_comments(tmp_path, text, pointing, words):
    path = tmp_path / "module.py"
    path.write_text(text)
    assert load("pointing-words").count(path) == (pointing, words)


class Osv(BaseHTTPRequestHandler):
    """A database of vulnerabilities that knows one of `django`."""

    def do_POST(self):
        queries = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
        known = {"vulns": [{"id": "GHSA-1", "modified": "2026-01-01T00:00:00Z"}]}
        self.answer({"results": [known if query["package"]["name"] == "django" else {} for query in queries]})

    def do_GET(self):
        self.answer({"id": "GHSA-1", "summary": "A \x1b[31mred\x1b[0m one"} if self.path == "/v1/vulns/GHSA-1" else {})

    def answer(self, body):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_):
        pass


def ask_for_vulnerabilities(url, *locks):
    command = [sys.executable, SCRIPTS / "known-vulnerabilities", *locks]
    return subprocess.run(command, env={**os.environ, "ORCH_OSV_URL": url}, capture_output=True, text=True, timeout=60)


def test_known_vulnerabilities_are_reported(tmp_path):
    lock = tmp_path / "some.lock"
    lock.write_text(
        "# a comment\ndjango==5.2.19 \\\n    --hash=sha256:00\nredis==8.1.0 ; sys_platform == 'linux' \\\n    --hash=sha256:00\n"
    )
    with HTTPServer(("127.0.0.1", 0), Osv) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = ask_for_vulnerabilities(f"http://127.0.0.1:{server.server_port}", lock)
        server.shutdown()
    assert done.returncode == 0, done.stderr
    said = ["django 5.2.19: GHSA-1 (A ?[31mred?[0m one)", "Known vulnerabilities: 1 in 2 packages."]
    assert done.stdout.splitlines() == said


def test_known_vulnerabilities_fail_nothing_where_their_source_cannot_be_reached():
    done = ask_for_vulnerabilities(f"http://127.0.0.1:{servers.free_port()}")
    assert (done.returncode, done.stderr) == (0, "")
    assert "nothing was looked up" in done.stdout
