"""What every request passes through: its id, and its path as it was sent; and what only the admin's pages do."""

import re
import uuid
from collections.abc import Awaitable, Callable
from urllib.parse import quote, urlsplit

import structlog
from django.contrib.auth.middleware import AuthenticationMiddleware
from django.contrib.messages.middleware import MessageMiddleware
from django.contrib.sessions.middleware import SessionMiddleware
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.utils.deprecation import MiddlewareMixin
from django.utils.log import log_response

from common import context

Next = Callable[[HttpRequest], HttpResponse]

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


def request_id(get_response: Next) -> Next:
    """Take `X-Request-ID` from the request or make one; bind it to every log line and audit row; return it."""

    def middleware(request: HttpRequest) -> HttpResponse:
        given = request.headers.get("X-Request-ID", "")
        identifier = given if _REQUEST_ID.fullmatch(given) else str(uuid.uuid4())
        structlog.contextvars.clear_contextvars()
        with context.of_request(identifier):
            response = get_response(request)
            if response.status_code >= 400:  # Django does it further out, where the id is not bound any more; never twice
                log_response("%s: %s", response.reason_phrase, request.path, response=response, request=request)
        response["X-Request-ID"] = identifier
        return response

    return middleware


def raw_path(get_response: Next) -> Next:
    """Route `/engines/...` by the path before decoding, so that `alice%2Faudit` is one segment: a user's name.

    gunicorn gives the raw target as RAW_URI; where it is missing (test clients), the decoded path is all there is.
    """

    def middleware(request: HttpRequest) -> HttpResponse:
        if request.path_info.startswith("/engines/"):
            target = request.META.get("RAW_URI")
            request.path_info = urlsplit(target).path if target else quote(request.path_info)
        return get_response(request)

    return middleware


class _InAdmin(MiddlewareMixin):
    """Nothing outside `/admin/` has a session, a user of the site or a form: the API is spared the time."""

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        return super().__call__(request) if request.path.startswith("/admin/") else self.get_response(request)


class Sessions(_InAdmin, SessionMiddleware):
    """Django's, for the admin."""


class Authentication(_InAdmin, AuthenticationMiddleware):
    """Django's, for the admin."""


class Messages(_InAdmin, MessageMiddleware):
    """Django's, for the admin."""
