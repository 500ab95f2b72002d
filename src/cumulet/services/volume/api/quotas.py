"""Quotas, quota classes and limits."""

from typing import Any

from sqlalchemy import delete as sql_delete

from cumulet.db import Tx
from cumulet.http import Call, Reply, Route
from cumulet.kernel.errors import BadInput, Forbidden
from cumulet.services.volume import quotas, store
from cumulet.services.volume.api.common import boolean
from cumulet.services.volume.tables import QUOTA_CLASSES, QUOTAS

_LIMIT_NAMES = {
    "volumes": ("maxTotalVolumes", "totalVolumesUsed"),
    "gigabytes": ("maxTotalVolumeGigabytes", "totalGigabytesUsed"),
    "snapshots": ("maxTotalSnapshots", "totalSnapshotsUsed"),
    "backups": ("maxTotalBackups", "totalBackupsUsed"),
    "backup_gigabytes": ("maxTotalBackupGigabytes", "totalBackupGigabytesUsed"),
}
_HIDDEN = ("id", "tenant_id", "force")


def _own(call: Call, project: str, rule: str) -> None:
    call.authorize(rule, {"project_id": project})
    if project != call.ctx.project_id and not call.ctx.is_admin:
        raise Forbidden("Not authorized to see another project's quota.")


def show(call: Call) -> dict[str, Any]:
    project = call.params["project"]
    _own(call, project, "volume_extension:quotas:show")
    with_usage = boolean(call.query.get("usage") or "false", "usage")

    def work(tx: Tx) -> dict[str, Any]:
        limits = call.service.quotas.limits(tx, project)
        if not with_usage:
            return dict(limits)
        used = quotas.usages(tx, project)
        return {
            key: {"limit": limit, "in_use": used.get(key, 0), "reserved": 0, "allocated": 0}
            for key, limit in limits.items()
        }

    return {"quota_set": {"id": project, **call.service.db.read(work)}}


def defaults(call: Call) -> dict[str, Any]:
    project = call.params["project"]
    _own(call, project, "volume_extension:quotas:show")
    return {"quota_set": {"id": project, **call.service.db.read(call.service.quotas.defaults)}}


def _limits(call: Call, tx: Tx, given: dict[str, Any]) -> dict[str, int]:
    known = call.service.quotas.defaults(tx)
    unknown = [key for key in given if key not in known and key not in _HIDDEN]
    if unknown:
        raise BadInput(f"Bad key(s) in quota set: {', '.join(sorted(unknown))}")
    found: dict[str, int] = {}
    for key, value in given.items():
        if key in _HIDDEN:
            continue
        if isinstance(value, str) and value.lstrip("-").isdigit() and len(value) < 12:
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not -1 <= value <= 2147483647:
            raise BadInput(f"Invalid input for field '{key}': {value!r} is not a whole number from -1 to 2147483647.")
        found[key] = value
    return found


def update(call: Call) -> dict[str, Any]:
    project = call.params["project"]

    def work(tx: Tx) -> dict[str, Any]:
        given = _limits(call, tx, call.body)
        tx.lock("quota", f"volume:{project}")
        store.set_limits(tx, QUOTAS, "project_id", project, given)
        return call.service.quotas.limits(tx, project)

    return {"quota_set": call.service.db.write(work)}


def delete(call: Call) -> Reply:
    statement = sql_delete(QUOTAS).where(QUOTAS.c.project_id == call.params["project"])
    call.service.db.write(lambda tx: tx.run(statement))
    return Reply(status=200)


def show_class(call: Call) -> dict[str, Any]:
    name = call.params["name"]

    def work(tx: Tx) -> dict[str, Any]:
        return {**call.service.quotas.defaults(tx), **store.class_limits(tx, name)}

    return {"quota_class_set": {"id": name, **call.service.db.read(work)}}


def update_class(call: Call) -> dict[str, Any]:
    name = call.params["name"]

    def work(tx: Tx) -> dict[str, Any]:
        store.set_limits(tx, QUOTA_CLASSES, "class_name", name, _limits(call, tx, call.body))
        return {**call.service.quotas.defaults(tx), **store.class_limits(tx, name)}

    return {"quota_class_set": call.service.db.write(work)}


def limits(call: Call) -> dict[str, Any]:
    project = call.ctx.project_id or ""
    asked = call.query.get("project_id")
    if asked and call.ctx.is_admin and (call.version or (3, 0)) >= (3, 39):
        project = asked

    def work(tx: Tx) -> dict[str, int]:
        allowed, used = call.service.quotas.limits(tx, project), quotas.usages(tx, project)
        found = {}
        for resource, (limit_name, used_name) in _LIMIT_NAMES.items():
            found[limit_name] = allowed[resource]
            found[used_name] = used[resource]
        return found

    return {"limits": {"rate": [], "absolute": call.service.db.read(work)}}


_SETS = "/os-quota-sets/{project}"
ROUTES = [
    Route(method="GET", path=_SETS, handler=show),
    Route(method="GET", path=_SETS + "/defaults", handler=defaults),
    Route(
        method="PUT", path=_SETS, handler=update, policy="volume_extension:quotas:update", body=dict[str, Any],
        body_key="quota_set",
    ),
    Route(method="DELETE", path=_SETS, handler=delete, policy="volume_extension:quotas:delete"),
    Route(
        method="GET", path="/os-quota-class-sets/{name}", handler=show_class,
        policy="volume_extension:quota_classes:get",
    ),
    Route(
        method="PUT", path="/os-quota-class-sets/{name}", handler=update_class, body=dict[str, Any],
        body_key="quota_class_set", policy="volume_extension:quota_classes:update",
    ),
    Route(method="GET", path="/limits", handler=limits, policy="limits_extension:used_limits"),
]  # fmt: skip
