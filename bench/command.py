"""`manage.py bench NAME`: the benchmarks and their options."""

import os
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError, OutputWrapper

from bench.running_deployment import deployment
from common.settings import settings


def add_arguments(parser: ArgumentParser) -> None:
    """Add the names and the options of all benchmarks."""
    parser.add_argument("--url", default=f"http://127.0.0.1:{settings.ENV.port}", help="URL of the deployment to measure")
    kinds = parser.add_subparsers(dest="kind", required=True)
    provision = kinds.add_parser("provision", help="provision, wake and destroy compared with the raw Docker SDK")
    provision.add_argument("--count", type=int, default=50, help="engine lives measured one at a time")
    provision.add_argument("--bulk", type=int, default=200, help="engines provisioned --at-once at a time; 0: no bulk part")
    provision.add_argument("--at-once", type=int, default=8)
    admit = kinds.add_parser("admit", help="admit compared with the applications of bench/peers/, one process per server")
    admit.add_argument("--rounds", type=int, default=5)
    admit.add_argument("--seconds", type=float, default=5, help="seconds per round and server")
    admit.add_argument("--connections", type=int, default=16)
    admit.add_argument("--users", type=int, default=200, help="engines admitted in turn")
    load = kinds.add_parser(
        "load", help="admits of a temporary deployment while provisions wait, Valkey freezes, PostgreSQL restarts"
    )
    load.add_argument("--users", type=int, default=20, help="engines admitted in turn")
    load.add_argument("--provisions", type=int, default=100, help="slow provisions started at once")
    load.add_argument("--seconds", type=float, default=30, help="seconds of admits without, then with waiting provisions")
    load.add_argument("--frozen", type=float, default=45, help="seconds for which Valkey is frozen")
    web_servers = kinds.add_parser("servers", help="web servers able to run Roundhouse, one process per server")
    web_servers.add_argument("--seconds", type=float, default=5, help="seconds of every load; a server gets three loads")
    web_servers.add_argument("--connections", type=int, default=16)
    web_servers.add_argument("--users", type=int, default=200, help="engines admitted in turn")
    web_servers.add_argument("--provisions", type=int, default=100, help="waiting provisions of the third load")
    footprint = kinds.add_parser("footprint", help="memory, disk space and second start of a temporary `make run`")
    footprint.add_argument("--engines", type=int, default=0, help="engines provisioned afterwards, to measure their growth")
    footprint.add_argument("--backend", default="", help="backend of the engines; without it `make run` chooses")
    probes = kinds.add_parser("probes", help="probes of good and of hostile engines, alone and in a temporary deployment")
    probes.add_argument("--rounds", type=int, default=7, help="rounds of probes of good engines")
    probes.add_argument("--engines", type=int, default=500, help="good engines")
    probes.add_argument("--hostile", type=int, default=3, help="hostile engines in the deployment; 0: only good engines")
    probes.add_argument("--seconds", type=float, default=180, help="seconds without, then with hostile engines; 0: no deployment")
    _add_database_benchmarks(kinds)


def _add_database_benchmarks(kinds: Any) -> None:
    """Add the benchmarks that need no process but PostgreSQL."""
    check = kinds.add_parser("audit_check", help="audit_check of a large log, on a temporary PostgreSQL; takes 30 GB")
    check.add_argument("--rows", type=int, default=10_000_000)
    for name, what, count in (
        ("transition", "a move with its audit row compared with a plain Model.save()", 300),
        ("audit", "GET /audit with 100 rows compared with ModelSerializer", 100),
    ):
        kind = kinds.add_parser(name, help=what)
        kind.add_argument("--rounds", type=int, default=7)
        kind.add_argument("--count", type=int, default=count, help="calls of either alternative per round")


def run(stdout: OutputWrapper, options: dict[str, Any]) -> None:
    """Run the benchmark named by `options`. Exit code 1 when a limit does not hold. Raises CommandError."""
    getattr(Bench(stdout), options["kind"])(options)


class Bench:
    """The benchmarks: a method per benchmark, called with the options of the command line."""

    def __init__(self, stdout: OutputWrapper) -> None:
        self.stdout = stdout

    def provision(self, options: dict[str, Any]) -> None:
        """`bench provision`."""
        from bench import provision

        if settings.ENV.engine_backend != "docker":
            raise CommandError(
                "bench provision compares with Docker: run both the deployment and the benchmark with ORCH_ENGINE_BACKEND=docker"
            )
        count, bulk, at_once = options["count"], options["bulk"], options["at_once"]
        with deployment(options["url"]) as fleet:
            reports = [provision.report(provision.one_at_a_time(fleet, count))]
            if bulk:
                rates = provision.in_bulk(fleet, bulk, at_once)
                reports.append(provision.report_bulk(*rates, f"{bulk} engines, {at_once} at a time"))
        self._tell("\n".join(text for text, _ in reports), all(holds for _, holds in reports))

    def admit(self, options: dict[str, Any]) -> None:
        """`bench admit`."""
        from bench import admit

        with (Path(settings.ENV.home) / "bench.log").open("wb") as log:
            results = admit.measure(options["rounds"], options["seconds"], options["connections"], options["users"], log)
        self._tell(*admit.report(results))

    def load(self, options: dict[str, Any]) -> None:
        """`bench load`."""
        from bench import load, own_deployment

        sizes = {name: options[name] for name in ("users", "provisions", "seconds")}
        holds = True
        with own_deployment.deployment(
            ORCH_ENGINE_BACKEND="subprocess", ORCH_PORT_MIN="27001", ORCH_PORT_MAX="29999"
        ) as deployment:
            for finding in load.measure(deployment, **sizes, frozen_s=options["frozen"]):
                self.stdout.write(finding.render())
                holds &= finding.holds
        if not holds:
            raise SystemExit(1)

    def servers(self, options: dict[str, Any]) -> None:
        """`bench servers`."""
        from bench import web_servers

        sizes = {name: options[name] for name in ("seconds", "connections", "users", "provisions")}
        self.stdout.write(web_servers.HEAD)
        with (Path(settings.ENV.home) / "bench.log").open("wb") as log:
            for name, found in web_servers.measure(**sizes, log=log):
                self.stdout.write(web_servers.line(name, found))

    def footprint(self, options: dict[str, Any]) -> None:
        """`bench footprint`."""
        from bench import footprint

        edition = os.environ.get("ORCH_PROCESSES") or "small"
        with footprint.second_run(edition, options["backend"]) as run:
            report, holds = footprint.report(edition, run.start_s, footprint.inspect(run))
            if count := options["engines"]:
                report += "\n" + footprint.report_engines(count, *footprint.grow(run, count))
        self._tell(report, holds)

    def probes(self, options: dict[str, Any]) -> None:
        """`bench probes`."""
        from bench import own_deployment, probes

        self.stdout.write(probes.report_good(probes.measure_good(options["rounds"], options["engines"]), options["engines"]))
        holds = True
        if options["hostile"]:
            report, holds = probes.report_hostile(probes.measure_hostile())
            self.stdout.write(report)
        if options["seconds"]:
            with own_deployment.deployment(
                ORCH_ENGINE_BACKEND="memory", ORCH_PORT_MIN="27001", ORCH_PORT_MAX="29999", ORCH_HEALTH_MAX_FAILURES="1000000"
            ) as deployment:
                sizes = {"good": options["engines"], "hostile": options["hostile"], "seconds": options["seconds"]}
                for finding in probes.measure_deployment(deployment, **sizes):
                    self.stdout.write(finding.render())
                    holds &= finding.holds
        if not holds:
            raise SystemExit(1)

    def transition(self, options: dict[str, Any]) -> None:
        """`bench transition`."""
        from bench import transition

        self._tell(*transition.report(transition.measure(options["rounds"], options["count"])))

    def audit(self, options: dict[str, Any]) -> None:
        """`bench audit`."""
        from bench import audit

        self._tell(*audit.report(audit.measure(options["rounds"], options["count"])))

    def audit_check(self, options: dict[str, Any]) -> None:
        """`bench audit_check`."""
        from bench import audit_check

        parts = list(audit_check.measure(options["rows"], self.stdout.write))
        self._tell(*audit_check.report(options["rows"], parts))

    def _tell(self, report: str, holds: bool) -> None:
        """Print the report; exit code 1 when a limit does not hold."""
        self.stdout.write(report)
        if not holds:
            raise SystemExit(1)
