import io
import re

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command

from audit.actions import Action
from audit.catalogue import CATALOGUE
from engines.models import Status
from engines.transitions import TRANSITIONS
from fleet import documents
from fleet.staff import roles


def generate(root, *, check=False):
    out = io.StringIO()
    call_command("generate_docs", root=root, check=check, stdout=out)
    return out.getvalue().splitlines()


def test_documents_of_the_checkout_are_up_to_date():
    assert documents.stale(settings.BASE_DIR) == []


def test_generate_makes_what_is_missing(tmp_path):
    assert generate(tmp_path) == [f"wrote {name}" for name in (*documents.BLOCKS, *documents.FILES)]
    for name, (title, blocks) in documents.BLOCKS.items():
        text = (tmp_path / name).read_text()
        assert text.startswith(f"# {title}\n\n<!-- generated: {next(iter(blocks))} -->\n")
        assert re.findall(r"^<!-- generated: (\w+) -->$", text, re.MULTILINE) == list(blocks)
        assert text.endswith("\n<!-- /generated -->\n")
    assert generate(tmp_path) == []
    assert generate(tmp_path, check=True) == []


def test_generate_keeps_the_prose_around_a_block(tmp_path):
    generate(tmp_path)
    path = tmp_path / "docs/operations.md"
    made = path.read_text()
    of_roles, of_settings = (
        made[made.index(f"<!-- generated: {name} -->") :].partition("<!-- /generated -->")[0] for name in ("roles", "settings")
    )
    path.write_text(
        "# Running it\n\nBefore, with \\1 in it.\n\n<!-- generated: settings -->\nold\n<!-- /generated -->\n\nBetween.\n\n"
        "<!-- generated: roles -->\n<!-- /generated -->\n\nAfter.\n"
    )
    assert generate(tmp_path) == ["wrote docs/operations.md"]
    end = "<!-- /generated -->\n\n"
    assert path.read_text() == f"# Running it\n\nBefore, with \\1 in it.\n\n{of_settings}{end}Between.\n\n{of_roles}{end}After.\n"


def test_generate_adds_a_block_to_a_file_without_one(tmp_path):
    path = tmp_path / "docs/architecture.md"
    path.parent.mkdir()
    path.write_text("# Floors\n\nProse.\n")
    generate(tmp_path)
    assert path.read_text().startswith("# Floors\n\nProse.\n\n<!-- generated: states -->\n")


@pytest.mark.parametrize("name", [*documents.BLOCKS, *documents.FILES])
def test_check_names_the_file_that_is_out_of_date_and_changes_nothing(tmp_path, name):
    generate(tmp_path)
    path = tmp_path / name
    path.write_text(path.read_text().replace("running", "walking").replace("ORCH_", "ARCH_"))
    before = path.read_text()
    with pytest.raises(CommandError, match=f"out of date: {name}\\.") as raised:
        generate(tmp_path, check=True)
    assert raised.value.returncode == 1
    assert path.read_text() == before


def test_roles_has_every_permission_with_the_roles_that_have_it():
    head, _, *lines = documents.list_roles().splitlines()
    assert head == "| permission | allows | `viewer` | `operator` | `auditor` | `admin` |"
    for line, told in zip(roles.TABLE, lines, strict=True):
        permission, allows, *marks = told.strip("| ").split(" | ")
        assert (permission, allows) == (f"`{line.permission}`", line.allows)
        assert [role for role, mark in zip(roles.NAMES, marks, strict=True) if mark == "✓"] == list(line.roles)


def test_actions_has_every_action_and_key():
    lines = documents.list_actions().splitlines()
    for action, entry in CATALOGUE.items():
        [line] = [line for line in lines if line.startswith(f"| `{action}` |")]
        assert all(f"`{key}` " in line for key in entry.metadata)
    assert "`ORCH_AUDIT_PROBE_RETENTION_DAYS`" in next(line for line in lines if "`health_check`" in line)


def test_settings_has_every_variable_and_says_what_production_needs():
    text = documents.list_settings()
    env = type(settings.ENV)
    assert sorted(re.findall(r"^\| `(ORCH_\w+)`", text, re.MULTILINE)) == sorted(
        f"ORCH_{name.upper()}" for name in env.model_fields
    )
    for line in text.splitlines()[2:]:
        name = re.match(r"\| `ORCH_(\w+)`", line)[1].lower()
        assert ("**required in production**" in line) == (name in env.REQUIRED_IN_PRODUCTION)
    assert "| `ORCH_BOOT_TIMEOUT_S` | `60` | number |" in text
    assert "| `ORCH_ENGINE_INTERNET` | `true` | `true`, `false` |" in text
    assert not re.search(r"\| *\|", text)  # no cell is empty
    assert "| `ORCH_ENGINE_BACKEND` | `subprocess` | `docker`, `subprocess`, `memory` |" in text


def test_settings_shows_no_value_of_this_machine():
    for secret in (settings.ENV.admin_key, settings.ENV.master_key, settings.ENV.database_url, settings.ENV.home):
        assert secret
        assert secret not in documents.list_settings()


def test_states_shows_every_transition():
    text = documents.draw_states()
    for transition in TRANSITIONS.values():
        for before in transition.before:
            assert re.search(rf"{before} --> {transition.after}: .*\b{transition.done}\b", text)
            assert re.search(rf"{before} --> failed: .*\b{transition.failed}\b", text)
    assert "[*] --> provisioning: provision_requested" in text
    assert "destroyed --> [*]" in text


def test_moves_lead_everywhere_and_leave_nothing_that_is_destroyed():
    moves = documents.moves()
    assert {after for _, after, _ in moves} == set(Status)
    assert {before for before, _, _ in moves} == {None, *Status} - {Status.DESTROYED}
    assert all(action in Action for _, _, action in moves)
