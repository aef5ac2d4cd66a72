"""The pauses between automatic restarts."""

import random

from common.settings import settings


def next_restart_s(attempts: int) -> float | None:
    """Seconds until the next automatic restart after `attempts` restarts, or None when no restart is left.

    The pause is base × 2^attempts, capped (exponential backoff), less a random part of up to a fifth: engines that failed
    together thus start at different moments.
    """
    if attempts >= settings.ENV.restart_max_attempts:
        return None
    delay = min(settings.ENV.restart_backoff_base_s * 2.0**attempts, settings.ENV.restart_backoff_max_s)
    return delay * random.uniform(0.8, 1.0)  # noqa: S311 (jitter)
