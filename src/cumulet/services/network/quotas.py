"""Quotas: limits by project over defaults; use is counted from rows, under the project's lock."""

from collections import Counter
from typing import Any

from sqlalchemy import Table, bindparam, case, delete, func, select, update

from cumulet.db import Tx
from cumulet.services.network import tables as t
from cumulet.services.network.faults import bad, over_quota
from cumulet.settings import Quota

_TABLES: dict[str, Table] = {
    "network": t.NETWORKS,
    "subnet": t.SUBNETS,
    "subnetpool": t.SUBNETPOOLS,
    "port": t.PORTS,
    "router": t.ROUTERS,
    "floatingip": t.FLOATING_IPS,
    "security_group": t.SECURITY_GROUPS,
    "security_group_rule": t.SECURITY_GROUP_RULES,
}
_COUNTS = {
    name: select(func.count()).select_from(table).where(table.c.project_id == bindparam("project_id"))
    for name, table in _TABLES.items()
}
_LIMITS = select(t.QUOTAS.c.resource, t.QUOTAS.c.limit).where(t.QUOTAS.c.project_id == bindparam("project_id"))
_LIMIT_OF = {
    name: select(t.QUOTAS.c.limit)
    .where(t.QUOTAS.c.project_id == bindparam("project_id"), t.QUOTAS.c.resource == name)
    .scalar_subquery()
    for name in _COUNTS
}
# what is not limited is not counted: it may be very many
_LIMIT_AND_USE = {
    name: select(
        _LIMIT_OF[name],
        case((func.coalesce(_LIMIT_OF[name], bindparam("default")) < 0, 0), else_=count.scalar_subquery()),
    )
    for name, count in _COUNTS.items()
}
_PROJECTS = select(t.QUOTAS.c.project_id).distinct()
_SET = (
    update(t.QUOTAS)
    .where(t.QUOTAS.c.project_id == bindparam("_project"), t.QUOTAS.c.resource == bindparam("_resource"))
    .values(limit=bindparam("_limit"))
)
_RESET = delete(t.QUOTAS).where(t.QUOTAS.c.project_id == bindparam("project_id"))


class Quotas:
    def __init__(self, settings: Quota) -> None:
        self._defaults = {
            "network": settings.networks,
            "subnet": 100,
            "subnetpool": -1,
            "port": settings.ports,
            "router": settings.routers,
            "floatingip": settings.floating_ips,
            "security_group": settings.security_groups,
            "security_group_rule": settings.security_group_rules,
            "router_route": 30,
            "rbac_policy": 10,
            "trunk": -1,
        }

    def defaults(self) -> dict[str, int]:
        return dict(self._defaults)

    def limits(self, tx: Tx, project_id: str) -> dict[str, int]:
        return self._defaults | {row[0]: row[1] for row in tx.rows(_LIMITS, {"project_id": project_id})}

    def used(self, tx: Tx, project_id: str, resource: str) -> int:
        statement = _COUNTS.get(resource)
        return 0 if statement is None else int(tx.scalar(statement, {"project_id": project_id}))

    def reserve(self, tx: Tx, resource: str, projects: list[str]) -> None:
        """Refuse when as many more of a resource as there are names in ``projects`` would be too many."""
        for project_id, count in sorted(Counter(projects).items()):
            if not project_id:
                continue
            tx.lock("quota", project_id)
            room = self.room(tx, resource, project_id)
            if room is not None and count > room:
                raise over_quota([resource])

    def room(self, tx: Tx, resource: str, project_id: str) -> int | None:
        """How many more the project may have; None: any number."""
        values = {"project_id": project_id, "default": self._defaults[resource]}
        limit, used = tx.rows(_LIMIT_AND_USE[resource], values)[0]
        if limit is None:
            limit = self._defaults[resource]
        return None if limit < 0 else max(0, limit - used)

    def details(self, tx: Tx, project_id: str) -> dict[str, Any]:
        return {
            name: {"limit": limit, "used": self.used(tx, project_id, name), "reserved": 0}
            for name, limit in self.limits(tx, project_id).items()
        }

    def all(self, tx: Tx) -> list[dict[str, Any]]:
        return [{"project_id": row[0], "tenant_id": row[0], **self.limits(tx, row[0])} for row in tx.rows(_PROJECTS)]

    def set(self, tx: Tx, project_id: str, changes: dict[str, Any], *, force: bool) -> dict[str, int]:
        tx.lock("quota", project_id)
        for resource, limit in changes.items():
            used = self.used(tx, project_id, resource)
            if not force and limit >= 0 and limit < used:
                raise bad(f"The limit {limit} of {resource} is below its use, {used}.", "InvalidQuotaValue")
            values = {"_project": project_id, "_resource": resource, "_limit": limit}
            if not tx.run(_SET, values):
                tx.insert(t.QUOTAS, {"project_id": project_id, "resource": resource, "limit": limit})
        return self.limits(tx, project_id)

    def reset(self, tx: Tx, project_id: str) -> None:
        tx.run(_RESET, {"project_id": project_id})
