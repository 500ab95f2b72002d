"""SQL over servers and what hangs on them: faults, tags, disks, interfaces, reports, actions."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Integer, Select, and_, bindparam, delete, exists, func, literal, select, update

from cumulet.db import Tx
from cumulet.http.paging import ordered
from cumulet.services.compute import state
from cumulet.services.compute.rows import ActionRow, BlockDeviceRow, FaultRow, InterfaceRow, ServerRow
from cumulet.services.compute.tables import (
    BLOCK_DEVICES,
    INTERFACES,
    SERVER_ACTIONS,
    SERVER_FAULTS,
    SERVER_GROUP_MEMBERS,
    SERVER_TAGS,
    SERVERS,
    VMMS,
)

_SERVER = select(*SERVERS.c)
_BY_ID = _SERVER.where(SERVERS.c.id == bindparam("id"))
_OF_IDS = _SERVER.where(SERVERS.c.id.in_(bindparam("ids", expanding=True)))
_NUMBERS = select(SERVERS.c.id, SERVERS.c.number).where(SERVERS.c.id.in_(bindparam("ids", expanding=True)))
_FORGET_HOST = delete(VMMS).where(VMMS.c.host == bindparam("the_host"))
_ON_HOST = _SERVER.where(SERVERS.c.host == bindparam("host"), SERVERS.c.deleted_at.is_(None))


# -- servers ------------------------------------------------------------------------------------------------


def insert_servers(tx: Tx, values: Sequence[dict[str, Any]]) -> None:
    """``values`` lack the visible states: they are computed here."""
    for value in values:
        intent = state.Intent(value["goal"], value["failed"], value["deleting"], None, None)
        shown = state.visible(intent, None, value.pop("task"))
        value["vm_state"] = shown.vm_state
        value["task_state"] = shown.task_state
        value["power_state"] = shown.power_state
        value["status"] = shown.status
    tx.insert(SERVERS, values)


def server(tx: Tx, server_id: str) -> ServerRow | None:
    row = tx.first(_BY_ID, {"id": server_id})
    return ServerRow(*row) if row is not None else None


def servers_of(tx: Tx, ids: Sequence[str]) -> list[ServerRow]:
    """Deleted ones too, in no order."""
    return [ServerRow(*row) for row in tx.rows(_OF_IDS, {"ids": list(ids)})] if ids else []


def servers_on(tx: Tx, host: str) -> list[ServerRow]:
    return [ServerRow(*row) for row in tx.rows(_ON_HOST, {"host": host})]


def forget_host(tx: Tx, host: str) -> None:
    """What it last said of servers."""
    tx.run(_FORGET_HOST, {"the_host": host})


def numbers(tx: Tx, ids: Sequence[str]) -> dict[str, int]:
    return {row[0]: row[1] for row in tx.rows(_NUMBERS, {"ids": list(ids)})}


def update_server(tx: Tx, server_id: str, **values: Any) -> None:
    """Change columns that are not visible states (those: `state.settle`). The lock first, as who settles has it."""
    tx.lock("server", server_id)
    assert not values.keys() & {"vm_state", "task_state", "power_state", "status"}
    values.setdefault("updated_at", tx.now)
    tx.update(SERVERS, server_id, values)


_PURGE = [
    delete(SERVER_FAULTS).where(SERVER_FAULTS.c.server_id == bindparam("id")),
    delete(SERVER_TAGS).where(SERVER_TAGS.c.server_id == bindparam("id")),
    delete(BLOCK_DEVICES).where(BLOCK_DEVICES.c.server_id == bindparam("id")),
    delete(INTERFACES).where(INTERFACES.c.server_id == bindparam("id")),
    delete(VMMS).where(VMMS.c.server_id == bindparam("id")),
    delete(SERVER_GROUP_MEMBERS).where(SERVER_GROUP_MEMBERS.c.server_id == bindparam("id")),
]


def bury(tx: Tx, server_id: str) -> None:
    """Make the server a tombstone: nothing hangs on it any more (its actions and last fault stay)."""
    tx.lock("server", server_id)
    for statement in _PURGE[1:]:
        tx.run(statement, {"id": server_id})
    update_server(tx, server_id, deleted_at=tx.now, terminated_at=tx.now, deleting=False)
    state.settle(tx, server_id, None)


# Sort keys of the API and the columns they mean.
SORTABLE: dict[str, ColumnElement[Any]] = {
    "number": SERVERS.c.number,
    "id": SERVERS.c.number,
    "uuid": SERVERS.c.id,
    "access_ip_v4": SERVERS.c.access_ip_v4,
    "access_ip_v6": SERVERS.c.access_ip_v6,
    "auto_disk_config": SERVERS.c.disk_config,
    "availability_zone": SERVERS.c.availability_zone,
    "config_drive": SERVERS.c.config_drive,
    "created_at": SERVERS.c.created_at,
    "display_description": SERVERS.c.description,
    "display_name": SERVERS.c.name,
    "host": SERVERS.c.host,
    "hostname": SERVERS.c.hostname,
    "image_ref": SERVERS.c.image_id,
    "instance_type_id": SERVERS.c.flavor_id,
    "key_name": SERVERS.c.key_name,
    "launch_index": SERVERS.c.launch_index,
    "launched_at": SERVERS.c.launched_at,
    "locked": SERVERS.c.locked,
    "locked_by": SERVERS.c.locked_by,
    "node": SERVERS.c.host,
    "power_state": SERVERS.c.power_state,
    "project_id": SERVERS.c.project_id,
    "root_device_name": SERVERS.c.root_device_name,
    "task_state": SERVERS.c.task_state,
    "terminated_at": SERVERS.c.terminated_at,
    "updated_at": SERVERS.c.updated_at,
    "user_id": SERVERS.c.user_id,
    "vm_state": SERVERS.c.vm_state,
    "progress": literal(0),
    "kernel_id": literal(""),
    "ramdisk_id": literal(""),
}

# -- lists ---------------------------------------------------------------------------------------------------


OF_PROJECT = SERVERS.c.project_id == bindparam("the_project")
LIVING = SERVERS.c.deleted_at.is_(None)
DELETED = SERVERS.c.deleted_at.is_not(None)
_STANDING = {id(condition) for condition in (OF_PROJECT, LIVING, DELETED)}
_standing_lists: dict[Any, Select[Any]] = {}


class ServerQuery:
    """Conditions of one list, collected by the API, then read once. ``params``: values of conditions that stand at
    module level; a list of nothing but those has a statement that is kept (building one costs more than reading a
    page)."""

    def __init__(self) -> None:
        self.where: list[ColumnElement[bool]] = []
        self.params: dict[str, Any] = {}
        self.sort: tuple[tuple[str, str], ...] = (("created_at", "desc"),)
        self.limit = 1000
        self.marker: str | None = None

    def tags(self, *, every: Sequence[str] = (), some: Sequence[str] = ()) -> None:
        for tag in every:
            self.where.append(_has_tag([tag]))
        if some:
            self.where.append(_has_tag(some))

    def not_tags(self, *, every: Sequence[str] = (), some: Sequence[str] = ()) -> None:
        if every:
            self.where.append(~and_(*(_has_tag([tag]) for tag in every)))
        if some:
            self.where.append(~_has_tag(some))

    def read(self, tx: Tx) -> list[ServerRow] | None:
        """None: the marker is not a server."""
        sort = (*self.sort, ("number", self.sort[-1][1]))
        columns = {name: SORTABLE[name] for name, _ in sort}
        marker = None
        if self.marker is not None:
            row = tx.first(select(*columns.values()).where(SERVERS.c.id == self.marker))
            if row is None:
                return None
            marker = dict(zip(columns, row, strict=True))
        conditions = tuple(id(condition) for condition in self.where)
        if not _STANDING.issuperset(conditions) or (marker and None in marker.values()):
            statement = ordered(_SERVER.where(*self.where), columns, sort, marker).limit(self.limit)
            return [ServerRow(*row) for row in tx.rows(statement, self.params)]
        params = {**self.params, "the_limit": self.limit}
        places: dict[str, Any] | None = None
        if marker is not None:
            params.update({f"after_{name}": value for name, value in marker.items()})
            places = {name: bindparam(f"after_{name}") for name in marker}
        key = (conditions, sort, marker is None)
        kept = _standing_lists.get(key)
        if kept is None:
            kept = ordered(_SERVER.where(*self.where), columns, sort, places).limit(
                bindparam("the_limit", type_=Integer)
            )
            _standing_lists[key] = kept
        return [ServerRow(*row) for row in tx.rows(kept, params)]


def _has_tag(tags: Sequence[str]) -> ColumnElement[bool]:
    return exists().where(SERVER_TAGS.c.server_id == SERVERS.c.id, SERVER_TAGS.c.tag.in_(list(tags)))


def with_status(statuses: Iterable[str]) -> ColumnElement[bool]:
    return SERVERS.c.status.in_(list(statuses))


# -- quota -----------------------------------------------------------------------------------------------------

_LIVE = SERVERS.c.deleted_at.is_(None)
_USE = select(
    func.count(), func.coalesce(func.sum(SERVERS.c.vcpus), 0), func.coalesce(func.sum(SERVERS.c.memory_mb), 0)
).where(SERVERS.c.project_id == bindparam("project_id"), _LIVE)
_USE_OF_USER = _USE.where(SERVERS.c.user_id == bindparam("user_id"))


def used(tx: Tx, project_id: str, user_id: str | None = None) -> tuple[int, int, int]:
    """Instances, cores and MiB of memory in use: sums over rows."""
    if user_id is None:
        row = tx.first(_USE, {"project_id": project_id})
    else:
        row = tx.first(_USE_OF_USER, {"project_id": project_id, "user_id": user_id})
    assert row is not None
    return int(row[0]), int(row[1]), int(row[2])


# -- faults ------------------------------------------------------------------------------------------------------

_FAULTS = select(*SERVER_FAULTS.c).where(SERVER_FAULTS.c.server_id.in_(bindparam("ids", expanding=True)))
_DELETE_FAULT = _PURGE[0]


def set_fault(tx: Tx, server_id: str, code: int, message: str, details: str | None) -> None:
    tx.run(_DELETE_FAULT, {"id": server_id})
    tx.insert(
        SERVER_FAULTS,
        {
            "server_id": server_id,
            "created_at": tx.now,
            "code": code,
            "message": message[:255],
            "details": details,
        },
    )


def faults(tx: Tx, ids: Sequence[str]) -> dict[str, FaultRow]:
    if not ids:
        return {}
    return {row[0]: FaultRow(*row) for row in tx.rows(_FAULTS, {"ids": list(ids)})}


# -- tags --------------------------------------------------------------------------------------------------------

_TAGS = (
    select(SERVER_TAGS.c.server_id, SERVER_TAGS.c.tag)
    .where(SERVER_TAGS.c.server_id.in_(bindparam("ids", expanding=True)))
    .order_by(SERVER_TAGS.c.server_id, SERVER_TAGS.c.tag)
)
_DELETE_TAG = delete(SERVER_TAGS).where(
    SERVER_TAGS.c.server_id == bindparam("id"), SERVER_TAGS.c.tag == bindparam("tag")
)


def tags(tx: Tx, ids: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    if ids:
        for server_id, tag in tx.rows(_TAGS, {"ids": list(ids)}):
            found.setdefault(server_id, []).append(tag)
    return found


def add_tags(tx: Tx, server_ids: Iterable[str], new: Iterable[str]) -> None:
    wanted = list(new)
    tx.insert(SERVER_TAGS, [{"server_id": server_id, "tag": tag} for server_id in server_ids for tag in wanted])


def delete_tag(tx: Tx, server_id: str, tag: str) -> bool:
    return tx.run(_DELETE_TAG, {"id": server_id, "tag": tag}) > 0


def delete_tags(tx: Tx, server_id: str) -> None:
    tx.run(_PURGE[1], {"id": server_id})


# -- disks -------------------------------------------------------------------------------------------------------

_DISKS = (
    select(*BLOCK_DEVICES.c)
    .where(BLOCK_DEVICES.c.server_id.in_(bindparam("ids", expanding=True)))
    .order_by(BLOCK_DEVICES.c.created_at, BLOCK_DEVICES.c.boot_index, BLOCK_DEVICES.c.id)
)
_DISK = select(*BLOCK_DEVICES.c).where(BLOCK_DEVICES.c.id == bindparam("id"))
_OF_VOLUME = select(*BLOCK_DEVICES.c).where(BLOCK_DEVICES.c.volume_id == bindparam("volume_id"))
_UNREACHED = (
    select(*BLOCK_DEVICES.c)
    .join(SERVERS, SERVERS.c.id == BLOCK_DEVICES.c.server_id)
    .where(
        BLOCK_DEVICES.c.connection.is_(None),
        BLOCK_DEVICES.c.attachment_id.is_not(None),
        SERVERS.c.host.is_not(None),
        SERVERS.c.launched_at.is_not(None),
        SERVERS.c.deleting.is_(False),
        SERVERS.c.deleted_at.is_(None),
    )
    .order_by(BLOCK_DEVICES.c.id)
)
_DELETE_DISK = delete(BLOCK_DEVICES).where(BLOCK_DEVICES.c.id == bindparam("id"))


def insert_disks(tx: Tx, values: Sequence[dict[str, Any]]) -> None:
    tx.insert(BLOCK_DEVICES, values)


def disks(tx: Tx, ids: Sequence[str]) -> dict[str, list[BlockDeviceRow]]:
    found: dict[str, list[BlockDeviceRow]] = {}
    if ids:
        for row in tx.rows(_DISKS, {"ids": list(ids)}):
            found.setdefault(row[1], []).append(BlockDeviceRow(*row))
    return found


def disk(tx: Tx, disk_id: str) -> BlockDeviceRow | None:
    row = tx.first(_DISK, {"id": disk_id})
    return BlockDeviceRow(*row) if row is not None else None


def disks_of_volume(tx: Tx, volume_id: str) -> list[BlockDeviceRow]:
    return [BlockDeviceRow(*row) for row in tx.rows(_OF_VOLUME, {"volume_id": volume_id})]


def unreached_disks(tx: Tx) -> list[BlockDeviceRow]:
    """Of servers on a host: volumes that no host is known to reach. Most are just being attached or taken away."""
    return [BlockDeviceRow(*row) for row in tx.rows(_UNREACHED)]


def update_disk(tx: Tx, disk_id: str, **values: Any) -> None:
    tx.run(update(BLOCK_DEVICES).where(BLOCK_DEVICES.c.id == disk_id).values(**values))


def delete_disk(tx: Tx, disk_id: str) -> None:
    tx.run(_DELETE_DISK, {"id": disk_id})


# -- interfaces --------------------------------------------------------------------------------------------------

_INTERFACES = select(*INTERFACES.c).where(INTERFACES.c.server_id == bindparam("id")).order_by(INTERFACES.c.position)
_INTERFACE = select(*INTERFACES.c).where(INTERFACES.c.port_id == bindparam("port_id"))
_DELETE_INTERFACE = delete(INTERFACES).where(INTERFACES.c.port_id == bindparam("port_id"))
_DELETE_INTERFACES = _PURGE[3]


def insert_interfaces(tx: Tx, ports: Mapping[str, Sequence[tuple[str, str | None]]]) -> None:
    """Server -> its new ports with their tags, in order."""
    tx.insert(
        INTERFACES,
        [
            {"port_id": port, "server_id": server_id, "position": tx.now + n, "tag": tag}
            for server_id, mine in ports.items()
            for n, (port, tag) in enumerate(mine)
        ],
    )


def interfaces(tx: Tx, server_id: str) -> list[InterfaceRow]:
    return [InterfaceRow(*row) for row in tx.rows(_INTERFACES, {"id": server_id})]


def interface(tx: Tx, port_id: str) -> InterfaceRow | None:
    row = tx.first(_INTERFACE, {"port_id": port_id})
    return InterfaceRow(*row) if row is not None else None


def delete_interface(tx: Tx, port_id: str) -> None:
    tx.run(_DELETE_INTERFACE, {"port_id": port_id})


def delete_interfaces(tx: Tx, server_id: str) -> None:
    tx.run(_DELETE_INTERFACES, {"id": server_id})


# -- reports -----------------------------------------------------------------------------------------------------

_VMM = select(VMMS.c.sequence, VMMS.c.power_state).where(
    VMMS.c.server_id == bindparam("server_id"), VMMS.c.host == bindparam("host")
)
_VMM_NOW = select(VMMS.c.power_state, VMMS.c.sequence).where(
    VMMS.c.server_id == bindparam("server_id"), VMMS.c.host == bindparam("host")
)
_UPDATE_VMM = (
    update(VMMS)
    .where(VMMS.c.server_id == bindparam("b_server"), VMMS.c.host == bindparam("b_host"))
    .values(
        power_state=bindparam("power_state"),
        reason=bindparam("reason"),
        sequence=bindparam("sequence"),
        reported_at=bindparam("reported_at"),
    )
)
_DELETE_VMM = delete(VMMS).where(VMMS.c.server_id == bindparam("server_id"), VMMS.c.host == bindparam("host"))


def record_report(tx: Tx, server_id: str, host: str, power_state: int, reason: str, sequence: int) -> bool:
    """Store an agent's report; False if a newer one is known."""
    known = tx.first(_VMM, {"server_id": server_id, "host": host})
    values = {
        "power_state": power_state,
        "reason": reason[:255],
        "sequence": sequence,
        "reported_at": tx.now,
    }
    if known is None:
        tx.insert(VMMS, {"server_id": server_id, "host": host, **values})
        return True
    if known[0] >= sequence:
        return False
    tx.run(_UPDATE_VMM, {"b_server": server_id, "b_host": host, **values})
    return True


def reported(tx: Tx, server_id: str, host: str | None) -> int | None:
    """The power state the host reports, None without a report."""
    return tx.scalar(_VMM_NOW, {"server_id": server_id, "host": host}) if host else None


def reported_before(tx: Tx, server_id: str, host: str, sequence: int) -> bool:
    """Has the host said something of it, and nothing since?"""
    known = tx.first(_VMM, {"server_id": server_id, "host": host})
    return known is not None and known[0] < sequence


def reported_after(tx: Tx, server_id: str, host: str, sequence: int) -> bool:
    known = tx.first(_VMM, {"server_id": server_id, "host": host})
    return known is not None and known[0] > sequence


_DELETE_ELSEWHERE = delete(VMMS).where(
    VMMS.c.server_id == bindparam("server_id"),
    VMMS.c.host != select(SERVERS.c.host).where(SERVERS.c.id == bindparam("server_id")).scalar_subquery(),
)


def forget_reports_elsewhere(tx: Tx, server_id: str) -> None:
    """What hosts said where the server is not, or not any more."""
    tx.run(_DELETE_ELSEWHERE, {"server_id": server_id})


def forget_reports(tx: Tx, server_id: str, host: str) -> None:
    tx.run(_DELETE_VMM, {"server_id": server_id, "host": host})


# -- actions -----------------------------------------------------------------------------------------------------

_ACTIONS = (
    select(*SERVER_ACTIONS.c)
    .where(SERVER_ACTIONS.c.server_id == bindparam("id"))
    .order_by(SERVER_ACTIONS.c.started_at.desc(), SERVER_ACTIONS.c.saga_id)
)


def insert_actions(tx: Tx, rows: Sequence[ActionRow]) -> None:
    tx.insert(SERVER_ACTIONS, [{field: getattr(row, field) for field in row.__struct_fields__} for row in rows])


def actions(tx: Tx, server_id: str) -> list[ActionRow]:
    return [ActionRow(*row) for row in tx.rows(_ACTIONS, {"id": server_id})]


_LIVING = select(SERVERS.c.id).where(SERVERS.c.id.in_(bindparam("ids", expanding=True)), SERVERS.c.deleted_at.is_(None))


def living(tx: Tx, ids: Iterable[str]) -> set[str]:
    """Those of the ids that are servers which still exist."""
    wanted = list(ids)
    return {
        row[0] for at in range(0, len(wanted), 10_000) for row in tx.rows(_LIVING, {"ids": wanted[at : at + 10_000]})
    }
