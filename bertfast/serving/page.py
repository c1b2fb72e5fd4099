"""What a browser gets: the page, its files, and the list of endpoints. None asks another host."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from bertfast import __version__
from bertfast.escape import html

from .limits import Refused

TYPES = {"page.js": "text/javascript", "page.css": "text/css", "icon.svg": "image/svg+xml"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
ERRORS = {
    "400": "The body is no JSON.",
    "401": "A key is wanted.",
    "404": "There is no such model.",
    "408": "The body came too slowly.",
    "413": "The body, a text or an input is too long.",
    "422": "The body is not what is wanted.",
    "424": "The model is for something else.",
    "429": "The queue is full; Retry-After says when to try again.",
    "500": "The model failed.",
    "503": "No worker could answer.",
    "504": "The deadline passed.",
}


@cache
def _file(name: str) -> bytes:
    return files(__package__).joinpath("static", name).read_bytes()


def index(_: Request) -> Response:
    """The page."""
    return HTMLResponse(_file("index.html"), headers=HEADERS)


def static(request: Request) -> Response:
    """A file of the page."""
    name = request.path_params["name"]
    if name not in TYPES:
        raise Refused(404, "there is no such file", "NotFound")
    return Response(_file(name), media_type=TYPES[name], headers=HEADERS)


def openapi(endpoints: Sequence[tuple[str, type[BaseModel], str, str]]) -> dict[str, Any]:
    """A description in OpenAPI 3.1 of endpoints: each one's path, form, tag and summary."""
    schemas: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    failed = {status: _response(text, {"type": "object"}) for status, text in ERRORS.items()}
    for path, form, tag, summary in endpoints:
        schema = copy.deepcopy(form.model_json_schema(ref_template="#/components/schemas/{model}"))
        schemas |= schema.pop("$defs", {})
        schemas[form.__name__] = schema
        body = {"$ref": f"#/components/schemas/{form.__name__}"}
        paths[path] = {
            "post": {
                "operationId": form.__name__,
                "summary": summary,
                "tags": [tag],
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": body}},
                },
                "responses": {"200": _response("The answer.", {}), **failed},
            }
        }
    for path, summary in (
        ("/health", "Whether the server lives"),
        ("/ready", "Whether a worker can compute"),
        ("/info", "The models and the limits"),
        ("/v1/models", "The models"),
    ):
        paths[path] = {
            "get": {
                "operationId": path.strip("/").replace("/", "_"),
                "summary": summary,
                "tags": ["server"],
                "responses": {
                    "200": _response("The answer.", {"type": "object"}),
                    **{status: failed[status] for status in ("401", "503")},
                },
            }
        }
    return {
        "openapi": "3.1.0",
        "info": {"title": "bertfast serve", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _response(text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def reference(describe: Callable[[], dict[str, Any]], _: Request) -> Response:
    """The endpoints as a page to read."""
    described = describe()
    schemas = described["components"]["schemas"]
    parts = []
    for path, methods in described["paths"].items():
        for method, one in methods.items():
            parts.append(f"<h2><code>{method.upper()} {html(path)}</code></h2>")
            parts.append(f"<p>{html(one['summary'])} <small>{html(one['tags'][0])}</small></p>")
            if "requestBody" not in one:
                continue
            schema = schemas[one["operationId"]]
            parts.append("<table><tr><th>field</th><th>what it is</th><th>default</th></tr>")
            for name, field in schema["properties"].items():
                wanted = name in schema.get("required", ())
                default = "required" if wanted else json.dumps(field.get("default"))
                parts.append(
                    f"<tr><td><code>{html(name)}</code></td>"
                    f"<td>{html(field.get('description', ''))}</td>"
                    f"<td>{html(default)}</td></tr>"
                )
            parts.append("</table>")
    return HTMLResponse(
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<title>bertfast: endpoints</title><link rel="stylesheet" href="static/page.css">'
        '<link rel="icon" href="static/icon.svg"><main><header><h1>Endpoints</h1>'
        '<nav><a href="./">try the model</a> <a href="openapi.json">openapi.json</a></nav></header>'
        f"{''.join(parts)}</main></html>",
        headers=HEADERS,
    )
