"""Quota sets, quota classes, limits and tenant usage."""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from msgspec import UNSET
from sqlalchemy import bindparam, or_, select

from cumulet.db import Tx
from cumulet.http import Call, Route
from cumulet.kernel.clock import SECOND, iso
from cumulet.kernel.errors import BadInput, NotFound
from cumulet.services.compute import catalogue, schema
from cumulet.services.compute.api.common import only_query, page_of, service_of, version_of, with_links
from cumulet.services.compute.quotas import CLASS, FILES, NETWORK, PER_USER
from cumulet.services.compute.rows import ServerRow
from cumulet.services.compute.tables import SERVERS

_SETS = "os_compute_api:os-quota-sets:"
_ORDER = (
    "instances", "cores", "ram", "metadata_items", "key_pairs", "server_groups", "server_group_members",
    "injected_files", "injected_file_content_bytes", "injected_file_path_bytes", *NETWORK,
)  # fmt: skip


def _names(call: Call, *, classes: bool = False) -> list[str]:
    """The resources that this version knows."""
    version = version_of(call)
    hidden: set[str] = set()
    if version >= (2, 57):
        hidden |= set(FILES)
    if version >= ((2, 50) if classes else (2, 36)):
        hidden |= set(NETWORK)
    if classes and version < (2, 50):
        hidden |= {"server_groups", "server_group_members"}
    return [name for name in _ORDER if name not in hidden]


def _check_project(call: Call, tx: Tx, project_id: str) -> None:
    identity = service_of(call).identity
    if identity is None or project_id == call.ctx.project_id:
        return
    try:
        found = identity.project(tx, project_id)
    except NotFound:
        found = None
    if found is None:
        raise BadInput(f"Project ID {project_id} is not a valid project.")


def _given(call: Call) -> dict[str, int]:
    body: schema.QuotaUpdate = call.body
    names = set(_ORDER)
    return {
        name: value for name in body.__struct_fields__ if name in names and (value := getattr(body, name)) is not UNSET
    }


def show(call: Call) -> dict[str, Any]:
    only_query(call, ["user_id"], (2, 75))
    project_id, user_id = call.params["project_id"], call.query.get("user_id")
    call.authorize(_SETS + "show", {"project_id": project_id})

    def work(tx: Tx) -> dict[str, int]:
        _check_project(call, tx, project_id)
        return service_of(call).quotas.limits(tx, project_id, user_id)

    limits = service_of(call).db.read(work)
    return {"quota_set": {"id": project_id, **{name: limits[name] for name in _names(call)}}}


def detail(call: Call) -> dict[str, Any]:
    only_query(call, ["user_id"], (2, 75))
    project_id, user_id = call.params["project_id"], call.query.get("user_id")
    call.authorize(_SETS + "detail", {"project_id": project_id})

    def work(tx: Tx) -> tuple[dict[str, int], dict[str, int]]:
        _check_project(call, tx, project_id)
        quotas = service_of(call).quotas
        return quotas.limits(tx, project_id, user_id), quotas.use(tx, project_id, user_id)

    limits, use = service_of(call).db.read(work)
    shown = {name: {"limit": limits[name], "in_use": use[name], "reserved": 0} for name in _names(call)}
    return {"quota_set": {"id": project_id, **shown}}


def defaults(call: Call) -> dict[str, Any]:
    project_id = call.params["project_id"]
    call.authorize(_SETS + "defaults", {"project_id": project_id})

    def work(tx: Tx) -> dict[str, int]:
        _check_project(call, tx, project_id)
        return service_of(call).quotas.defaults(tx)

    found = service_of(call).db.read(work)
    return {"quota_set": {"id": project_id, **{name: found[name] for name in _names(call)}}}


def update(call: Call) -> dict[str, Any]:
    only_query(call, ["user_id"], (2, 75))
    project_id, user_id = call.params["project_id"], call.query.get("user_id")
    new = _given(call)
    force = schema.truth(call.body.force)
    quotas = service_of(call).quotas

    def work(tx: Tx) -> dict[str, int]:
        _check_project(call, tx, project_id)
        tx.lock("quota", project_id)
        if user_id is not None and set(new) - set(PER_USER) - {"key_pairs"}:
            raise BadInput("Per-user limits are kept for instances, cores, ram and key_pairs only.")
        if not force:
            use = quotas.use(tx, project_id, user_id)
            for name, limit in new.items():
                if 0 <= limit < use[name]:
                    raise BadInput(
                        f"Quota limit {limit} for {name} must be greater than or equal to already used {use[name]}."
                    )
        if user_id is not None:
            whole = quotas.limits(tx, project_id)
            for name, limit in new.items():
                if whole[name] >= 0 and (limit > whole[name] or limit < 0):
                    raise BadInput(f"Quota limit {limit} for {name} must be less than or equal to {whole[name]}.")
        quotas.update(tx, project_id, user_id, new)
        return quotas.limits(tx, project_id, user_id)

    limits = service_of(call).db.write(work)
    return {"quota_set": {name: limits[name] for name in _names(call)}}


def delete(call: Call) -> None:
    only_query(call, ["user_id"], (2, 75))
    project_id, user_id = call.params["project_id"], call.query.get("user_id")
    scope = f"project:{project_id}" if user_id is None else f"user:{project_id}:{user_id}"
    service_of(call).db.write(lambda tx: catalogue.delete_quotas(tx, scope))


def class_show(call: Call) -> dict[str, Any]:
    name = call.params["name"]
    quotas = service_of(call).quotas
    found = service_of(call).db.read(quotas.defaults) if name == "default" else quotas.configured
    return {"quota_class_set": {"id": name, **{key: found[key] for key in _names(call, classes=True)}}}


def class_update(call: Call) -> dict[str, Any]:
    name = call.params["name"]
    new = _given(call)
    quotas = service_of(call).quotas

    def work(tx: Tx) -> dict[str, int]:
        for key, limit in new.items():
            catalogue.set_quota(tx, CLASS if name == "default" else f"class:{name}", key, limit)
        return quotas.defaults(tx)

    found = service_of(call).db.write(work)
    return {"quota_class_set": {key: found[key] for key in _names(call, classes=True)}}


# -- limits -----------------------------------------------------------------------------------------------------------


def limits(call: Call) -> dict[str, Any]:
    only_query(call, ["tenant_id"], (2, 75))
    project_id = call.ctx.project_id or ""
    asked = call.query.get("tenant_id")
    if asked is not None and asked != project_id:
        call.authorize("os_compute_api:limits:other_project", {"project_id": asked, "user_id": call.ctx.user_id})
        project_id = asked
    version = version_of(call)

    def work(tx: Tx) -> tuple[dict[str, int], dict[str, int]]:
        quotas = service_of(call).quotas
        return quotas.limits(tx, project_id), quotas.use(tx, project_id)

    have, use = service_of(call).db.read(work)
    shown = {
        "maxTotalInstances": have["instances"],
        "maxTotalCores": have["cores"],
        "maxTotalRAMSize": have["ram"],
        "maxServerMeta": have["metadata_items"],
        "maxTotalKeypairs": have["key_pairs"],
        "maxServerGroups": have["server_groups"],
        "maxServerGroupMembers": have["server_group_members"],
        "totalCoresUsed": use["cores"],
        "totalInstancesUsed": use["instances"],
        "totalRAMUsed": use["ram"],
        "totalServerGroupsUsed": use["server_groups"],
    }
    if version < (2, 57):
        shown["maxPersonality"] = have["injected_files"]
        shown["maxPersonalitySize"] = have["injected_file_content_bytes"]
    if version < (2, 39):
        shown["maxImageMeta"] = have["metadata_items"]
    if version < (2, 36):
        shown.update(
            {
                "maxTotalFloatingIps": have["floating_ips"],
                "maxSecurityGroups": have["security_groups"],
                "maxSecurityGroupRules": have["security_group_rules"],
                "totalFloatingIpsUsed": 0,
                "totalSecurityGroupsUsed": 0,
            }
        )
    return {"limits": {"rate": [], "absolute": shown}}


# -- usage ------------------------------------------------------------------------------------------------------------

_WITHIN = (
    select(*SERVERS.c)
    .where(
        SERVERS.c.launched_at <= bindparam("end"),
        or_(SERVERS.c.terminated_at.is_(None), SERVERS.c.terminated_at >= bindparam("begin")),
    )
    .order_by(SERVERS.c.project_id, SERVERS.c.launched_at, SERVERS.c.number)
)
_WITHIN_PROJECT = _WITHIN.where(SERVERS.c.project_id == bindparam("project_id"))
_FORMS = ("%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S.%f", "%Y-%m-%d %H:%M:%S.%f")


class _Usage(msgspec.Struct):
    begin: int
    end: int
    detailed: bool


def _moment(text: str | None, default: datetime) -> datetime:
    if not text:
        return default
    for form in _FORMS:
        try:
            return datetime.strptime(text, form).replace(tzinfo=UTC)
        except ValueError:
            continue
    raise BadInput(f"Datetime is in invalid format: {text}")


def _period(call: Call) -> _Usage:
    only_query(call, ["start", "end", "detailed", "limit", "marker"], (2, 75))
    now = datetime.fromtimestamp(service_of(call).clock.now() / SECOND, UTC)
    begin = _moment(call.query.get("start"), now - timedelta(weeks=4))
    end = _moment(call.query.get("end"), now)
    if begin >= end:
        raise BadInput("Invalid start time. The start time cannot occur after the end time.")
    if not datetime(1970, 1, 2, tzinfo=UTC) < begin:
        raise BadInput("The start time is out of range.")
    microseconds = [int(moment.timestamp() * SECOND) for moment in (begin, end)]
    return _Usage(microseconds[0], microseconds[1], call.query.get("detailed") == "1")


def _of_project(rows: list[ServerRow], period: _Usage, now: int, *, detailed: bool) -> dict[str, Any]:
    usages = []
    totals = dict.fromkeys(("hours", "vcpus", "memory", "disk"), 0.0)
    for row in rows:
        launched = row.launched_at or row.created_at
        begin, end = max(launched, period.begin), min(row.terminated_at or period.end, period.end)
        hours = max(0, end - begin) / SECOND / 3600
        disk = row.root_gb + row.ephemeral_gb
        totals["hours"] += hours
        totals["vcpus"] += hours * row.vcpus
        totals["memory"] += hours * row.memory_mb
        totals["disk"] += hours * disk
        usages.append(
            {
                "instance_id": row.id,
                "name": row.name,
                "hours": hours,
                "flavor": row.flavor["name"],
                "tenant_id": row.project_id,
                "vcpus": row.vcpus,
                "memory_mb": row.memory_mb,
                "local_gb": disk,
                "started_at": iso(row.launched_at, zone="", micros=True),
                "ended_at": iso(row.terminated_at, zone="", micros=True),
                "state": "terminated" if row.deleted_at is not None else row.vm_state,
                "uptime": int(max(0, (row.terminated_at or now) - launched) / SECOND),
            }
        )
    shown: dict[str, Any] = {
        "tenant_id": rows[0].project_id,
        "start": iso(period.begin, zone="", micros=True),
        "stop": iso(period.end, zone="", micros=True),
        "total_hours": totals["hours"],
        "total_vcpus_usage": totals["vcpus"],
        "total_memory_mb_usage": totals["memory"],
        "total_local_gb_usage": totals["disk"],
    }
    if detailed:
        shown["server_usages"] = usages
    return shown


def _paged(call: Call, rows: list[ServerRow]) -> list[ServerRow]:
    if version_of(call) < (2, 40):
        return rows
    page = page_of(call)
    if page.marker is not None:
        position = next((n for n, row in enumerate(rows) if row.id == page.marker), None)
        if position is None:
            raise BadInput(f"marker [{page.marker}] not found")
        rows = rows[position + 1 :]
    return rows[: page.size]


def usage_index(call: Call) -> dict[str, Any]:
    period = _period(call)
    found = service_of(call).db.read(lambda tx: tx.rows(_WITHIN, {"begin": period.begin, "end": period.end}))
    rows = _paged(call, [ServerRow(*row) for row in found])
    projects: dict[str, list[ServerRow]] = {}
    for row in rows:
        projects.setdefault(row.project_id, []).append(row)
    now = service_of(call).clock.now()
    shown = [_of_project(part, period, now, detailed=period.detailed) for part in projects.values()]
    if version_of(call) < (2, 40):
        return {"tenant_usages": shown}
    return with_links(call, "tenant_usages", "/os-simple-tenant-usage", shown, [row.id for row in rows], page_of(call))


def usage_show(call: Call) -> dict[str, Any]:
    project_id = call.params["project_id"]
    call.authorize("os_compute_api:os-simple-tenant-usage:show", {"project_id": project_id})
    period = _period(call)
    keys = {"begin": period.begin, "end": period.end, "project_id": project_id}
    found = service_of(call).db.read(lambda tx: tx.rows(_WITHIN_PROJECT, keys))
    rows = _paged(call, [ServerRow(*row) for row in found])
    shown: Any = {}
    if rows:
        shown = _of_project(rows, period, service_of(call).clock.now(), detailed=True)
    if version_of(call) < (2, 40):
        return {"tenant_usage": shown}
    path = f"/os-simple-tenant-usage/{project_id}"
    return with_links(call, "tenant_usage", path, shown, [row.id for row in rows], page_of(call))


ROUTES = [
    Route(method="GET", path="/os-quota-sets/{project_id}", handler=show),
    Route(method="GET", path="/os-quota-sets/{project_id}/detail", handler=detail),
    Route(method="GET", path="/os-quota-sets/{project_id}/defaults", handler=defaults),
    Route(
        method="PUT", path="/os-quota-sets/{project_id}", handler=update, policy=_SETS + "update",
        body=schema.QuotaUpdate, body_key="quota_set", strict=False,
    ),
    Route(
        method="DELETE", path="/os-quota-sets/{project_id}", handler=delete, policy=_SETS + "delete", success=202,
    ),
    Route(
        method="GET", path="/os-quota-class-sets/{name}", handler=class_show,
        policy="os_compute_api:os-quota-class-sets:show",
    ),
    Route(
        method="PUT", path="/os-quota-class-sets/{name}", handler=class_update,
        policy="os_compute_api:os-quota-class-sets:update", body=schema.QuotaClassUpdate,
        body_key="quota_class_set", strict=False,
    ),
    Route(method="GET", path="/limits", handler=limits, policy="os_compute_api:limits"),
    Route(
        method="GET", path="/os-simple-tenant-usage", handler=usage_index,
        policy="os_compute_api:os-simple-tenant-usage:list",
    ),
    Route(method="GET", path="/os-simple-tenant-usage/{project_id}", handler=usage_show),
]  # fmt: skip
