"""What is said about the service and its hosts: versions, zones, services, pools, capabilities, messages, filters."""

from typing import Any

import msgspec

from cumulet.db import Tx
from cumulet.http import Call, Reply, Route
from cumulet.kernel.errors import BadInput, NotFound
from cumulet.services.volume import placing, store
from cumulet.services.volume.api.common import Text255, equals, links, listed, listing, load, moment
from cumulet.services.volume.store import MessageRow
from cumulet.services.volume.tables import MESSAGES

MINIMUM, MAXIMUM = (3, 0), (3, 71)
_UPDATED = "2023-08-31T00:00:00Z"


def _version(call: Call) -> dict[str, Any]:
    return {
        "id": "v3.0",
        "status": "CURRENT",
        "version": "3.71",
        "min_version": "3.0",
        "updated": _UPDATED,
        "links": [
            {"rel": "describedby", "type": "text/html", "href": "https://docs.openstack.org/"},
            {"rel": "self", "href": f"{call.url_root}/v3/"},
        ],
        "media-types": [
            {"base": "application/json", "type": "application/vnd.openstack.volume+json;version=3"},
        ],
    }


def root(call: Call) -> Reply:
    return Reply({"versions": [_version(call)]}, status=300)


def version(call: Call) -> dict[str, Any]:
    return {"versions": [_version(call)]}


# -- extensions and filters ------------------------------------------------------------------------------------------

_EXTENSIONS = {
    "backups": "Backups", "os-admin-actions": "AdminActions", "os-availability-zone": "AvailabilityZones",
    "os-extended-services": "ExtendedServices", "os-extended-snapshot-attributes": "ExtendedSnapshotAttributes",
    "os-hosts": "Hosts", "os-quota-class-sets": "QuotaClasses", "os-quota-sets": "Quotas", "os-services": "Services",
    "os-snapshot-actions": "SnapshotActions", "os-types-extra-specs": "TypesExtraSpecs",
    "os-types-manage": "TypesManage", "os-used-limits": "UsedLimits", "os-vol-host-attr": "VolumeHostAttribute",
    "os-vol-image-meta": "VolumeImageMetadata", "os-vol-mig-status-attr": "VolumeMigStatusAttribute",
    "os-vol-tenant-attr": "VolumeTenantAttribute", "os-volume-actions": "VolumeActions",
    "os-volume-encryption-metadata": "VolumeEncryptionMetadata", "os-volume-transfer": "VolumeTransfer",
    "os-volume-type-access": "VolumeTypeAccess", "encryption": "VolumeTypeEncryption", "qos-specs": "Qos_specs_manage",
    "scheduler-stats": "Scheduler_stats", "capabilities": "Capabilities", "OS-SCH-HNT": "SchedulerHints",
}  # fmt: skip


def _extension(alias: str, name: str) -> dict[str, Any]:
    return {"alias": alias, "name": name, "description": name, "updated": "2013-01-01T00:00:00+00:00", "links": []}


def extensions(call: Call) -> dict[str, Any]:
    return {"extensions": [_extension(alias, name) for alias, name in _EXTENSIONS.items()]}


def extension(call: Call) -> dict[str, Any]:
    alias = call.params["alias"]
    if alias not in _EXTENSIONS:
        raise NotFound(f"There is no extension {alias}.")
    return {"extension": _extension(alias, _EXTENSIONS[alias])}


_RESOURCE_FILTERS = {
    "volume": [
        "name", "status", "metadata", "bootable", "migration_status", "availability_zone", "group_id", "size",
        "created_at", "updated_at",
    ],
    "backup": ["name", "status", "volume_id"],
    "snapshot": ["name", "status", "volume_id", "metadata", "availability_zone", "consumes_quota"],
    "attachment": ["volume_id", "status", "instance_id", "attach_status"],
    "message": ["resource_uuid", "resource_type", "event_id", "request_id", "message_level"],
    "pool": ["name", "volume_type"],
    "volume_type": ["is_public"],
}  # fmt: skip


def resource_filters(call: Call) -> dict[str, Any]:
    wanted = call.query.get("resource")
    return {
        "resource_filters": [
            {"resource": resource, "filters": filters}
            for resource, filters in _RESOURCE_FILTERS.items()
            if wanted in (None, resource)
        ]
    }


def zones(call: Call) -> dict[str, Any]:
    name = call.service.settings.availability_zone
    return {"availabilityZoneInfo": [{"zoneName": name, "zoneState": {"available": True}}]}


# -- services and hosts ----------------------------------------------------------------------------------------------


def _services(call: Call, tx: Tx) -> list[dict[str, Any]]:
    found = []
    for host in placing.storage_hosts(tx, call.service.hosts):
        disabled = "storage" in host.disabled_roles
        for binary, name in (
            ("cinder-scheduler", host.name),
            ("cinder-volume", f"{host.name}@{placing.BACKEND}"),
            ("cinder-backup", host.name),
        ):
            off = disabled and binary == "cinder-volume"
            one: dict[str, Any] = {
                "binary": binary,
                "host": name,
                "zone": call.service.settings.availability_zone,
                "status": "disabled" if off else "enabled",
                "state": "up" if host.up else "down",
                "updated_at": moment(host.seen_at),
                "disabled_reason": host.disabled_roles.get("storage") if off else None,
            }
            if binary == "cinder-volume":
                frozen = host.disabled_roles.get("storage") == placing.FROZEN
                one.update(replication_status="disabled", active_backend_id=None, frozen=frozen)
                if (call.version or (3, 0)) >= (3, 49):
                    one["backend_state"] = "up" if host.up else "down"
            if (call.version or (3, 0)) >= (3, 7):
                one["cluster"] = None
            found.append(one)
    return found


def services(call: Call) -> dict[str, Any]:
    host, binary = call.query.get("host"), call.query.get("binary") or call.query.get("service")
    rows = call.service.db.read(lambda tx: _services(call, tx))
    if host:
        rows = [row for row in rows if host in (row["host"], row["host"].partition("@")[0])]
    if binary:
        rows = [row for row in rows if row["binary"] == binary]
    return {"services": rows}


class ServiceChange(msgspec.Struct, forbid_unknown_fields=True):
    binary: Text255 | None = None
    service: Text255 | None = None
    host: Text255 | None = None
    cluster: Text255 | None = None
    disabled_reason: Text255 | None = None


def _set_service(call: Call, disabled: bool, reason: str | None) -> dict[str, Any]:
    body: ServiceChange = call.body
    binary = body.binary or body.service
    if not binary or not body.host:
        raise BadInput("Invalid input received: Missing required element 'host' or 'binary' in request body.")

    def work(tx: Tx) -> None:
        rows = _services(call, tx)
        if not any(row["binary"] == binary and row["host"] == body.host for row in rows):
            raise NotFound(f"Service {binary} could not be found on host {body.host}.")
        if binary == "cinder-volume":
            host = placing.host_of(body.host or "")
            call.service.hosts.set_disabled(tx, host, reason, disabled=disabled, role="storage")

    call.service.db.write(work)
    answer: dict[str, Any] = {
        "host": body.host,
        "service": binary,
        "disabled": disabled,
        "binary": binary,
        "status": "disabled" if disabled else "enabled",
    }
    if reason is not None:
        answer["disabled_reason"] = reason
    return answer


def enable_service(call: Call) -> dict[str, Any]:
    return _set_service(call, False, None)


def disable_service(call: Call) -> dict[str, Any]:
    return _set_service(call, True, None)


def disable_service_for(call: Call) -> dict[str, Any]:
    reason = (call.body.disabled_reason or "").strip()
    if not reason:
        raise BadInput("Invalid input for field 'disabled_reason': it is required.")
    return _set_service(call, True, reason)


class FreezeHost(msgspec.Struct, forbid_unknown_fields=True):
    host: Text255 | None = None
    cluster: Text255 | None = None


def _set_frozen(call: Call, frozen: bool) -> Reply:
    """A frozen host takes no new volumes and deletes none (`placing.frozen`)."""
    body: FreezeHost = call.body

    def work(tx: Tx) -> None:
        name = placing.host_of(body.host or "")
        if not any(host.name == name for host in placing.storage_hosts(tx, call.service.hosts)):
            raise BadInput(f"Invalid input received: No service found with host={body.host}")
        reason = placing.FROZEN if frozen else None
        call.service.hosts.set_disabled(tx, name, reason, disabled=frozen, role="storage")

    call.service.db.write(work)
    return Reply(status=200)


def freeze(call: Call) -> Reply:
    return _set_frozen(call, True)


def thaw(call: Call) -> Reply:
    return _set_frozen(call, False)


def pools(call: Call) -> dict[str, Any]:
    full = (call.query.get("detail") or "").lower() in ("true", "1")

    def work(tx: Tx) -> list[dict[str, Any]]:
        placed = store.placed(tx)
        found = []
        for host in placing.storage_hosts(tx, call.service.hosts):
            one: dict[str, Any] = {"name": placing.backend_name(host.name)}
            if full:
                one["capabilities"] = {
                    **placing.capabilities(host),
                    "total_capacity_gb": round(host.resources.volume_total_gb, 2),
                    "free_capacity_gb": round(host.resources.volume_free_gb, 2),
                    "allocated_capacity_gb": placed.get(host.name, (0, 0))[0],
                    "provisioned_capacity_gb": placed.get(host.name, (0, 0))[0],
                    "total_volumes": placed.get(host.name, (0, 0))[1],
                    "reserved_percentage": 0,
                    "max_over_subscription_ratio": "20.0",
                    "location_info": None,
                    "timestamp": moment(host.seen_at),
                }
            found.append(one)
        return found

    rows = call.service.db.read(work)
    name = call.query.get("name")
    return {"pools": [row for row in rows if name in (None, row["name"])]}


def capabilities(call: Call) -> dict[str, Any]:
    host = placing.host_of(call.params["host"])
    call.service.db.read(lambda tx: call.service.host_named(tx, host))
    return {
        "namespace": f"OS::Storage::Capabilities::{call.params['host']}",
        "vendor_name": placing.VENDOR,
        "volume_backend_name": placing.BACKEND,
        "pool_name": placing.BACKEND,
        "driver_version": "1.0",
        "storage_protocol": placing.PROTOCOL,
        "display_name": None,
        "description": None,
        "visibility": None,
        "replication_targets": [],
        "properties": {
            "thin_provisioning": {
                "title": "Thin Provisioning", "description": "Sets thin provisioning.", "type": "boolean",
            },
        },
    }  # fmt: skip


def hosts(call: Call) -> dict[str, Any]:
    """Services that are not disabled, of every kind, under the name of hosts."""
    zone = call.query.get("zone")
    rows = call.service.db.read(lambda tx: _services(call, tx))
    return {
        "hosts": [
            {
                "host_name": row["host"],
                "service": row["binary"],
                "zone": row["zone"],
                "service-status": "available" if row["state"] == "up" else "unavailable",
                "service-state": row["status"],
                "last-update": row["updated_at"],
            }
            for row in rows
            if row["status"] == "enabled" and zone in (None, "", row["zone"])
        ]
    }


def show_host(call: Call) -> dict[str, Any]:
    from cumulet.services.volume.tables import SNAPSHOTS, VOLUMES

    name = call.params["host"]
    host = placing.host_of(name)

    def work(tx: Tx) -> tuple[list[Any], list[Any]]:
        call.service.host_named(tx, host)
        volumes = store.VOLUMES.where(tx, VOLUMES.c.host == host)
        ids = [row.id for row in volumes]
        return volumes, store.SNAPSHOTS.where(tx, SNAPSHOTS.c.volume_id.in_(ids)) if ids else []

    volumes, snapshots = call.service.db.read(work)

    def line(project: str, vols: list[Any], snaps: list[Any]) -> dict[str, Any]:
        return {
            "resource": {
                "host": name,
                "project": project,
                "volume_count": str(len(vols)),
                "total_volume_gb": str(sum(row.size_gb for row in vols)),
                "snapshot_count": str(len(snaps)),
                "total_snapshot_gb": str(sum(row.size_gb for row in snaps)),
            }
        }

    lines = [line("(total)", volumes, snapshots)]
    for project in sorted({row.project_id for row in volumes}):
        lines.append(
            line(
                project,
                [row for row in volumes if row.project_id == project],
                [row for row in snapshots if row.project_id == project],
            )
        )
    return {"host": lines}


# -- messages ----------------------------------------------------------------------------------------------------------


def _message(call: Call, row: MessageRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "event_id": row.event_id,
        "user_message": row.user_message,
        "message_level": row.message_level,
        "created_at": moment(row.created_at),
        "guaranteed_until": moment(row.expires_at),
        "request_id": row.request_id,
        "resource_type": row.resource_type,
        "resource_uuid": row.resource_uuid,
        "links": links(call, "messages", row.id),
    }


_MESSAGE_FILTERS = {
    name: equals(MESSAGES.c[name])
    for name in ("resource_uuid", "resource_type", "event_id", "request_id", "message_level")
}
_MESSAGE_SORTS = {
    name: name
    for name in ("id", "event_id", "message_level", "created_at", "request_id", "resource_type", "resource_uuid")
}


def messages(call: Call) -> dict[str, Any]:
    def work(tx: Tx) -> dict[str, Any]:
        rows, _, more = listing(call, tx, store.MESSAGES, _MESSAGE_FILTERS, sort_keys=_MESSAGE_SORTS, like=())
        return listed(call, "messages", "messages", [_message(call, row) for row in rows], rows, None, more)

    return call.service.db.read(work)


def show_message(call: Call) -> dict[str, Any]:
    def work(tx: Tx) -> dict[str, Any]:
        return {"message": _message(call, load(tx, call, store.MESSAGES, call.params["id"], "message:get"))}

    return call.service.db.read(work)


def delete_message(call: Call) -> Reply:
    def work(tx: Tx) -> None:
        store.MESSAGES.remove(tx, load(tx, call, store.MESSAGES, call.params["id"], "message:delete").id)

    call.service.db.write(work)
    return Reply(status=204)


_P = "volume_extension:"
ROOT_ROUTES = [
    Route(method="GET", path="/", handler=root, auth=False, success=300),
    Route(method="GET", path="/v3/", handler=version),
    Route(method="GET", path="/v3", handler=version),
]
ROUTES = [
    Route(method="GET", path="/extensions", handler=extensions),
    Route(method="GET", path="/extensions/{alias}", handler=extension),
    Route(method="GET", path="/resource_filters", handler=resource_filters, min_version="3.33"),
    Route(method="GET", path="/os-availability-zone", handler=zones),
    Route(method="GET", path="/os-services", handler=services, policy=_P + "services:index"),
    Route(
        method="PUT", path="/os-services/enable", handler=enable_service, policy=_P + "services:update",
        body=ServiceChange,
    ),
    Route(
        method="PUT", path="/os-services/disable", handler=disable_service, policy=_P + "services:update",
        body=ServiceChange,
    ),
    Route(
        method="PUT", path="/os-services/disable-log-reason", handler=disable_service_for,
        policy=_P + "services:update", body=ServiceChange,
    ),
    Route(
        method="PUT", path="/os-services/freeze", handler=freeze, policy="volume:freeze_host", body=FreezeHost
    ),
    Route(method="PUT", path="/os-services/thaw", handler=thaw, policy="volume:thaw_host", body=FreezeHost),
    Route(
        method="GET", path="/scheduler-stats/get_pools", handler=pools,
        policy="scheduler_extension:scheduler_stats:get_pools",
    ),
    Route(method="GET", path="/capabilities/{host}", handler=capabilities, policy=_P + "capabilities"),
    Route(method="GET", path="/os-hosts", handler=hosts, policy=_P + "hosts"),
    Route(method="GET", path="/os-hosts/{host}", handler=show_host, policy=_P + "hosts"),
    Route(method="GET", path="/messages", handler=messages, policy="message:get_all", min_version="3.3"),
    Route(method="GET", path="/messages/{id}", handler=show_message, min_version="3.3"),
    Route(method="DELETE", path="/messages/{id}", handler=delete_message, success=204, min_version="3.3"),
]  # fmt: skip
