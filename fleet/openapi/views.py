"""/schema/ and /docs/: the OpenAPI document, and a page to read the document."""

from collections.abc import Iterable

from csp.decorators import csp
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe
from drf_spectacular.renderers import OpenApiJsonRenderer2, OpenApiYamlRenderer2
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from fleet.csp import DOCS
from fleet.openapi import document


class JsonOrYaml(DefaultContentNegotiation):
    """JSON by default, and YAML if `Accept` or `?format=yaml` requests YAML."""

    def select_renderer(
        self, request: Request, renderers: Iterable[BaseRenderer], format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        json, yaml = renderers
        is_yaml = request.query_params.get("format") == "yaml" or "yaml" in request.headers.get("Accept", "")
        chosen = yaml if is_yaml else json
        return chosen, str(chosen.media_type)


class Schema(APIView):
    """GET /schema/: the OpenAPI document."""

    authentication_classes = ()
    permission_classes = ()
    http_method_names = ("get", "head", "options")
    renderer_classes = (OpenApiJsonRenderer2, OpenApiYamlRenderer2)
    content_negotiation_class = JsonOrYaml

    def get(self, request: Request) -> Response:
        return Response(document.make())


schema = Schema.as_view()


@csp(DOCS)
@require_safe
def docs(request: HttpRequest) -> HttpResponse:
    """GET /docs/: Swagger UI, from our own static files."""
    return render(request, "docs.html")
