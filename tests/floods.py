"""The minutes of refusals that are counted instead of written one by one."""

from common import valkey
from policy import refusals


def end_minutes():
    """Let every minute that has begun be over, by moving its end into the past."""
    client = valkey.client()
    for name in client.zrange("{refusals}/due", 0, -1):
        client.zincrby("{refusals}/due", -2 * refusals.MINUTE_S * 1000, name)


def end_minutes_here():
    """Write the rows of what this process has counted by itself, while Valkey was away."""
    for tally in list(refusals._here.values()):
        refusals._end_here(tally)


def written():
    """Write the rows of all that was counted so far; returns how many rows."""
    end_minutes()
    return refusals.write_due()
