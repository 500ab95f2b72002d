"""Server groups."""

from typing import Any

from cumulet.db import Tx
from cumulet.http import Call, Route, whole_number
from cumulet.kernel.errors import BadInput, NotFound
from cumulet.kernel.ids import new_uuid
from cumulet.services.compute import catalogue, schema
from cumulet.services.compute.api.common import boolean, only_query, service_of, version_of
from cumulet.services.compute.rows import GroupRow

_RULE = "os_compute_api:os-server-groups:"


def _view(call: Call, row: GroupRow, members: list[str]) -> dict[str, Any]:
    version = version_of(call)
    shown: dict[str, Any] = {"id": row.id, "name": row.name, "members": members}
    if version >= (2, 64):
        shown["policy"] = row.policy
        shown["rules"] = row.rules
    else:
        shown["policies"] = [row.policy] if row.policy else []
        shown["metadata"] = {}
    if version >= (2, 13):
        shown["project_id"] = row.project_id
        shown["user_id"] = row.user_id
    return shown


def _load(call: Call, tx: Tx, rule: str) -> GroupRow:
    group_id = call.params["group_id"]
    row = catalogue.group(tx, group_id)
    if row is None or (row.project_id != call.ctx.project_id and not call.ctx.is_admin):
        raise NotFound(f"Instance group {group_id} could not be found.")
    call.authorize(_RULE + rule, {"project_id": row.project_id, "user_id": row.user_id})
    return row


def index(call: Call) -> dict[str, Any]:
    only_query(call, ["all_projects", "limit", "offset"], (2, 75))
    everyone = False
    if "all_projects" in call.query and call.allowed(_RULE + "index:all_projects"):
        everyone = boolean(call.query.get("all_projects") or "true", name="all_projects")
    limit, offset = whole_number(call.query, "limit") or 1000, whole_number(call.query, "offset") or 0

    def work(tx: Tx) -> list[dict[str, Any]]:
        rows = catalogue.groups(tx, None if everyone else call.ctx.project_id)[offset : offset + limit]
        members = catalogue.members(tx, [row.id for row in rows])
        return [_view(call, row, [member[0] for member in members.get(row.id, [])]) for row in rows]

    return {"server_groups": service_of(call).db.read(work)}


def show(call: Call) -> dict[str, Any]:
    def work(tx: Tx) -> dict[str, Any]:
        row = _load(call, tx, "show")
        return _view(call, row, [member[0] for member in catalogue.members(tx, [row.id]).get(row.id, [])])

    return {"server_group": service_of(call).db.read(work)}


def create(call: Call) -> dict[str, Any]:
    body = call.body
    rules: dict[str, Any] = {}
    if version_of(call) >= (2, 64):
        policy = body.policy
        if body.rules.max_server_per_host is not schema.UNSET:
            if policy != "anti-affinity":
                raise BadInput("Only anti-affinity policy supports rules.")
            rules = {"max_server_per_host": body.rules.max_server_per_host}
    else:
        policy = body.policies[0]
        if policy.startswith("soft-") and version_of(call) < (2, 15):
            raise BadInput(
                f"Invalid input for field/attribute 0. Value: {policy}. {policy!r} is not one of the policies"
            )

    def work(tx: Tx) -> GroupRow:
        service_of(call).quotas.admit_group(tx, call.ctx.project_id or "")
        row = GroupRow(new_uuid(), call.ctx.project_id or "", call.ctx.user_id or "", body.name, policy, rules, tx.now)
        catalogue.insert_group(tx, {name: getattr(row, name) for name in row.__struct_fields__})
        return row

    return {"server_group": _view(call, service_of(call).db.write(work), [])}


def delete(call: Call) -> None:
    service_of(call).db.write(lambda tx: catalogue.delete_group(tx, _load(call, tx, "delete").id))


ROUTES = [
    Route(method="GET", path="/os-server-groups", handler=index, policy=_RULE + "index"),
    Route(
        method="POST", path="/os-server-groups", handler=create, policy=_RULE + "create", body=schema.GroupPolicy,
        body_key="server_group", strict=False, min_version="2.64",
    ),
    Route(
        method="POST", path="/os-server-groups", handler=create, policy=_RULE + "create", body=schema.GroupPolicies,
        body_key="server_group", max_version="2.63",
    ),
    Route(method="GET", path="/os-server-groups/{group_id}", handler=show),
    Route(method="DELETE", path="/os-server-groups/{group_id}", handler=delete, success=204),
]  # fmt: skip
