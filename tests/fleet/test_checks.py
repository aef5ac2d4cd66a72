"""What `check --deploy` says of a deployment."""

import pytest
from pydantic import ValidationError

from common.env import Env
from fleet import checks


@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        ({"engine_backend": "docker"}, ["fleet.I001"]),
        ({"engine_backend": "docker", "engine_disk_quota": True}, []),
        ({"engine_backend": "subprocess"}, []),
    ],
)
def test_check_says_where_volumes_are_only_measured(settings, chosen, told):
    settings.ENV = settings.ENV.model_copy(update=chosen)
    assert [message.id for message in checks.check_disk_quota(None)] == told


def test_quota_is_refused_without_docker():
    with pytest.raises(ValidationError, match="ORCH_ENGINE_DISK_QUOTA needs ORCH_ENGINE_BACKEND=docker"):
        Env(engine_backend="subprocess", engine_disk_quota=True)
