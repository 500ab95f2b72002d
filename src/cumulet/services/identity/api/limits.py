"""/v3/registered_limits and /v3/limits (unified limits, flat model)."""

from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct

from cumulet.db import Tx
from cumulet.http import Call, Route
from cumulet.kernel.errors import BadInput, Conflict, Forbidden
from cumulet.kernel.ids import new_hex
from cumulet.services.identity import store
from cumulet.services.identity.api import views
from cumulet.services.identity.api.support import collection, enforce, found, service_of
from cumulet.services.identity.schema import LimitChange, NewLimit, NewRegisteredLimit, RegisteredLimitChange
from cumulet.services.identity.store import LimitRow, RegisteredLimitRow

_FILTERS = ("service_id", "region_id", "resource_name", "project_id", "domain_id")


class RegisteredLimits(Struct, forbid_unknown_fields=True):
    registered_limits: Annotated[list[NewRegisteredLimit], Meta(min_length=1, max_length=1000)]


class Limits(Struct, forbid_unknown_fields=True):
    limits: Annotated[list[NewLimit], Meta(min_length=1, max_length=1000)]


def _service_and_region(tx: Tx, service_id: str, region_id: str | None) -> None:
    if store.services.get(tx, service_id) is None:
        raise BadInput(f"The service {service_id} does not exist.")
    if region_id is not None and store.regions.get(tx, region_id) is None:
        raise BadInput(f"The region {region_id} does not exist.")


# -- registered limits ----------------------------------------------------------------------------------------------


def _registered(tx: Tx, service_id: str, region_id: str | None, name: str) -> RegisteredLimitRow | None:
    return store.registered_limits.one(tx, service_id=service_id, region_id=region_id, resource_name=name)


def list_registered(call: Call) -> dict[str, Any]:
    rows = service_of(call).db.read(store.registered_limits.list)
    return collection(call, "registered_limits", [views.registered_limit(call, row) for row in rows], exact=_FILTERS)


def create_registered(call: Call) -> dict[str, Any]:
    def work(tx: Tx) -> list[RegisteredLimitRow]:
        store.lock(tx)
        rows = []
        for new in call.body.registered_limits:
            _service_and_region(tx, new.service_id, new.region_id)
            if _registered(tx, new.service_id, new.region_id, new.resource_name) is not None:
                raise Conflict(f"The limit of {new.resource_name} is registered already.")
            row = RegisteredLimitRow(
                new_hex(), new.service_id, new.region_id, new.resource_name, new.default_limit, new.description
            )
            rows.append(store.registered_limits.add(tx, row))
        return rows

    rows = service_of(call).db.write(work)
    return {"registered_limits": [views.registered_limit(call, row) for row in rows]}


def _one_registered(tx: Tx, call: Call) -> RegisteredLimitRow:
    id = call.params["registered_limit_id"]
    return found(store.registered_limits.get(tx, id), "registered limit", id)


def show_registered(call: Call) -> dict[str, Any]:
    row = service_of(call).db.read(lambda tx: _one_registered(tx, call))
    return {"registered_limit": views.registered_limit(call, row)}


def _used(tx: Tx, row: RegisteredLimitRow) -> bool:
    return bool(
        store.limits.list(tx, service_id=row.service_id, region_id=row.region_id, resource_name=row.resource_name)
    )


def update_registered(call: Call) -> dict[str, Any]:
    change: RegisteredLimitChange = call.body

    def work(tx: Tx) -> RegisteredLimitRow:
        store.lock(tx)
        row = _one_registered(tx, call)
        identity = (row.service_id, row.region_id, row.resource_name)
        wanted = (
            row.service_id if change.service_id is UNSET else change.service_id,
            row.region_id if change.region_id is UNSET else change.region_id,
            row.resource_name if change.resource_name is UNSET else change.resource_name,
        )
        if wanted != identity:
            if _used(tx, row):
                raise Forbidden("Limits refer to this registered limit.")
            _service_and_region(tx, wanted[0], wanted[1])
            if _registered(tx, *wanted) is not None:
                raise Conflict(f"The limit of {wanted[2]} is registered already.")
            row.service_id, row.region_id, row.resource_name = wanted
        if change.default_limit is not UNSET:
            row.default_limit = change.default_limit
        if change.description is not UNSET:
            row.description = change.description
        return store.registered_limits.save(tx, row)

    return {"registered_limit": views.registered_limit(call, service_of(call).db.write(work))}


def delete_registered(call: Call) -> None:
    def work(tx: Tx) -> None:
        store.lock(tx)
        row = _one_registered(tx, call)
        if _used(tx, row):
            raise Forbidden("Limits refer to this registered limit.")
        store.registered_limits.remove(tx, row.id)

    service_of(call).db.write(work)


# -- limits ---------------------------------------------------------------------------------------------------------


def model(call: Call) -> dict[str, Any]:
    description = "Each project has its own limits; the limits of projects below it are not counted."
    return {"model": {"name": "flat", "description": description}}


def list_limits(call: Call) -> dict[str, Any]:
    """Administrators see all, others those of their scope."""
    rows = service_of(call).db.read(store.limits.list)
    ctx = call.ctx
    if not (ctx.is_admin or ctx.system_scope):
        if ctx.domain_id is not None:
            mine = {
                row.id for row in service_of(call).db.read(lambda tx: store.projects.list(tx, domain_id=ctx.domain_id))
            }
            rows = [row for row in rows if row.domain_id == ctx.domain_id or row.project_id in mine]
        else:
            rows = [row for row in rows if row.project_id is not None and row.project_id == ctx.project_id]
    return collection(call, "limits", [views.limit(call, row) for row in rows], exact=_FILTERS)


def create_limits(call: Call) -> dict[str, Any]:
    def work(tx: Tx) -> list[LimitRow]:
        store.lock(tx)
        return [_create(tx, new) for new in call.body.limits]

    rows = service_of(call).db.write(work)
    return {"limits": [views.limit(call, row) for row in rows]}


def _create(tx: Tx, new: NewLimit) -> LimitRow:
    if (new.project_id is None) == (new.domain_id is None):
        raise BadInput("A limit is for a project or for a domain.")
    owner = store.projects.get(tx, new.project_id or new.domain_id)
    if owner is None:
        raise BadInput(f"The project or domain {new.project_id or new.domain_id} does not exist.")
    _service_and_region(tx, new.service_id, new.region_id)
    if _registered(tx, new.service_id, new.region_id, new.resource_name) is None:
        raise Forbidden(f"No limit of {new.resource_name} is registered for this service and region.")
    same = {"service_id": new.service_id, "region_id": new.region_id, "resource_name": new.resource_name}
    if store.limits.one(tx, project_id=new.project_id, domain_id=new.domain_id, **same) is not None:
        raise Conflict(f"There is a limit of {new.resource_name} for it already.")
    row = LimitRow(
        new_hex(),
        new.project_id,
        new.domain_id,
        new.service_id,
        new.region_id,
        new.resource_name,
        new.resource_limit,
        new.description,
    )
    return store.limits.add(tx, row)


def _load(call: Call, rule: str) -> LimitRow:
    id = call.params["limit_id"]

    def work(tx: Tx) -> tuple[LimitRow | None, dict[str, Any]]:
        row = store.limits.get(tx, id)
        if row is None:
            return None, {}
        project = store.projects.get(tx, row.project_id)
        target: dict[str, Any] = {"project_id": row.project_id}
        if project is not None and project.domain_id is not None:
            target["project"] = {"domain_id": project.domain_id}
        if row.domain_id is not None:
            target["domain"] = {"id": row.domain_id}
        return row, target

    row, target = service_of(call).db.read(work)
    enforce(call, rule, limit=target)
    return found(row, "limit", id)


def show_limit(call: Call) -> dict[str, Any]:
    return {"limit": views.limit(call, _load(call, "identity:get_limit"))}


def update_limit(call: Call) -> dict[str, Any]:
    id = _load(call, "identity:update_limit").id
    change: LimitChange = call.body

    def work(tx: Tx) -> LimitRow:
        store.lock(tx)
        row = found(store.limits.get(tx, id), "limit", id)
        if change.resource_limit is not UNSET:
            row.resource_limit = change.resource_limit
        if change.description is not UNSET:
            row.description = change.description
        return store.limits.save(tx, row)

    return {"limit": views.limit(call, service_of(call).db.write(work))}


def delete_limit(call: Call) -> None:
    row = _load(call, "identity:delete_limit")
    service_of(call).db.write(lambda tx: store.limits.remove(tx, row.id))


_REGISTERED, _LIMIT = "/registered_limits/{registered_limit_id}", "/limits/{limit_id}"
ROUTES = [
    Route(method="GET", path="/registered_limits", handler=list_registered, policy="identity:list_registered_limits"),
    Route(method="POST", path="/registered_limits", handler=create_registered, body=RegisteredLimits, success=201,
          policy="identity:create_registered_limits"),
    Route(method="GET", path=_REGISTERED, handler=show_registered, policy="identity:get_registered_limit"),
    Route(method="PATCH", path=_REGISTERED, handler=update_registered, body=RegisteredLimitChange,
          body_key="registered_limit", policy="identity:update_registered_limit"),
    Route(method="DELETE", path=_REGISTERED, handler=delete_registered, success=204,
          policy="identity:delete_registered_limit"),
    Route(method="GET", path="/limits/model", handler=model, policy="identity:get_limit_model"),
    Route(method="GET", path="/limits", handler=list_limits, policy="identity:list_limits"),
    Route(method="POST", path="/limits", handler=create_limits, body=Limits, success=201,
          policy="identity:create_limits"),
    Route(method="GET", path=_LIMIT, handler=show_limit),
    Route(method="PATCH", path=_LIMIT, handler=update_limit, body=LimitChange, body_key="limit"),
    Route(method="DELETE", path=_LIMIT, handler=delete_limit, success=204),
]  # fmt: skip
