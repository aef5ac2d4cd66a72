"""What tests of `audit_check` need: an engine with a life, and a way past every guard."""

import pytest

from engines import lifecycle
from engines.models import Status
from tests.audit.lives import do, fresh, put


@pytest.fixture
def tamper(superuser):
    """Change tables behind every guard; returns how many rows that hit."""

    def run(statement, *params):
        with superuser.transaction():
            superuser.execute("SET LOCAL session_replication_role = replica")
            return superuser.execute(statement, params).rowcount

    return run


@pytest.fixture
def lived(product):
    """An engine with six moves: provisioned, stopped, started, destroyed. Another one, that no complaint may name."""
    put(product, user_id="bystander")
    engine = put(product, Status.STOPPED)
    for verb in (lifecycle.start, lifecycle.destroy):
        do(verb, engine)
    return fresh(engine)
