"""What `make run` does before its processes start."""

import os
import subprocess
import sys

import pytest
from django.conf import settings
from django.db import connection

from config import start_check
from engines import deployment
from engines.models import Operation
from tests.engines.registry import put_engine


@pytest.mark.deployment
def test_prepare_resumes_no_engine_of_another_deployments_database(own_database, product):
    """As for a home that was copied: its path has changed, and with it the name of its deployment."""
    put_engine(product)
    done = subprocess.run(
        [sys.executable, "-m", "config.local.prepare"],
        cwd=settings.BASE_DIR,
        env={**os.environ, "ORCH_DEPLOYMENT": "moved"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == start_check.REFUSED
    stored = deployment.find(connection).here.name
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"roundhouse: this database belongs to the deployment {stored}, but ORCH_DEPLOYMENT is moved. ")
    assert not Operation.objects.exists()
