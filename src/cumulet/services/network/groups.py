"""Security groups, and the default group that every project gets on demand."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, delete, select

from cumulet.db import Tx
from cumulet.kernel.ids import new_uuid
from cumulet.services.network import tables as t
from cumulet.services.network.faults import conflict, missing
from cumulet.services.network.intake import Given
from cumulet.services.network.noun import Noun, apply, grouped, plain, rows_in
from cumulet.services.network.resources import SECURITY_GROUP

if TYPE_CHECKING:
    from cumulet.services.network.work import Work

_DEFAULT_OF = select(t.SECURITY_GROUPS.c.default_for, t.SECURITY_GROUPS.c.id).where(
    t.SECURITY_GROUPS.c.default_for.in_(bindparam("ids", expanding=True))
)
_RULES_OF = (
    select(t.SECURITY_GROUP_RULES)
    .where(t.SECURITY_GROUP_RULES.c.security_group_id.in_(bindparam("ids", expanding=True)))
    .order_by(t.SECURITY_GROUP_RULES.c.created_at, t.SECURITY_GROUP_RULES.c.id)
)
_IN_USE = (
    select(t.PORT_GROUPS.c.port_id)
    .join(t.PORTS, t.PORTS.c.id == t.PORT_GROUPS.c.port_id)
    .where(t.PORT_GROUPS.c.security_group_id == bindparam("group_id"))
    .limit(5)
)
_REFERRED = select(t.SECURITY_GROUP_RULES.c.id).where(
    t.SECURITY_GROUP_RULES.c.remote_group_id == bindparam("group_id"),
    t.SECURITY_GROUP_RULES.c.security_group_id != bindparam("group_id"),
)
_DROP_RULES = delete(t.SECURITY_GROUP_RULES).where(t.SECURITY_GROUP_RULES.c.security_group_id == bindparam("group_id"))
_DROP_REFERRING = delete(t.SECURITY_GROUP_RULES).where(
    t.SECURITY_GROUP_RULES.c.remote_group_id == bindparam("group_id")
)
_REFERRING_GROUPS = (
    select(t.SECURITY_GROUP_RULES.c.security_group_id)
    .distinct()
    .where(t.SECURITY_GROUP_RULES.c.remote_group_id == bindparam("group_id"))
)


class SecurityGroups(Noun[t.SecurityGroupRow]):
    resource = SECURITY_GROUP
    row = t.SecurityGroupRow

    def views(self, tx: Tx, rows: Sequence[t.SecurityGroupRow]) -> list[dict[str, Any]]:
        tags = self.tags(tx, rows)
        found = self.rules_of(tx, (row.id for row in rows))
        rules: dict[str, list[dict[str, Any]]] = {}
        for view in self.service.rules.views_with(found, {row.id: row.default_for is not None for row in rows}):
            rules.setdefault(view["security_group_id"], []).append(view)
        return [
            {
                **self.standard(row),
                "name": row.name,
                "stateful": row.stateful,
                "security_group_rules": rules.get(row.id, []),
                "shared": False,
                "tags": tags.get(row.id, []),
            }
            for row in rows
        ]

    def rules_of(self, tx: Tx, group_ids: Iterable[str]) -> list[t.SecurityGroupRuleRow]:
        return [t.SecurityGroupRuleRow(*row) for row in rows_in(tx, _RULES_OF, group_ids)]

    # -- default groups ----------------------------------------------------------------------------------------

    def defaults(self, tx: Tx, project_ids: Iterable[str]) -> dict[str, str]:
        return {row[0]: row[1] for row in rows_in(tx, _DEFAULT_OF, project_ids)}

    def ensure_default(self, work: "Work", project_id: str) -> str | None:
        """The id of the project's default group, made if need be; None for no project."""
        if not project_id:
            return None
        tx = work.tx
        known = work.default_groups.get(project_id) or self.defaults(tx, [project_id]).get(project_id)
        if known is None:
            tx.lock("security-group-default", project_id)
            known = self.defaults(tx, [project_id]).get(project_id)
        if known is None:
            row = t.SecurityGroupRow(
                id=new_uuid(),
                project_id=project_id,
                name="default",
                description="Default security group",
                stateful=True,
                default_for=project_id,
                **self.stamps(tx),
            )
            tx.insert(t.SECURITY_GROUPS, row.values())
            rules = [
                *self.service.rules.outbound(tx, row),
                *self.service.rules.from_itself(tx, row),
            ]
            tx.insert(t.SECURITY_GROUP_RULES, [rule.values() for rule in rules])
            known = row.id
        work.default_groups[project_id] = known
        return known

    def check_usable(self, work: "Work", group_ids: Iterable[str], project_id: str) -> None:
        """A port may be put in groups of its own project; those who see all may take any."""
        wanted = list(dict.fromkeys(group_ids))
        known = self.many(work.tx, wanted)
        for id in wanted:
            row = known.get(id)
            if row is None or not (work.sees_all or row.project_id == project_id):
                raise missing("SecurityGroupNotFound", "Security group", id)

    # -- changes -------------------------------------------------------------------------------------------------

    def create(self, work: "Work", items: list[Given]) -> list[t.SecurityGroupRow]:
        tx = work.tx
        for given in items:
            self.ensure_default(work, given["project_id"])
        self.service.quotas.reserve(tx, "security_group", [g["project_id"] for g in items])
        rows = []
        for given in items:
            row = t.SecurityGroupRow(
                id=new_uuid(),
                default_for=None,
                **plain(given, "project_id", "name", "description", "stateful"),
                **self.stamps(tx),
            )
            tx.insert(t.SECURITY_GROUPS, row.values())
            tx.insert(t.SECURITY_GROUP_RULES, [rule.values() for rule in self.service.rules.outbound(tx, row)])
            rows.append(row)
        return rows

    def update(self, work: "Work", row: t.SecurityGroupRow, given: Given) -> t.SecurityGroupRow:
        if row.default_for is not None and given.get("name", row.name) != row.name:
            raise conflict("SecurityGroupCannotUpdateDefault", "The default security group keeps its name.")
        if "stateful" in given and given["stateful"] != row.stateful:
            self._refuse_in_use(work.tx, row)
        apply(row, given, "name", "description", "stateful")
        self.save(work.tx, row)
        return row

    def _refuse_in_use(self, tx: Tx, row: t.SecurityGroupRow) -> None:
        users = tx.rows(_IN_USE, {"group_id": row.id})
        if users:
            ports = ", ".join(u[0] for u in users)
            raise conflict("SecurityGroupInUse", f"Security Group {row.id} in use by ports {ports}.")

    def delete(self, work: "Work", row: t.SecurityGroupRow) -> None:
        tx = work.tx
        if row.default_for is not None and not work.sees_all:
            raise conflict(
                "SecurityGroupCannotRemoveDefault", "Only an administrator may remove a default security group."
            )
        self._refuse_in_use(tx, row)
        work.groups.update(found[0] for found in tx.rows(_REFERRING_GROUPS, {"group_id": row.id}))
        work.groups.discard(row.id)
        tx.run(_DROP_REFERRING, {"group_id": row.id})
        tx.run(_DROP_RULES, {"group_id": row.id})
        self.remove(tx, [row.id])


def by_port(rows: Iterable[Any]) -> dict[str, list[str]]:
    return {port: [row[1] for row in found] for port, found in grouped(rows).items()}
