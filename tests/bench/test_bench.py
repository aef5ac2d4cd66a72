"""The benchmarks run, on a few of whatever they count; what they find is another matter."""

import importlib.util
import mmap
import os
import subprocess
import sys

import pytest
from django.conf import settings
from django.core.management.base import CommandError
from django.db import connection, transaction

from audit.models import AuditRow
from bench import (
    admit,
    audit,
    audit_check,
    footprint,
    hostile_answers,
    large_log,
    load,
    own_deployment,
    probes,
    provision,
    registry,
    transition,
)
from engines.health.probes import Result
from engines.models import Engine
from fleet import consistency
from policy import products
from tests import servers
from tests.audit.conftest import Months
from tests.conftest import running_stack
from tests.memory import ROOT
from tests.stack import WORKERS


def test_product_of_a_benchmark_leaves_no_engine_and_no_living_key(db):
    with registry.product({"rate_limit_rpm": 5}, 3) as (product, key):
        assert products.authenticate(key).product == product
        assert Engine.objects.filter(product=product, status="running").count() == 3
    assert not Engine.objects.exists()
    assert products.authenticate(key) is None


@pytest.mark.parametrize("module", [admit.LOAD, *admit.PEERS.values()])
def test_module_that_a_benchmark_starts_exists(module):
    """They run on packages of their own (`make bench-venv`), and are not imported here."""
    assert importlib.util.find_spec(module)


def test_transition_measures_moves_that_have_their_rows(db):
    results = transition.measure(rounds=2, count=3)
    assert results.keys() == {"autocommit", "atomic"}
    assert all(seconds > 0 for rounds in results.values() for pair in rounds for seconds in pair)
    assert AuditRow.objects.filter(action__in=["sleep", "wake"]).count() == 2 * 2 * 3
    text, _ = transition.report(results)
    assert "autocommit" in text


def test_audit_measures_the_same_rows_both_ways(db):
    text, _ = audit.report(audit.measure(rounds=1, count=1))
    assert "100 rows" in text


def test_large_log_agrees_with_its_registry(db, superuser):
    """What `audit_check` measures, on the run's own database."""
    try:
        steps = list(large_log.fill(servers.SERVERS.urls.superuser, 1000))
        checked = consistency.check(pytest.fail)
    finally:
        Months(superuser).lay_out(-1, 3)
    assert (steps[-1], checked.engines) == ("statistics", 10)
    assert 980 <= checked.rows <= 1000


def test_report_fails_below_a_limit():
    check = [audit_check.Took("audit_check", 6.1)]
    assert audit_check.report(1_100_000, check)[1] is True
    assert audit_check.report(1000, check)[1] is False
    assert transition.report({"autocommit": [(1.0, 1.0)]})[1] is False
    assert transition.report({"autocommit": [(0.9, 1.0)]})[1] is True
    assert audit.report([(19.0, 10.0)])[1] is False
    assert audit.report([(20.0, 10.0)])[1] is True
    assert provision.report(took(provision=0.35, wake=0.3))[1] is True
    assert provision.report(took(provision=0.36, wake=0.3))[1] is False
    assert provision.report(took(provision=0.35, wake=0.31))[1] is False
    assert provision.report_bulk(7.0, 10.0, "bulk")[1] is True
    assert provision.report_bulk(6.9, 10.0, "bulk")[1] is False


def test_benchmark_on_a_database_without_tables_names_the_command_that_makes_them(db):
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL search_path TO pg_temp")  # for this transaction: the pool gives the connection to other tests
        with pytest.raises(CommandError, match=r"run manage\.py migrate first"), registry.product({}, 1):
            pass


def took(**seconds: float) -> provision.Samples:
    """Raw steps of 0.2 s, and these of ours beside them."""
    names = [provision.NETWORKED, *(name for pair in provision.PAIRS.items() for name in pair)]
    return {name: [0.2] for name in names} | {name: [took] for name, took in seconds.items()}


@pytest.mark.deployment
def test_load_measures_a_deployment_of_its_own(db):
    with own_deployment.deployment(ORCH_ENGINE_BACKEND="subprocess", ORCH_PORT_MIN="26001", ORCH_PORT_MAX="26999") as deployment:
        key = load.register(deployment, "bench", {})
        load.provision(deployment, key, 1)
        slow = load.register(deployment, "bench-slow", {"DEMO_FAULTS": "1", "DEMO_BOOT_DELAY_S": "4"})
        findings = load.waiting_provisions(deployment, load.Traffic(deployment.port, key, 1), slow, 2, 1.0)
    home = deployment.home
    assert [finding.value for finding in findings if finding.limit == "0"] == ["0", "0", "0"]
    assert not home.exists()


def test_probes_measures_good_and_hostile_engines(settings):
    settings.ENV = settings.ENV.model_copy(update={"health_check_timeout_s": 0.2})
    costs = probes.measure_good(rounds=2, count=3)
    assert all(0 < cost.cpu_s < cost.wall_s * 3 for cost in costs)
    assert "CPU ms per probe" in probes.report_good(costs, 3)
    found = probes.measure_hostile()
    assert found.keys() == hostile_answers.ANSWERS.keys()
    assert "silence" in probes.report_hostile(found)[0]


@pytest.mark.parametrize(("cpu_s", "holds"), [(0.1, True), (0.11, False)])
def test_probes_fails_when_a_hostile_answer_costs_much(cpu_s, holds):
    assert probes.report_hostile({"x": (Result(False, "timeout"), probes.Cost(cpu_s, 10.0))})[1] is holds


@pytest.mark.deployment
def test_probes_watches_good_and_hostile_engines_in_a_deployment(db, settings):
    interval = {"health_check_interval_s": 1.0}
    settings.ENV = settings.ENV.model_copy(update=interval)
    environment = {f"ORCH_{name.upper()}": str(value) for name, value in interval.items()}
    with running_stack("web", *WORKERS, "health", "beat", ORCH_ENGINE_BACKEND="memory", **environment) as stack:
        findings = list(probes.measure_deployment(Running(stack), good=2, hostile=1, seconds=3))
    told = [finding.what for finding in findings if finding.limit == "100 %"]
    assert told == ["  good engines that were always on time, of 2"] * 2
    assert Engine.objects.filter(product__slug="bench", last_health_ok=True).count() == 2
    assert Engine.objects.filter(product__slug="bench-hostile", last_health_ok=False).count() == 1


class Running:
    """What a benchmark needs of its own deployment, on a stack and on the servers of the tests."""

    home = servers.HOME

    def __init__(self, stack):
        self.url, self.pid, self._environment = stack.url, stack.pid, stack.environment

    def admin_key(self):
        return settings.ENV.admin_key

    def spawn(self, name, *arguments):
        """Nothing: the server of the engines is up."""

    def run(self, *arguments):
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=ROOT, env=self._environment, capture_output=True, text=True, check=True).stdout


def test_footprint_reads_what_a_process_holds():
    before = footprint.pss_mb(os.getpid())
    with mmap.mmap(-1, 32 * footprint.MB) as held:  # and no bytearray: memory that an earlier test has freed may be used for that
        held.write(b"x" * len(held))
        assert 30 < footprint.pss_mb(os.getpid()) - before < 40
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert footprint.pss_mb(gone.pid) == 0


def test_footprint_counts_what_lies_outside_the_home_too(tmp_path):
    for name in ("home", "elsewhere"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"x" * footprint.MB)
    (tmp_path / "home" / "postgres").symlink_to(tmp_path / "elsewhere")
    assert footprint.disk_bytes(tmp_path / "home") == 2 * footprint.MB


def held(mb: float, engines_mb: float = 0.0) -> footprint.Footprint:
    """What a run of two processes holds."""
    return footprint.Footprint([("web", mb - 1), ("worker", 1.0)], engines_mb, int(mb) * footprint.MB, 0)


def test_footprint_fails_beyond_a_limit():
    assert footprint.report("small", 6.0, held(450.0))[1] is True
    assert footprint.report("small", 6.1, held(450.0))[1] is False
    assert footprint.report("small", 6.0, held(450.1))[1] is False
    assert footprint.report("full", 6.0, held(800.0))[1] is True
    assert "450.0 MB  PSS in all" in footprint.report("small", 6.0, held(450.0))[0]


def test_footprint_says_how_many_engines_a_gigabyte_holds():
    text = footprint.report_engines(4, held(400.0), held(404.0, engines_mb=124.0))
    assert "1.00 MB  and 1.00 MB on disk: what Roundhouse itself grew by" in text
    assert "32     engines per GB" in text
