"""The WSGI application that the web server loads."""

import io
import os
from collections.abc import Callable, Iterable
from typing import Any

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
django = get_wsgi_application()

from common.sizes import MAX_BODY  # noqa: E402 (after the set-up of Django, as the next imports)
from config import start_check  # noqa: E402
from config.web import proxies  # noqa: E402 (its settings are Django's)
from policy import thread_share  # noqa: E402

if os.environ.get("ORCH_PROCESS") == "web":  # the server loads this module once, before it forks
    start_check.run()


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Django, with the client's address as REMOTE_ADDR, and with chunked bodies.

    Django reads only Content-Length bytes, and a chunked body has no Content-Length.
    """
    proxies.believe(environ)
    if "HTTP_TRANSFER_ENCODING" in environ:
        body = environ["wsgi.input"].read(MAX_BODY + 1)
        environ |= {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
    try:
        return django(environ, start_response)
    except BaseException:
        thread_share.leave()  # there is no answer whose end would do the same
        raise
