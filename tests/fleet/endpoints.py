"""Every endpoint of the API, as the routes and views say it themselves: what is added there is tested from then on."""

from dataclasses import dataclass

from config.urls import urlpatterns
from policy.auth import AdminKeyAuthentication, AnyKeyAuthentication, PlatformKeyAuthentication

ANY_ID = "00000000-0000-4000-8000-000000000000"
PAGES = ("admin/", "docs/")
PARAMETERS = {"<user:user_id>": "alice"}


@dataclass(frozen=True)
class Endpoint:
    method: str
    path: str
    header: str | None  # that its key comes in
    takes_any_key: bool = False  # an admin key just as well

    @property
    def takes_body(self):
        return self.method != "GET"  # of a DELETE it is to be empty

    @property
    def is_of_user(self):
        return "/alice" in self.path

    def __str__(self):
        return f"{self.method} {self.path}"


def _endpoints():
    for pattern in urlpatterns:
        route = str(pattern.pattern)
        if route.startswith(PAGES):
            continue
        view = getattr(pattern.callback, "cls", None)
        for method in sorted(set(view.http_method_names) - {"options", "head"}) if view else ["post"]:
            any_key = view is not None and AnyKeyAuthentication in view.authentication_classes
            yield Endpoint(method.upper(), _path(route), _header(view) if view else "X-Platform-Key", any_key)


def _path(route):
    parts = [PARAMETERS.get(part, ANY_ID if part.startswith("<") else part) for part in route.split("/")]
    return f"/{'/'.join(parts)}"


def _header(view):
    headers = {PlatformKeyAuthentication: "X-Platform-Key", AdminKeyAuthentication: "X-Admin-Key"}
    headers[AnyKeyAuthentication] = "X-Platform-Key"  # as long as the other is not sent
    return next((headers[kind] for kind in view.authentication_classes), None)


ALL = sorted(_endpoints(), key=str)
PATHS = sorted({endpoint.path for endpoint in ALL})


def methods(path):
    return {endpoint.method for endpoint in ALL if endpoint.path == path}
