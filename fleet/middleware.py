"""Middleware: id, undecoded path, method and thread of every request; sessions, users and messages for `/admin/` only."""

import uuid
from collections.abc import Awaitable, Callable
from urllib.parse import quote, urlsplit

import structlog
from django.contrib.auth.middleware import AuthenticationMiddleware
from django.contrib.messages.middleware import MessageMiddleware
from django.contrib.sessions.middleware import SessionMiddleware
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed
from django.http.response import HttpResponseBase
from django.utils.deprecation import MiddlewareMixin
from django.utils.log import log_response

from common import context
from fleet import denials, errors
from policy import thread_share

Next = Callable[[HttpRequest], HttpResponse]

_PAGES = ("/admin/", "/static/")
_CACHED = ("/schema/", "/docs/", *_PAGES)


def request_id(get_response: Next) -> Next:
    """Take the request id from `X-Request-ID` or make a new id; return the id in `X-Request-ID` of the response.

    Every log line and audit row of the request carries the id.
    """

    def middleware(request: HttpRequest) -> HttpResponse:
        given = request.headers.get("X-Request-ID", "")
        identifier = given if context.REQUEST_ID.fullmatch(given) else str(uuid.uuid4())
        structlog.contextvars.clear_contextvars()
        with context.of_request(identifier):
            response = get_response(request)
            # Log here, where the id is still bound. Django logs further out, but never logs a response twice.
            if response.status_code >= 400 and not denials.note(request, response):
                log_response("%s: %s", response.reason_phrase, request.path, response=response, request=request)
        response["X-Request-ID"] = identifier
        return response

    return middleware


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


def no_store(get_response: Next) -> Next:
    """Forbid caches to keep an answer of the API, because most of them hold a key or a user's data.

    The OpenAPI document and its page are the same for everybody. The admin and the static files have headers of their own.
    """

    def middleware(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        if not request.path.startswith(_CACHED):
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
    """Django's sessions, for `/admin/` only."""


class Authentication(_InAdmin, AuthenticationMiddleware):
    """Django's authentication, for `/admin/` only."""


class Messages(_InAdmin, MessageMiddleware):
    """Django's messages, for `/admin/` only."""
