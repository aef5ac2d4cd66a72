"""The log lines of refused keys and of denied staff: who tried what, and from where."""

from typing import Any

import structlog
from django.http import HttpRequest, HttpResponse

from policy import crypto

log = structlog.get_logger(__name__)

_LOGGED = "_has_been_logged"  # Django's mark of a response that has its log line: Django writes no second line
_KEY_HEADERS = ("X-Admin-Key", "X-Platform-Key")


def note(request: HttpRequest, response: HttpResponse) -> bool:
    """Log the response if a key was refused or staff was denied; return whether the response has a log line."""
    if response.status_code == 403 and request.path.startswith("/admin/") and not vars(response).get(_LOGGED):
        of_staff(request, response, "permission")
    elif response.status_code == 401 or _code(response) == "INSUFFICIENT_SCOPE":
        log.warning("key_refused", code=_code(response), key=_shown_key(request), **_place(request))
        vars(response)[_LOGGED] = True
    return bool(vars(response).get(_LOGGED))


def of_staff(request: HttpRequest, response: HttpResponse, reason: str) -> HttpResponse:
    """Log that staff was denied, and return the response, for which Django then writes no line of its own."""
    log.warning("staff_denied", user=_user_name(request), reason=reason, **_place(request))
    vars(response)[_LOGGED] = True
    return response


def _place(request: HttpRequest) -> dict[str, Any]:
    return {"address": request.META.get("REMOTE_ADDR", ""), "method": request.method, "path": request.path}


def _user_name(request: HttpRequest) -> str:
    user = getattr(request, "user", None)
    return user.get_username() if user is not None and user.is_authenticated else ""


def _code(response: HttpResponse) -> str:
    data = getattr(response, "data", None)
    return str(data["error"]["code"]) if isinstance(data, dict) and "error" in data else ""


def _shown_key(request: HttpRequest) -> str:
    """The characters by which staff knows the key; empty for text in another form than our keys, which may be another secret."""
    given = next((request.headers[name] for name in _KEY_HEADERS if name in request.headers), "")
    for prefix in (crypto.PLATFORM_PREFIX, crypto.ADMIN_PREFIX):
        if given.startswith(prefix):
            return given.removeprefix(prefix)[: crypto.SHOWN]
    return ""
