"""The engine's settings, read from its environment."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self


class WrongSetting(Exception):
    """A variable is missing or has an invalid value; the message names the variable."""


@dataclass(frozen=True)
class Settings:
    """`fault_file` is None unless faults are switched on."""

    key_hash: str  # SHA-256 of the engine's key, lower-case hex
    port: int
    bind: str
    database: Path
    catalog: Path | None
    boot_delay_s: float
    fault_file: Path | None

    @classmethod
    def read(cls, env: Mapping[str, str]) -> Self:
        """Raises WrongSetting."""
        key_hash = env.get("ENGINE_KEY_HASH", "").lower()
        if not re.fullmatch(r"[0-9a-f]{64}", key_hash):
            raise WrongSetting("ENGINE_KEY_HASH must be the SHA-256 of the engine's key, as 64 hexadecimal digits")
        port = _number(env, "PORT", "8000")
        if not (port.is_integer() and 1 <= port <= 65535):
            raise WrongSetting("PORT must be a whole number from 1 to 65535")
        database = Path(env.get("SQLITE_DB_PATH") or "brain.sqlite")
        catalog = env.get("CATALOG_DIR")
        faults = env.get("DEMO_FAULTS") == "1"
        return cls(
            key_hash=key_hash,
            port=int(port),
            bind=env.get("BIND") or "127.0.0.1",
            database=database,
            catalog=Path(catalog) if catalog else None,
            boot_delay_s=_number(env, "DEMO_BOOT_DELAY_S", "0") if faults else 0,
            fault_file=database.with_name("faults.json") if faults else None,
        )


def _number(env: Mapping[str, str], name: str, default: str) -> float:
    try:
        number = float(env.get(name) or default)
    except ValueError:
        number = -1
    if not 0 <= number < 1_000_000:
        raise WrongSetting(f"{name} must be a number, at least 0 and below 1000000")
    return number
