"""`admit` with the least asynchronous code: an ASGI application without a framework, plain SQL on asyncpg's pool."""

import hashlib
import hmac
import json
import re
from typing import Any
from urllib.parse import unquote

import asyncpg

from bench.peers import shared

KEY = """
SELECT k.id, k.key_hash, k.scopes, p.id AS product_id, p.policy,
       (k.last_used_at IS NULL OR k.last_used_at < now() - interval '1 minute') AS unmarked
FROM policy_platformkey k JOIN policy_product p ON p.id = k.product_id
WHERE k.key_hash = $1 AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())
"""
MARK_KEY = """
UPDATE policy_platformkey SET last_used_at = now()
WHERE id = $1 AND (last_used_at IS NULL OR last_used_at < now() - interval '1 minute')
"""
ENGINE = """
SELECT e.id, e.user_id, e.status, e.engine_version, e.port, e.key_ciphertext, e.created_at, e.last_health_at,
       e.disk_used_mb, e.disk_measured_at, o.kind,
       (e.last_active_at IS NULL OR e.last_active_at < now() - interval '30 seconds') AS stale
FROM engines_engine e LEFT JOIN engines_operation o ON o.engine_id = e.id AND o.state IN ('pending', 'running')
WHERE e.product_id = $1 AND e.user_id = $2 AND e.destroyed_at IS NULL
LIMIT 1
"""
MARK_ENGINE = """
UPDATE engines_engine SET last_active_at = now()
WHERE id = $1 AND (last_active_at IS NULL OR last_active_at < now() - interval '30 seconds')
"""
ADMIT = re.compile("/engines/([^/]+)/admit")
FLAGS = {"auto_provision", "auto_wake"}
_limiter = shared.Limiter()
_pool: asyncpg.Pool | None = None


class Row:
    """A record's columns as attributes."""

    def __init__(self, record: asyncpg.Record) -> None:
        self.__dict__.update(record)


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """POST /engines/{user_id}/admit; all other paths are 404."""
    if scope["type"] == "lifespan":
        await _live(receive, send)
        return
    match = ADMIT.fullmatch(scope["raw_path"].decode())
    status, body, headers = await _admit(scope, receive, unquote(match[1])) if match else (404, {}, {})
    head = [(b"content-type", b"application/json"), *((name.lower().encode(), value.encode()) for name, value in headers.items())]
    content = json.dumps(body).encode()
    await send({"type": "http.response.start", "status": status, "headers": [*head, (b"content-length", b"%d" % len(content))]})
    await send({"type": "http.response.body", "body": content})


async def _live(receive: Any, send: Any) -> None:
    global _pool
    await receive()
    _pool = await asyncpg.create_pool(
        **shared.database(), min_size=shared.CONNECTIONS, max_size=shared.CONNECTIONS, init=_prepare
    )
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await _pool.close()
    await send({"type": "lifespan.shutdown.complete"})


async def _prepare(connection: asyncpg.Connection) -> None:
    await connection.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")


async def _admit(scope: dict[str, Any], receive: Any, user_id: str) -> tuple[int, dict[str, Any], dict[str, str]]:
    flags = json.loads(await _read(receive) or b"{}")
    if not isinstance(flags, dict) or set(flags) - FLAGS:
        return 400, {"error": {"code": "INVALID_REQUEST"}}, {}
    given = next((value for name, value in scope["headers"] if name == b"x-platform-key"), b"")
    digest = hashlib.sha256(given).hexdigest()
    assert _pool is not None
    async with _pool.acquire() as db:
        key = await db.fetchrow(KEY, digest)
        if key is None or not hmac.compare_digest(key["key_hash"], digest):
            return 401, {"error": {"code": "INVALID_PLATFORM_KEY"}}, {}
        if "admit" not in key["scopes"]:
            return 403, {"error": {"code": "INSUFFICIENT_SCOPE"}}, {}
        if key["unmarked"]:
            await db.execute(MARK_KEY, key["id"])
        headers: dict[str, str] = {}
        if (limit := key["policy"].get("rate_limit_rpm")) is not None:
            fits, headers = await _limiter.hit(str(key["product_id"]), limit)
            if not fits:
                return 429, {"error": {"code": "RATE_LIMITED"}}, headers
        engine = await db.fetchrow(ENGINE, key["product_id"], user_id)
        if reason := shared.refused(engine and engine["status"], engine is not None and engine["kind"] is not None):
            return 200, {"admitted": False, "engine": None, "reason": reason}, headers
        if engine["stale"]:
            await db.execute(MARK_ENGINE, engine["id"])
    return 200, shared.shown(Row(engine), key["policy"]), headers


async def _read(receive: Any) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    return body
