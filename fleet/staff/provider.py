"""Single sign-on: the two pages of the way to the provider and back, for a log-in, or to confirm who somebody is.

/admin/provider/            begins: a link, which costs no session and no row, and leads to the provider
/admin/provider/callback/   the way back: checks the answer, and logs in or confirms

A link and not a form, because browsers stop a form of ours whose answer leads to another site (`form-action` in `fleet.csp`).
A link on somebody else's page begins nothing: browsers say in `Sec-Fetch-Site` where a request comes from.
"""

from collections.abc import Callable
from functools import partial, wraps
from urllib.parse import urlencode

import structlog
from django.contrib.auth import REDIRECT_FIELD_NAME
from django.db import IntegrityError, transaction
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.utils.cache import add_never_cache_headers
from django.utils.http import url_has_allowed_host_and_scheme

from common import times
from common.settings import settings
from fleet import denials
from fleet.staff import confirmation, identities, log_in, openid, record, visits
from fleet.staff.identities import Refused
from fleet.staff.openid import Away, Claims, Unproven
from fleet.staff.visits import Visit

AGAIN = "again"  # query parameter of `start`: whoever is logged in confirms who they are
MAX_BACK = 1000  # characters of an address to go back to; a cookie holds it
_BEGIN_AGAIN = "This log-in began in another window or browser, or over 10 minutes ago. Begin again."
_NOT_PROVED = "The provider has not proved who you are. Begin again, or ask those who run the provider."
_AWAY = "The provider of the log-in does not answer, or not as it should. Try again in a few seconds."

log = structlog.get_logger(__name__)
View = Callable[[HttpRequest], HttpResponse]


class BeginAgain(Exception):
    """The answer belongs to no visit of this browser."""


def _page(view: View) -> View:
    """The view as a page of single sign-on: 404 without a provider, never cached, and a sentence for whatever goes wrong."""

    @wraps(view)
    def answer(request: HttpRequest) -> HttpResponse:
        if not settings.ENV.oidc_issuer:
            raise Http404
        response = _answer(view, request) if request.method == "GET" else HttpResponseNotAllowed(["GET"])
        add_never_cache_headers(response)
        return response

    return answer


def _answer(view: View, request: HttpRequest) -> HttpResponse:
    try:
        return view(request)
    except BeginAgain:  # the browser keeps its visit: a link on somebody else's page must not end it
        return _refuse(request, Refused("no_visit", _BEGIN_AGAIN), 400)
    except Unproven as unproven:
        return _refuse(request, Refused(str(unproven), _NOT_PROVED), 403)
    except Refused as refused:
        return _refuse(request, refused, 403)
    except Away as away:
        log.warning("provider_away", reason=str(away))
        return _sorry(request, _AWAY, 502)


def _refuse(request: HttpRequest, refused: Refused, status: int) -> HttpResponse:
    """The page of a refusal, with its audit row and its log line."""
    record.login_failed(refused.rule, refused.username)
    return denials.of_staff(request, _sorry(request, str(refused), status), f"provider: {refused.reason}")


def _sorry(request: HttpRequest, sentence: str, status: int) -> HttpResponse:
    return render(request, "admin/staff/provider_failed.html", {"sentence": sentence}, status=status)


# -- to the provider ---------------------------------------------------------------------------------------------------


@_page
def start(request: HttpRequest) -> HttpResponse:
    """Lead to the provider: to log in, or with AGAIN, to confirm that whoever is logged in is still there."""
    back, user = _back(request), request.user
    if request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
        return HttpResponseRedirect(f"{reverse('admin:login')}?{urlencode({REDIRECT_FIELD_NAME: back})}")
    if user.is_authenticated and AGAIN not in request.GET:
        return HttpResponseRedirect(back)
    visit = visits.begin(back, confirms=user.get_username())
    response = HttpResponseRedirect(openid.address(visit, _redirect_uri(request)))
    visits.keep(response, visit)
    return response


def _back(request: HttpRequest) -> str:
    """The page of the admin to go back to: `next`, unless it leads elsewhere."""
    given = request.GET.get(REDIRECT_FIELD_NAME, "")
    home = reverse("admin:index")
    is_ours = given.startswith(home) and url_has_allowed_host_and_scheme(given, allowed_hosts=None)
    return given if is_ours and given.isprintable() and len(given) <= MAX_BACK else home


def _redirect_uri(request: HttpRequest) -> str:
    return request.build_absolute_uri(reverse("admin:provider_callback"))


# -- and back ----------------------------------------------------------------------------------------------------------


@_page
def callback(request: HttpRequest) -> HttpResponse:
    """Take the provider's answer: log in, or confirm, and lead to the page that the visit names."""
    visit = visits.find(request)
    if visit is None or not visits.is_of(visit, request.GET.get("state", "")):
        raise BeginAgain
    response = _answer(partial(_finish, visit=visit), request)
    visits.forget(response)
    return response


def _finish(request: HttpRequest, visit: Visit) -> HttpResponse:
    """Log in or confirm, by the answer to the visit. Raises Unproven, Refused, Away."""
    claims = openid.claims_of(_code(request), visit, _redirect_uri(request))
    if visit.confirms:
        _confirm(request, visit, claims)
    else:
        _log_in(request, claims)
    return HttpResponseRedirect(visit.back)


def _code(request: HttpRequest) -> str:
    """The code of the answer. Raises Unproven for an answer of another issuer, an error, or a user who declined."""
    if not openid.names_issuer(request.GET.get("iss")):
        raise Unproven("another_issuer")
    if "error" in request.GET or not request.GET.get("code"):
        raise Unproven(openid.word(request.GET.get("error")))
    return request.GET["code"]


def _log_in(request: HttpRequest, claims: Claims) -> None:
    """Log the user of the claims in: groups, session and rows in one transaction. Raises Refused."""
    groups = identities.groups_of(claims)
    if not groups:
        sentence = "You are in none of the provider's groups that may log in here."
        raise Refused("no_group", sentence, identities.expel(claims))
    try:
        with transaction.atomic():
            log_in.complete(request, identities.admit(claims, groups), "provider")
    except IntegrityError as error:
        raise Refused("at_once", "You have logged in twice at the same moment. Begin again.") from error
    if not openid.is_fresh(claims, (times.database_now() - confirmation.KEPT).timestamp()):
        confirmation.forget(request)


def _confirm(request: HttpRequest, visit: Visit, claims: Claims) -> None:
    """Note that the user has just proved who they are. Raises Refused for another user, or an old proof."""
    user, name = request.user, visit.confirms
    if user.get_username() != name or identities.find(claims) != user:
        raise Refused("another_user", "The provider knows you as somebody else than the user who is logged in here.", name)
    if not openid.is_fresh(claims, visit.began_at.timestamp()):
        raise Refused("old_proof", "The provider has not asked you anew who you are.", name)
    confirmation.note(request)
