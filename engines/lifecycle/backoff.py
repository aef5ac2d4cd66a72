"""The pauses between automatic restarts."""

import random

from common.settings import settings


def next_restart_s(attempts: int) -> float | None:
    """Seconds until the next automatic restart after `attempts` restarts, or None when they were all that there are.

    base × 2^attempts, capped (exponential backoff); a random fifth less, so that engines that failed together do not all start at
    the same moment.
    """
    if attempts >= settings.ENV.restart_max_attempts:
        return None
    delay = min(settings.ENV.restart_backoff_base_s * 2.0**attempts, settings.ENV.restart_backoff_max_s)
    return delay * random.uniform(0.8, 1.0)  # noqa: S311 (jitter)
