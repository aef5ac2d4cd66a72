"""A product's share of the threads of a web process, without the threads of admits; destroys have threads of their own.

A request enters as soon as its key is known. The request leaves when it begins to wait for an operation, and otherwise when its
answer is closed: a client that reads a very long answer slowly holds a thread, too. A thread handles a request from the beginning
to the end, and holds one place at most.
"""

import threading

import structlog

from common import busy_thread
from common.settings import settings
from common.shares import ReservedPlaces
from policy.errors import ShareTaken
from policy.models import Product

log = structlog.get_logger(__name__)
_places = ReservedPlaces(settings.ENV.web_threads, settings.ENV.reserved_threads)
_places_of_destroys = ReservedPlaces(busy_thread.DESTROYS, busy_thread.DESTROYS // 4)
_thread = threading.local()  # `held`: the places, and the id of the product for which the thread holds one of them, if any


def enter(product: Product, *, is_destroy: bool = False) -> None:
    """Count the calling thread in the product's share until `leave`. Raises ShareTaken."""
    leave()
    places = _places_of_destroys if is_destroy else _places
    if not places.take(product.pk):
        log.warning("product_at_its_share", product_id=str(product.pk), of="threads")
        raise ShareTaken("Too many requests of this product are under way in this web process; try again in a few seconds.")
    _thread.held = places, product.pk


def leave() -> None:
    """Take the calling thread out of the share; nothing happens if the thread is in no share."""
    if (held := vars(_thread).pop("held", None)) is not None:
        places, owner = held
        places.give_back(owner)
