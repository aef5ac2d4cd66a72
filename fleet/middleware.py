"""Middleware: call, undecoded path, method and thread of every request; sessions, users and messages for `/admin/` only."""

from collections.abc import Awaitable, Callable
from functools import lru_cache
from urllib.parse import quote, urlsplit
from uuid import uuid4

import structlog
from django.contrib.auth.middleware import AuthenticationMiddleware
from django.contrib.messages.middleware import MessageMiddleware
from django.contrib.sessions.middleware import SessionMiddleware
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed
from django.http.response import HttpResponseBase
from django.utils.deprecation import MiddlewareMixin
from django.utils.log import log_response

from common import characters, context, ip_addresses
from common.context import Call
from fleet import denials, errors
from policy import thread_share

Next = Callable[[HttpRequest], HttpResponse]

MAX_USER_AGENT = 200
MAX_ON_BEHALF_OF = 255
_PAGES = ("/admin/", "/static/")
_CACHED = ("/schema/", "/docs/", *_PAGES)
_NOT_FITTING = (
    f"X-On-Behalf-Of: must be at most {MAX_ON_BEHALF_OF} printable characters; shorten the name, or leave the header out."
)


def begin_call(get_response: Next) -> Next:
    """Begin the request's call: every log line, audit row and operation of the request names it (`common.context.Call`).

    The response returns both ids. `X-Call-ID` is always made here; `X-Request-ID` is the caller's, or else the id of the call.
    An `X-On-Behalf-Of` that is too long, or does not show, is refused with 400.
    """

    def middleware(request: HttpRequest) -> HttpResponse:
        call = _call_of(request)
        structlog.contextvars.clear_contextvars()
        with context.of_call(call):
            is_refused = call.on_behalf_of is not None and not _fits(call.on_behalf_of)
            response = errors.outside(400, "INVALID_REQUEST", _NOT_FITTING) if is_refused else get_response(request)
            # Log here, where the call is still bound. Django logs further out, but never logs a response twice.
            if response.status_code >= 400 and not denials.note(request, response):
                log_response("%s: %s", response.reason_phrase, request.path, response=response, request=request)
        response["X-Request-ID"] = call.request_id or ""
        response["X-Call-ID"] = str(call.call_id)
        return response

    return middleware


def _call_of(request: HttpRequest) -> Call:
    """The request's call, with what the request says of its caller. Reads `META`, because `headers` costs the hot path more."""
    call_id, given = uuid4(), request.META.get("HTTP_X_REQUEST_ID", "")
    return Call(
        call_id,
        given if context.REQUEST_ID.fullmatch(given) else str(call_id),
        client_ip=client_ip(request),
        user_agent=_printable(_decode(request.META.get("HTTP_USER_AGENT", ""))) or None,
        on_behalf_of=_decode(request.META.get("HTTP_X_ON_BEHALF_OF", "")) or None,
    )


def client_ip(request: HttpRequest) -> str | None:
    """The address of the caller, as PostgreSQL's type `inet` accepts it; None on a socket without addresses."""
    return _parsed(request.META.get("REMOTE_ADDR", ""))


_parsed = lru_cache(maxsize=1024)(ip_addresses.parse)  # few addresses call often, and parsing takes longer than looking up


def _decode(header: str) -> str:
    """The text of a header whose bytes are UTF-8. WSGI hands bytes on as Latin-1, which stays where they are not UTF-8."""
    if header.isascii():
        return header
    try:
        return header.encode("latin-1").decode()
    except UnicodeError:
        return header


def _printable(text: str) -> str:
    """At most the first MAX_USER_AGENT characters, after all characters that do not show are removed."""
    return (text if text.isprintable() else "".join(filter(str.isprintable, text)))[:MAX_USER_AGENT]


def _fits(on_behalf_of: str) -> bool:
    return len(on_behalf_of) <= MAX_ON_BEHALF_OF and "\t" not in on_behalf_of and not characters.unseen(on_behalf_of)


def thread_of_product(get_response: Next) -> Next:
    """Take the thread out of its product's share of threads once the answer is closed: written to the end, or given up."""

    def middleware(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        response._resource_closers.append(thread_share.leave)  # type: ignore[attr-defined]  # as Django closes the request
        return response

    return middleware


def raw_path(get_response: Next) -> Next:
    """Route `/engines/...` by the path before decoding: `alice%2Faudit` stays a single segment, a user id.

    No other path needs `%`. So any other path with `%` is 404: proxies that decode it may see a different path than we do.
    gunicorn gives the raw target as RAW_URI. Without RAW_URI (test clients), the decoded path is encoded again.
    """

    def middleware(request: HttpRequest) -> HttpResponse:
        target = request.META.get("RAW_URI")
        if request.path_info.startswith("/engines/"):
            request.path_info = urlsplit(target).path if target else quote(request.path_info)
        elif target and "%" in urlsplit(target).path:
            return errors.no_such_path()
        return get_response(request)

    return middleware


def plain_forms(get_response: Next) -> Next:
    """Refuse forms of the admin in another charset than UTF-8: browsers send none, and some charsets are no text at all."""

    def middleware(request: HttpRequest) -> HttpResponse:
        charset = (request.content_params or {}).get("charset", "utf-8")
        if request.path.startswith("/admin/") and charset.lower() != "utf-8":
            return errors.outside(415, "UNSUPPORTED_MEDIA_TYPE", "Forms must be sent in UTF-8.")
        return get_response(request)

    return middleware


def no_store(get_response: Next) -> Next:
    """Forbid caches to keep an answer of the API, because most of them hold a key or a user's data.

    The OpenAPI document and its page are the same for everybody. The admin and the static files have headers of their own. No
    error is kept, whatever its path.
    """

    def middleware(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        if response.status_code >= 400 or not request.path.startswith(_CACHED):
            response.headers["Cache-Control"] = "no-store"
        return response

    return middleware


def no_trace(get_response: Next) -> Next:
    """Refuse TRACE outside the API's own endpoints, which refuse TRACE themselves: its answer would repeat cookies and keys."""

    def middleware(request: HttpRequest) -> HttpResponse:
        if request.method == "TRACE" and request.path.startswith(_PAGES):
            return HttpResponseNotAllowed(["GET", "HEAD", "POST", "OPTIONS"])
        return get_response(request)

    return middleware


class _InAdmin(MiddlewareMixin):
    """Skip the middleware outside `/admin/`: the API has no sessions, site users or forms, and saves the time."""

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        return super().__call__(request) if request.path.startswith("/admin/") else self.get_response(request)


class Sessions(_InAdmin, SessionMiddleware):
    """Django's sessions, for `/admin/` only. What people do in a browser prolongs a session; what scripts of a page ask does not.

    Browsers say in `Sec-Fetch-Mode` what a request is for: `navigate` for links and forms.
    """

    def process_response(self, request: HttpRequest, response: HttpResponse) -> HttpResponse:
        answer = super().process_response(request, response)
        if request.headers.get("Sec-Fetch-Mode", "navigate") == "navigate" and response.status_code < 500:
            request.session.prolong()  # type: ignore[attr-defined]  # `fleet.staff.sessions`
        return answer


class Authentication(_InAdmin, AuthenticationMiddleware):
    """Django's authentication, for `/admin/` only."""


class Messages(_InAdmin, MessageMiddleware):
    """Django's messages, for `/admin/` only."""
