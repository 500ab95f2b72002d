"""/v3/services, /v3/regions and /v3/endpoints."""

from typing import Any

from msgspec import UNSET

from cumulet.db import Tx
from cumulet.http import Call, Reply, Route
from cumulet.kernel.errors import BadInput, Conflict, Forbidden
from cumulet.kernel.ids import new_hex
from cumulet.services.identity import store
from cumulet.services.identity.api import views
from cumulet.services.identity.api.support import collection, found, service_of
from cumulet.services.identity.catalog import expand_url
from cumulet.services.identity.schema import (
    EndpointChange,
    NewEndpoint,
    NewRegion,
    NewService,
    RegionChange,
    ServiceChange,
    extra_of,
)
from cumulet.services.identity.store import EndpointRow, RegionRow, ServiceRow

# -- services ----------------------------------------------------------------------------------------------------------


def _described(body: NewService | ServiceChange, extra: dict[str, Any]) -> dict[str, Any]:
    """Name and description are attributes like any other, kept when they were given."""
    values = dict(extra)
    if body.name is not UNSET:
        values["name"] = body.name or ""
    if body.description is not UNSET:
        values["description"] = body.description or ""
    return values


def list_services(call: Call) -> dict[str, Any]:
    equal = {"type": call.query.get("type")} if "type" in call.query else {}
    rows = service_of(call).db.read(lambda tx: store.services.list(tx, **equal))
    return collection(call, "services", [views.service(call, row) for row in rows], exact=("name", "enabled"))


def create_service(call: Call) -> dict[str, Any]:
    new: NewService = call.body
    row = ServiceRow(new_hex(), new.type, new.enabled, _described(new, extra_of(call.document, NewService)))
    service_of(call).db.write(lambda tx: store.services.add(tx, row))
    return {"service": views.service(call, row)}


def _service(tx: Tx, call: Call) -> ServiceRow:
    id = call.params["service_id"]
    return found(store.services.get(tx, id), "service", id)


def get_service(call: Call) -> dict[str, Any]:
    return {"service": views.service(call, service_of(call).db.read(lambda tx: _service(tx, call)))}


def update_service(call: Call) -> dict[str, Any]:
    change: ServiceChange = call.body

    def work(tx: Tx) -> ServiceRow:
        store.lock(tx)
        row = _service(tx, call)
        if change.type is not UNSET:
            row.type = change.type
        if change.enabled is not UNSET:
            row.enabled = change.enabled
        row.extra = {**row.extra, **_described(change, extra_of(call.document, ServiceChange))}
        return store.services.save(tx, row)

    return {"service": views.service(call, service_of(call).db.write(work))}


def delete_service(call: Call) -> None:
    def work(tx: Tx) -> None:
        store.lock(tx)
        row = _service(tx, call)
        for endpoint in store.endpoints.list(tx, service_id=row.id):
            store.endpoints.remove(tx, endpoint.id)
        for registered in store.registered_limits.list(tx, service_id=row.id):
            store.registered_limits.remove(tx, registered.id)
        for limit in store.limits.list(tx, service_id=row.id):
            store.limits.remove(tx, limit.id)
        store.services.remove(tx, row.id)

    service_of(call).db.write(work)


# -- regions -----------------------------------------------------------------------------------------------------------


def list_regions(call: Call) -> dict[str, Any]:
    equal: dict[str, Any] = {}
    if "parent_region_id" in call.query:
        equal["parent_region_id"] = call.query.get("parent_region_id") or None
    rows = service_of(call).db.read(lambda tx: store.regions.list(tx, **equal))
    return collection(call, "regions", [views.region(call, row) for row in rows])


def _add_region(tx: Tx, id: str, new: NewRegion, extra: dict[str, Any]) -> RegionRow:
    store.lock(tx)
    if store.regions.get(tx, id) is not None:
        raise Conflict(f"There is a region with the id {id} already.")
    if new.parent_region_id is not None:
        found(store.regions.get(tx, new.parent_region_id), "region", new.parent_region_id)
    return store.regions.add(tx, RegionRow(id, new.parent_region_id, new.description or "", extra))


def create_region(call: Call) -> dict[str, Any]:
    new: NewRegion = call.body
    extra = extra_of(call.document, NewRegion)
    row = service_of(call).db.write(lambda tx: _add_region(tx, new.id or new_hex(), new, extra))
    return {"region": views.region(call, row)}


def create_named_region(call: Call) -> Reply:
    new: NewRegion = call.body
    id = call.params["region_id"]
    if new.id is not None and new.id != id:
        raise BadInput(f"The URL names the region {id}, the body {new.id}.")
    extra = extra_of(call.document, NewRegion)
    row = service_of(call).db.write(lambda tx: _add_region(tx, id, new, extra))
    return Reply({"region": views.region(call, row)}, status=201)


def _region(tx: Tx, call: Call) -> RegionRow:
    id = call.params["region_id"]
    return found(store.regions.get(tx, id), "region", id)


def get_region(call: Call) -> dict[str, Any]:
    return {"region": views.region(call, service_of(call).db.read(lambda tx: _region(tx, call)))}


def update_region(call: Call) -> dict[str, Any]:
    change: RegionChange = call.body

    def work(tx: Tx) -> RegionRow:
        store.lock(tx)
        row = _region(tx, call)
        if change.id is not UNSET and change.id not in (None, row.id):
            raise BadInput("The id of a region cannot be changed.")
        if change.description is not UNSET:
            row.description = change.description or ""
        if change.parent_region_id is not UNSET:
            _no_circle(tx, row.id, change.parent_region_id)
            row.parent_region_id = change.parent_region_id
        row.extra = {**row.extra, **extra_of(call.document, RegionChange)}
        return store.regions.save(tx, row)

    return {"region": views.region(call, service_of(call).db.write(work))}


def _no_circle(tx: Tx, id: str, parent_id: str | None) -> None:
    while parent_id is not None:
        if parent_id == id:
            raise BadInput("A region cannot be below itself.")
        parent_id = found(store.regions.get(tx, parent_id), "region", parent_id).parent_region_id


def delete_region(call: Call) -> None:
    def work(tx: Tx) -> None:
        store.lock(tx)
        row = _region(tx, call)
        for below in store.regions.list(tx, parent_region_id=row.id):
            if store.endpoints.list(tx, region_id=below.id):
                raise Forbidden(f"The region {below.id} below it has endpoints.")
        if store.endpoints.list(tx, region_id=row.id):
            raise Forbidden(f"The region {row.id} has endpoints; delete them first.")
        _delete_regions(tx, row.id)

    service_of(call).db.write(work)


def _delete_regions(tx: Tx, id: str) -> None:
    for below in store.regions.list(tx, parent_region_id=id):
        _delete_regions(tx, below.id)
    if store.endpoints.list(tx, region_id=id):
        raise Forbidden(f"The region {id} has endpoints; delete them first.")
    store.regions.remove(tx, id)


# -- endpoints ---------------------------------------------------------------------------------------------------------


def list_endpoints(call: Call) -> dict[str, Any]:
    names = ("interface", "service_id", "region_id")
    equal = {name: call.query.get(name) for name in names if name in call.query}
    rows = service_of(call).db.read(lambda tx: store.endpoints.list(tx, **equal))
    return collection(call, "endpoints", [views.endpoint(call, row) for row in rows], exact=("enabled",))


def _check_url(url: str) -> None:
    values: dict[str, str | None] = {"project_id": "p", "tenant_id": "p", "user_id": "u"}
    if expand_url(url, values) is None or "%(" in (expand_url(url, values) or ""):
        raise BadInput(f"The URL {url!r} asks for a substitution that is not offered.")


def _endpoint_region(tx: Tx, region_id: Any, region: Any) -> str | None:
    """``region`` is the old name of ``region_id``; unlike it, it makes a region that is missing."""
    if isinstance(region_id, str):
        if store.regions.get(tx, region_id) is None:
            raise BadInput(f"The region {region_id} does not exist.")
        return region_id
    if isinstance(region, str):
        if store.regions.get(tx, region) is None:
            store.regions.add(tx, RegionRow(region, None, "", {}))
        return region
    return None


def create_endpoint(call: Call) -> dict[str, Any]:
    new: NewEndpoint = call.body
    _check_url(new.url)

    def work(tx: Tx) -> EndpointRow:
        store.lock(tx)
        if store.services.get(tx, new.service_id) is None:
            raise BadInput(f"The service {new.service_id} does not exist.")
        region_id = _endpoint_region(tx, new.region_id, new.region)
        extra = extra_of(call.document, NewEndpoint)
        row = EndpointRow(new_hex(), new.service_id, region_id, new.interface, new.url, new.enabled, extra)
        return store.endpoints.add(tx, row)

    return {"endpoint": views.endpoint(call, service_of(call).db.write(work))}


def _endpoint(tx: Tx, call: Call) -> EndpointRow:
    id = call.params["endpoint_id"]
    return found(store.endpoints.get(tx, id), "endpoint", id)


def get_endpoint(call: Call) -> dict[str, Any]:
    return {"endpoint": views.endpoint(call, service_of(call).db.read(lambda tx: _endpoint(tx, call)))}


def update_endpoint(call: Call) -> dict[str, Any]:
    change: EndpointChange = call.body
    if change.url is not UNSET:
        _check_url(change.url)

    def work(tx: Tx) -> EndpointRow:
        store.lock(tx)
        row = _endpoint(tx, call)
        if change.service_id is not UNSET:
            if store.services.get(tx, change.service_id) is None:
                raise BadInput(f"The service {change.service_id} does not exist.")
            row.service_id = change.service_id
        if change.region_id is not UNSET or change.region is not UNSET:
            row.region_id = _endpoint_region(tx, change.region_id, change.region)
        if change.interface is not UNSET:
            row.interface = change.interface
        if change.url is not UNSET:
            row.url = change.url
        if change.enabled is not UNSET:
            row.enabled = change.enabled
        row.extra = {**row.extra, **extra_of(call.document, EndpointChange)}
        return store.endpoints.save(tx, row)

    return {"endpoint": views.endpoint(call, service_of(call).db.write(work))}


def delete_endpoint(call: Call) -> None:
    def work(tx: Tx) -> None:
        row = _endpoint(tx, call)
        store.endpoints.remove(tx, row.id)

    service_of(call).db.write(work)


def _crud(noun: str, change: Any, listing: Any, get: Any, update: Any, delete: Any) -> list[Route]:
    many, one = f"/{noun}s", f"/{noun}s/{{{noun}_id}}"
    return [
        Route(method="GET", path=many, handler=listing, policy=f"identity:list_{noun}s"),
        Route(method="GET", path=one, handler=get, policy=f"identity:get_{noun}"),
        Route(method="PATCH", path=one, handler=update, body=change, body_key=noun, policy=f"identity:update_{noun}"),
        Route(method="DELETE", path=one, handler=delete, policy=f"identity:delete_{noun}", success=204),
    ]


ROUTES = [
    *_crud("service", ServiceChange, list_services, get_service, update_service, delete_service),
    *_crud("region", RegionChange, list_regions, get_region, update_region, delete_region),
    *_crud("endpoint", EndpointChange, list_endpoints, get_endpoint, update_endpoint, delete_endpoint),
    Route(method="POST", path="/services", handler=create_service, body=NewService, body_key="service", success=201,
          policy="identity:create_service"),
    Route(method="POST", path="/regions", handler=create_region, body=NewRegion, body_key="region", success=201,
          policy="identity:create_region"),
    Route(method="PUT", path="/regions/{region_id}", handler=create_named_region, body=NewRegion, body_key="region",
          success=201, policy="identity:create_region"),
    Route(method="POST", path="/endpoints", handler=create_endpoint, body=NewEndpoint, body_key="endpoint",
          success=201, policy="identity:create_endpoint"),
]  # fmt: skip
