"""What the API shows of a server. Views are structs with every field of every version; UNSET ones are left out."""

import hashlib
from functools import lru_cache
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType, field

from cumulet.db import Tx
from cumulet.http import Call
from cumulet.kernel.clock import iso
from cumulet.services.compute import catalogue, store
from cumulet.services.compute.rows import BlockDeviceRow, FaultRow, ServerRow

_PROGRESS = {"ACTIVE", "BUILD", "DELETED", "REBUILD", "RESIZE", "VERIFY_RESIZE", "MIGRATING"}
_WITH_FAULT = {"ERROR", "DELETED"}

RULE_ATTRIBUTES = "os_compute_api:os-extended-server-attributes"
RULE_SPECS = "os_compute_api:servers:show:flavor-extra-specs"
RULE_HOST_STATUS = "os_compute_api:servers:show:host_status"

Maybe = UnsetType


class Link(msgspec.Struct):
    rel: str
    href: str


class Brief(msgspec.Struct):
    id: str
    name: str
    links: list[Link]


class ServerView(msgspec.Struct, kw_only=True):
    id: str
    name: str
    status: str
    tenant_id: str
    user_id: str
    metadata: dict[str, str]
    hostId: str
    image: Any
    flavor: dict[str, Any]
    created: str | None
    updated: str | None
    addresses: dict[str, list[dict[str, Any]]]
    accessIPv4: str
    accessIPv6: str
    links: list[Link]
    disk_config: str = field(name="OS-DCF:diskConfig")
    progress: int | Maybe = UNSET
    fault: dict[str, Any] | Maybe = UNSET
    zone: str | Maybe = field(name="OS-EXT-AZ:availability_zone", default=UNSET)
    config_drive: str | Maybe = UNSET
    key_name: str | Maybe | None = UNSET
    launched_at: str | Maybe | None = field(name="OS-SRV-USG:launched_at", default=UNSET)
    terminated_at: str | Maybe | None = field(name="OS-SRV-USG:terminated_at", default=UNSET)
    host: str | Maybe | None = field(name="OS-EXT-SRV-ATTR:host", default=UNSET)
    instance_name: str | Maybe = field(name="OS-EXT-SRV-ATTR:instance_name", default=UNSET)
    hypervisor_hostname: str | Maybe | None = field(name="OS-EXT-SRV-ATTR:hypervisor_hostname", default=UNSET)
    reservation_id: str | Maybe = field(name="OS-EXT-SRV-ATTR:reservation_id", default=UNSET)
    launch_index: int | Maybe = field(name="OS-EXT-SRV-ATTR:launch_index", default=UNSET)
    hostname: str | Maybe = field(name="OS-EXT-SRV-ATTR:hostname", default=UNSET)
    kernel_id: str | Maybe = field(name="OS-EXT-SRV-ATTR:kernel_id", default=UNSET)
    ramdisk_id: str | Maybe = field(name="OS-EXT-SRV-ATTR:ramdisk_id", default=UNSET)
    root_device_name: str | Maybe | None = field(name="OS-EXT-SRV-ATTR:root_device_name", default=UNSET)
    shown_user_data: str | Maybe | None = field(name="OS-EXT-SRV-ATTR:user_data", default=UNSET)
    task_state: str | Maybe | None = field(name="OS-EXT-STS:task_state", default=UNSET)
    vm_state: str | Maybe = field(name="OS-EXT-STS:vm_state", default=UNSET)
    power_state: int | Maybe = field(name="OS-EXT-STS:power_state", default=UNSET)
    volumes_attached: list[dict[str, Any]] | Maybe = field(name="os-extended-volumes:volumes_attached", default=UNSET)
    security_groups: list[dict[str, str]] | Maybe = UNSET
    host_status: str | Maybe = UNSET
    locked: bool | Maybe = UNSET
    locked_reason: str | Maybe | None = UNSET
    description: str | Maybe | None = UNSET
    tags: list[str] | Maybe = UNSET
    trusted_image_certificates: list[str] | Maybe | None = UNSET
    server_groups: list[str] | Maybe = UNSET
    pinned_availability_zone: str | Maybe | None = UNSET
    adminPass: str | Maybe = UNSET
    user_data: str | Maybe | None = UNSET


@lru_cache(maxsize=4096)
def host_id(project_id: str, host: str | None) -> str:
    return hashlib.sha224((project_id + host).encode()).hexdigest() if host else ""


class Links:
    """Links of one request: with the version (``self``) and without (``bookmark``)."""

    def __init__(self, call: Call) -> None:
        self.base = call.url_base
        rest = call.url_base[len(call.url_root) :]
        version = rest.split("/", 2)
        self.bookmark = call.url_root + (f"/{version[2]}" if len(version) > 2 else "")

    def of(self, collection: str, object_id: str) -> list[Link]:
        path = f"/{collection}/{object_id}"
        return [Link("self", self.base + path), Link("bookmark", self.bookmark + path)]

    def bookmarks(self, collection: str, object_id: str) -> list[Link]:
        return [Link("bookmark", f"{self.bookmark}/{collection}/{object_id}")]


def briefs(call: Call, rows: list[ServerRow]) -> list[Brief]:
    links = Links(call)
    return [Brief(row.id, row.name, links.of("servers", row.id)) for row in rows]


class Related:
    """What hangs on a page of servers, each read once."""

    def __init__(self, tx: Tx, call: Call, rows: list[ServerRow], *, groups: bool) -> None:
        service, version = call.service, call.version or (2, 1)
        ids = [row.id for row in rows]
        living = [row.id for row in rows if row.deleted_at is None]
        self.faults = store.faults(tx, [row.id for row in rows if row.status in _WITH_FAULT])
        self.tags = store.tags(tx, ids) if version >= (2, 26) else {}
        self.disks = store.disks(tx, living)
        self.addresses = service.parts.network.addresses(tx, living) if living else {}
        self.security_groups = service.parts.network.security_groups_of(tx, living) if living else {}
        self.zones = catalogue.zones(tx)
        self.groups = catalogue.groups_of_servers(tx, ids) if groups and version >= (2, 71) else {}
        self.hosts = {host.name: host for host in service.parts.hosts.list(tx)} if version >= (2, 16) else {}


class ServerViews:
    """``form``: ``show``, ``detail``, ``update`` or ``rebuild``: which fields a version has differs."""

    def __init__(self, call: Call, form: str) -> None:
        self.call = call
        self.form = form
        self.version = call.version or (2, 1)
        self.links = Links(call)
        self.whole = form in ("show", "detail") or self.version >= (2, 75)
        self._allowed: dict[tuple[str, str], bool] = {}

    def _may(self, rule: str, row: ServerRow) -> bool:
        key = (rule, row.project_id)
        if key not in self._allowed:
            self._allowed[key] = self.call.allowed(rule, {"project_id": row.project_id, "user_id": row.user_id})
        return self._allowed[key]

    def read(self, tx: Tx, rows: list[ServerRow]) -> list[ServerView]:
        related = Related(tx, self.call, rows, groups=self.form != "detail")
        return [self._view(row, related) for row in rows]

    def _view(self, row: ServerRow, related: Related) -> ServerView:
        version = self.version
        view = ServerView(
            id=row.id,
            name=row.name,
            status=row.status,
            tenant_id=row.project_id,
            user_id=row.user_id,
            metadata=row.metadata,
            hostId=host_id(row.project_id, row.host),
            image=self._image(row),
            flavor=self._flavor(row),
            created=iso(row.created_at),
            updated=iso(row.updated_at or row.created_at),
            addresses=addresses(related.addresses.get(row.id, []), whole=self.whole),
            accessIPv4=row.access_ip_v4 or "",
            accessIPv6=row.access_ip_v6 or "",
            links=self.links.of("servers", row.id),
            disk_config=row.disk_config,
        )
        if row.status in _PROGRESS:
            view.progress = 0
        if row.status in _WITH_FAULT and (fault := related.faults.get(row.id)) is not None:
            view.fault = fault_view(fault, admin=self.call.ctx.is_admin)
        if version >= (2, 9):
            view.locked = row.locked
        if version >= (2, 19):
            view.description = row.description
        if version >= (2, 26):
            view.tags = related.tags.get(row.id, [])
        if version >= (2, 63):
            view.trusted_image_certificates = None
        if version >= (2, 71) and self.form != "detail":
            group = related.groups.get(row.id)
            view.server_groups = [group] if group else []
        if version >= (2, 73):
            view.locked_reason = row.locked_reason
        if self.whole:
            self._more(view, row, related)
        if self.form == "rebuild":
            if version >= (2, 54):
                view.key_name = row.key_name
            if version >= (2, 57):
                view.user_data = row.user_data
        return view

    def _more(self, view: ServerView, row: ServerRow, related: Related) -> None:
        version = self.version
        view.zone = "" if row.host is None else related.zones.get(row.host, self.call.service.parts.default_zone)
        if row.host is None and row.availability_zone:
            view.zone = row.availability_zone
        view.config_drive = "True" if row.config_drive else ""
        view.key_name = row.key_name
        view.launched_at = iso(row.launched_at, zone="", micros=True)
        view.terminated_at = iso(row.terminated_at, zone="", micros=True)
        view.task_state, view.vm_state, view.power_state = row.task_state, row.vm_state, row.power_state
        view.volumes_attached = [
            {"id": disk.volume_id, "delete_on_termination": disk.delete_on_termination}
            if version >= (2, 3)
            else {"id": disk.volume_id}
            for disk in related.disks.get(row.id, [])
        ]
        groups = related.security_groups.get(row.id)
        if groups:
            view.security_groups = [{"name": name} for name in group_names(groups)]
        if version >= (2, 90):
            view.hostname = row.hostname
        if self._may(RULE_ATTRIBUTES, row):
            view.host = view.hypervisor_hostname = row.host
            view.instance_name = row.instance_name
            if version >= (2, 3):
                view.reservation_id = row.reservation_id
                view.launch_index = row.launch_index
                view.hostname = row.hostname
                view.kernel_id = row.image_properties.get("kernel_id") or ""
                view.ramdisk_id = row.image_properties.get("ramdisk_id") or ""
                view.root_device_name = row.root_device_name
                if self.form != "rebuild":
                    view.shown_user_data = row.user_data
        if version >= (2, 16) and self._may(RULE_HOST_STATUS, row):
            view.host_status = host_status(related.hosts.get(row.host)) if row.host else ""
        if version >= (2, 96):
            view.pinned_availability_zone = row.availability_zone

    def _image(self, row: ServerRow) -> Any:
        if not row.image_id:
            return ""
        return {"id": row.image_id, "links": self.links.bookmarks("images", row.image_id)}

    def _flavor(self, row: ServerRow) -> dict[str, Any]:
        flavor = row.flavor
        if self.version < (2, 47):
            return {"id": row.flavor_id, "links": self.links.bookmarks("flavors", row.flavor_id)}
        shown = {
            "vcpus": flavor["vcpus"],
            "ram": flavor["ram"],
            "disk": flavor["disk"],
            "ephemeral": flavor["ephemeral"],
            "swap": flavor["swap"],
            "original_name": flavor["name"],
        }
        if self._may(RULE_SPECS, row):
            shown["extra_specs"] = flavor.get("extra_specs") or {}
        return shown


def host_status(host: Any) -> str:
    if host is None:
        return "UNKNOWN"
    if host.disabled:
        return "MAINTENANCE"
    return "UP" if host.up else "DOWN"


def group_names(groups: Any) -> list[str]:
    return sorted({group if isinstance(group, str) else group.name for group in groups})


def addresses(found: Any, *, whole: bool) -> dict[str, list[dict[str, Any]]]:
    shown: dict[str, list[dict[str, Any]]] = {}
    for address in found:
        item: dict[str, Any] = {"version": address.version, "addr": address.addr}
        if whole:
            item["OS-EXT-IPS:type"] = address.type
            item["OS-EXT-IPS-MAC:mac_addr"] = address.mac_addr
        shown.setdefault(address.network, []).append(item)
    return shown


def fault_view(fault: FaultRow, *, admin: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {"code": fault.code, "created": iso(fault.created_at), "message": fault.message}
    if fault.details and (admin or fault.code != 500):
        shown["details"] = fault.details
    return shown


def attachment_view(disk: BlockDeviceRow, version: tuple[int, int]) -> dict[str, Any]:
    shown: dict[str, Any] = {"serverId": disk.server_id, "volumeId": disk.volume_id, "device": disk.device}
    if version < (2, 89):
        shown["id"] = disk.volume_id
    else:
        shown["attachment_id"] = disk.attachment_id
        shown["bdm_uuid"] = disk.id
    if version >= (2, 70):
        shown["tag"] = disk.tag
    if version >= (2, 79):
        shown["delete_on_termination"] = disk.delete_on_termination
    return shown
