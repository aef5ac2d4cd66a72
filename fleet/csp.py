"""Content security policies of the admin's pages and of the API's documentation; all other answers allow nothing."""

from typing import cast

from csp.decorators import csp
from django.http import HttpRequest, HttpResponse

from fleet.middleware import Next

# Unfold writes scripts and styles into its pages (unsafe-inline). Its library Alpine evaluates expressions (unsafe-eval).
ADMIN = {
    "default-src": ["'none'"],
    "script-src": ["'self'", "'unsafe-inline'", "'unsafe-eval'"],
    "style-src": ["'self'", "'unsafe-inline'"],
    "font-src": ["'self'"],
    "img-src": ["'self'", "data:"],
    "connect-src": ["'self'"],
    "form-action": ["'self'"],
    "frame-ancestors": ["'none'"],
    "base-uri": ["'none'"],
}

# Swagger UI loads its own script and style sheet, pictures inside the style sheet (data:), and our OpenAPI document.
DOCS = {
    "default-src": ["'none'"],
    "script-src": ["'self'"],
    "style-src": ["'self'"],
    "img-src": ["'self'", "data:"],
    "connect-src": ["'self'"],
    "form-action": ["'none'"],
    "frame-ancestors": ["'none'"],
    "base-uri": ["'none'"],
}


def admin_pages(get_response: Next) -> Next:
    """Give `/admin/` the policy ADMIN. Stands inside django-csp's middleware, which gives all other paths the strict policy."""
    relaxed = cast(Next, csp(ADMIN)(get_response))

    def middleware(request: HttpRequest) -> HttpResponse:
        return relaxed(request) if request.path.startswith("/admin/") else get_response(request)

    return middleware
