"""The control plane's rows compared with each other: what one table says of an object that another does not know.

The one place that reads tables of all services (elsewhere each reads its own): an auditor who asks the audited would
hear what they believe. It never writes to them: repairs go through the services' public functions, but for rows whose
owner is gone, which nobody else would ever touch again.

Objects that a saga owns are left alone: it is at work on them. Every comparison is one statement.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import (
    ColumnElement,
    Executable,
    Table,
    and_,
    bindparam,
    case,
    delete,
    exists,
    func,
    null,
    or_,
    select,
    update,
)

from cumulet.conductor.tables import HOSTS
from cumulet.db import Database, Tx
from cumulet.kernel.context import RequestContext, system_context
from cumulet.saga import journal
from cumulet.saga.tables import SAGA_OWNERS, SAGAS
from cumulet.services.compute import migrations
from cumulet.services.compute import tables as ct
from cumulet.services.identity import tables as idt
from cumulet.services.image import tables as it
from cumulet.services.network import tables as nt
from cumulet.services.operator.audit.model import Check, Finding, Severity
from cumulet.services.placement import tables as pt
from cumulet.services.volume import tables as vt
from cumulet.services.volume.store import MOVES

_S, _P, _V, _A, _D = ct.SERVERS, nt.PORTS, vt.VOLUMES, vt.ATTACHMENTS, ct.BLOCK_DEVICES
_N, _B = vt.SNAPSHOTS, vt.BACKUPS
_ACTIVE = ("queued", "running", "unwinding")


def _owned(kind: str, column: Any) -> ColumnElement[bool]:
    return exists().where(
        SAGA_OWNERS.c.object_kind == kind, SAGA_OWNERS.c.object_id == column, SAGA_OWNERS.c.saga_id.is_not(None)
    )


def _known_host(column: Any) -> ColumnElement[bool]:
    return exists().where(HOSTS.c.name == column)


_ALIVE = and_(_S.c.deleted_at.is_(None), ~_owned("server", _S.c.id))  # and nobody is at work on it
_SETTLED = and_(_ALIVE, _S.c.deleting.is_(False), _S.c.host.is_not(None), _S.c.launched_at.is_not(None))


def _no_server(column: Any, *, tombstone: bool = True) -> ColumnElement[bool]:
    """Deleted or never heard of; without ``tombstone`` only the latter."""
    living = exists().where(_S.c.id == column, _S.c.deleted_at.is_(None)) if tombstone else exists().where(
        _S.c.id == column
    )  # fmt: skip
    return ~living


_WRONG_ALLOCATION = (
    select(pt.CONSUMERS.c.uuid, null().label("host"))
    .where(pt.CONSUMERS.c.consumer_type == "INSTANCE", _no_server(pt.CONSUMERS.c.uuid))
    .where(~_owned("server", pt.CONSUMERS.c.uuid))
    .order_by(pt.CONSUMERS.c.uuid)
)
_M = ct.MIGRATIONS
_CLAIM_OF_ENDED_MOVE = (
    select(pt.CONSUMERS.c.uuid, null().label("host"))
    .where(
        pt.CONSUMERS.c.consumer_type == "MIGRATION",
        ~exists().where(_M.c.id == pt.CONSUMERS.c.uuid, _M.c.status.in_(migrations.OPEN)),
    )
    .order_by(pt.CONSUMERS.c.uuid)
)
_MOVE_OF_NOBODY = (  # one that waits for its confirmation needs nobody
    select(_M.c.id, _M.c.dest, _M.c.server_id, _M.c.status)
    .where(
        _M.c.status.in_(migrations.OPEN),
        ~_owned("server", _M.c.server_id),
        or_(
            _M.c.status != "finished",
            ~exists().where(_S.c.id == _M.c.server_id, _S.c.resize.is_not(None), _S.c.deleted_at.is_(None)),
        ),
    )
    .order_by(_M.c.id)
)
_RESIZED_FROM_NOTHING = (
    select(_S.c.id, _S.c.host)
    .where(
        _SETTLED,
        _S.c.goal == "resized",
        or_(_S.c.resize.is_(None), ~exists().where(_M.c.server_id == _S.c.id, _M.c.status == "finished")),
    )
    .order_by(_S.c.id)
)
_ON_ITS_HOST = exists().where(
    pt.ALLOCATIONS.c.consumer_uuid == _S.c.id, pt.ALLOCATIONS.c.provider_uuid == HOSTS.c.uuid, HOSTS.c.name == _S.c.host
)
_NO_ALLOCATION = (
    select(_S.c.id, _S.c.host)
    .where(_SETTLED, _known_host(_S.c.host), ~_ON_ITS_HOST, ~exists().where(pt.ALLOCATIONS.c.consumer_uuid == _S.c.id))
    .order_by(_S.c.id)
)
_PROVIDERS_HOST = select(HOSTS.c.name).where(HOSTS.c.uuid == pt.ALLOCATIONS.c.provider_uuid).scalar_subquery()
_ALLOCATED_ELSEWHERE = (
    select(_S.c.id, _S.c.host, pt.ALLOCATIONS.c.provider_uuid)
    .join(pt.ALLOCATIONS, pt.ALLOCATIONS.c.consumer_uuid == _S.c.id)
    .where(_SETTLED, _S.c.resize.is_(None), _known_host(_S.c.host), or_(
        _PROVIDERS_HOST.is_(None), _S.c.host != _PROVIDERS_HOST
    ))
    .distinct()
    .order_by(_S.c.id)
)  # fmt: skip
_NO_VOLUME = ~exists().where(_V.c.id == _A.c.volume_id, _V.c.deleted_at.is_(None))
_ATTACHED_TO_NOTHING = (
    select(_A.c.id, _A.c.host, _A.c.volume_id)
    .where(_NO_VOLUME, ~_owned("volume_attachment", _A.c.id))
    .order_by(_A.c.id)
)
_ATTACHED_TO_NOBODY = (  # of servers we never had, cinder's own callers may know
    select(_A.c.id, _A.c.host, _A.c.server_id, _A.c.volume_id)
    .where(
        ~_NO_VOLUME,
        exists().where(_S.c.id == _A.c.server_id, _S.c.deleted_at.is_not(None)),
        ~_owned("volume_attachment", _A.c.id),
        ~_owned("server", _A.c.server_id),
    )
    .order_by(_A.c.id)
)
_DISK_OF_NOTHING = (
    select(_D.c.id, _S.c.host, _D.c.volume_id, _D.c.server_id)
    .join(_S, _S.c.id == _D.c.server_id)
    .where(
        _ALIVE,
        _D.c.attachment_id.is_not(None),
        ~exists().where(_A.c.id == _D.c.attachment_id),
        ~_owned("block_device", _D.c.id),
    )
    .order_by(_D.c.id)
)
_ATTACHED_UNSEEN = (  # the volume says it is a disk of a living server, which knows of no such disk
    select(_A.c.id, _A.c.host, _A.c.server_id, _A.c.volume_id)
    .join(_S, _S.c.id == _A.c.server_id)
    .where(
        _ALIVE,
        ~_NO_VOLUME,
        _A.c.status == "attached",
        ~exists().where(_D.c.attachment_id == _A.c.id),
        ~_owned("volume_attachment", _A.c.id),
        ~_owned("server", _A.c.server_id),  # one that moves has another attachment for where it goes
        _A.c.connector.is_(None),
    )
    .order_by(_A.c.id)
)
_COMPUTE_PORT = _P.c.device_owner.startswith("compute:", autoescape=True)
_PORT_OF_NOBODY = (
    select(_P.c.id, _P.c.host, _P.c.device_id)
    .where(_COMPUTE_PORT, _no_server(_P.c.device_id), ~_owned("server", _P.c.device_id))
    .where(or_(_P.c.made_for_server.is_(True), exists().where(_S.c.id == _P.c.device_id)))
    .order_by(_P.c.id)
)
_BOUND_TO_NOTHING = (
    select(_P.c.id, _P.c.host, _P.c.device_id)
    .where(_P.c.host != "", ~_known_host(_P.c.host), ~_owned("server", _P.c.device_id))
    .order_by(_P.c.id)
)
_BOUND_ELSEWHERE = (
    select(_P.c.id, _P.c.host, _S.c.host, _S.c.id)
    .join(_S, _S.c.id == _P.c.device_id)
    .where(_SETTLED, _COMPUTE_PORT, _P.c.host != _S.c.host, or_(_known_host(_P.c.host), _P.c.host == ""))
    .order_by(_P.c.id)
)
_I = ct.INTERFACES
_NO_PORT = (
    select(_I.c.port_id, _S.c.host, _I.c.server_id)
    .join(_S, _S.c.id == _I.c.server_id)
    .where(_ALIVE, ~exists().where(_P.c.id == _I.c.port_id, _P.c.device_id == _I.c.server_id))
    .where(~_owned("interface", _I.c.port_id))
    .order_by(_I.c.port_id)
)
_UNLISTED_PORT = (
    select(_P.c.id, _P.c.host, _S.c.id)
    .join(_S, _S.c.id == _P.c.device_id)
    .where(_ALIVE, _COMPUTE_PORT, ~exists().where(_I.c.port_id == _P.c.id), ~_owned("interface", _P.c.id))
    .order_by(_P.c.id)
)
_F = nt.FLOATING_IPS
_FLOATING_ASTRAY = (
    select(_F.c.id, null().label("host"), _F.c.floating_ip_address, _F.c.fixed_ip_address)
    .where(
        _F.c.port_id.is_not(None),
        or_(
            _F.c.router_id.is_(None),
            ~exists().where(nt.ADDRESSES.c.port_id == _F.c.port_id, nt.ADDRESSES.c.ip_address == _F.c.fixed_ip_address),
        ),
    )
    .order_by(_F.c.id)
)
_OWNER = (SAGA_OWNERS.c.object_kind + ":" + SAGA_OWNERS.c.object_id).label("key")
_SLOT_OF_NOBODY = (
    select(_OWNER, null().label("host"), SAGA_OWNERS.c.saga_id)
    .where(
        SAGA_OWNERS.c.saga_id.is_not(None),
        ~exists().where(SAGAS.c.id == SAGA_OWNERS.c.saga_id, SAGAS.c.status.in_(_ACTIVE)),
    )
    .order_by(_OWNER)
)
_NEXT_OF_NOBODY = (
    select(_OWNER, null().label("host"), SAGA_OWNERS.c.next_saga_id)
    .where(
        SAGA_OWNERS.c.next_saga_id.is_not(None),
        ~exists().where(SAGAS.c.id == SAGA_OWNERS.c.next_saga_id, SAGAS.c.status == "queued"),
    )
    .order_by(_OWNER)
)
_PARENT = SAGAS.alias("parents")
_CHILD_OF_NOBODY = (
    select(SAGAS.c.id, null().label("host"), SAGAS.c.kind, SAGAS.c.object_id)
    .where(
        SAGAS.c.status.in_(("running",)),
        SAGAS.c.cancel_requested.is_(False),
        SAGAS.c.parent_id.is_not(None),
        ~exists().where(_PARENT.c.id == SAGAS.c.parent_id, _PARENT.c.status.in_(_ACTIVE)),
    )
    .order_by(SAGAS.c.id)
)
_SAGA_WITHOUT_SLOT = (
    select(SAGAS.c.id, null().label("host"), SAGAS.c.kind, SAGAS.c.object_id)
    .where(
        SAGAS.c.status.in_(("running",)),
        SAGAS.c.cancel_requested.is_(False),
        SAGAS.c.owns.is_(True),
        ~exists().where(
            SAGA_OWNERS.c.object_kind == SAGAS.c.object_kind,
            SAGA_OWNERS.c.object_id == SAGAS.c.object_id,
            SAGA_OWNERS.c.saga_id == SAGAS.c.id,
        ),
    )
    .order_by(SAGAS.c.id)
)
_STUCK_SERVER = (
    select(_S.c.id, _S.c.host, case((_S.c.deleting.is_(True), "deleting"), else_=_S.c.task_state))
    .where(_ALIVE, or_(_S.c.task_state.is_not(None), _S.c.deleting.is_(True)))
    .order_by(_S.c.id)
)
_STUCK_VOLUME = (
    select(_V.c.id, _V.c.host, func.coalesce(_V.c.busy, _V.c.migration_status))
    .where(_V.c.deleted_at.is_(None), or_(_V.c.busy.is_not(None), _V.c.migration_status.in_(MOVES)))
    .where(~_owned("volume", _V.c.id))
    .where(~exists().where(SAGAS.c.status.in_(_ACTIVE), SAGAS.c.object_kind.in_(("backup", "snapshot"))))
    .order_by(_V.c.id)
)
_UNDER_WAY = ("creating", "deleting", "restoring", "backing-up")  # os-reset_status may say so, too: a warning
_STUCK_SNAPSHOT = (
    select(_N.c.id, null().label("host"), _N.c.status)
    .where(_N.c.deleted_at.is_(None), _N.c.status.in_(_UNDER_WAY))
    .where(~_owned("snapshot", _N.c.id), ~_owned("volume", _N.c.volume_id))
    .where(~exists().where(SAGAS.c.status.in_(_ACTIVE), SAGAS.c.object_kind == "backup"))
    .order_by(_N.c.id)
)
_STUCK_BACKUP = (  # one is also read by a volume that is being made, which owns itself
    select(_B.c.id, null().label("host"), _B.c.status)
    .where(_B.c.deleted_at.is_(None), _B.c.status.in_(_UNDER_WAY), ~_owned("backup", _B.c.id))
    .where(~exists().where(SAGAS.c.status.in_(_ACTIVE), SAGAS.c.kind == "volume.create", _B.c.status == "restoring"))
    .order_by(_B.c.id)
)
_SERVER_ON_NOTHING = select(_S.c.id, _S.c.host).where(_SETTLED, ~_known_host(_S.c.host)).order_by(_S.c.id)
_VOLUME_ON_NOTHING = (
    select(_V.c.id, _V.c.host)
    .where(_V.c.deleted_at.is_(None), _V.c.base == "ready", _V.c.host.is_not(None), ~_known_host(_V.c.host))
    .order_by(_V.c.id)
)
_SNAPSHOT_OF_NOTHING = (
    select(vt.SNAPSHOTS.c.id, null().label("host"), vt.SNAPSHOTS.c.volume_id)
    .where(
        vt.SNAPSHOTS.c.deleted_at.is_(None),
        ~exists().where(_V.c.id == vt.SNAPSHOTS.c.volume_id, _V.c.deleted_at.is_(None)),
        ~_owned("snapshot", vt.SNAPSHOTS.c.id),
    )
    .order_by(vt.SNAPSHOTS.c.id)
)
_REPORT_FROM_ELSEWHERE = (
    select((ct.VMMS.c.server_id + "@" + ct.VMMS.c.host).label("key"), ct.VMMS.c.host, ct.VMMS.c.server_id)
    .join(_S, _S.c.id == ct.VMMS.c.server_id)
    .where(_SETTLED, ct.VMMS.c.host != _S.c.host)
    .order_by(ct.VMMS.c.server_id)
)
_PROVIDER_OF_NOTHING = (  # those that users made stand in no relation to hosts: only a host's name is ours
    select(pt.PROVIDERS.c.uuid, pt.PROVIDERS.c.name)
    .where(
        exists().where(HOSTS.c.name == pt.PROVIDERS.c.name),
        ~exists().where(HOSTS.c.uuid == pt.PROVIDERS.c.uuid),
    )
    .order_by(pt.PROVIDERS.c.uuid)
)
_HOST_WITHOUT_PROVIDER = (
    select(HOSTS.c.name, HOSTS.c.name.label("host"), HOSTS.c.roles)
    .where(~exists().where(pt.PROVIDERS.c.uuid == HOSTS.c.uuid))
    .order_by(HOSTS.c.name)
)
_UNSERVED_HOST = (
    select((nt.DHCP_HOSTS.c.network_id + "@" + nt.DHCP_HOSTS.c.host).label("key"), nt.DHCP_HOSTS.c.host)
    .where(~_known_host(nt.DHCP_HOSTS.c.host))
    .union_all(
        select((nt.ROUTER_HOSTS.c.router_id + "@" + nt.ROUTER_HOSTS.c.host).label("key"), nt.ROUTER_HOSTS.c.host).where(
            ~_known_host(nt.ROUTER_HOSTS.c.host)
        )
    )
)


@dataclass(frozen=True)
class _Child:
    """Rows of ``table`` whose parent is gone."""

    table: Table
    orphaned: ColumnElement[bool]
    parent: str

    @property
    def key(self) -> list[Any]:
        return list(self.table.primary_key.columns)


def _of(table: Table, column: str, parent: Table, key: str = "id", *, tombstones: bool = False) -> _Child:
    """``tombstones``: a deleted parent's row may keep it."""
    living = exists().where(parent.c[key] == table.c[column])
    if not tombstones and "deleted_at" in parent.c:
        living = living.where(parent.c.deleted_at.is_(None))
    return _Child(table, ~living, parent.name)


_TAGGED = (nt.NETWORKS, nt.SUBNETS, nt.SUBNETPOOLS, nt.PORTS, nt.ROUTERS, nt.FLOATING_IPS, nt.SECURITY_GROUPS,
           nt.SECURITY_GROUP_RULES)  # fmt: skip
CHILDREN: tuple[_Child, ...] = (
    _of(ct.SERVER_TAGS, "server_id", ct.SERVERS),
    _of(ct.SERVER_FAULTS, "server_id", ct.SERVERS, tombstones=True),
    _of(ct.SERVER_GROUP_MEMBERS, "server_id", ct.SERVERS),
    _of(ct.SERVER_GROUP_MEMBERS, "group_id", ct.SERVER_GROUPS),
    _of(ct.BLOCK_DEVICES, "server_id", ct.SERVERS),
    _of(ct.MIGRATIONS, "server_id", ct.SERVERS, tombstones=True),
    _of(ct.INTERFACES, "server_id", ct.SERVERS),
    _of(ct.VMMS, "server_id", ct.SERVERS),
    _of(ct.SERVER_ACTIONS, "server_id", ct.SERVERS, tombstones=True),
    _of(ct.FLAVOR_ACCESS, "flavor_id", ct.FLAVORS),
    _of(ct.AGGREGATE_HOSTS, "aggregate_id", ct.AGGREGATES),
    _of(it.MEMBERS, "image_id", it.IMAGES),
    _of(vt.TYPE_ACCESS, "volume_type_id", vt.TYPES),
    _of(vt.DEFAULT_TYPES, "volume_type_id", vt.TYPES),
    _of(vt.TRANSFERS, "volume_id", vt.VOLUMES, tombstones=True),
    _of(pt.INVENTORIES, "provider_uuid", pt.PROVIDERS, "uuid"),
    _of(pt.PROVIDER_TRAITS, "provider_uuid", pt.PROVIDERS, "uuid"),
    _of(pt.PROVIDER_AGGREGATES, "provider_uuid", pt.PROVIDERS, "uuid"),
    _of(pt.ALLOCATIONS, "consumer_uuid", pt.CONSUMERS, "uuid"),
    _Child(pt.CONSUMERS, ~exists().where(pt.ALLOCATIONS.c.consumer_uuid == pt.CONSUMERS.c.uuid), pt.ALLOCATIONS.name),
    _Child(nt.TAGS, and_(*(~exists().where(t.c.id == nt.TAGS.c.resource_id) for t in _TAGGED)), "networks and others"),
    _Child(
        idt.ASSIGNMENTS,
        or_(
            and_(idt.ASSIGNMENTS.c.actor_kind == "user", ~exists().where(idt.USERS.c.id == idt.ASSIGNMENTS.c.actor_id)),
            and_(
                idt.ASSIGNMENTS.c.target_kind.in_(("project", "domain")),
                ~exists().where(idt.PROJECTS.c.id == idt.ASSIGNMENTS.c.target_id),
            ),
        ),
        "users and projects",
    ),
    _of(idt.APPLICATION_CREDENTIALS, "project_id", idt.PROJECTS),
    _of(idt.ACCESS_RULES, "user_id", idt.USERS),
)
_ORPHANS: dict[int, Executable] = {
    number: select(*child.key).where(child.orphaned).limit(1000) for number, child in enumerate(CHILDREN)
}
_REMOVE: dict[int, Executable] = {
    number: delete(child.table).where(
        child.orphaned, *(column == bindparam(f"key_{column.name}") for column in child.key)
    )
    for number, child in enumerate(CHILDREN)
}
_DROP_DISK = delete(_D).where(_D.c.id == bindparam("the_id"))
_DROP_INTERFACE = delete(_I).where(_I.c.port_id == bindparam("the_id"))
_DROP_REPORT = delete(ct.VMMS).where(
    ct.VMMS.c.server_id == bindparam("the_id"), ct.VMMS.c.host == bindparam("the_host")
)
_SNAPSHOT_GONE = (
    update(vt.SNAPSHOTS)
    .where(vt.SNAPSHOTS.c.id == bindparam("the_id"))
    .values(deleted_at=bindparam("now"), status="deleted")
)
_SAGA_AT_ALL = select(SAGAS.c.id).where(SAGAS.c.object_id == bindparam("the_id"), SAGAS.c.status.in_(_ACTIVE)).limit(1)

Act = Callable[[Tx, Any], str | None]


class Rows:
    """``compute``, ``network``, ``volume``, ``placement``: the services, by their public functions."""

    def __init__(
        self, db: Database, *, compute: Any, network: Any, volume: Any, placement: Any, hosts: Any,
        reconcile_documents: Callable[[], str | None], reconcile_scheduling: Callable[[], str | None],
    ) -> None:  # fmt: skip
        self.db = db
        self.compute = compute
        self.network = network
        self.volume = volume
        self.placement = placement
        self.hosts = hosts
        self.reconcile_documents = reconcile_documents
        self.reconcile_scheduling = reconcile_scheduling

    def checks(self) -> list[Check]:
        one = self._comparison
        return [
            one("allocation-without-server", "placement allocations", "allocation", _WRONG_ALLOCATION,
                "{0} has an allocation and is no living server", self._release, "the allocation is released"),
            one("server-without-allocation", "servers' allocations", "server", _NO_ALLOCATION,
                "server {0} runs on {1} and has claimed nothing there", self._claim, "it is claimed"),
            one("allocation-elsewhere", "servers' allocations", "server", _ALLOCATED_ELSEWHERE,
                "server {0} is on {1} and has claimed resources of provider {2}", self._claim,
                "what it has is claimed on its host alone"),
            one("allocation-of-ended-move", "placement allocations", "allocation", _CLAIM_OF_ENDED_MOVE,
                "{0} has an allocation and is no move that is under way", self._release, "the allocation is released"),
            one("move-stuck", "moves of servers", "migration", _MOVE_OF_NOBODY,
                "move {0} of server {2} is {3} and nobody is at it", self._end_move,
                "it shows as failed, and what it had claimed is released"),
            one("resize-without-way-back", "servers", "server", _RESIZED_FROM_NOTHING,
                "server {0} waits for its resize to be confirmed, of which no record is", self._end_resize,
                "it is taken as confirmed"),
            one("attachment-without-volume", "volume attachments", "attachment", _ATTACHED_TO_NOTHING,
                "attachment {0} is of volume {2}, which is gone", self._drop_attachment, "the row is removed"),
            one("attachment-without-server", "volume attachments", "attachment", _ATTACHED_TO_NOBODY,
                "volume {3} is attached to server {2}, which is deleted", self._drop_attachment,
                "the volume is let go; the export goes with its host's next inventory"),
            one("attachment-unknown-to-server", "volume attachments", "attachment", _ATTACHED_UNSEEN,
                "volume {3} is attached to server {2}, which has no such disk", self._drop_attachment,
                "the volume is let go; the export goes with its host's next inventory"),
            one("disk-without-attachment", "servers' disks", "disk", _DISK_OF_NOTHING,
                "server {3} has volume {2} as a disk by an attachment that is gone", self._drop_disk,
                "the disk's row is removed"),
            one("port-without-server", "ports", "port", _PORT_OF_NOBODY,
                "port {0} belongs to server {2}, which is gone", self._release_port, "its ports are released"),
            one("port-on-unknown-host", "port bindings", "port", _BOUND_TO_NOTHING,
                "port {0} is bound to {1}, which is no host of this cloud", self._rebind,
                "it is bound where its server is, else to no host"),
            one("port-bound-elsewhere", "port bindings", "port", _BOUND_ELSEWHERE,
                "port {0} is bound to '{1}', its server {3} is on {2}", self._rebind,
                "it is bound where its server is"),
            one("interface-without-port", "servers' interfaces", "interface", _NO_PORT,
                "server {2} has port {0} as an interface, which is not its port", self._drop_interface,
                "the interface's row is removed"),
            one("port-unknown-to-server", "servers' interfaces", "port", _UNLISTED_PORT,
                "port {0} belongs to server {2}, which has no such interface", self._release_one_port,
                "the port is released"),
            one("floating-ip-astray", "floating IPs", "floating_ip", _FLOATING_ASTRAY,
                "floating IP {2} goes to {3}, which its port has not, or through no router", self._disassociate,
                "it is disassociated"),
            one("owner-without-saga", "owners of objects", "owner", _SLOT_OF_NOBODY,
                "{0} is owned by saga {2}, which does not run", self._free_slot, "the object is free again"),
            one("successor-without-saga", "owners of objects", "owner", _NEXT_OF_NOBODY,
                "saga {2} is to own {0} next, and does not wait", self._free_next, "nobody comes next"),
            one("child-without-parent", "sagas", "saga", _CHILD_OF_NOBODY,
                "{2} of {3} was begun by a saga that runs no more", self._cancel, "it is asked to unwind"),
            one("saga-without-slot", "sagas", "saga", _SAGA_WITHOUT_SLOT,
                "{2} runs on {3} and does not own it", self._cancel, "it is asked to unwind"),
            one("server-stuck", "servers' states", "server", _STUCK_SERVER,
                "server {0} is {2} and nobody is at it", self._unstick_server,
                "a delete is begun again; another task is over"),
            one("volume-stuck", "volumes' states", "volume", _STUCK_VOLUME,
                "volume {0} is {2} and nobody is at it", self._unstick_volume, "it shows what it is without that"),
            one("snapshot-stuck", "snapshots' states", "snapshot", _STUCK_SNAPSHOT,
                "snapshot {0} is {2} and nobody is at it", self._unstick_snapshot,
                "it is in error if it was being made or deleted, else available", severity="warning"),
            one("backup-stuck", "backups' states", "backup", _STUCK_BACKUP,
                "backup {0} is {2} and nobody is at it", self._unstick_backup,
                "it is in error if it was being made or deleted, else available", severity="warning"),
            one("server-on-unknown-host", "servers", "server", _SERVER_ON_NOTHING,
                "server {0} is on {1}, which is no host of this cloud", None,
                cure="bring the host back under its name, or delete the server"),
            one("volume-on-unknown-host", "volumes", "volume", _VOLUME_ON_NOTHING,
                "volume {0} is on {1}, which is no host of this cloud", None,
                cure="bring the host back under its name, or delete the volume"),
            one("snapshot-without-volume", "snapshots", "snapshot", _SNAPSHOT_OF_NOTHING,
                "snapshot {0} is of volume {2}, which is gone", self._bury_snapshot, "it is marked deleted"),
            one("report-from-elsewhere", "hosts' reports", "report", _REPORT_FROM_ELSEWHERE,
                "{1} reported server {2}, which is not there", self._drop_report, "the report is forgotten",
                severity="warning"),
            one("provider-of-another-life", "placement providers", "provider", _PROVIDER_OF_NOTHING,
                "provider {0} has the name of host {1} and another id", self._drop_provider,
                "it is removed if nothing is allocated on it"),
            one("host-without-provider", "placement providers", "host", _HOST_WITHOUT_PROVIDER,
                "host {0} has no resource provider", self._make_provider, "it is made", only=_is_compute),
            one("service-on-unknown-host", "DHCP servers and routers", "schedule", _UNSERVED_HOST,
                "{0}: there is no host {1}", self._reschedule, "another host takes over"),
            Check(name="document-index", looks_at="documents that hosts are to have", find=self._documents,
                  repair=lambda finding: self.reconcile_documents(), repaired_by="the index is made to agree"),
            Check(name="row-without-parent", looks_at=f"rows of {len(CHILDREN)} tables that belong to others",
                  find=self._orphans, repair=self._remove_orphan, repaired_by="the row is removed"),
        ]  # fmt: skip

    # -- looking ----------------------------------------------------------------------------------------------------

    def _comparison(
        self,
        name: str,
        looks_at: str,
        kind: str,
        statement: Any,
        message: str,
        act: Act | None,
        repaired_by: str = "",
        *,
        cure: str = "cumulet doctor --fix",
        severity: Severity = "error",
        only: Callable[[Any], bool] = lambda row: True,
    ) -> Check:
        def find(tx: Tx) -> Iterator[Finding]:
            for row in tx.rows(statement):
                if only(row):
                    yield Finding(
                        code=name, severity=severity, object_kind=kind, object_id=row[0], host=row[1] or None,
                        message=message.format(*row), cure=cure,
                    )  # fmt: skip

        def repair(finding: Finding) -> str | None:
            def work(tx: Tx) -> str | None:
                assert act is not None
                for row in tx.rows(statement):
                    if row[0] == finding.object_id and only(row):
                        return act(tx, row) or repaired_by
                return None

            return self.db.write(work)

        return Check(
            name=name, looks_at=looks_at, find=find, repair=repair if act else None, repaired_by=repaired_by
        )  # fmt: skip

    def _documents(self, tx: Tx) -> Iterator[Finding]:
        missing, extra = self.network.document_differences(tx)
        for host, kind, object_id in sorted(missing):
            yield _document(host, kind, object_id, f"{host} is to have {kind} {object_id} and is not told so")
        for host, kind, object_id in sorted(extra):
            if kind == "group":
                continue  # members of a group stay until the reconciler finds that no rule refers to it any more
            yield _document(host, kind, object_id, f"{host} is told to have {kind} {object_id}, which is not for it")

    def _orphans(self, tx: Tx) -> Iterator[Finding]:
        for number, child in enumerate(CHILDREN):
            for row in tx.rows(_ORPHANS[number]):
                values = dict(zip([str(column.name) for column in child.key], row, strict=True))
                yield Finding(
                    code="row-without-parent", severity="warning", object_kind=str(child.table.name),
                    object_id="/".join(str(value) for value in row),
                    message=f"a row of {child.table.name} ({_words(values)}) belongs to no row of {child.parent}",
                    cure="cumulet doctor --fix", details={"table": number, "key": values},
                )  # fmt: skip

    def _remove_orphan(self, finding: Finding) -> str | None:
        number, key = finding.details["table"], finding.details["key"]
        values = {f"key_{name}": value for name, value in key.items()}
        removed = self.db.write(lambda tx: tx.run(_REMOVE[number], values))
        return "the row is removed" if removed else None

    # -- repairing: each within the unit of work that found the row once more ----------------------------------------

    def _release(self, tx: Tx, row: Any) -> None:
        self.placement.release(tx, row[0])

    def _claim(self, tx: Tx, row: Any) -> None:
        server = self.compute.row(tx, row[0])
        host = self.hosts.get(tx, server.host)
        wanted = self.compute.resources_of(tx, server)
        self.placement.claim(tx, server.id, host.uuid, wanted, server.project_id, server.user_id)

    def _end_move(self, tx: Tx, row: Any) -> None:
        self.placement.release(tx, row[0])
        migrations.set_status(tx, row[0], "error")

    def _end_resize(self, tx: Tx, row: Any) -> None:
        self.compute.end_resize(tx, row[0])

    def _drop_attachment(self, tx: Tx, row: Any) -> None:
        self.volume.drop_attachment(tx, row[0])

    def _drop_disk(self, tx: Tx, row: Any) -> None:
        tx.run(_DROP_DISK, {"the_id": row[0]})

    def _drop_interface(self, tx: Tx, row: Any) -> None:
        tx.run(_DROP_INTERFACE, {"the_id": row[0]})

    def _release_port(self, tx: Tx, row: Any) -> None:
        self.network.release_server_ports(tx, row[2])

    def _release_one_port(self, tx: Tx, row: Any) -> None:
        self.network.detach_interface(tx, row[2], row[0])

    def _rebind(self, tx: Tx, row: Any) -> str:
        server_id = row[3] if len(row) > 3 else row[2]
        server = self.compute.row(tx, server_id)
        there = server is not None and server.deleted_at is None and server.host is not None
        known = {host.name for host in self.hosts.list(tx)}
        host = server.host if there and server.host in known else ""
        self.network.bind_ports(tx, [row[0]], host)
        return f"it is bound to {host}" if host else "it is bound to no host"

    def _disassociate(self, tx: Tx, row: Any) -> None:
        self.network.let_floating_ip_go(tx, row[0])

    def _free_slot(self, tx: Tx, row: Any) -> None:
        journal.free_slot(tx, *_slot(row))

    def _free_next(self, tx: Tx, row: Any) -> None:
        journal.unqueue(tx, *_slot(row))

    def _cancel(self, tx: Tx, row: Any) -> None:
        journal.request_cancel(tx, row[0])

    def _unstick_server(self, tx: Tx, row: Any) -> str:
        server = self.compute.row(tx, row[0])
        if not server.deleting:
            self.compute.settle(tx, server.id, None)
            return "the task is over"
        self.compute.delete(tx, _of_project(server.project_id), server)
        return "its delete is begun again"

    def _unstick_volume(self, tx: Tx, row: Any) -> None:
        if tx.first(_SAGA_AT_ALL, {"the_id": row[0]}) is None:
            self.volume.unstick(tx, row[0])

    def _unstick_snapshot(self, tx: Tx, row: Any) -> None:
        self.volume.unstick_copy(tx, "snapshot", row[0])

    def _unstick_backup(self, tx: Tx, row: Any) -> None:
        self.volume.unstick_copy(tx, "backup", row[0])

    def _bury_snapshot(self, tx: Tx, row: Any) -> None:
        tx.run(_SNAPSHOT_GONE, {"the_id": row[0], "now": tx.now})

    def _drop_report(self, tx: Tx, row: Any) -> None:
        tx.run(_DROP_REPORT, {"the_id": row[2], "the_host": row[1]})

    def _drop_provider(self, tx: Tx, row: Any) -> None:
        self.placement.remove_provider(tx, row[0])

    def _make_provider(self, tx: Tx, row: Any) -> None:
        self.placement.sync_host(tx, self.hosts.get(tx, row[0]))

    def _reschedule(self, tx: Tx, row: Any) -> None:
        tx.after_commit(self.reconcile_scheduling)


def _is_compute(row: Any) -> bool:
    return "compute" in row[2]


def _slot(row: Any) -> tuple[str, str, str]:
    kind, _, object_id = row[0].partition(":")
    return kind, object_id, row[2]


def _document(host: str, kind: str, object_id: str, message: str) -> Finding:
    return Finding(
        code="document-index", severity="warning", object_kind=kind, object_id=object_id, host=host, message=message,
        cure="cumulet doctor --fix; a reconciler does it within five minutes",
    )  # fmt: skip


def _words(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _of_project(project_id: str) -> RequestContext:
    return msgspec.structs.replace(system_context("doctor"), project_id=project_id)
