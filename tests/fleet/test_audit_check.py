import io
import threading
from uuid import uuid4

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client

from audit import trail
from audit.actions import Action
from audit.actors import ADMIN, SYSTEM
from audit.models import AuditRow
from engines import lifecycle
from engines.models import Engine, Operation, Status
from fleet import consistency
from policy import admin_keys, environments, overrides, products
from tests import waiting
from tests.audit.lives import ERROR, STAFF, do, put


def check():
    found = []
    checked = consistency.check(found.append)
    assert checked.disagreeing + checked.others == len(found)
    return found


def complaint(engine):
    """What is said about the engine, and about no other."""
    [found] = check()
    assert found.engine_id == engine.pk
    return "; ".join(found.sentences)


def operation_of(engine, kind):
    return Operation.objects.get(engine=engine, kind=kind)


# -- agreement ---------------------------------------------------------------------------------------------------------


def test_check_finds_nothing_in_an_empty_registry(db):
    assert consistency.check(pytest.fail) == consistency.Checked(0, 0, 0)


def test_check_finds_nothing_after_every_kind_of_life(product, lived):
    failed = put(product, Status.FAILED, "bob")
    do(lifecycle.stop, failed)
    do(lifecycle.start, failed, ERROR)
    do(lifecycle.restart, failed)
    do(lifecycle.rotate_key, failed)
    lifecycle.stop(failed, by=STAFF)
    lifecycle.destroy(failed, by=STAFF)
    lifecycle.provision(product, "carol", by=STAFF)
    again = lifecycle.provision(product, lived.user_id, by=STAFF).engine
    assert again.pk != lived.pk
    checked = consistency.check(pytest.fail)
    assert (checked.engines, checked.rows) == (5, AuditRow.objects.count())


def test_command_says_that_all_agrees(lived):
    out, rows = io.StringIO(), AuditRow.objects.count()
    call_command("audit_check", stdout=out, stderr=io.StringIO())
    assert out.getvalue() == f"Log and registry agree: 2 engines, {rows} audit rows. {rows} rows are in no sum yet.\n"


def test_command_names_the_engine_and_exits_with_1(lived, tamper):
    tamper("DELETE FROM audit_log WHERE engine_id = %s AND engine_seq = 3", lived.pk)
    out = io.StringIO()
    with pytest.raises(CommandError, match="1 of 2 engines disagree") as raised:
        call_command("audit_check", stdout=out)
    assert raised.value.returncode == 1
    [line] = out.getvalue().splitlines()
    assert line.startswith(f"engine {lived.pk} (product acme, user alice): moves 3 to 3 are missing; operation ")


def test_command_shows_forged_text_as_text_in_one_line(lived, tamper):
    tamper("UPDATE audit_log SET to_status = %s WHERE engine_id = %s AND engine_seq = 6", "\x1b[2J\nLog", lived.pk)
    out = io.StringIO()
    with pytest.raises(CommandError):
        call_command("audit_check", stdout=out)
    [line] = out.getvalue().splitlines()
    assert r"the log ends as \x1b[2J\nLog, the registry says destroyed" in line


# -- moves -------------------------------------------------------------------------------------------------------------

OF = "WHERE engine_id = %s AND to_status IS NOT NULL AND engine_seq"


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        (f"DELETE FROM audit_log {OF} = 1", "moves 1 to 1 are missing"),
        (f"DELETE FROM audit_log {OF} < 4", "moves 1 to 3 are missing"),
        (f"DELETE FROM audit_log {OF} IN (3, 4)", "moves 3 to 4 are missing"),
        (f"DELETE FROM audit_log {OF} = 6", "the log ends with move 5, the registry with 6"),
        (f"DELETE FROM audit_log {OF} > 0", "no move is recorded, the registry has 6"),
        (f"UPDATE audit_log SET engine_seq = 4 {OF} = 3", "move 4 is recorded twice"),
        (f"UPDATE audit_log SET engine_seq = NULL {OF} = 3", "is a move without a number"),
        (f"UPDATE audit_log SET engine_seq = 0 {OF} = 3", "is a move without a number"),
        (f"UPDATE audit_log SET engine_seq = 7 {OF} = 6", "says move 7, the registry has 6"),
        (f"UPDATE audit_log SET from_status = 'sleeping' {OF} = 4", "move 4 leaves sleeping, after stopped"),
        (f"UPDATE audit_log SET from_status = NULL {OF} = 4", "move 4 leaves nothing, after stopped"),
        (f"UPDATE audit_log SET from_status = 'failed' {OF} = 1", "move 1 leaves failed, after nothing"),
        (f"UPDATE audit_log SET to_status = 'failed' {OF} = 2", "move 3 leaves running, after failed"),
        (f"UPDATE audit_log SET to_status = 'failed' {OF} = 6", "the log ends as failed, the registry says destroyed"),
        (f"UPDATE audit_log SET to_status = NULL {OF} = 3", "moves 3 to 3 are missing"),
        (f"UPDATE audit_log SET to_status = 'destroyed' {OF} = 3", "move 4 comes after the destroy"),
    ],
)
def test_check_names_a_move_that_was_tampered_with(lived, tamper, statement, said):
    assert tamper(statement, lived.pk)
    assert said in complaint(lived)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("seq = 5", "the log ends with move 6, the registry with 5"),
        ("seq = 9", "the log ends with move 6, the registry with 9"),
        (
            "status = 'stopped', destroyed_at = NULL, key_hash = 'x', port = 1",
            "the log ends as destroyed, the registry says stopped",
        ),
        ("user_id = 'mallory'", "names another user than the registry"),
    ],
)
def test_check_names_an_engine_whose_registry_was_tampered_with(lived, tamper, change, said):
    assert tamper(f"UPDATE engines_engine SET {change} WHERE id = %s", lived.pk) == 1
    assert said in complaint(lived)


def test_check_names_an_engine_that_is_not_in_the_registry(lived, tamper):
    tamper("DELETE FROM engines_engine WHERE id = %s", lived.pk)
    tamper("DELETE FROM engines_operation WHERE engine_id = %s", lived.pk)
    assert "is of an engine that is not in the registry" in complaint(lived)


def test_check_names_an_engine_without_a_row(lived, tamper):
    tamper("DELETE FROM audit_log WHERE engine_id = %s", lived.pk)
    assert complaint(lived).startswith("no move is recorded, the registry has 6")


def test_check_names_rows_of_another_engine_under_this_one(product, lived, tamper):
    other = Engine.objects.get(user_id="bystander")
    tamper("UPDATE audit_log SET engine_id = %s WHERE engine_id = %s AND engine_seq = 4", other.pk, lived.pk)
    said = {found.engine_id: "; ".join(found.sentences) for found in check()}
    assert "moves 4 to 4 are missing" in said[lived.pk]
    assert "the log ends with move 4, the registry with 2" in said[other.pk]
    assert "names another user than the registry" in said[other.pk]


def test_check_names_a_row_of_another_product(lived, tamper):
    tamper("UPDATE audit_log SET product_id = %s WHERE engine_id = %s AND engine_seq = 4", uuid4(), lived.pk)
    assert "names another product than the registry" in complaint(lived)


def test_check_names_a_row_that_moves_nothing_and_is_ahead(lived, tamper):
    bystander = Engine.objects.get(user_id="bystander")
    lifecycle.reveal_key(bystander, by=STAFF)
    tamper("UPDATE audit_log SET engine_seq = 3 WHERE action = 'key_reveal'")
    assert "(key_reveal) says move 3, the registry has 2" in complaint(bystander)


def test_check_tells_of_rows_without_an_engine(lived, tamper):
    tamper("UPDATE audit_log SET engine_id = NULL WHERE engine_id = %s AND engine_seq = 4", lived.pk)
    nobody = next(found for found in check() if found.engine_id is None)
    assert str(nobody).startswith("product acme: row ")
    assert "(start) names no engine" in str(nobody)


def test_check_spells_out_a_few_and_counts_the_rest(lived, tamper):
    tamper("UPDATE audit_log SET user_id = 'mallory' WHERE engine_id = %s", lived.pk)
    [found] = check()
    assert (found.count, len(found.sentences)) == (6, consistency.SHOWN)
    assert str(found).endswith("; and 1 more")


# -- operations --------------------------------------------------------------------------------------------------------


def test_check_names_an_operation_without_its_outcome(lived, tamper):
    tamper("UPDATE audit_log SET operation_id = NULL WHERE engine_id = %s AND engine_seq = 3", lived.pk)
    stop = operation_of(lived, "stop")
    assert complaint(lived) == f"operation {stop.pk} (stop, succeeded) has 0 rows of an outcome and 0 of being superseded"


def test_check_names_an_operation_with_two_outcomes(lived, tamper):
    stop = operation_of(lived, "stop")
    tamper("UPDATE audit_log SET operation_id = %s WHERE engine_id = %s AND engine_seq = 4", stop.pk, lived.pk)
    assert f"operation {stop.pk} (stop, succeeded) has 2 rows of an outcome" in complaint(lived)


@pytest.mark.parametrize("state", ["pending", "running", "superseded"])
def test_check_names_an_operation_that_is_not_done_and_has_an_outcome(lived, tamper, state):
    finished_at = "now()" if state == "superseded" else "NULL"
    stop = operation_of(lived, "stop")
    tamper(f"UPDATE engines_operation SET state = %s, finished_at = {finished_at} WHERE id = %s", state, stop.pk)
    assert f"(stop, {state}) has 1 rows of an outcome and 0 of being superseded" in complaint(lived)


def test_check_names_a_superseded_operation_without_its_row(product, tamper):
    engine = put(product)
    lifecycle.stop(engine, by=STAFF)
    lifecycle.destroy(engine, by=STAFF)
    assert check() == []
    tamper("DELETE FROM audit_log WHERE action = 'operation_superseded'")
    assert "(stop, superseded) has 0 rows of an outcome and 0 of being superseded" in complaint(engine)


def test_check_names_a_row_of_an_operation_that_is_not_in_the_registry(lived, tamper):
    tamper("DELETE FROM engines_operation WHERE engine_id = %s AND kind = 'stop'", lived.pk)
    assert "which is not in the registry" in complaint(lived)


def test_check_names_a_row_of_an_operation_of_another_engine(lived, tamper):
    bystander = Engine.objects.get(user_id="bystander")
    tamper("UPDATE engines_operation SET engine_id = %s WHERE engine_id = %s AND kind = 'stop'", bystander.pk, lived.pk)
    assert f"which is of engine {bystander.pk}" in complaint(lived)


# -- rows by themselves ------------------------------------------------------------------------------------------------

PROVISION = "WHERE engine_id = %s AND action = 'provision'"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("action = 'self_destruct', to_status = 'running'", "(self_destruct) is of no known action in the class standard"),
        ("actor = 'Nobody'", "(provision) is by Nobody, which is no actor"),
        ("actor = 'other'", "(provision) is by other, its operation by admin:ada"),
        ("call_id = gen_random_uuid()", ", its operation the call "),
        ("product_slug = 'other'", "(provision) calls the product other, the registry acme"),
        ("product_slug = NULL", "(provision) names no product"),
        ("key_id = gen_random_uuid()", ", which is no key of admin:ada"),
        ("written_at = NULL", "does not say when it was written, although an earlier row does"),
        ("timestamp = timestamp - interval '1 hour'", ", the attempt of its operation at "),
        ("written_at = written_at + interval '10 minutes'", ", says that it took "),
        ("written_at = written_at + interval '2 hours', duration_ms = duration_ms + 7200000", ": it cannot take that long"),
        ("written_at = timestamp - interval '61 seconds'", ", and was written before, at "),
        ("""metadata = metadata || '{"clamped_from": "yesterday"}'""", "was moved from yesterday, which is no time"),
        ("""metadata = metadata || '{"clamped_from": "12:00:00"}'""", "was moved from 12:00:00, which is no time"),
        ("metadata = metadata || jsonb_build_object('clamped_from', timestamp)", ", where no month begins or ends"),
    ],
)
def test_check_names_a_row_that_cannot_be_true(lived, tamper, change, said):
    assert tamper(f"UPDATE audit_log SET {change} {PROVISION}", lived.pk) == 1
    assert said in complaint(lived)


@pytest.mark.parametrize("column", ["actor = 'other'", "key_id = gen_random_uuid()"])
def test_check_names_a_row_of_somebody_else(lived, tamper, column):
    """A row that no operation vouches for."""
    tamper(f"UPDATE audit_log SET {column} WHERE engine_id = %s AND action = 'provision_requested'", lived.pk)
    assert "which is not its product" in complaint(lived) or "which is no key of" in complaint(lived)


@pytest.mark.parametrize("days", [1, 400])
def test_check_names_a_row_that_the_application_has_dated_back(lived, days):
    """What the application's role may insert in spite of everything: a time that the writer chose."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO audit_log (timestamp, product_id, product_slug, user_id, engine_id, engine_seq, action, actor, metadata)"
            " SELECT greatest(now() - make_interval(days => %s), starts), product_id, 'acme', user_id, e.id, seq, 'key_reveal',"
            " 'admin:ada', CASE WHEN starts > now() - make_interval(days => %s)"
            " THEN jsonb_build_object('clamped_from', now() - make_interval(days => %s)) ELSE '{}' END"
            " FROM engines_engine e, audit_window WHERE e.id = %s AND retention = 'standard'",
            [days, days, days, lived.pk],
        )
    assert "(key_reveal) starts at " in complaint(lived)
    assert ": it cannot take that long" in complaint(lived)


def test_check_accepts_a_time_that_was_moved_into_the_window(lived, tamper):
    """The database's clock was wrong, of `timestamp` and `written_at` alike."""
    tamper(
        "UPDATE audit_log SET timestamp = starts, written_at = '1970-01-02', metadata = metadata ||"
        " jsonb_build_object('clamped_from', '1970-01-02'::timestamptz - make_interval(secs => duration_ms / 1000.0))"
        f" FROM audit_window w {PROVISION} AND w.retention = 'standard'",
        lived.pk,
    )
    tamper("UPDATE engines_operation SET attempt_started_at = NULL WHERE engine_id = %s AND kind = 'provision'", lived.pk)
    assert check() == []


def test_check_accepts_rows_from_before_the_time_of_writing(lived, tamper):
    tamper("UPDATE audit_log SET written_at = NULL, call_id = NULL, timestamp = timestamp")
    assert check() == []


def test_check_accepts_an_action_of_another_version(lived, tamper):
    tamper("INSERT INTO audit_action VALUES ('defrost', 'standard')")
    try:
        tamper(f"UPDATE audit_log SET action = 'defrost' {PROVISION}", lived.pk)
        assert check() == []
    finally:
        tamper("DELETE FROM audit_action WHERE action = 'defrost'")


def test_check_names_rows_without_a_product(db, tamper):
    trail.record(Action.RETENTION_PRUNE, by=SYSTEM)
    assert check() == []
    tamper("UPDATE audit_log SET timestamp = timestamp - interval '2 hours'")
    [found] = check()
    assert str(found).startswith("the fleet: row ")
    assert "(retention_prune) starts at " in str(found)


def test_check_knows_the_keys_of_every_caller(lived, api, carry_out):
    """Whoever calls, and whichever way: nothing that the code writes is named."""
    api.post("/engines/provision", {"user_id": "bob"}, "application/json", headers={"Prefer": "respond-async"})
    carry_out(Operation.objects.get(state="pending"))
    _, plaintext = admin_keys.issue("ci", by=ADMIN)
    answer = Client(headers={"X-Admin-Key": plaintext}).post(
        f"/products/{lived.product_id}/platform-keys", {}, "application/json"
    )
    assert answer.status_code == 200
    assert AuditRow.objects.filter(key_id__isnull=False).values("key_id").distinct().count() == 2
    assert check() == []


# -- products ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def managed(product):
    """A product with a row of each kind: policies, variables, keys, overrides, suspensions; and a deleted product."""
    products.update_policy(product.pk, {"max_engines": 3, "cpus": 1.0}, by=STAFF)
    environments.replace(product.pk, {"A": "1"}, by=STAFF)
    environments.replace(product.pk, {"A": "2"}, by=STAFF)
    products.revoke_key(products.issue_key(product, by=STAFF)[0].pk, by=STAFF)
    products.rotate_key(product.pk, by=STAFF)
    for value in (4, 5):
        granted = overrides.grant(product.pk, rule="max_engines", value=value, reason="launch", expires_in_s=60, by=STAFF)
    overrides.end(product.pk, granted.pk, by=STAFF)
    products.suspend(product.pk, "unpaid", by=STAFF)
    products.resume(product.pk, "paid", by=STAFF)
    products.suspend(product.pk, "unpaid again", by=STAFF)
    admin_keys.revoke(admin_keys.issue("ci", by=STAFF)[0].pk, by=STAFF)
    gone, _ = products.register("gone", "Gone", {}, by=STAFF)
    environments.replace(gone.pk, {"A": "1"}, by=STAFF)
    lifecycle.delete_product(gone.pk, by=STAFF)
    return product


def test_check_finds_nothing_after_everything_that_products_go_through(managed):
    assert check() == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            "DELETE FROM audit_log WHERE action = 'policy_register' AND product_slug = 'acme'",
            "no row says that it was registered",
        ),
        ("UPDATE audit_log SET action = 'policy_register' WHERE action = 'policy_update'", "it was registered 2 times"),
        ("UPDATE policy_product SET policy = '{}' WHERE slug = 'acme'", "the last policy in the log is "),
        ("DELETE FROM audit_log WHERE action = 'policy_update'", "the last policy in the log is {}, the registry has "),
        ("UPDATE policy_product SET suspended_at = NULL, suspension_reason = ''", "the log ends with its suspension"),
        ("DELETE FROM audit_log WHERE action IN ('product_suspend', 'product_resume')", "no row says that it was suspended"),
        (
            "UPDATE audit_log SET action = 'product_resume' WHERE action = 'product_suspend'",
            "the log ends with the end of its suspension, the registry has one",
        ),
        ("DELETE FROM policy_engineenv WHERE version = 2", "the log ends with version 2 of its variables, the registry with 1"),
        ("DELETE FROM audit_log WHERE action = 'engine_env_update'", "no row tells of version 2 of its variables"),
        ("DELETE FROM audit_log WHERE action = 'platform_key_rotate'", " has 0 rows of its beginning and 0 of its end"),
        ("DELETE FROM audit_log WHERE action = 'platform_key_revoke'", " has 1 rows of its beginning and 0 of its end"),
        ("UPDATE policy_platformkey SET revoked_at = NULL", " has 1 rows of its beginning and 1 of its end"),
        ("DELETE FROM policy_platformkey WHERE revoked_at IS NOT NULL", "which is not in the registry"),
        ("UPDATE policy_policyoverride SET ended_at = NULL WHERE value = '5'", "override "),
        ("DELETE FROM audit_log WHERE action = 'policy_override_grant'", " has 0 rows of its beginning and 1 of its end"),
    ],
)
def test_check_names_a_product_that_was_tampered_with(managed, tamper, change, said):
    assert tamper(change)
    [found] = [disagreement for disagreement in check() if disagreement.product_slug == "acme"]
    assert said in "; ".join(found.sentences)
    assert str(found).startswith("product acme: ")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("DELETE FROM audit_log WHERE action = 'product_delete'", "product gone: no row says that it was deleted"),
        ("UPDATE policy_product SET deleted_at = NULL WHERE slug = 'gone'", "product gone: it was deleted 1 times in the log"),
        ("DELETE FROM audit_log WHERE action = 'admin_key_issue'", "the fleet: admin key "),
        ("UPDATE policy_adminkey SET revoked_at = NULL", "the fleet: admin key "),
        ("UPDATE audit_log SET product_id = NULL WHERE action = 'policy_update'", "the fleet: row "),
        (
            "UPDATE audit_log SET product_id = gen_random_uuid() WHERE action = 'policy_update'",
            "is of a product that is not in the",
        ),
        (
            "UPDATE audit_log SET product_id = p.id, product_slug = p.slug FROM policy_product p"
            " WHERE action = 'admin_key_issue' AND p.slug = 'acme'",
            "is about the fleet, and names a product or an engine",
        ),
    ],
)
def test_check_names_the_fleets_own_rows_that_were_tampered_with(managed, tamper, change, said):
    assert tamper(change)
    assert said in "\n".join(map(str, check()))


def test_check_accepts_that_retention_took_the_rows_of_a_product(managed, tamper):
    tamper("DELETE FROM audit_log WHERE product_slug = 'acme'")
    for table in ("policy_product", "policy_platformkey", "policy_policyoverride", "policy_engineenv"):
        tamper(f"UPDATE {table} SET created_at = created_at - interval '1 year'")
    tamper("UPDATE policy_platformkey SET revoked_at = revoked_at - interval '1 year'")
    tamper("UPDATE policy_policyoverride SET ended_at = ended_at - interval '1 year'")
    tamper("UPDATE policy_product SET suspended_at = suspended_at - interval '1 year'")
    assert check() == []


def test_command_counts_what_is_no_engine_apart(managed, tamper):
    tamper("DELETE FROM audit_log WHERE action = 'policy_update'")
    with pytest.raises(CommandError, match="0 of 0 engines and 1 others disagree"):
        call_command("audit_check", stdout=io.StringIO())


# -- retention ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def aged(lived, tamper):
    """The same engine, a year older; its first moves were lost to retention."""
    tamper("UPDATE engines_engine SET created_at = created_at - interval '1 year' WHERE id = %s", lived.pk)
    tamper(
        "UPDATE engines_operation SET attempt_started_at = attempt_started_at - interval '1 year',"
        " finished_at = finished_at - interval '1 year' WHERE engine_id = %s AND kind IN ('provision', 'stop')",
        lived.pk,
    )
    tamper("DELETE FROM audit_log WHERE engine_id = %s AND engine_seq <= 3", lived.pk)
    return lived


def test_check_accepts_that_retention_took_the_oldest_moves(aged):
    assert check() == []


def test_check_accepts_that_retention_took_every_move(aged, tamper):
    tamper(
        "UPDATE engines_operation SET attempt_started_at = attempt_started_at - interval '1 year' WHERE engine_id = %s", aged.pk
    )
    tamper("DELETE FROM audit_log WHERE engine_id = %s", aged.pk)
    assert check() == []


def test_check_names_a_gap_after_what_retention_took(aged, tamper):
    tamper("DELETE FROM audit_log WHERE engine_id = %s AND engine_seq = 5", aged.pk)
    assert "moves 5 to 5 are missing" in complaint(aged)


def test_check_names_an_outcome_that_retention_cannot_have_taken(aged, tamper):
    tamper("DELETE FROM audit_log WHERE engine_id = %s AND engine_seq = 4", aged.pk)
    assert "(start, succeeded) has 0 rows of an outcome" in complaint(aged)


# -- a fleet at work ---------------------------------------------------------------------------------------------------


def test_check_raises_no_false_alarm_while_engines_move(product):
    stopped = threading.Event()

    def live(number):
        while not stopped.is_set():
            engine = put(product, user_id=f"user {number}")
            for verb in (lifecycle.stop, lifecycle.start, lifecycle.destroy):
                do(verb, engine)
        connection.close()

    lives = [threading.Thread(target=live, args=[number]) for number in range(3)]
    for life in lives:
        life.start()
    try:
        waiting.until(lambda: Engine.objects.filter(status="destroyed").exists(), what="engines live")
        for _ in range(15):
            assert check() == []
    finally:
        stopped.set()
        for life in lives:
            life.join()
    assert check() == []


def test_check_holds_no_writer_up(product, tamper):
    tamper("UPDATE engines_engine SET seq = 5 WHERE id = %s", put(product).pk)
    written = []

    def write():
        written.append(put(product, user_id="bob"))
        connection.close()

    def report(disagreement):
        """Called in the middle of the check's transaction."""
        writer = threading.Thread(target=write)
        writer.start()
        writer.join(10)
        assert len(written) == 1

    assert consistency.check(report).disagreeing == 1
