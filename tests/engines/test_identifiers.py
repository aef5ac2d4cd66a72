"""User ids with characters that do not show: refused for new engines, of use for the engines that have them."""

import pytest

from audit.models import AuditRow
from engines.models import Engine
from tests.engines import crew
from tests.engines.registry import put_engine
from tests.envelopes import assert_error

OLD = "ali\u200dce"
PATH = "/engines/ali%E2%80%8Dce"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/engines/provision", {"user_id": OLD}),
        (f"{PATH}/admit", {"auto_provision": True}),
        ("/policy/explain", {"verb": "provision", "user_id": OLD}),
        ("/policy/explain", {"verb": "admit", "user_id": OLD, "auto_provision": True}),
    ],
)
def test_provision_names_the_character_that_does_not_show(api, path, body):
    error = assert_error(api.call("POST", path, body), 400, "INVALID_REQUEST")
    assert error["message"] == "user_id: character 4 is ⟨U+200D⟩, which does not show there; leave it out."
    assert not Engine.objects.exists()
    assert not AuditRow.objects.filter(user_id=OLD).exists()


def test_engine_from_before_the_rule_is_read_admitted_stopped_and_destroyed(api, product):
    put_engine(product, OLD)
    assert api.call("GET", PATH).json()["user_id"] == OLD
    assert api.call("POST", f"{PATH}/admit", {"auto_provision": True}).json()["admitted"] is True
    assert api.call("POST", "/policy/explain", {"verb": "stop", "user_id": OLD}).json()["would"] == "stop"
    with crew.at_work():
        assert api.call("POST", f"{PATH}/stop").status_code == 200
        assert api.call("DELETE", PATH).status_code == 200
    assert {row["user_id"] for row in api.call("GET", f"{PATH}/audit").json()["results"]} == {OLD}
    assert api.call("POST", f"{PATH}/admit").json()["reason"] == "engine_not_found"
