"""What a term typed into the audit list means: exact matches only."""

from django.db.models import Q

from audit.models import AuditRow
from common import uuids

HELP = "User, engine, product, operation, request or actor; or typed, as in user:alice"

_UUIDS = {"engine": "engine_id", "product": "product_id", "operation": "operation_id"}
_TEXTS = {"user": "user_id", "product": "product_slug", "request": "request_id", "actor": "actor"}
_NOTHING = Q(pk__in=())


def read(term: str) -> Q:
    """The condition that a term stands for: `engine:ID`, `user:NAME` and so on say it, a bare term is looked up.

    A bare id is an engine's, else a product's, else an operation's or a request's; bare text is a user's name, else a
    product's slug, an actor or a request's id.
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
    """The first condition that any row meets; each is answered by an index."""
    return next((condition for condition in conditions if AuditRow.objects.filter(condition).order_by().exists()), None)
