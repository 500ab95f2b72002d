"""OpenAPI 3.1 documents made from route tables, for readers and for generators of requests.

Operations that share a path and method (actions, version ranges) become one operation whose body is one of theirs.
"""

import re
from typing import Any

import msgspec

from cumulet.http.microversion import format_version
from cumulet.http.route import Route
from cumulet.http.service import ServiceApi

_PARAMETER = re.compile(r"\{(\w+)\}")


def document(api: ServiceApi) -> dict[str, Any]:
    groups: dict[tuple[str, str], list[Route]] = {}
    for route in api.root_routes:
        groups.setdefault((api.prefix + route.path, route.method.lower()), []).append(route)
    for route in api.routes:
        groups.setdefault((api.prefix + api.version_prefix + route.path, route.method.lower()), []).append(route)
    kinds: list[Any] = []
    for routes in groups.values():
        for route in routes:
            kinds += [kind for kind in (route.body, route.query, route.response) if kind is not None]
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    table = list(zip(kinds, schemas, strict=True))

    def schema_of(kind: Any) -> Any:
        return next(schema for known, schema in table if known is kind)

    paths: dict[str, Any] = {}
    for (path, method), routes in groups.items():
        paths.setdefault(path, {})[method] = _operation(api, path, method, routes, schema_of, components)
    return {
        "openapi": "3.1.0",
        "info": {"title": api.title or f"Cumulet {api.name}", "version": _version_of(api)},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "apiKey", "in": "header", "name": "X-Auth-Token"}},
        },
    }


def _version_of(api: ServiceApi) -> str:
    return format_version(api.microversions.maximum) if api.microversions else api.version_prefix.strip("/") or "1"


def _operation(
    api: ServiceApi, path: str, method: str, routes: list[Route], schema_of: Any, components: dict[str, Any]
) -> dict[str, Any]:
    first = routes[-1]
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in _PARAMETER.findall(path)
    ]
    if first.query is not None:
        parameters += _query_parameters(schema_of(first.query), components)
    if api.microversions is not None:
        known = f"{api.microversions.service_type} {format_version(api.microversions.maximum)}"
        version = {"type": "string", "enum": [known, f"{api.microversions.service_type} latest"]}
        parameters.append({"name": "OpenStack-API-Version", "in": "header", "schema": version})
    statuses = sorted({status for route in routes for status in (route.success, *route.statuses)})
    responses: dict[str, Any] = {str(status): {"description": "Success"} for status in statuses}
    if first.response is not None:
        content = {"application/json": {"schema": schema_of(first.response)}}
        responses[str(first.success)]["content"] = content
    responses["default"] = {"description": "A fault in the form of this service"}
    found: dict[str, Any] = {
        "operationId": f"{method}:{path}",
        "summary": first.summary or first.handler.__name__.replace("_", " "),
        "parameters": parameters,
        "responses": responses,
        "security": [{"token": []}] if any(route.auth for route in routes) else [],
    }
    bodies = [body for route in routes if (body := _body(route, schema_of)) is not None]
    if bodies:
        media = first.media_types[0] if first.media_types else "application/octet-stream"
        schema = bodies[0] if len(bodies) == 1 else {"oneOf": bodies}
        found["requestBody"] = {"required": True, "content": {media: {"schema": schema}}}
    elif any(route.stream == "request" for route in routes):
        binary = {"schema": {"type": "string", "format": "binary"}}
        found["requestBody"] = {"required": True, "content": {"application/octet-stream": binary}}
    return found


def _body(route: Route, schema_of: Any) -> Any:
    inner = schema_of(route.body) if route.body is not None else None
    key = route.action or route.body_key
    if key is None:
        return inner
    return {"type": "object", "required": [key], "properties": {key: inner or {}}, "additionalProperties": False}


def _query_parameters(schema: dict[str, Any], components: dict[str, Any]) -> list[dict[str, Any]]:
    if "$ref" in schema:
        schema = components[schema["$ref"].rpartition("/")[2]]
    return [
        {"name": name, "in": "query", "required": name in schema.get("required", ()), "schema": inner}
        for name, inner in schema.get("properties", {}).items()
    ]
