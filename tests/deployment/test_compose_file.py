"""compose.yaml is in step with the list of processes, and gives each of them what it needs and no more."""

import re

import pytest
import yaml

from config.local.home import BASE_DIR
from config.processes import EDITIONS, PROCESSES, of_kind

SERVICES = yaml.safe_load((BASE_DIR / "compose.yaml").read_text())["services"]
OURS = {name: service for name, service in SERVICES.items() if name not in ("postgres", "redis")}
ON_ENGINES = {"worker", "wake", "ops", "background", "health"}
APPS = [process for process in PROCESSES if process.kind in ("app", "once")]


def test_services_are_the_processes_of_the_list():
    assert set(OURS) == {process.name for process in APPS}
    assert {name: service["command"] for name, service in OURS.items()} == {name: [name] for name in OURS}


@pytest.mark.parametrize("edition", EDITIONS)
def test_profile_of_an_edition_starts_its_processes_and_no_others(edition):
    started = {name for name, service in OURS.items() if edition in service.get("profiles", [edition])}
    assert started == {process.name for process in of_kind("app", "once", edition=edition)}
    assert {service["environment"]["ORCH_PROCESSES"] for service in OURS.values()} == {
        "${COMPOSE_PROFILES:?small or full, see scripts/compose-env}"
    }


@pytest.mark.parametrize("process", APPS, ids=lambda process: process.name)
def test_only_those_who_need_it_get_the_owner_and_the_daemon(process):
    service = OURS[process.name]
    assert ("ORCH_DATABASE_OWNER_URL" in service["environment"]) == process.owns_database
    sockets = [volume for volume in service.get("volumes", []) if "docker.sock" in volume]
    assert bool(sockets) == ("group_add" in service) == ("roundhouse.client" in service.get("labels", {}))
    assert bool(sockets) == (process.name in ON_ENGINES)
    assert int(service["stop_grace_period"].rstrip("s")) > process.stop_seconds


@pytest.mark.parametrize("name", SERVICES)
def test_services_have_no_rights_and_no_secret_of_their_own(name):
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    secrets = {key: value for key, value in service["environment"].items() if key.endswith(("_KEY", "_PASSWORD", "_URL"))}
    assert secrets
    assert all("${" in value for value in secrets.values())
    assert not any(":-" in value for value in secrets.values())


@pytest.mark.parametrize("name", SERVICES)
def test_services_have_limits_on_memory_and_processes(name):
    service = SERVICES[name]
    assert re.fullmatch(r"512m|[12]g", service["mem_limit"])
    assert 64 <= service["pids_limit"] <= 512


def test_only_the_web_server_is_reached_from_outside_and_the_databases_from_nowhere():
    assert {name for name, service in SERVICES.items() if "ports" in service or "api" in service["networks"]} == {"web"}
    assert all(service["networks"] == ["control"] for name, service in SERVICES.items() if name != "web")
    assert [process.name for process in PROCESSES if process.kind == "server"] == ["postgres", "valkey"]
