"""Hosts as operators see them: hypervisors, services, availability zones, aggregates, external events."""

import json
import uuid
from functools import partial
from typing import Any

from msgspec import UNSET

from cumulet.db import Tx
from cumulet.http import Call, Reply, Route
from cumulet.kernel.clock import iso
from cumulet.kernel.errors import BadInput, Conflict, NotFound
from cumulet.kernel.ids import is_uuid
from cumulet.services.compute import catalogue, schema, store
from cumulet.services.compute.api.common import (
    boolean,
    cut,
    marker_missing,
    one_of,
    only_query,
    page_of,
    service_of,
    version_of,
    with_links,
)

_HYPERVISORS = "os_compute_api:os-hypervisors:"
_SERVICES = "os_compute_api:os-services:"
BINARY = {"compute": "nova-compute"}


def _hosts(call: Call, tx: Tx) -> list[Any]:
    found: list[Any] = service_of(call).parts.hosts.list(tx, role="compute")
    return found


def service_id(host: Any) -> str:
    """The uuid of a host's compute service, made from the host's."""
    return str(uuid.uuid5(uuid.UUID(host.uuid), "nova-compute"))


# -- hypervisors ------------------------------------------------------------------------------------------------------


def _hypervisor(call: Call, tx: Tx, host: Any, *, whole: bool, servers: bool) -> dict[str, Any]:
    version = version_of(call)
    shown: dict[str, Any] = {
        "id": host.uuid if version >= (2, 53) else host.number,
        "hypervisor_hostname": host.name,
        "state": "up" if host.up else "down",
        "status": "disabled" if host.disabled else "enabled",
    }
    here = store.servers_on(tx, host.name) if servers or (whole and version < (2, 88)) else []
    if servers and (here or version >= (2, 75)):
        shown["servers"] = [{"name": row.instance_name, "uuid": row.id} for row in here]
    if not whole:
        return shown
    found = host.resources
    shown["host_ip"] = host.ip
    shown["hypervisor_type"] = found.hypervisor_type
    shown["hypervisor_version"] = found.hypervisor_version
    shown["service"] = {
        "id": service_id(host) if version >= (2, 53) else host.number,
        "host": host.name,
        "disabled_reason": host.disabled_reason,
    }
    if version >= (2, 88):
        shown["uptime"] = None
        return shown
    memory = sum(row.memory_mb for row in here)
    disk = sum(row.root_gb + row.ephemeral_gb for row in here)
    shown.update(
        {
            "cpu_info": found.cpu_info if version >= (2, 28) else json.dumps(found.cpu_info),
            "current_workload": sum(row.task_state is not None for row in here),
            "disk_available_least": max(0, found.local_gb - found.local_gb_used),
            "free_disk_gb": found.local_gb - disk,
            "free_ram_mb": found.memory_mb - memory,
            "local_gb": found.local_gb,
            "local_gb_used": disk,
            "memory_mb": found.memory_mb,
            "memory_mb_used": memory,
            "running_vms": len(here),
            "vcpus": found.vcpus,
            "vcpus_used": sum(row.vcpus for row in here),
        }
    )
    return shown


def hypervisors(call: Call) -> dict[str, Any]:
    return _hypervisors(call, whole=False)


def hypervisors_detail(call: Call) -> dict[str, Any]:
    return _hypervisors(call, whole=True)


def _hypervisors(call: Call, *, whole: bool) -> dict[str, Any]:
    version = version_of(call)
    pattern, servers = None, False
    page = page_of(call) if version >= (2, 33) else None
    if version >= (2, 53):
        only_query(call, ["limit", "marker", "hypervisor_hostname_pattern", "with_servers"], (2, 53))
        pattern = one_of(call, "hypervisor_hostname_pattern")
        servers = boolean(one_of(call, "with_servers"), name="with_servers", empty=False)
        if pattern is not None and page is not None and (page.limit or page.marker):
            raise BadInput(
                "Paging over hypervisors with the hypervisor_hostname_pattern query parameter is not supported."
            )

    def work(tx: Tx) -> tuple[list[dict[str, Any]], list[str]]:
        found = _hosts(call, tx)
        if pattern is not None:
            found = [host for host in found if pattern in host.name]
            if not found:
                raise NotFound(f"No hypervisor matching '{pattern}' could be found.")
        if page is not None:

            def key(host: Any) -> str:
                return str(host.uuid) if version >= (2, 53) else str(host.number)

            found = cut(found, page, key, marker_missing)
            ids = [key(host) for host in found]
        else:
            ids = []
        return [_hypervisor(call, tx, host, whole=whole, servers=servers) for host in found], ids

    shown, ids = service_of(call).db.read(work)
    if page is None:
        return {"hypervisors": shown}
    path = "/os-hypervisors/detail" if whole else "/os-hypervisors"
    return with_links(call, "hypervisors", path, shown, ids, page)


def _hypervisor_host(call: Call, tx: Tx) -> Any:
    wanted = call.params["hypervisor_id"]
    if version_of(call) >= (2, 53) and not is_uuid(wanted):
        raise BadInput(f"Invalid uuid {wanted}")
    for host in _hosts(call, tx):
        if wanted == (host.uuid if version_of(call) >= (2, 53) else str(host.number)):
            return host
    raise NotFound(f"Compute host {wanted} could not be found.")


def hypervisor_show(call: Call) -> dict[str, Any]:
    servers = False
    if version_of(call) >= (2, 53):
        only_query(call, ["with_servers"], (2, 53))
        servers = boolean(one_of(call, "with_servers"), name="with_servers", empty=False)

    def work(tx: Tx) -> dict[str, Any]:
        return _hypervisor(call, tx, _hypervisor_host(call, tx), whole=True, servers=servers)

    return {"hypervisor": service_of(call).db.read(work)}


def hypervisor_uptime(call: Call) -> dict[str, Any]:
    def work(tx: Tx) -> dict[str, Any]:
        host = _hypervisor_host(call, tx)
        if not host.up:
            raise BadInput(f"Service nova-compute on host {host.name} is unavailable at this time.")
        return {**_hypervisor(call, tx, host, whole=False, servers=False), "uptime": None}

    return {"hypervisor": service_of(call).db.read(work)}


def statistics(call: Call) -> dict[str, Any]:
    def work(tx: Tx) -> dict[str, Any]:
        hosts = [_hypervisor(call, tx, host, whole=True, servers=False) for host in _hosts(call, tx)]
        names = (
            "vcpus", "memory_mb", "local_gb", "vcpus_used", "memory_mb_used", "local_gb_used", "free_ram_mb",
            "free_disk_gb", "current_workload", "running_vms", "disk_available_least",
        )  # fmt: skip
        return {"count": len(hosts), **{name: sum(host[name] for host in hosts) for name in names}}

    return {"hypervisor_statistics": service_of(call).db.read(work)}


def hypervisor_search(call: Call) -> dict[str, Any]:
    """Before 2.53: hypervisors whose name contains a text."""
    pattern = call.params["hypervisor_id"]

    def work(tx: Tx) -> list[dict[str, Any]]:
        found = [host for host in _hosts(call, tx) if pattern in host.name]
        if not found:
            raise NotFound(f"No hypervisor matching '{pattern}' could be found.")
        return [_hypervisor(call, tx, host, whole=False, servers=False) for host in found]

    return {"hypervisors": service_of(call).db.read(work)}


def hypervisor_servers(call: Call) -> dict[str, Any]:
    """Before 2.53: the same with the servers on each."""
    pattern = call.params["hypervisor_id"]

    def work(tx: Tx) -> list[dict[str, Any]]:
        found = [host for host in _hosts(call, tx) if pattern in host.name]
        if not found:
            raise NotFound(f"No hypervisor matching '{pattern}' could be found.")
        return [_hypervisor(call, tx, host, whole=False, servers=True) for host in found]

    return {"hypervisors": service_of(call).db.read(work)}


# -- services ---------------------------------------------------------------------------------------------------------


def _all_services(call: Call, tx: Tx) -> list[tuple[str, Any]]:
    """(binary, host): a compute service on each compute host; scheduler and conductor run wherever a host does."""
    everyone: list[Any] = service_of(call).parts.hosts.list(tx)
    found: list[tuple[str, Any]] = []
    if everyone:
        found += [("nova-scheduler", everyone[0]), ("nova-conductor", everyone[0])]
    return found + [("nova-compute", host) for host in everyone if "compute" in host.roles]


def _service(call: Call, binary: str, host: Any, zones: dict[str, str]) -> dict[str, Any]:
    version = version_of(call)
    compute = binary == "nova-compute"
    down = compute and not host.up
    number = host.number if compute else {"nova-scheduler": 1_000_001, "nova-conductor": 1_000_002}[binary]
    identity = service_id(host) if compute else str(uuid.uuid5(uuid.UUID(host.uuid), binary))
    shown: dict[str, Any] = {
        "id": identity if version >= (2, 53) else number,
        "binary": binary,
        "host": host.name,
        "zone": zones.get(host.name, service_of(call).parts.default_zone) if compute else "internal",
        "status": "disabled" if compute and host.disabled else "enabled",
        "state": "down" if down else "up",
        "updated_at": iso(host.seen_at if compute else service_of(call).clock.now(), zone="", micros=True),
        "disabled_reason": host.disabled_reason if compute else None,
    }
    if version >= (2, 11):
        shown["forced_down"] = bool(compute and host.forced_down)
    return shown


def services_index(call: Call) -> dict[str, Any]:
    only_query(call, ["host", "binary"], (2, 75))
    host_name, wanted = call.query.get("host"), call.query.get("binary")

    def work(tx: Tx) -> list[dict[str, Any]]:
        zones = catalogue.zones(tx)
        return [
            _service(call, binary, host, zones)
            for binary, host in _all_services(call, tx)
            if host_name in (None, "", host.name) and wanted in (None, "", binary)
        ]

    return {"services": service_of(call).db.read(work)}


def _compute_service(call: Call, tx: Tx) -> Any:
    wanted = call.params["service_id"]
    if not is_uuid(wanted):
        raise BadInput(f"Invalid uuid {wanted}")
    for host in _hosts(call, tx):
        if service_id(host) == wanted:
            return host
    for binary, host in _all_services(call, tx):
        if str(uuid.uuid5(uuid.UUID(host.uuid), binary)) == wanted:
            raise BadInput("Updating a nova-compute service is supported only.")
    raise NotFound(f"Service {wanted} not found.")


def service_update(call: Call) -> dict[str, Any]:
    body: schema.ServiceUpdate = call.body
    if body.disabled_reason is not UNSET and body.status != "disabled":
        raise BadInput("Specifying disabled_reason requires that status is 'disabled'.")
    if body.status is UNSET and body.forced_down is UNSET:
        raise BadInput("No updates were requested. Fields 'status' or 'forced_down' should be specified.")

    def work(tx: Tx) -> dict[str, Any]:
        host = _compute_service(call, tx)
        registry = service_of(call).parts.hosts
        if body.status is not UNSET:
            reason = body.disabled_reason if body.disabled_reason is not UNSET else None
            registry.set_disabled(tx, host.name, reason, disabled=body.status == "disabled")
        if body.forced_down is not UNSET:
            registry.set_forced_down(tx, host.name, schema.truth(body.forced_down))
        return _service(call, "nova-compute", registry.get(tx, host.name), catalogue.zones(tx))

    return {"service": service_of(call).db.write(work)}


def service_switch(call: Call) -> dict[str, Any]:
    """Before 2.53: PUT /os-services/enable, disable, disable-log-reason, force-down."""
    body: schema.ServiceSwitch = call.body
    what = call.params["service_id"]
    if what not in ("enable", "disable", "disable-log-reason", "force-down"):
        raise NotFound("Unknown action")
    if what == "force-down" and version_of(call) < (2, 11):
        raise NotFound("Unknown action")
    if what == "disable-log-reason" and not body.disabled_reason:
        raise BadInput("Missing disabled reason field")
    if what == "force-down" and body.forced_down is UNSET:
        raise BadInput("Missing forced_down field")

    def work(tx: Tx) -> dict[str, Any]:
        if body.binary != "nova-compute" or not any(host.name == body.host for host in _hosts(call, tx)):
            raise NotFound(f"Could not find binary {body.binary} on host {body.host}.")
        registry = service_of(call).parts.hosts
        shown: dict[str, Any] = {"host": body.host, "binary": body.binary}
        if what == "force-down":
            down = schema.truth(body.forced_down)
            registry.set_forced_down(tx, body.host, down)
            return {**shown, "forced_down": down}
        registry.set_disabled(tx, body.host, body.disabled_reason, disabled=what != "enable")
        shown["status"] = "enabled" if what == "enable" else "disabled"
        if what == "disable-log-reason":
            shown["disabled_reason"] = body.disabled_reason
        return shown

    return {"service": service_of(call).db.write(work)}


def service_delete(call: Call) -> None:
    def work(tx: Tx) -> None:
        if version_of(call) >= (2, 53):
            host = _compute_service(call, tx)
        else:
            wanted = call.params["service_id"]
            host = next((h for h in _hosts(call, tx) if str(h.number) == wanted), None)
            if host is None:
                raise NotFound(f"Service {wanted} not found.")
        if store.servers_on(tx, host.name):
            raise Conflict(
                "Unable to delete compute service that is hosting instances. Migrate or delete the instances first."
            )
        service = service_of(call)
        service.forget_host(tx, host)
        service.parts.hosts.remove(tx, host.name)

    service_of(call).db.write(work)


# -- zones ------------------------------------------------------------------------------------------------------------


def zones_index(call: Call) -> dict[str, Any]:
    return _zones(call, whole=False)


def zones_detail(call: Call) -> dict[str, Any]:
    return _zones(call, whole=True)


def _zones(call: Call, *, whole: bool) -> dict[str, Any]:
    def work(tx: Tx) -> list[dict[str, Any]]:
        by_host = catalogue.zones(tx)
        default = service_of(call).parts.default_zone
        zones: dict[str, list[tuple[str, Any]]] = {}
        for binary, host in _all_services(call, tx):
            name = by_host.get(host.name, default) if binary == "nova-compute" else "internal"
            if name == "internal" and not whole:
                continue
            zones.setdefault(name, []).append((binary, host))
        shown = []
        for name, members in sorted(zones.items(), key=lambda item: (item[0] != "internal", item[0])):
            available = name == "internal" or any(not host.disabled for _, host in members)
            hosts: Any = None
            if whole:
                hosts = {}
                for binary, host in members:
                    compute = binary == "nova-compute"
                    hosts.setdefault(host.name, {})[binary] = {
                        "active": not (compute and host.disabled),
                        "available": host.up or not compute,
                        "updated_at": iso(host.seen_at, zone="", micros=True),
                    }
            shown.append({"zoneName": name, "zoneState": {"available": available}, "hosts": hosts})
        return shown

    return {"availabilityZoneInfo": service_of(call).db.read(work)}


# -- other ------------------------------------------------------------------------------------------------------------


_EVENT_SINCE = {
    "volume-extended": (2, 51),
    "power-update": (2, 76),
    "accelerator-request-bound": (2, 82),
    "volume-reimaged": (2, 93),
}


def external_events(call: Call) -> Reply:
    """What other services tell nova. Ours tell each other in one transaction; the call is there for others."""
    body: schema.ExternalEvents = call.body
    for event in body.events:
        if version_of(call) < _EVENT_SINCE.get(event.name, (2, 1)):
            raise BadInput(f"Invalid input for field/attribute name. Value: {event.name}. It is not an event.")

    def work(tx: Tx) -> tuple[list[dict[str, Any]], int]:
        shown, accepted = [], 0
        for event in body.events:
            item: dict[str, Any] = {"name": event.name, "server_uuid": event.server_uuid, "status": event.status}
            if event.tag is not None:
                item["tag"] = event.tag
            row = store.server(tx, event.server_uuid)
            if row is None or row.deleted_at is not None:
                item.update(status="failed", code=404)
            elif row.host is None:
                item.update(status="failed", code=422)
            else:
                item["code"] = 200
                accepted += 1
                tx.after_commit(partial(service_of(call).parts.sagas.wake, "server", row.id))
            shown.append(item)
        return shown, accepted

    shown, accepted = service_of(call).db.write(work)
    if not accepted:
        raise NotFound("No instances found for any event")
    return Reply({"events": shown}, status=200 if accepted == len(shown) else 207)


_H = "/os-hypervisors"
ROUTES = [
    Route(method="GET", path=_H, handler=hypervisors, policy=_HYPERVISORS + "list"),
    Route(method="GET", path=_H + "/detail", handler=hypervisors_detail, policy=_HYPERVISORS + "list-detail"),
    Route(
        method="GET", path=_H + "/statistics", handler=statistics, policy=_HYPERVISORS + "statistics",
        max_version="2.87",
    ),
    Route(method="GET", path=_H + "/{hypervisor_id}", handler=hypervisor_show, policy=_HYPERVISORS + "show"),
    Route(
        method="GET", path=_H + "/{hypervisor_id}/uptime", handler=hypervisor_uptime,
        policy=_HYPERVISORS + "uptime", max_version="2.87",
    ),
    Route(
        method="GET", path=_H + "/{hypervisor_id}/search", handler=hypervisor_search,
        policy=_HYPERVISORS + "search", max_version="2.52",
    ),
    Route(
        method="GET", path=_H + "/{hypervisor_id}/servers", handler=hypervisor_servers,
        policy=_HYPERVISORS + "servers", max_version="2.52",
    ),
    Route(method="GET", path="/os-services", handler=services_index, policy=_SERVICES + "list"),
    Route(
        method="PUT", path="/os-services/{service_id}", handler=service_update, policy=_SERVICES + "update",
        body=schema.ServiceUpdate, min_version="2.53",
    ),
    Route(
        method="PUT", path="/os-services/{service_id}", handler=service_switch, policy=_SERVICES + "update",
        body=schema.ServiceSwitch, max_version="2.52",
    ),
    Route(
        method="DELETE", path="/os-services/{service_id}", handler=service_delete, policy=_SERVICES + "delete",
        success=204,
    ),
    Route(
        method="GET", path="/os-availability-zone", handler=zones_index,
        policy="os_compute_api:os-availability-zone:list",
    ),
    Route(
        method="GET", path="/os-availability-zone/detail", handler=zones_detail,
        policy="os_compute_api:os-availability-zone:detail",
    ),
    Route(
        method="POST", path="/os-server-external-events", handler=external_events,
        policy="os_compute_api:os-server-external-events:create", body=schema.ExternalEvents, statuses=(207,),
    ),
]  # fmt: skip
