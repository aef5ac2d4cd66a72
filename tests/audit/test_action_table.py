"""The table of actions that rows may have: filled by every `migrate`, and only added to."""

import psycopg
import pytest
from django.core.management import call_command

from audit import action_table, actors, trail
from audit.actions import Action
from audit.catalogue import CATALOGUE


@pytest.fixture
def pairs(superuser):
    """The pairs in the table, as they are now."""
    return lambda: set(superuser.execute("SELECT action, retention FROM audit_action").fetchall())


@pytest.fixture(autouse=True)
def _complete_afterwards(db):
    yield
    call_command("migrate", verbosity=0)


def test_table_has_the_pairs_of_the_catalogue(pairs):
    assert pairs() == {(action.value, entry.retention.value) for action, entry in CATALOGUE.items()}
    assert action_table.is_complete()


def test_migrate_adds_the_actions_of_its_version(superuser, pairs):
    superuser.execute("DELETE FROM audit_action WHERE action IN ('stop', 'health_check')")
    assert not action_table.is_complete()
    with pytest.raises(Exception, match="no action stop of the class standard"):
        trail.record(Action.STOP, by=actors.SYSTEM)
    call_command("migrate", verbosity=0)
    assert action_table.is_complete()
    assert {("stop", "standard"), ("health_check", "probe")} <= pairs()
    assert trail.record(Action.STOP, by=actors.SYSTEM)


@pytest.mark.parametrize("option", ["--plan", "--check"])
def test_migrate_adds_nothing_when_it_only_looks(superuser, option):
    superuser.execute("DELETE FROM audit_action WHERE action = 'stop'")
    call_command("migrate", option, verbosity=0)
    assert not action_table.is_complete()


def test_migrate_leaves_the_actions_of_another_version(superuser, as_app, pairs):
    """Code of two versions writes during a rolling deployment: neither loses its actions, nor a class that has changed."""
    superuser.execute("INSERT INTO audit_action VALUES ('yesterday', 'standard'), ('start', 'probe')")
    try:
        call_command("migrate", verbosity=0)
        assert {("yesterday", "standard"), ("start", "probe"), ("start", "standard")} <= pairs()
        as_app.execute("INSERT INTO audit_log (timestamp, action) VALUES (now(), 'yesterday')")
    finally:
        superuser.execute("DELETE FROM audit_action WHERE action = 'yesterday' OR (action, retention) = ('start', 'probe')")


def test_fill_is_the_owners_alone(as_app):
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        as_app.execute("INSERT INTO audit_action SELECT * FROM audit_action ON CONFLICT DO NOTHING")
