"""What a browser may do with our answers: nothing at all, but for the admin's pages and the API's documentation."""

from typing import cast

from csp.decorators import csp
from django.http import HttpRequest, HttpResponse

from fleet.middleware import Next

# Unfold writes scripts and styles into its pages, and its Alpine evaluates expressions.
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

# Swagger UI: its own script and style sheet, pictures inside the latter, and our document.
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
    """Give `/admin/` the policy that its pages need; inside django-csp's middleware, which gives everything else its own."""
    relaxed = cast(Next, csp(ADMIN)(get_response))

    def middleware(request: HttpRequest) -> HttpResponse:
        return relaxed(request) if request.path.startswith("/admin/") else get_response(request)

    return middleware
