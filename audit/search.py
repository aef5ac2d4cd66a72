"""The search terms of the admin's audit list, translated into query conditions: exact matches only."""

from django.db.models import Q

from audit.models import AuditRow
from common import uuids

HELP = "User, engine, product, operation, request or actor; a prefix chooses the kind, as in user:alice"

_UUIDS = {"engine": "engine_id", "product": "product_id", "operation": "operation_id"}
_TEXTS = {"user": "user_id", "product": "product_slug", "request": "request_id", "actor": "actor"}
_NOTHING = Q(pk__in=())


def read(term: str) -> Q:
    """Return the query condition for a term. A prefix (`engine:ID`, `user:NAME`) names the column; a bare term is guessed.

    A bare UUID is read as the id of an engine, else of a product, else of a user, else of an operation or a request. Bare text is
    read as a user's id, else as a product's slug, an actor or a request's id.
    """
    kind, _, value = term.partition(":")
    uuid = uuids.parse(value)
    if kind in _UUIDS and uuid is not None:
        return Q(**{_UUIDS[kind]: uuid})
    if kind in _TEXTS:
        return Q(**{_TEXTS[kind]: value})
    if kind in _UUIDS:
        return _NOTHING
    return _guess(term)


def _guess(term: str) -> Q:
    uuid = uuids.parse(term)
    if uuid is None:
        return _first_known(Q(user_id=term)) or Q(product_slug=term) | Q(actor=term) | Q(request_id=term)
    indexed = _first_known(Q(engine_id=uuid), Q(product_id=uuid), Q(user_id=term))
    return indexed or Q(operation_id=uuid) | Q(request_id=term)


def _first_known(*conditions: Q) -> Q | None:
    """Return the first condition with a matching row, or None. Every check is answered by an index."""
    return next((condition for condition in conditions if AuditRow.objects.filter(condition).order_by().exists()), None)
