"""Host aggregates; one with ``availability_zone`` in its metadata puts its hosts into that zone."""

from typing import Any

from msgspec import UNSET

from cumulet.db import Tx
from cumulet.http import Call, Route
from cumulet.kernel.clock import iso
from cumulet.kernel.errors import BadInput, Conflict, NotFound
from cumulet.services.compute import catalogue, schema, store
from cumulet.services.compute.api.common import service_of, version_of
from cumulet.services.compute.rows import AggregateRow

_RULE = "os_compute_api:os-aggregates:"
_ZONE = "availability_zone"


def _view(call: Call, row: AggregateRow, hosts: list[str] | None) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "id": row.id,
        "name": row.name,
        "availability_zone": row.metadata.get(_ZONE),
        "created_at": iso(row.created_at, zone="", micros=True),
        "updated_at": iso(row.updated_at, zone="", micros=True),
        "deleted": False,
        "deleted_at": None,
    }
    if hosts is not None:
        shown["hosts"] = hosts
        shown["metadata"] = row.metadata
    if version_of(call) >= (2, 41):
        shown["uuid"] = row.uuid
    return shown


def _load(call: Call, tx: Tx) -> AggregateRow:
    text = call.params["aggregate_id"]
    if not text.lstrip("-").isdigit() or len(text) > 10:
        raise BadInput(f"Invalid aggregate id: {text}. It must be an integer.")
    row = catalogue.aggregate(tx, int(text))
    if row is None:
        raise NotFound(f"Aggregate {text} could not be found.")
    return row


def _whole(call: Call, tx: Tx, aggregate_id: int) -> dict[str, Any]:
    row = catalogue.aggregate(tx, aggregate_id)
    assert row is not None
    return {"aggregate": _view(call, row, catalogue.aggregate_hosts(tx).get(row.id, []))}


def index(call: Call) -> dict[str, Any]:
    def work(tx: Tx) -> list[dict[str, Any]]:
        hosts = catalogue.aggregate_hosts(tx)
        return [_view(call, row, hosts.get(row.id, [])) for row in catalogue.aggregates(tx)]

    return {"aggregates": service_of(call).db.read(work)}


def show(call: Call) -> dict[str, Any]:
    return service_of(call).db.read(lambda tx: _whole(call, tx, _load(call, tx).id))


def create(call: Call) -> dict[str, Any]:
    body: schema.AggregateCreate = call.body

    def work(tx: Tx) -> dict[str, Any]:
        tx.lock("aggregates", "")
        if catalogue.aggregate_named(tx, body.name) is not None:
            raise Conflict(f"Aggregate {body.name} already exists.")
        metadata = {_ZONE: body.availability_zone} if body.availability_zone else {}
        catalogue.insert_aggregate(tx, body.name, metadata)
        row = catalogue.aggregate_named(tx, body.name)
        assert row is not None
        return {"aggregate": _view(call, row, None)}

    return service_of(call).db.write(work)


def update(call: Call) -> dict[str, Any]:
    body: schema.AggregateUpdate = call.body
    if body.name is UNSET and body.availability_zone is UNSET:
        raise BadInput("Invalid input for field/attribute aggregate. Value: {}. {} does not have enough properties")

    def work(tx: Tx) -> dict[str, Any]:
        tx.lock("aggregates", "")
        row = _load(call, tx)
        values: dict[str, Any] = {}
        if body.name is not UNSET:
            other = catalogue.aggregate_named(tx, body.name)
            if other is not None and other.id != row.id:
                raise Conflict(f"Aggregate {body.name} already exists.")
            values["name"] = body.name
        if body.availability_zone is not UNSET:
            values["metadata"] = _with(call, tx, row, {_ZONE: body.availability_zone})
        catalogue.update_aggregate(tx, row.id, **values)
        return _whole(call, tx, row.id)

    return service_of(call).db.write(work)


def _with(call: Call, tx: Tx, row: AggregateRow, new: dict[str, str | None]) -> dict[str, str]:
    """Metadata after a change; a zone may not change under hosts that are in another one, or have servers."""
    merged: dict[str, Any] = {**row.metadata, **new}
    merged = {key: value for key, value in merged.items() if value is not None}
    hosts = catalogue.aggregate_hosts(tx).get(row.id, [])
    if _ZONE in new and merged.get(_ZONE) != row.metadata.get(_ZONE):
        _check_zone(tx, row, hosts, merged.get(_ZONE))
        service_of(call).parts.scheduler.hold(tx)  # no server is being placed there
        for host in hosts:
            if store.servers_on(tx, host):
                raise BadInput(f"Aggregate {row.id}: one or more hosts contain instances in this zone")
    return merged


def _check_zone(tx: Tx, row: AggregateRow, hosts: list[str], zone: str | None) -> None:
    if zone is None:
        return
    members = catalogue.aggregate_hosts(tx)
    for other in catalogue.aggregates(tx):
        elsewhere = other.metadata.get(_ZONE)
        if other.id == row.id or elsewhere in (None, zone):
            continue
        shared = sorted(set(hosts) & set(members.get(other.id, [])))
        if shared:
            raise Conflict(f"Cannot add host to aggregate {row.id}. Reason: Host {shared[0]} already in {elsewhere}.")


def delete(call: Call) -> None:
    def work(tx: Tx) -> None:
        tx.lock("aggregates", "")
        row = _load(call, tx)
        if catalogue.aggregate_hosts(tx).get(row.id):
            raise BadInput(f"Cannot remove host from aggregate {row.id}: it is not empty.")
        catalogue.delete_aggregate(tx, row.id)

    service_of(call).db.write(work)


def add_host(call: Call) -> dict[str, Any]:
    body: schema.AggregateHost = call.body

    def work(tx: Tx) -> dict[str, Any]:
        tx.lock("aggregates", "")
        row = _load(call, tx)
        if not any(host.name == body.host for host in service_of(call).parts.hosts.list(tx, role="compute")):
            raise NotFound(f"Compute host {body.host} could not be found.")
        if body.host in catalogue.aggregate_hosts(tx).get(row.id, []):
            raise Conflict(f"Cannot add host {body.host} in aggregate {row.id}: host exists")
        _check_zone(tx, row, [body.host], row.metadata.get(_ZONE))
        catalogue.add_aggregate_host(tx, row.id, body.host)
        catalogue.update_aggregate(tx, row.id)
        return _whole(call, tx, row.id)

    return service_of(call).db.write(work)


def remove_host(call: Call) -> dict[str, Any]:
    body: schema.AggregateHost = call.body

    def work(tx: Tx) -> dict[str, Any]:
        tx.lock("aggregates", "")
        row = _load(call, tx)
        if not catalogue.remove_aggregate_host(tx, row.id, body.host):
            raise NotFound(f"Cannot remove host {body.host} in aggregate {row.id}: host not found")
        catalogue.update_aggregate(tx, row.id)
        return _whole(call, tx, row.id)

    return service_of(call).db.write(work)


def set_metadata(call: Call) -> dict[str, Any]:
    body: schema.AggregateMetadata = call.body

    def work(tx: Tx) -> dict[str, Any]:
        tx.lock("aggregates", "")
        row = _load(call, tx)
        catalogue.update_aggregate(tx, row.id, metadata=_with(call, tx, row, dict(body.metadata)))
        return _whole(call, tx, row.id)

    return service_of(call).db.write(work)


_A = "/os-aggregates/{aggregate_id}"
ROUTES = [
    Route(method="GET", path="/os-aggregates", handler=index, policy=_RULE + "index"),
    Route(
        method="POST", path="/os-aggregates", handler=create, policy=_RULE + "create", body=schema.AggregateCreate,
        body_key="aggregate",
    ),
    Route(method="GET", path=_A, handler=show, policy=_RULE + "show"),
    Route(
        method="PUT", path=_A, handler=update, policy=_RULE + "update", body=schema.AggregateUpdate,
        body_key="aggregate",
    ),
    Route(method="DELETE", path=_A, handler=delete, policy=_RULE + "delete"),
    Route(
        method="POST", path=_A + "/action", action="add_host", handler=add_host, policy=_RULE + "add_host",
        body=schema.AggregateHost,
    ),
    Route(
        method="POST", path=_A + "/action", action="remove_host", handler=remove_host, policy=_RULE + "remove_host",
        body=schema.AggregateHost,
    ),
    Route(
        method="POST", path=_A + "/action", action="set_metadata", handler=set_metadata,
        policy=_RULE + "set_metadata", body=schema.AggregateMetadata,
    ),
]  # fmt: skip
