"""The WSGI application that the web server loads."""

import io
import os
from collections.abc import Callable, Iterable
from typing import Any

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
django = get_wsgi_application()

from common.bodies import MAX_BODY  # noqa: E402 (its imports need Django to be set up)


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Django, plus chunked bodies: Django reads only Content-Length bytes, and a chunked body has no Content-Length."""
    if "HTTP_TRANSFER_ENCODING" in environ:
        body = environ["wsgi.input"].read(MAX_BODY + 1)
        environ |= {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
    return django(environ, start_response)
