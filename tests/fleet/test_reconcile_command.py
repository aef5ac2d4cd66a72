"""`manage.py reconcile`: runtime and registry compared by a person, who decides about each difference."""

import io
from contextlib import nullcontext
from uuid import uuid4

import pytest
from django.core.management import CommandError, call_command

from audit.models import AuditRow
from engines.backends.base import Ref, Spec
from engines.models import Engine, Status, UnregisteredEngine
from tests.engines.registry import put_engine
from tests.staff import hire


def reconcile(*options, refused=0):
    """The lines of standard output, and of standard error. The command ends with an error if engines were `refused`."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.raises(CommandError, match=f"see above: {refused}") if refused else nullcontext():
        call_command("reconcile", *options, stdout=out, stderr=err)
    return out.getvalue().splitlines(), err.getvalue().splitlines()


@pytest.fixture
def left(product, memory_backend):
    """Engines that only the runtime has: alice's, bob's, and a volume of nobody knows whom. Returns their ids."""
    specs = [Spec(Ref(uuid4(), 1), "acme", "image:1", 31000, {}, user_id=user_id) for user_id in ("alice", "bob")]
    for spec in specs:
        memory_backend.create(spec)
    bare = uuid4()
    memory_backend.volumes |= {bare}
    return [*(spec.ref.engine_id for spec in specs), bare]


def test_dry_run_lists_both_sides_and_changes_nothing(product, left, memory_backend):
    lost = put_engine(product, "carol", Status.STOPPED, provisioned_at="2026-01-01T00:00:00Z")
    stale = put_engine(product, "dave", Status.STOPPED)
    memory_backend.create(Spec(Ref(stale.pk, 9), "acme", "image:1", 31002, {}, user_id="dave"))
    lines, _ = reconcile("--dry-run")
    assert lines[0].startswith("In the runtime, and not in the registry: 3")
    assert f"  {left[0]}  product acme, user alice: does not run, with its data" in lines
    assert f"  {left[2]}  product unknown, user unknown: does not run, with its data" in lines
    assert f"  {lost.pk}  product acme, user carol: stopped" in lines
    assert lines[-1] == "Engines with an instance or a volume that this command would remove or stop: 1"
    assert not UnregisteredEngine.objects.exists()
    assert len(memory_backend.list()) == 3


def test_reconcile_corrects_what_a_sweep_would_and_says_when_nothing_differs(product, memory_backend):
    stale = put_engine(product, "dave", Status.STOPPED)
    memory_backend.create(Spec(Ref(stale.pk, 9), "acme", "image:1", 31002, {}, user_id="dave"))
    lines, _ = reconcile()
    assert lines == ["Corrected: 1. The audit log names each.", "Runtime and registry have the same engines."]


def test_adopt_all_takes_every_engine_whose_owner_is_known(left):
    lines, refused = reconcile("--adopt", "all", "--reason", "restored")
    assert sum("adopted for user" in line for line in lines) == 2
    assert refused == []
    assert set(Engine.objects.values_list("pk", flat=True)) == set(left[:2])
    assert set(AuditRow.objects.filter(action="engine_adopted").values_list("actor", flat=True)) == {"admin"}


def test_adopt_takes_the_owner_from_the_person(left):
    hire("rita")
    reconcile("--adopt", str(left[2]), "--product", "acme", "--user", "zoe", "--by", "rita")
    assert Engine.objects.get().user_id == "zoe"
    assert AuditRow.objects.get(action="engine_adopted").actor == "admin:rita"


def test_refused_adoption_is_told_and_the_others_go_on(product, left):
    put_engine(product, "alice")
    lines, refused = reconcile("--adopt", str(left[0]), "--adopt", str(left[1]), refused=1)
    assert [line.partition(":")[0] for line in refused] == [str(left[0])]
    assert f"{left[1]}: adopted for user bob, stopped" in lines


def test_forget_removes_with_data_after_a_question(product, left, memory_backend, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda _: "no")
    stale = put_engine(product, "dave", Status.STOPPED)
    memory_backend.create(Spec(Ref(stale.pk, 9), "acme", "image:1", 31002, {}, user_id="dave"))
    before = len(memory_backend.list()), len(memory_backend.list_volumes())
    with pytest.raises(CommandError, match="Nothing is changed"):
        reconcile("--forget", str(left[0]))
    assert (len(memory_backend.list()), len(memory_backend.list_volumes())) == before
    lines, _ = reconcile("--forget", str(left[0]), "--noinput")
    assert "Removed with their data: 1." in lines
    assert left[0] not in memory_backend.list_volumes()
    assert AuditRow.objects.get(action="engine_forgotten").engine_id == left[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--dry-run", "--adopt", "all"], "changes nothing"),
        (["--adopt", "all", "--user", "zoe"], "for a single engine"),
        (["--adopt", "all", "--adopt", str(uuid4())], "`all`, or ids"),
        (["--adopt", "alice"], "is not the id of an engine"),
        (["--forget", "alice", "--noinput"], "is not the id of an engine"),
        (["--by", "nobody"], "No member of staff"),
    ],
)
def test_reconcile_refuses_options_with_a_sentence(product, memory_backend, options, words):
    stale = put_engine(product, "dave", Status.STOPPED)
    memory_backend.create(Spec(Ref(stale.pk, 9), "acme", "image:1", 31002, {}, user_id="dave"))
    with pytest.raises(CommandError, match=words):
        reconcile(*options)
    assert len(memory_backend.list()) == 1  # nothing was corrected before the refusal


def test_reconcile_says_that_the_runtime_is_away(product, memory_backend):
    memory_backend.unavailable = True
    with pytest.raises(CommandError, match="The runtime does not answer"):
        reconcile("--dry-run")
