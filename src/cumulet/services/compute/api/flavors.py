"""Flavors, their extra specs and who may use private ones."""

from typing import Any

from cumulet.db import Tx
from cumulet.http import Call, Page, Route, whole_number
from cumulet.kernel.errors import BadInput, Conflict, NotFound
from cumulet.kernel.ids import new_uuid
from cumulet.services.compute import catalogue
from cumulet.services.compute.api.common import (
    cut,
    marker_missing,
    only_query,
    page_of,
    service_of,
    version_of,
    with_links,
)
from cumulet.services.compute.rows import FlavorRow
from cumulet.services.compute.schema import (
    ExtraSpecs,
    FlavorCreate,
    FlavorUpdate,
    TenantAccess,
    truth,
)
from cumulet.services.compute.views import Links

_SPECS = "os_compute_api:os-flavor-extra-specs:"
_QUERY = ["limit", "marker", "is_public", "minRam", "minDisk", "sort_key", "sort_dir"]
_SORT = {
    "created_at": "created_at", "description": "description", "ephemeral_gb": "ephemeral_gb", "flavorid": "id",
    "id": "number", "is_public": "is_public", "memory_mb": "memory_mb", "name": "name", "root_gb": "root_gb",
    "rxtx_factor": "rxtx_factor", "swap": "swap_mb", "updated_at": "updated_at", "vcpus": "vcpus",
    "disabled": "number", "vcpu_weight": "number",
}  # fmt: skip


def _view(call: Call, row: FlavorRow, *, whole: bool = True) -> dict[str, Any]:
    version = version_of(call)
    shown: dict[str, Any] = {"id": row.id, "name": row.name, "links": Links(call).of("flavors", row.id)}
    if version >= (2, 55):
        shown["description"] = row.description
    if not whole:
        return shown
    shown.update(
        {
            "ram": row.memory_mb,
            "disk": row.root_gb,
            "swap": row.swap_mb or (0 if version >= (2, 75) else ""),
            "vcpus": row.vcpus,
            "OS-FLV-EXT-DATA:ephemeral": row.ephemeral_gb,
            "OS-FLV-DISABLED:disabled": False,
            "os-flavor-access:is_public": row.is_public,
            "rxtx_factor": row.rxtx_factor,
        }
    )
    if version >= (2, 61) and call.allowed(_SPECS + "index"):
        shown["extra_specs"] = row.extra_specs
    return shown


def visible(call: Call, tx: Tx, flavor_id: str) -> FlavorRow:
    row = catalogue.flavor(tx, flavor_id)
    if row is None or not catalogue.may_use(tx, row, call.ctx):
        raise NotFound(f"Flavor {flavor_id} could not be found.", type_name="FlavorNotFound")
    return row


def index(call: Call) -> dict[str, Any]:
    return _list(call, whole=False)


def detail(call: Call) -> dict[str, Any]:
    return _list(call, whole=True)


def _list(call: Call, *, whole: bool) -> dict[str, Any]:
    only_query(call, _QUERY, (2, 75))
    page = page_of(call)
    least = {name: whole_number(call.query, name) or 0 for name in ("minRam", "minDisk")}
    rows = service_of(call).db.read(lambda tx: _rows(call, tx))
    rows = [row for row in rows if row.memory_mb >= least["minRam"] and row.root_gb >= least["minDisk"]]
    rows = cut(_sorted(call, rows), page, lambda row: row.id, marker_missing)
    shown = [_view(call, row, whole=whole) for row in rows]
    path = "/flavors/detail" if whole else "/flavors"
    return with_links(call, "flavors", path, shown, [row.id for row in rows], Page(page.limit, page.marker, ()))


def _rows(call: Call, tx: Tx) -> list[FlavorRow]:
    if not call.ctx.is_admin:
        return catalogue.flavors(tx, call.ctx.project_id or "", public=None)
    text = call.query.get("is_public")
    if text is None:
        return catalogue.flavors(tx, call.ctx.project_id or "", public=None)
    lowered = text.strip().lower()
    if lowered in ("none", "null", ""):
        return catalogue.flavors(tx, None, public=None)
    if lowered in ("1", "t", "true", "on", "y", "yes"):
        return catalogue.flavors(tx, None, public=True)
    if lowered in ("0", "f", "false", "off", "n", "no"):
        return catalogue.flavors(tx, None, public=False)
    raise BadInput(f"Invalid is_public filter [{text}]")


def _sorted(call: Call, rows: list[FlavorRow]) -> list[FlavorRow]:
    key, direction = call.query.get("sort_key") or "flavorid", call.query.get("sort_dir") or "asc"
    if key not in _SORT:
        raise BadInput(f"Invalid input for query parameters sort_key. Value: {key}. {key!r} is not one of the keys")
    if direction not in ("asc", "desc"):
        raise BadInput(f"Invalid input for query parameters sort_dir. Value: {direction}.")
    column = _SORT[key]
    rows = sorted(rows, key=lambda row: row.number)
    return sorted(
        rows, key=lambda row: (getattr(row, column) is not None, getattr(row, column)), reverse=direction == "desc"
    )


def show(call: Call) -> dict[str, Any]:
    row = service_of(call).db.read(lambda tx: visible(call, tx, call.params["flavor_id"]))
    return {"flavor": _view(call, row)}


def create(call: Call) -> dict[str, Any]:
    body: FlavorCreate = call.body
    flavor_id = str(body.id) if body.id not in (None, "auto") else new_uuid()

    def work(tx: Tx) -> FlavorRow:
        tx.lock("flavors", "")
        if catalogue.flavor_named(tx, body.name) is not None:
            raise Conflict(f"Flavor with name {body.name} already exists.")
        if catalogue.flavor(tx, flavor_id) is not None:
            raise Conflict(f"Flavor with ID {flavor_id} already exists.")
        public = truth(body.is_public)
        catalogue.insert_flavor(
            tx,
            {
                "id": flavor_id,
                "name": body.name,
                "description": body.description,
                "vcpus": body.vcpus,
                "memory_mb": body.ram,
                "root_gb": body.disk,
                "ephemeral_gb": body.ephemeral,
                "swap_mb": body.swap,
                "rxtx_factor": body.rxtx_factor,
                "is_public": public,
                "extra_specs": {},
                "created_at": tx.now,
            },
        )
        found = catalogue.flavor(tx, flavor_id)
        assert found is not None
        return found

    return {"flavor": _view(call, service_of(call).db.write(work))}


def update(call: Call) -> dict[str, Any]:
    body: FlavorUpdate = call.body

    def work(tx: Tx) -> FlavorRow:
        row = visible(call, tx, call.params["flavor_id"])
        catalogue.update_flavor(tx, row.id, description=body.description)
        return visible(call, tx, row.id)

    return {"flavor": _view(call, service_of(call).db.write(work))}


def delete(call: Call) -> None:
    def work(tx: Tx) -> None:
        catalogue.delete_flavor(tx, visible(call, tx, call.params["flavor_id"]).id)

    service_of(call).db.write(work)


# -- extra specs ----------------------------------------------------------------------------------------------------


def _text(value: str | float | int) -> str:
    return value if isinstance(value, str) else str(value)


def specs_index(call: Call) -> dict[str, Any]:
    row = service_of(call).db.read(lambda tx: visible(call, tx, call.params["flavor_id"]))
    return {"extra_specs": row.extra_specs}


def specs_create(call: Call) -> dict[str, Any]:
    body: ExtraSpecs = call.body
    new = {key: _text(value) for key, value in body.extra_specs.items()}

    def work(tx: Tx) -> None:
        tx.lock("flavors", "")
        row = visible(call, tx, call.params["flavor_id"])
        catalogue.update_flavor(tx, row.id, extra_specs={**row.extra_specs, **new})

    service_of(call).db.write(work)
    return {"extra_specs": new}


def _spec_missing(flavor_id: str, key: str) -> NotFound:
    return NotFound(f"Flavor {flavor_id} has no extra specs with key {key}.")


def specs_show(call: Call) -> dict[str, Any]:
    key = call.params["key"]
    row = service_of(call).db.read(lambda tx: visible(call, tx, call.params["flavor_id"]))
    if key not in row.extra_specs:
        raise _spec_missing(row.id, key)
    return {key: row.extra_specs[key]}


def specs_update(call: Call) -> dict[str, Any]:
    key = call.params["key"]
    if not isinstance(call.body, dict) or key not in call.body:
        raise BadInput("Request body and URI mismatch")
    if len(call.body) != 1:
        raise BadInput("Request body contains too many items")
    value = _text(call.body[key])

    def work(tx: Tx) -> None:
        tx.lock("flavors", "")
        row = visible(call, tx, call.params["flavor_id"])
        catalogue.update_flavor(tx, row.id, extra_specs={**row.extra_specs, key: value})

    service_of(call).db.write(work)
    return {key: value}


def specs_delete(call: Call) -> None:
    key = call.params["key"]

    def work(tx: Tx) -> None:
        tx.lock("flavors", "")
        row = visible(call, tx, call.params["flavor_id"])
        if key not in row.extra_specs:
            raise _spec_missing(row.id, key)
        left = {name: value for name, value in row.extra_specs.items() if name != key}
        catalogue.update_flavor(tx, row.id, extra_specs=left)

    service_of(call).db.write(work)


# -- access ---------------------------------------------------------------------------------------------------------


def _access(tx: Tx, flavor_id: str) -> dict[str, Any]:
    return {
        "flavor_access": [
            {"flavor_id": flavor_id, "tenant_id": project} for project in catalogue.flavor_access(tx, flavor_id)
        ]
    }


def access_index(call: Call) -> dict[str, Any]:
    def work(tx: Tx) -> dict[str, Any]:
        row = visible(call, tx, call.params["flavor_id"])
        if row.is_public:
            raise NotFound("Access list not available for public flavors.")
        return _access(tx, row.id)

    return service_of(call).db.read(work)


def access_add(call: Call) -> dict[str, Any]:
    body: TenantAccess = call.body

    def work(tx: Tx) -> dict[str, Any]:
        tx.lock("flavors", "")
        row = visible(call, tx, call.params["flavor_id"])
        if row.is_public and version_of(call) >= (2, 7):
            raise Conflict("Can not add access to a public flavor.")
        _check_project(call, tx, body.tenant)
        if body.tenant in catalogue.flavor_access(tx, row.id):
            raise Conflict(f"Flavor access already exists for flavor {row.id} and project {body.tenant} combination.")
        catalogue.add_access(tx, row.id, body.tenant)
        return _access(tx, row.id)

    return service_of(call).db.write(work)


def access_remove(call: Call) -> dict[str, Any]:
    body: TenantAccess = call.body

    def work(tx: Tx) -> dict[str, Any]:
        row = visible(call, tx, call.params["flavor_id"])
        _check_project(call, tx, body.tenant)
        if not catalogue.remove_access(tx, row.id, body.tenant):
            raise NotFound(f"Flavor access not found for {row.id} / {body.tenant} combination.")
        return _access(tx, row.id)

    return service_of(call).db.write(work)


def _check_project(call: Call, tx: Tx, project_id: str) -> None:
    identity = service_of(call).identity
    if identity is None:
        return
    try:
        found = identity.project(tx, project_id)
    except NotFound:
        found = None
    if found is None:
        raise BadInput(f"Project ID {project_id} is not a valid project.")


ROUTES = [
    Route(method="GET", path="/flavors", handler=index),
    Route(
        method="POST", path="/flavors", handler=create, policy="os_compute_api:os-flavor-manage:create",
        body=FlavorCreate, body_key="flavor", strict=False,
    ),
    Route(method="GET", path="/flavors/detail", handler=detail),
    Route(method="GET", path="/flavors/{flavor_id}", handler=show),
    Route(
        method="PUT", path="/flavors/{flavor_id}", handler=update, policy="os_compute_api:os-flavor-manage:update",
        body=FlavorUpdate, body_key="flavor", min_version="2.55",
    ),
    Route(
        method="DELETE", path="/flavors/{flavor_id}", handler=delete, success=202,
        policy="os_compute_api:os-flavor-manage:delete",
    ),
    Route(
        method="POST", path="/flavors/{flavor_id}/action", action="addTenantAccess", handler=access_add,
        policy="os_compute_api:os-flavor-access:add_tenant_access", body=TenantAccess,
    ),
    Route(
        method="POST", path="/flavors/{flavor_id}/action", action="removeTenantAccess", handler=access_remove,
        policy="os_compute_api:os-flavor-access:remove_tenant_access", body=TenantAccess,
    ),
    Route(method="GET", path="/flavors/{flavor_id}/os-extra_specs", handler=specs_index, policy=_SPECS + "index"),
    Route(
        method="POST", path="/flavors/{flavor_id}/os-extra_specs", handler=specs_create, policy=_SPECS + "create",
        body=ExtraSpecs,
    ),
    Route(method="GET", path="/flavors/{flavor_id}/os-extra_specs/{key}", handler=specs_show, policy=_SPECS + "show"),
    Route(
        method="PUT", path="/flavors/{flavor_id}/os-extra_specs/{key}", handler=specs_update,
        policy=_SPECS + "update", body=dict[str, str | float | int],
    ),
    Route(
        method="DELETE", path="/flavors/{flavor_id}/os-extra_specs/{key}", handler=specs_delete,
        policy=_SPECS + "delete",
    ),
    Route(
        method="GET", path="/flavors/{flavor_id}/os-flavor-access", handler=access_index,
        policy="os_compute_api:os-flavor-access",
    ),
]  # fmt: skip
