"""Client of Roundhouse: `Client` for a product, `Operator` for holders of an admin key."""

from roundhouse_client.client import Client
from roundhouse_client.errors import ApiError, RoundhouseError, StillRunning, Unreachable
from roundhouse_client.operator import Operator

__all__ = ["ApiError", "Client", "Operator", "RoundhouseError", "StillRunning", "Unreachable"]
