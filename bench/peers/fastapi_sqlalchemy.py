"""`admit` as a FastAPI application with SQLAlchemy's ORM on asyncpg: typed models, dependencies, a session per request."""

import hashlib
import hmac
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import Depends, FastAPI, Header, HTTPException, Response
from pydantic import BaseModel, ConfigDict
from sqlalchemy import URL, ForeignKey, Text, and_, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, joinedload, mapped_column, relationship

from bench.peers import shared


class Base(DeclarativeBase):
    pass


class Product(Base):
    __tablename__ = "policy_product"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    slug: Mapped[str]
    policy: Mapped[dict[str, Any]] = mapped_column(JSONB)


class PlatformKey(Base):
    __tablename__ = "policy_platformkey"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    key_hash: Mapped[str]
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text))
    last_used_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    product_id: Mapped[UUID] = mapped_column(ForeignKey("policy_product.id"))
    product: Mapped[Product] = relationship()


class Engine(Base):
    __tablename__ = "engines_engine"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    product_id: Mapped[UUID]
    user_id: Mapped[str]
    status: Mapped[str]
    engine_version: Mapped[str]
    port: Mapped[int | None]
    key_ciphertext: Mapped[str]
    created_at: Mapped[datetime]
    last_health_at: Mapped[datetime | None]
    disk_used_mb: Mapped[int | None]
    disk_measured_at: Mapped[datetime | None]
    last_active_at: Mapped[datetime | None]
    destroyed_at: Mapped[datetime | None]


class Operation(Base):
    __tablename__ = "engines_operation"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    engine_id: Mapped[UUID]
    kind: Mapped[str]
    state: Mapped[str]


class Flags(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    auto_provision: bool = False
    auto_wake: bool = False


_database = shared.database()
_host = _database.pop("host")
_url = URL.create(
    "postgresql+asyncpg",
    username=_database["user"],
    password=_database["password"],
    database=_database["database"],
    port=_database["port"],
    query={"host": _host} if _host.startswith("/") else {},
    host=None if _host.startswith("/") else _host,
)
# Autocommit, as in Roundhouse: otherwise every request would also send BEGIN and ROLLBACK.
_engine = create_async_engine(_url, isolation_level="AUTOCOMMIT", pool_size=shared.CONNECTIONS, max_overflow=0)
_sessions = async_sessionmaker(_engine, expire_on_commit=False)
_limiter = shared.Limiter()
app = FastAPI(openapi_url=None)

_ago = func.now() - text("interval '1 minute'")
_unmarked = or_(PlatformKey.last_used_at.is_(None), PlatformKey.last_used_at < _ago)
_living = and_(PlatformKey.revoked_at.is_(None), or_(PlatformKey.expires_at.is_(None), PlatformKey.expires_at > func.now()))
_stale = or_(Engine.last_active_at.is_(None), Engine.last_active_at < func.now() - text("interval '30 seconds'"))


async def session() -> AsyncIterator[AsyncSession]:
    async with _sessions() as opened:
        yield opened


Session = Annotated[AsyncSession, Depends(session)]


async def product(db: Session, x_platform_key: Annotated[str, Header()] = "") -> Product:
    """The product of a living platform key. Marks the key's last use, at most once a minute. Raises HTTPException."""
    digest = hashlib.sha256(x_platform_key.encode()).hexdigest()
    query = select(PlatformKey, _unmarked).options(joinedload(PlatformKey.product)).where(PlatformKey.key_hash == digest, _living)
    row = (await db.execute(query)).first()
    if row is None or not hmac.compare_digest(row[0].key_hash, digest):
        raise HTTPException(401, "INVALID_PLATFORM_KEY")
    key, unmarked = row
    if "admit" not in key.scopes:
        raise HTTPException(403, "INSUFFICIENT_SCOPE")
    if unmarked:
        await db.execute(
            update(PlatformKey)
            .where(PlatformKey.id == key.id, _unmarked)
            .values(last_used_at=func.now())
            .execution_options(synchronize_session=False)
        )
    found: Product = key.product
    return found


@app.post("/engines/{user_id}/admit")
async def admit(
    user_id: str, flags: Flags, response: Response, db: Session, by: Annotated[Product, Depends(product)]
) -> dict[str, Any]:
    """POST /engines/{user_id}/admit."""
    if (limit := by.policy.get("rate_limit_rpm")) is not None:
        fits, headers = await _limiter.hit(str(by.id), limit)
        if not fits:
            raise HTTPException(429, "RATE_LIMITED", headers=headers)
        response.headers.update(headers)
    is_open = and_(Operation.engine_id == Engine.id, Operation.state.in_(("pending", "running")))
    query = (
        select(Engine, Operation.kind, _stale)
        .outerjoin(Operation, is_open)
        .where(Engine.product_id == by.id, Engine.user_id == user_id, Engine.destroyed_at.is_(None))
        .limit(1)
    )
    row = (await db.execute(query)).first()
    engine, kind, stale = row if row is not None else (None, None, False)
    if reason := shared.refused(engine and engine.status, kind is not None):
        return {"admitted": False, "engine": None, "reason": reason}
    if stale:
        await db.execute(
            update(Engine)
            .where(Engine.id == engine.id, _stale)
            .values(last_active_at=func.now())
            .execution_options(synchronize_session=False)
        )
    return shared.shown(engine, by.policy)
