from audit import actors
from audit.models import AuditRow
from engines import lifecycle


def test_life(product, carry_out, running_engine):
    engine = running_engine
    by = actors.product(product.slug)
    for verb in (
        lifecycle.stop,
        lifecycle.start,
        lifecycle.sleep,
        lifecycle.wake,
        lifecycle.restart,
        lifecycle.rotate_key,
        lifecycle.destroy,
    ):
        operation = carry_out(verb(engine, by=by))
        assert operation.state == "succeeded", (verb, operation.error_code, operation.error_message)
    rows = AuditRow.objects.filter(engine_id=engine.pk).order_by("engine_seq", "id")
    for r in rows:
        print(r.action, r.from_status, r.to_status, r.engine_seq, r.duration_ms, r.metadata)


def test_api(stack, product):
    r = stack.call("POST", "/engines/bob/admit", product.key, {"auto_provision": True})
    print(r.status_code, r.text)
    print(stack.call("GET", "/audit", product.key).text)
    print(stack.call("GET", "/status", product.key).text)
    print(stack.call("GET", "/metrics", product.key).text)
    print(stack.call("DELETE", "/engines/bob", product.key).text)
    assert r.status_code == 200
