"""What is said about the service: versions, schemas, import methods, stores, usage; and the records of tasks."""

from typing import Any

from cumulet.db import Tx
from cumulet.http import Call, Reply, Route
from cumulet.kernel.errors import BadInput, MethodNotAllowed, NotFound
from cumulet.services.image import store, views
from cumulet.services.image.api.access import json_body, require
from cumulet.services.image.api.images import parse_limit
from cumulet.services.image.public import ImageService
from cumulet.services.image.schemas import METADEF_SCHEMAS, SCHEMAS

# Minor versions of v2 that upstream lists without a cache or several stores, up to the last one before the location
# API, which only a store of foreign URLs could serve. The newest is CURRENT.
_VERSIONS = ("2.16", "2.15", "2.9", "2.7", "2.6", "2.5", "2.4", "2.3", "2.2", "2.1", "2.0")
_TASK_SORT = ("created_at", "expires_at", "status", "type", "updated_at", "id")


def _version_list(call: Call) -> dict[str, Any]:
    link = {"rel": "self", "href": f"{call.url_root}/v2/"}
    return {
        "versions": [
            {"id": f"v{number}", "status": "SUPPORTED" if position else "CURRENT", "links": [link]}
            for position, number in enumerate(_VERSIONS)
        ]
    }


def root(call: Call) -> Reply:
    return Reply(_version_list(call), status=300)


def versions(call: Call) -> dict[str, Any]:
    return _version_list(call)


def schema(call: Call) -> dict[str, Any]:
    found = SCHEMAS.get(call.params["name"])
    if found is None:
        raise NotFound("The resource could not be found.")
    return found


def metadef_schema(call: Call) -> dict[str, Any]:
    found = METADEF_SCHEMAS.get(call.params["name"])
    if found is None:
        raise NotFound("The resource could not be found.")
    return found


def import_info(call: Call) -> dict[str, Any]:
    methods = list(call.service.settings.import_methods)
    return {
        "import-methods": {
            "description": "Import methods available.",
            "type": "array",
            "value": methods,
        }
    }


def usage(call: Call) -> dict[str, Any]:
    service: ImageService = call.service
    settings = service.settings
    if not settings.project_quota_bytes and not settings.project_quota_images:
        return {"usage": {}}
    size, count = service.db.read(lambda tx: store.usage(tx, call.ctx.project_id))
    found = {}
    if settings.project_quota_bytes:
        found["image_size_total"] = {"limit": settings.project_quota_bytes >> 20, "usage": size >> 20}
    if settings.project_quota_images:
        found["image_count_total"] = {"limit": settings.project_quota_images, "usage": count}
    return {"usage": found}


def no_stores(call: Call) -> None:
    raise NotFound("Multi backend is not supported at this site.")


# -- tasks -----------------------------------------------------------------------------------------------------


def list_tasks(call: Call) -> dict[str, Any]:
    call.authorize("tasks_api_access")
    query = call.query
    key = query.get("sort_key", "created_at")
    direction = query.get("sort_dir", "desc")
    if key not in _TASK_SORT:
        raise BadInput(f"Invalid sort key: {key}")
    if direction not in ("asc", "desc"):
        raise BadInput(f"Invalid sort direction: {direction}")
    filters = {name: query.get(name) for name in ("type", "status") if name in query}
    limit = parse_limit(query.get("limit"), call.service.settings.page_default, call.service.settings.page_max)

    def work(tx: Tx) -> list[store.TaskRow]:
        marker = None
        if "marker" in query:
            marker = store.task(tx, query.get("marker"))
            if marker is None:
                raise BadInput(f"No task found with ID {query.get('marker')}")
        return store.list_tasks(tx, filters, (key, direction), marker, limit) if limit else []

    rows = call.service.db.read(work)
    body: dict[str, Any] = {
        "tasks": [views.task(row, full=False) for row in rows],
        "first": "/v2/tasks",
        "schema": "/v2/schemas/tasks",
    }
    if rows and len(rows) == limit:
        body["next"] = f"/v2/tasks?limit={limit}&marker={rows[-1].id}"
    return body


def show_task(call: Call) -> dict[str, Any]:
    call.authorize("tasks_api_access")
    task_id = call.params["task_id"]
    row = call.service.db.read(lambda tx: store.task(tx, task_id))
    if row is None:
        raise NotFound(f"Task not found with ID {task_id}")
    return views.task(row)


def create_task(call: Call) -> None:
    call.authorize("tasks_api_access")
    body = json_body(call)
    if not isinstance(body, dict) or body.get("type") not in ("import", "api_image_import", "location_import"):
        raise BadInput("Invalid task type.")
    raise BadInput("Images are imported by the import call of the image; no import_from location is accepted.")


def delete_task(call: Call) -> None:
    raise MethodNotAllowed("Tasks cannot be deleted.", headers={"allow": "GET"})


def image_tasks(call: Call) -> dict[str, Any]:
    service: ImageService = call.service

    def work(tx: Tx) -> list[store.TaskRow]:
        row = service.get(tx, call.ctx, call.params["image_id"])
        require(tx, call, row, "get_image")
        return store.image_tasks(tx, row.id)

    return {"tasks": [views.task(row) for row in service.db.read(work)]}


ROUTES = [
    Route(method="GET", path="/schemas/{name}", handler=schema, summary="Show a JSON schema"),
    Route(method="GET", path="/schemas/metadefs/{name}", handler=metadef_schema, summary="Show a JSON schema"),
    Route(method="GET", path="/info/import", handler=import_info, summary="Show import methods"),
    Route(method="GET", path="/info/stores", handler=no_stores, refusal=404, summary="List stores"),
    Route(method="GET", path="/info/usage", handler=usage, summary="Show quota usage"),
    Route(method="GET", path="/images/{image_id}/tasks", handler=image_tasks, summary="List an image's tasks"),
    Route(method="GET", path="/tasks", handler=list_tasks, summary="List tasks"),
    Route(
        method="POST", path="/tasks", handler=create_task, success=201, refusal=400,
        summary="Create a task (no location to import from is accepted)",
    ),
    Route(method="GET", path="/tasks/{task_id}", handler=show_task, summary="Show a task"),
    Route(
        method="DELETE", path="/tasks/{task_id}", handler=delete_task, refusal=405,
        summary="Delete a task (not offered)",
    ),
]  # fmt: skip
ROOT_ROUTES = [
    Route(method="GET", path="/", handler=root, auth=False, success=300, summary="List versions"),
    Route(method="GET", path="/versions", handler=versions, auth=False, summary="List versions"),
]
