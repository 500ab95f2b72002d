"""Volumes and interfaces of a server."""

import string
from typing import Any

from msgspec import UNSET

from cumulet.db import Tx
from cumulet.http import Call, Route, whole_number
from cumulet.kernel.errors import BadInput, Conflict, NotFound
from cumulet.kernel.ids import new_uuid
from cumulet.services.compute import rules, schema, store
from cumulet.services.compute.api.common import (
    load,
    load_unlocked,
    only_query,
    service_of,
    version_of,
)
from cumulet.services.compute.rows import BlockDeviceRow, ServerRow
from cumulet.services.compute.views import attachment_view
from cumulet.services.compute.workflows.interfaces import InterfaceParams
from cumulet.services.compute.workflows.volumes import ConnectParams

_VOLUMES = "os_compute_api:os-volumes-attachments:"
_NICS = "os_compute_api:os-attach-interfaces:"
MAX_DISKS = 26


# -- volumes ----------------------------------------------------------------------------------------------------------


def _disks(tx: Tx, row: ServerRow) -> list[BlockDeviceRow]:
    return store.disks(tx, [row.id]).get(row.id, [])


def _disk(tx: Tx, row: ServerRow, volume_id: str) -> BlockDeviceRow:
    for disk in _disks(tx, row):
        if disk.volume_id == volume_id:
            return disk
    raise NotFound(f"Instance {row.id} is not attached to volume {volume_id}")


def volumes_index(call: Call) -> dict[str, Any]:
    only_query(call, ["limit", "offset"], (2, 75))
    limit, offset = whole_number(call.query, "limit") or 1000, whole_number(call.query, "offset") or 0

    def work(tx: Tx) -> list[BlockDeviceRow]:
        return _disks(tx, load(call, tx, _VOLUMES + "index"))

    found = service_of(call).db.read(work)[offset : offset + limit]
    return {"volumeAttachments": [attachment_view(disk, version_of(call)) for disk in found]}


def volumes_show(call: Call) -> dict[str, Any]:
    def work(tx: Tx) -> BlockDeviceRow:
        row = load(call, tx, _VOLUMES + "show")
        return _disk(tx, row, call.params["volume_id"])

    return {"volumeAttachment": attachment_view(service_of(call).db.read(work), version_of(call))}


def _device(row: ServerRow, disks: list[BlockDeviceRow], asked: str | None) -> str:
    """The name the volume is shown under: the one asked for if it is free, else the next."""
    taken = {disk.device for disk in disks} | {row.root_device_name or "/dev/vda"}
    if asked is not None:
        name = asked if asked.startswith("/dev/") else f"/dev/{asked}"
        name = "/dev/vd" + name[-1] if name[-1].isalpha() else name
        if name in taken:
            raise BadInput(f"The supplied device path ({asked}) is in use.")
        return name
    for letter in string.ascii_lowercase[1:]:
        if f"/dev/vd{letter}" not in taken:
            return f"/dev/vd{letter}"
    raise BadInput(f"The maximum number of disks ({MAX_DISKS}) is attached.")


def volumes_attach(call: Call) -> dict[str, Any]:
    body: schema.AttachmentCreate = call.body
    service = service_of(call)

    def work(tx: Tx) -> BlockDeviceRow:
        row = load_unlocked(call, tx, _VOLUMES + "create")
        rules.check_state(row, "attach_volume")
        if row.vm_state.startswith("shelved"):
            raise Conflict(f"Cannot 'attach_volume' instance {row.id} while it is in vm_state {row.vm_state}")
        rules.check_host(row)
        disks = _disks(tx, row)
        volume = service.parts.volumes.get(tx, call.ctx, body.volumeId)
        if any(disk.volume_id == body.volumeId for disk in disks):
            raise BadInput(f"Invalid volume: volume {body.volumeId} is already attached to instances: {row.id}")
        device = _device(row, disks, body.device)
        if getattr(volume, "multiattach", False) and version_of(call) < (2, 60):
            raise BadInput("Multiattach volumes are only supported starting with compute API version 2.60.")
        if volume.status not in ("available", "reserved") and not getattr(volume, "multiattach", False):
            raise BadInput(f"Invalid volume: Volume {body.volumeId} status must be available, it is {volume.status}.")
        attachment_id = service.parts.volumes.reserve_attachment(tx, call.ctx, body.volumeId, row.id, device)
        disk_id = new_uuid()
        values = {
            "id": disk_id,
            "server_id": row.id,
            "volume_id": body.volumeId,
            "attachment_id": attachment_id,
            "device": device,
            "boot_index": None,
            "tag": body.tag,
            "delete_on_termination": schema.truth(body.delete_on_termination),
            "connection": None,
            "created_at": tx.now,
        }
        store.insert_disks(tx, [values])
        params = ConnectParams(server_id=row.id, host=row.host)
        service.start_on(tx, row, service.volume_workflows.attach, disk_id, params, call.ctx)
        made = store.disk(tx, disk_id)
        assert made is not None
        return made

    made = service.db.write(work)
    return {"volumeAttachment": attachment_view(made, version_of(call))}


def volumes_update(call: Call) -> None:
    """Only the flag delete_on_termination may change; exchanging a volume for another is the volume service's."""
    body: schema.AttachmentUpdate = call.body
    volume_id = call.params["volume_id"]
    service = service_of(call)

    def work(tx: Tx) -> None:
        row = load_unlocked(call, tx, None)
        disk = _disk(tx, row, volume_id)
        if body.volumeId != volume_id:
            call.authorize(_VOLUMES + "swap", {"project_id": row.project_id, "user_id": row.user_id})
            raise BadInput("Exchanging a volume for another is not offered.")
        if version_of(call) < (2, 85):
            raise BadInput(f"The volume {volume_id} is attached already; name another one to exchange it for.")
        call.authorize(_VOLUMES + "update", {"project_id": row.project_id, "user_id": row.user_id})
        if body.serverId is not None and body.serverId != row.id:
            raise BadInput("The serverId may not be changed.")
        if body.id is not None and body.id != volume_id:
            raise BadInput("The id may not be changed.")
        if body.device is not None and body.device != disk.device:
            raise BadInput("The device may not be changed.")
        if body.tag is not None and body.tag != disk.tag:
            raise BadInput("The tag may not be changed.")
        if body.delete_on_termination is not UNSET:
            store.update_disk(tx, disk.id, delete_on_termination=schema.truth(body.delete_on_termination))

    service.db.write(work)


def volumes_detach(call: Call) -> None:
    service = service_of(call)

    def work(tx: Tx) -> None:
        row = load_unlocked(call, tx, _VOLUMES + "delete")
        disk = _disk(tx, row, call.params["volume_id"])
        rules.check_state(row, "detach_volume")
        if disk.boot_index == 0:
            raise Conflict("Cannot detach a root device volume")
        service.parts.volumes.begin_detaching(tx, disk.attachment_id)
        params = ConnectParams(server_id=row.id, host=row.host)
        service.start_on(tx, row, service.volume_workflows.detach, disk.id, params, call.ctx)

    service.db.write(work)


# -- interfaces -------------------------------------------------------------------------------------------------------


def _nic_view(call: Call, tx: Tx, row: ServerRow, port: Any) -> dict[str, Any]:
    fixed = service_of(call).parts.network.ports.addresses_of(tx, [port.id]).get(port.id, [])
    shown: dict[str, Any] = {
        "net_id": port.network_id,
        "port_id": port.id,
        "mac_addr": port.mac_address,
        "port_state": port.status,
        "fixed_ips": [{"subnet_id": ip.subnet_id, "ip_address": ip.ip_address} for ip in fixed],
    }
    if version_of(call) >= (2, 70):
        known = store.interface(tx, port.id)
        shown["tag"] = known.tag if known is not None else None
    return shown


def nics_index(call: Call) -> dict[str, Any]:
    def work(tx: Tx) -> list[dict[str, Any]]:
        row = load(call, tx, _NICS + "list")
        return [_nic_view(call, tx, row, port) for port in service_of(call).parts.network.server_ports(tx, row.id)]

    return {"interfaceAttachments": service_of(call).db.read(work)}


def nics_show(call: Call) -> dict[str, Any]:
    port_id = call.params["port_id"]

    def work(tx: Tx) -> dict[str, Any]:
        row = load(call, tx, _NICS + "show")
        for port in service_of(call).parts.network.server_ports(tx, row.id):
            if port.id == port_id:
                return _nic_view(call, tx, row, port)
        raise NotFound(f"Instance {row.id} does not have a port with id {port_id}")

    return {"interfaceAttachment": service_of(call).db.read(work)}


def nics_attach(call: Call) -> dict[str, Any]:
    body: schema.InterfaceCreate = call.body.interfaceAttachment
    service = service_of(call)
    if body.net_id is not None and body.port_id is not None:
        raise BadInput("Must not input both network_id and port_id")
    if body.fixed_ips is not None and body.net_id is None:
        raise BadInput("Must input network_id when request IP address")

    def work(tx: Tx) -> dict[str, Any]:
        row = load_unlocked(call, tx, _NICS + "create")
        rules.check_state(row, "attach_interface")
        rules.check_host(row)
        requested = None
        if body.net_id is not None or body.port_id is not None:
            address = body.fixed_ips[0].ip_address if body.fixed_ips else None
            requested = schema.NetworkRequest(uuid=body.net_id, port=body.port_id, fixed_ip=address, tag=body.tag)
        network = service.parts.network
        try:
            port_id = network.attach_interface(
                tx, call.ctx, row.id, requested, row.hostname, row.availability_zone or "", row.host or ""
            )
        except NotFound as error:
            raise NotFound(error.message) if body.port_id is not None else BadInput(error.message) from None
        store.insert_interfaces(tx, {row.id: [(port_id, body.tag)]})
        port = next(port for port in network.server_ports(tx, row.id) if port.id == port_id)
        params = InterfaceParams(server_id=row.id, mac_address=port.mac_address)
        service.start_on(tx, row, service.interfaces.attach, port_id, params, call.ctx)
        service.changed(tx, row)
        return _nic_view(call, tx, row, port)

    return {"interfaceAttachment": service.db.write(work)}


def nics_detach(call: Call) -> None:
    port_id = call.params["port_id"]
    service = service_of(call)

    def work(tx: Tx) -> None:
        row = load_unlocked(call, tx, _NICS + "delete")
        rules.check_state(row, "detach_interface")
        known = store.interface(tx, port_id)
        if known is None or known.server_id != row.id:
            raise NotFound(f"Port {port_id} is not attached")
        ports = service.parts.network.server_ports(tx, row.id)
        mac = next((port.mac_address for port in ports if port.id == port_id), "")
        params = InterfaceParams(server_id=row.id, mac_address=mac)
        service.start_on(tx, row, service.interfaces.detach, port_id, params, call.ctx)

    service.db.write(work)


_V = "/servers/{server_id}/os-volume_attachments"
_I = "/servers/{server_id}/os-interface"
ROUTES = [
    Route(method="GET", path=_V, handler=volumes_index),
    Route(method="POST", path=_V, handler=volumes_attach, body=schema.AttachmentCreate, body_key="volumeAttachment"),
    Route(method="GET", path=_V + "/{volume_id}", handler=volumes_show),
    Route(
        method="PUT",
        path=_V + "/{volume_id}",
        handler=volumes_update,
        body=schema.AttachmentUpdate,
        body_key="volumeAttachment",
        success=202,
    ),
    Route(method="DELETE", path=_V + "/{volume_id}", handler=volumes_detach, success=202),
    Route(method="GET", path=_I, handler=nics_index),
    Route(method="POST", path=_I, handler=nics_attach, body=schema.InterfaceRequest),
    Route(method="GET", path=_I + "/{port_id}", handler=nics_show),
    Route(method="DELETE", path=_I + "/{port_id}", handler=nics_detach, success=202),
]
