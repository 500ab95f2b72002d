"""Moves of servers between hosts: resize, migration cold and live, evacuation, and the lists of moves."""

from typing import Any

from msgspec import UNSET

from cumulet.db import Tx
from cumulet.http import Call, Route
from cumulet.kernel.clock import iso
from cumulet.kernel.errors import BadInput, NotFound
from cumulet.services.compute import migrations, rules, schema
from cumulet.services.compute.api.common import (
    boolean,
    load,
    load_unlocked,
    one_of,
    only_query,
    page_of,
    service_of,
    target,
    time_of,
    version_of,
    with_links,
)
from cumulet.services.compute.intake import new_password
from cumulet.services.compute.rows import MigrationRow, ServerRow
from cumulet.services.compute.views import Links

ACTION = "/servers/{server_id}/action"
_SERVERS = "os_compute_api:servers:"
_MIGRATE = "os_compute_api:os-migrate-server:"
_OF_SERVER = "os_compute_api:servers:migrations:"
_ALL = "os_compute_api:os-migrations:index"


# -- resize and cold migration ------------------------------------------------------------------------------------


def resize(call: Call) -> None:
    body: schema.Resize = call.body

    def work(tx: Tx) -> None:
        server = load_unlocked(call, tx, _SERVERS + "resize")
        flavor = rules.reference_id(body.flavorRef)
        disk_config = body.disk_config if body.disk_config is not UNSET else None
        service_of(call).moves.resize(tx, call.ctx, server, flavor, disk_config)

    service_of(call).db.write(work)


def migrate(call: Call) -> None:
    body: schema.Migrate | None = call.body if version_of(call) >= (2, 56) else None
    host = body.host if body is not None else None

    def work(tx: Tx) -> None:
        server = load_unlocked(call, tx, _MIGRATE + ("migrate:host" if host else "migrate"))
        service_of(call).moves.migrate(tx, call.ctx, server, host or None)

    service_of(call).db.write(work)


def confirm_resize(call: Call) -> None:
    def work(tx: Tx) -> None:
        server = load_unlocked(call, tx, _SERVERS + "confirm_resize")
        service_of(call).moves.confirm(tx, call.ctx, server)

    service_of(call).db.write(work)


def revert_resize(call: Call) -> None:
    def work(tx: Tx) -> None:
        server = load_unlocked(call, tx, _SERVERS + "revert_resize")
        service_of(call).moves.revert(tx, call.ctx, server)

    service_of(call).db.write(work)


# -- live migration -----------------------------------------------------------------------------------------------


def migrate_live(call: Call) -> None:
    body: schema.MigrateLive = call.body
    version = version_of(call)
    if version < (2, 25):
        if body.disk_over_commit is UNSET:
            raise BadInput(
                "Invalid input for field/attribute os-migrateLive. 'disk_over_commit' is a required property"
            )
        if body.block_migration == "auto":
            raise BadInput(
                "Invalid input for field/attribute block_migration. Value: auto. 'auto' is not of type 'boolean'"
            )
    # before 2.30 a host that was named was taken as it is
    force = bool(body.host) if version < (2, 30) else schema.truth(body.force)
    if force and not body.host:
        raise BadInput("Can't force to a non-provided destination")

    def work(tx: Tx) -> None:
        server = load_unlocked(call, tx, _MIGRATE + ("migrate_live:host" if body.host else "migrate_live"))
        service_of(call).moves.live_migrate(
            tx,
            call.ctx,
            server,
            body.host or None,
            copy_disks=body.block_migration == "auto" or schema.truth(body.block_migration),
            force=force,
            at_once=version < (2, 34),
        )

    service_of(call).db.write(work)


def force_complete(call: Call) -> None:
    def work(tx: Tx) -> None:
        server = load_unlocked(call, tx, _OF_SERVER + "force_complete")
        service_of(call).moves.force_complete(tx, call.ctx, server, call.params["migration_id"])

    service_of(call).db.write(work)


def abort(call: Call) -> None:
    def work(tx: Tx) -> None:
        server = load_unlocked(call, tx, _OF_SERVER + "delete")
        queued = version_of(call) >= (2, 65)
        service_of(call).moves.abort(tx, call.ctx, server, call.params["migration_id"], queued=queued)

    service_of(call).db.write(work)


def live_index(call: Call) -> dict[str, Any]:
    def work(tx: Tx) -> list[dict[str, Any]]:
        server = load(call, tx, _OF_SERVER + "index")
        addresses = _addresses(call, tx) if call.allowed(_OF_SERVER + "index:host", target(server)) else None
        return [_live(call, server, row, addresses) for row in migrations.in_progress(tx, server.id)]

    return {"migrations": [_with_progress(call, one) for one in service_of(call).db.read(work)]}


def live_show(call: Call) -> dict[str, Any]:
    number = call.params["migration_id"]

    def work(tx: Tx) -> dict[str, Any]:
        server = load(call, tx, _OF_SERVER + "show")
        found = service_of(call).moves.numbered(
            tx, server, number, NotFound, "In-progress live migration {number} is not found for server {id}."
        )
        if found.type != migrations.LIVE:
            raise NotFound(f"Migration {number} for server {server.id} is not live-migration.")
        if found.status not in migrations.IN_PROGRESS:
            raise NotFound(f"Live migration {number} for server {server.id} is not in progress.")
        return _live(call, server, found, _addresses(call, tx))

    return {"migration": _with_progress(call, service_of(call).db.read(work))}


def _live(call: Call, server: ServerRow, row: MigrationRow, addresses: dict[str, str] | None) -> dict[str, Any]:
    return {
        "id": row.number,
        "server_uuid": row.server_id,
        "status": row.status,
        "asked": (row.source, server.id, server.instance_name),
        **_common(call, row, addresses),
    }


def _with_progress(call: Call, shown: dict[str, Any]) -> dict[str, Any]:
    """How far it is, as its source says; nulls before it runs."""
    asked = shown.pop("asked")
    progress = service_of(call).moves.progress(*asked) if shown["status"] == "running" else {}
    parts = ("total", "processed", "remaining")
    return shown | {
        f"{what}_{part}_bytes": progress.get(f"{what}_{part}_bytes") for what in ("memory", "disk") for part in parts
    }


# -- evacuation -----------------------------------------------------------------------------------------------------


def evacuate(call: Call) -> dict[str, Any] | None:
    body: schema.Evacuate = call.body
    version = version_of(call)
    if version < (2, 14) and body.onSharedStorage is UNSET:
        raise BadInput("Invalid input for field/attribute evacuate. 'onSharedStorage' is a required property")
    shared, force = schema.truth(body.onSharedStorage), schema.truth(body.force)
    if shared and body.adminPass is not None:
        raise BadInput("admin password can't be changed on existing disk")
    password = None if shared else body.adminPass or new_password()

    def work(tx: Tx) -> None:
        server = load(call, tx, "os_compute_api:os-evacuate")
        if force and not body.host:
            raise BadInput("Can't force to a non-provided destination")
        service_of(call).moves.evacuate(
            tx,
            call.ctx,
            server,
            body.host,
            force=force or (body.host is not None and version < (2, 29)),
            stopped=version >= (2, 95),
            shared=shared,
            password=password,
        )

    service_of(call).db.write(work)
    return {"adminPass": password} if version < (2, 14) else None


# -- all moves --------------------------------------------------------------------------------------------------------


_FILTERS = ("host", "instance_uuid", "source_compute", "status", "migration_type")


def _filters(call: Call) -> dict[str, Any]:
    version = version_of(call)
    known = [*_FILTERS, "hidden"]
    if version >= (2, 59):
        known += ["limit", "marker", "changes-since"]
    if version >= (2, 66):
        known += ["changes-before"]
    if version >= (2, 80):
        known += ["user_id", "project_id"]
    only_query(call, known, (2, 59))
    filters: dict[str, Any] = {}
    for name in (*_FILTERS, "user_id", "project_id"):
        given = call.query.getlist(name)
        if len(given) > 1 and name in ("user_id", "project_id"):
            one_of(call, name)
        if given:
            filters[name] = given if name == "status" else given[-1]
    filters["changes-since"] = time_of(call, "changes-since", (2, 59))
    filters["changes-before"] = time_of(call, "changes-before", (2, 66))
    filters = {name: value for name, value in filters.items() if value is not None}
    if filters.get("changes-before", float("inf")) < filters.get("changes-since", 0):
        raise BadInput("The value of changes-since must be less than or equal to changes-before.")
    return filters


def index(call: Call) -> dict[str, Any]:
    filters = _filters(call)
    if filters.get("project_id") in (None, "") or filters["project_id"] != call.ctx.project_id:
        call.authorize(_ALL + ":all_projects")
    hosts = call.allowed(_ALL + ":host", {"project_id": call.ctx.project_id})
    page = page_of(call) if version_of(call) >= (2, 59) else None
    if boolean(call.query.get("hidden"), name="hidden"):
        return {"migrations": []}  # of a move across cells one of two was hidden; here are no cells

    def work(tx: Tx) -> tuple[list[dict[str, Any]], list[str]]:
        marker = None
        if page is not None and page.marker is not None:
            marker = migrations.find(tx, page.marker)
            if marker is None:
                raise BadInput(f"Marker {page.marker} could not be found.")
        limit = page.size if page is not None else None
        rows = migrations.listed(tx, filters, limit=limit, marker=marker, newest_first=page is not None)
        addresses = _addresses(call, tx) if hosts else None
        return [_shown(call, row, addresses) for row in rows], [row.id for row in rows]

    shown, ids = service_of(call).db.read(work)
    if page is None:
        return {"migrations": shown}
    return with_links(call, "migrations", "/os-migrations", shown, ids, page)


def _addresses(call: Call, tx: Tx) -> dict[str, str]:
    return {host.name: host.ip for host in service_of(call).parts.hosts.list(tx)}


def _shown(call: Call, row: MigrationRow, addresses: dict[str, str] | None) -> dict[str, Any]:
    shown = {
        "id": row.number,
        "instance_uuid": row.server_id,
        "status": row.status,
        "old_instance_type_id": row.old_flavor,
        "new_instance_type_id": row.new_flavor,
        **_common(call, row, addresses),
    }
    if version_of(call) >= (2, 23):
        shown["migration_type"] = row.type
        if row.type == migrations.LIVE and row.status in migrations.IN_PROGRESS:
            shown["links"] = Links(call).of(f"servers/{row.server_id}/migrations", str(row.number))
    return shown


def _common(call: Call, row: MigrationRow, addresses: dict[str, str] | None) -> dict[str, Any]:
    """``addresses`` of hosts by name; None: the caller may not know of hosts."""
    source, dest = (row.source, row.dest) if addresses is not None else (None, None)
    shown: dict[str, Any] = {
        "created_at": iso(row.created_at, zone="", micros=True),
        "updated_at": iso(row.updated_at, zone="", micros=True),
        "source_compute": source,
        "source_node": source,
        "dest_compute": dest,
        "dest_node": dest,
        "dest_host": (addresses or {}).get(dest or ""),
    }
    if version_of(call) >= (2, 59):
        shown["uuid"] = row.id
    if version_of(call) >= (2, 80):
        shown["user_id"], shown["project_id"] = row.user_id, row.project_id
    return shown


def _action(action: str, handler: Any, **more: Any) -> Route:
    return Route(method="POST", path=ACTION, action=action, handler=handler, **{"success": 202, **more})


_LIVE = "/servers/{server_id}/migrations"
ROUTES = [
    _action("evacuate", evacuate, body=schema.Evacuate, success=200),
    _action("os-migrateLive", migrate_live, body=schema.MigrateLive),
    Route(method="GET", path=_LIVE, handler=live_index, min_version="2.23", slow=True),
    Route(method="GET", path=_LIVE + "/{migration_id}", handler=live_show, min_version="2.23", slow=True),
    Route(method="DELETE", path=_LIVE + "/{migration_id}", handler=abort, min_version="2.24", success=202),
    Route(
        method="POST", path=_LIVE + "/{migration_id}/action", action="force_complete", handler=force_complete,
        min_version="2.22", success=202,
    ),
    _action("resize", resize, body=schema.Resize),
    _action("confirmResize", confirm_resize, success=204),
    _action("revertResize", revert_resize),
    _action("migrate", migrate, body=schema.Migrate | None, min_version="2.56"),
    _action("migrate", migrate, max_version="2.55"),
    Route(method="GET", path="/os-migrations", handler=index, policy=_ALL),
]  # fmt: skip
