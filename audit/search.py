"""The search terms of the admin's audit list, and users, translated into query conditions: exact matches only."""

from datetime import timedelta

from django.db.models import BigIntegerField, F, Q, QuerySet, Value

from audit.actions import Retention
from audit.models import AuditRow
from common import ip_addresses, uuids

HELP = (
    "User, engine, product, operation, request or actor; a prefix chooses the kind, as in user:alice. With a period also call:,"
    " key:, address: and behalf:"
)

# Without an index: call, key, address and behalf. The log line of a call has its request id, too, and requests have an index.
_UUIDS = {"engine": "engine_id", "product": "product_id", "operation": "operation_id", "call": "call_id", "key": "key_id"}
_TEXTS = {"product": "product_slug", "request": "request_id", "actor": "actor", "behalf": "on_behalf_of"}
MOST = 1000  # counts of refusals that name a user
_NOTHING = Q(pk__in=())


def read(term: str, among: "QuerySet[AuditRow]") -> Q:
    """Return the condition for a term of a search among the given rows.

    A prefix (`engine:ID`, `user:NAME`) names the column; a bare term is guessed. A bare UUID is read as the id of an engine, else
    of a product, else of a user, else of an operation or a request. Bare text is read as a user's id, else as a product's slug,
    an actor or a request's id.
    """
    kind, _, value = term.partition(":")
    uuid = uuids.parse(value)
    if kind == "user":
        return of_user(value, among)
    if kind in _UUIDS and uuid is not None:
        return Q(**{_UUIDS[kind]: uuid})
    if kind in _TEXTS:
        return Q(**{_TEXTS[kind]: value})
    if kind == "address":
        address = ip_addresses.parse(value)
        return _NOTHING if address is None else Q(client_ip=address)
    if kind in _UUIDS:
        return _NOTHING
    return _guess(term, among)


def of_user(user_id: str, among: "QuerySet[AuditRow]") -> Q:
    """The rows of a user, and of the counts of refusals among the given rows the newest MOST that name the user."""
    return _of_user(user_id, _look_up(user_id, among))


def _of_user(user_id: str, found: list[int | None]) -> Q:
    counts = [pk for pk in found if pk is not None]
    return Q(user_id=user_id) | Q(pk__in=counts, retention=Retention.STANDARD) if counts else Q(user_id=user_id)


def _look_up(user_id: str, among: "QuerySet[AuditRow]") -> list[int | None]:
    """None if there is a row of the user, and the ids of the newest MOST counts of refusals that name the user.

    The counts are looked up by themselves: PostgreSQL would not use two indexes for an OR, but read the whole log.
    """
    none = Value(None, output_field=BigIntegerField())
    own = AuditRow.objects.filter(user_id=user_id).order_by().annotate(count=none).values_list("count", flat=True)[:1]
    named = among.filter(retention=Retention.STANDARD, metadata__has_key="users", metadata__users__has_key=user_id)
    newest = (F("timestamp") + timedelta()).desc()  # a sum, which no index has: the index of users is to be read, not of times
    counts = named.order_by(newest).annotate(count=F("pk")).values_list("count", flat=True)[:MOST]
    return list(own.union(counts, all=True))


def _guess(term: str, among: "QuerySet[AuditRow]") -> Q:
    uuid = uuids.parse(term)
    if uuid is not None and (indexed := _first_known(Q(engine_id=uuid), Q(product_id=uuid))):
        return indexed
    if found := _look_up(term, among):
        return _of_user(term, found)
    if uuid is not None:
        return Q(operation_id=uuid) | Q(request_id=term)
    return Q(product_slug=term) | Q(actor=term) | Q(request_id=term)


def _first_known(*conditions: Q) -> Q | None:
    """Return the first condition with a matching row, or None. Every check is answered by an index."""
    return next((condition for condition in conditions if AuditRow.objects.filter(condition).order_by().exists()), None)
