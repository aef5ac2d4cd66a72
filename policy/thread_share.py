"""A product's share of the threads of a web process, without the threads of admits.

A request enters as soon as its key is known, and leaves when its answer is closed: a client that reads a very long answer slowly
holds a thread, too. A thread handles a request from the beginning to the end, and holds one place at most.
"""

import threading

import structlog

from common.settings import settings
from common.shares import ReservedPlaces
from policy.errors import ShareTaken
from policy.models import Product

log = structlog.get_logger(__name__)
_places = ReservedPlaces(settings.ENV.web_threads, settings.ENV.reserved_threads)
_thread = threading.local()  # `owner`: the id of the product for which the thread holds a place, if any


def enter(product: Product) -> None:
    """Count the calling thread in the product's share until `leave`. Raises ShareTaken."""
    leave()
    if not _places.take(product.pk):
        log.warning("product_at_its_share", product_id=str(product.pk), of="threads")
        raise ShareTaken("Too many requests of this product are under way in this web process; try again in a few seconds.")
    _thread.owner = product.pk


def leave() -> None:
    """Take the calling thread out of the share; nothing happens if the thread is in no share."""
    if (owner := vars(_thread).pop("owner", None)) is not None:
        _places.give_back(owner)
