"""SQL over what servers are made from and grouped by: flavors, key pairs, quotas, server groups, aggregates."""

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import bindparam, delete, func, literal, or_, select, union_all, update

from cumulet.db import Tx, to_refer
from cumulet.kernel.context import RequestContext
from cumulet.kernel.ids import new_uuid
from cumulet.services.compute.rows import AggregateRow, FlavorRow, GroupRow, KeypairRow
from cumulet.services.compute.tables import (
    AGGREGATE_HOSTS,
    AGGREGATES,
    FLAVOR_ACCESS,
    FLAVORS,
    KEYPAIRS,
    QUOTAS,
    SERVER_GROUP_MEMBERS,
    SERVER_GROUPS,
    SERVERS,
)

# -- flavors -------------------------------------------------------------------------------------------------

_FLAVOR = select(*FLAVORS.c).where(FLAVORS.c.id == bindparam("id"))
_FLAVOR_BY_NAME = select(*FLAVORS.c).where(FLAVORS.c.name == bindparam("name"))
_FLAVORS = select(*FLAVORS.c)
_HAS_ACCESS = select(FLAVOR_ACCESS.c.flavor_id).where(FLAVOR_ACCESS.c.project_id == bindparam("project_id"))
_ACCESS = (
    select(FLAVOR_ACCESS.c.project_id)
    .where(FLAVOR_ACCESS.c.flavor_id == bindparam("id"))
    .order_by(FLAVOR_ACCESS.c.project_id)
)
_DELETE_FLAVOR = delete(FLAVORS).where(FLAVORS.c.id == bindparam("id"))
_DELETE_ACCESS = delete(FLAVOR_ACCESS).where(FLAVOR_ACCESS.c.flavor_id == bindparam("id"))
_DELETE_ACCESS_OF = _DELETE_ACCESS.where(FLAVOR_ACCESS.c.project_id == bindparam("project_id"))


def flavor(tx: Tx, flavor_id: str) -> FlavorRow | None:
    row = tx.first(_FLAVOR, {"id": flavor_id})
    return FlavorRow(*row) if row is not None else None


def may_use(tx: Tx, row: FlavorRow, ctx: RequestContext) -> bool:
    """Public flavors are everybody's, private ones those projects' that were given access."""
    return row.is_public or ctx.is_admin or ctx.project_id in flavor_access(tx, row.id)


def flavor_named(tx: Tx, name: str) -> FlavorRow | None:
    row = tx.first(_FLAVOR_BY_NAME, {"name": name})
    return FlavorRow(*row) if row is not None else None


def flavors(tx: Tx, project_id: str | None, *, public: bool | None) -> list[FlavorRow]:
    """``project_id`` None: whoever may see all. ``public`` None: both kinds."""
    statement = _FLAVORS
    if public is not None:
        statement = statement.where(FLAVORS.c.is_public == public)
    if project_id is not None:
        statement = statement.where(or_(FLAVORS.c.is_public, FLAVORS.c.id.in_(_HAS_ACCESS)))
        return [FlavorRow(*row) for row in tx.rows(statement, {"project_id": project_id})]
    return [FlavorRow(*row) for row in tx.rows(statement)]


def flavor_access(tx: Tx, flavor_id: str) -> list[str]:
    return [row[0] for row in tx.rows(_ACCESS, {"id": flavor_id})]


def add_access(tx: Tx, flavor_id: str, project_id: str) -> None:
    tx.insert(FLAVOR_ACCESS, {"flavor_id": flavor_id, "project_id": project_id})


def remove_access(tx: Tx, flavor_id: str, project_id: str) -> bool:
    return tx.run(_DELETE_ACCESS_OF, {"id": flavor_id, "project_id": project_id}) > 0


def insert_flavor(tx: Tx, values: dict[str, Any]) -> None:
    tx.insert(FLAVORS, values)


def update_flavor(tx: Tx, flavor_id: str, **values: Any) -> None:
    tx.run(update(FLAVORS).where(FLAVORS.c.id == flavor_id).values(**values, updated_at=tx.now))


def delete_flavor(tx: Tx, flavor_id: str) -> bool:
    tx.run(_DELETE_ACCESS, {"id": flavor_id})
    return tx.run(_DELETE_FLAVOR, {"id": flavor_id}) > 0


# -- key pairs -----------------------------------------------------------------------------------------------

_KEYPAIRS = select(*KEYPAIRS.c).where(KEYPAIRS.c.user_id == bindparam("user_id")).order_by(KEYPAIRS.c.name)
_KEYPAIR = select(*KEYPAIRS.c).where(KEYPAIRS.c.user_id == bindparam("user_id"), KEYPAIRS.c.name == bindparam("name"))
_DELETE_KEYPAIR = delete(KEYPAIRS).where(
    KEYPAIRS.c.user_id == bindparam("user_id"), KEYPAIRS.c.name == bindparam("name")
)
_KEYPAIRS_OF = select(func.count()).select_from(KEYPAIRS).where(KEYPAIRS.c.user_id == bindparam("user_id"))


def keypairs(tx: Tx, user_id: str) -> list[KeypairRow]:
    return [KeypairRow(*row) for row in tx.rows(_KEYPAIRS, {"user_id": user_id})]


def keypair(tx: Tx, user_id: str, name: str) -> KeypairRow | None:
    row = tx.first(_KEYPAIR, {"user_id": user_id, "name": name})
    return KeypairRow(*row) if row is not None else None


def keypairs_used(tx: Tx, user_id: str) -> int:
    return tx.scalar(_KEYPAIRS_OF, {"user_id": user_id})


def insert_keypair(tx: Tx, values: dict[str, Any]) -> None:
    tx.insert(KEYPAIRS, {**values, "created_at": tx.now})


def delete_keypair(tx: Tx, user_id: str, name: str) -> bool:
    return tx.run(_DELETE_KEYPAIR, {"user_id": user_id, "name": name}) > 0


# -- quotas --------------------------------------------------------------------------------------------------

_QUOTAS = select(QUOTAS.c.scope, QUOTAS.c.resource, QUOTAS.c.hard_limit).where(
    QUOTAS.c.scope.in_(bindparam("scopes", expanding=True))
)
_QUOTAS_AND_USE = union_all(
    select(QUOTAS.c.scope, QUOTAS.c.resource, QUOTAS.c.hard_limit, literal(0), literal(0)).where(
        QUOTAS.c.scope.in_(bindparam("scopes", expanding=True))
    ),
    select(
        literal(""),
        literal(""),
        func.count(),
        func.coalesce(func.sum(SERVERS.c.vcpus), 0),
        func.coalesce(func.sum(SERVERS.c.memory_mb), 0),
    ).where(SERVERS.c.project_id == bindparam("project_id"), SERVERS.c.deleted_at.is_(None)),
)
_DELETE_QUOTA = delete(QUOTAS).where(QUOTAS.c.scope == bindparam("scope"), QUOTAS.c.resource == bindparam("resource"))
_DELETE_QUOTAS = delete(QUOTAS).where(QUOTAS.c.scope == bindparam("scope"))


def quotas(tx: Tx, scopes: Sequence[str]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {scope: {} for scope in scopes}
    for scope, resource, limit in tx.rows(_QUOTAS, {"scopes": list(scopes)}):
        found[scope][resource] = limit
    return found


def quotas_and_use(
    tx: Tx, scopes: Sequence[str], project_id: str
) -> tuple[dict[str, dict[str, int]], tuple[int, int, int]]:
    """The limits of these scopes; and the project's servers, their cores and MiB, as `store.used` sums them."""
    found: dict[str, dict[str, int]] = {scope: {} for scope in scopes}
    used = (0, 0, 0)
    for scope, resource, first, cores, ram in tx.rows(
        _QUOTAS_AND_USE, {"scopes": list(scopes), "project_id": project_id}
    ):
        if scope:
            found[scope][resource] = first
        else:
            used = (int(first), int(cores), int(ram))
    return found, used


def set_quota(tx: Tx, scope: str, resource: str, limit: int) -> None:
    tx.run(_DELETE_QUOTA, {"scope": scope, "resource": resource})
    tx.insert(QUOTAS, {"scope": scope, "resource": resource, "hard_limit": limit})


def delete_quotas(tx: Tx, scope: str) -> None:
    tx.run(_DELETE_QUOTAS, {"scope": scope})


# -- server groups -------------------------------------------------------------------------------------------

_GROUP = select(*SERVER_GROUPS.c).where(SERVER_GROUPS.c.id == bindparam("id"))
_GROUP_TO_REFER = to_refer(_GROUP)
_GROUPS = select(*SERVER_GROUPS.c).order_by(SERVER_GROUPS.c.created_at, SERVER_GROUPS.c.id)
_GROUPS_OF = _GROUPS.where(SERVER_GROUPS.c.project_id == bindparam("project_id"))
_GROUPS_USED = (
    select(func.count()).select_from(SERVER_GROUPS).where(SERVER_GROUPS.c.project_id == bindparam("project_id"))
)
_MEMBERS = (
    select(SERVER_GROUP_MEMBERS.c.group_id, SERVER_GROUP_MEMBERS.c.server_id, SERVERS.c.host, SERVERS.c.user_id)
    .join(SERVERS, SERVERS.c.id == SERVER_GROUP_MEMBERS.c.server_id)
    .where(SERVER_GROUP_MEMBERS.c.group_id.in_(bindparam("ids", expanding=True)), SERVERS.c.deleted_at.is_(None))
    .order_by(SERVERS.c.number)
)
_GROUPS_OF_SERVERS = select(SERVER_GROUP_MEMBERS.c.server_id, SERVER_GROUP_MEMBERS.c.group_id).where(
    SERVER_GROUP_MEMBERS.c.server_id.in_(bindparam("ids", expanding=True))
)
_DELETE_GROUP = delete(SERVER_GROUPS).where(SERVER_GROUPS.c.id == bindparam("id"))
_DELETE_MEMBERS = delete(SERVER_GROUP_MEMBERS).where(SERVER_GROUP_MEMBERS.c.group_id == bindparam("id"))


def group(tx: Tx, group_id: str) -> GroupRow | None:
    """In a writing unit of work it stays until the end: it may get members."""
    row = tx.first(_GROUP_TO_REFER if tx.writing else _GROUP, {"id": group_id})
    return GroupRow(*row) if row is not None else None


def groups(tx: Tx, project_id: str | None) -> list[GroupRow]:
    found = tx.rows(_GROUPS) if project_id is None else tx.rows(_GROUPS_OF, {"project_id": project_id})
    return [GroupRow(*row) for row in found]


def groups_used(tx: Tx, project_id: str) -> int:
    return tx.scalar(_GROUPS_USED, {"project_id": project_id})


def members(tx: Tx, group_ids: Sequence[str]) -> dict[str, list[tuple[str, str | None, str]]]:
    """Group -> (server, host, user) of its living members."""
    found: dict[str, list[tuple[str, str | None, str]]] = {}
    if group_ids:
        for group_id, server_id, host, user_id in tx.rows(_MEMBERS, {"ids": list(group_ids)}):
            found.setdefault(group_id, []).append((server_id, host, user_id))
    return found


def groups_of_servers(tx: Tx, server_ids: Sequence[str]) -> dict[str, str]:
    if not server_ids:
        return {}
    return {row[0]: row[1] for row in tx.rows(_GROUPS_OF_SERVERS, {"ids": list(server_ids)})}


def insert_group(tx: Tx, values: dict[str, Any]) -> None:
    tx.insert(SERVER_GROUPS, values)


def add_members(tx: Tx, group_id: str, server_ids: Iterable[str]) -> None:
    tx.insert(SERVER_GROUP_MEMBERS, [{"group_id": group_id, "server_id": server_id} for server_id in server_ids])


def delete_group(tx: Tx, group_id: str) -> None:
    tx.run(_DELETE_GROUP, {"id": group_id})  # first: it waits for those who are putting servers into it
    tx.run(_DELETE_MEMBERS, {"id": group_id})


# -- aggregates and nodes --------------------------------------------------------------------------------------

_AGGREGATES = select(*AGGREGATES.c).order_by(AGGREGATES.c.id)
_AGGREGATE = select(*AGGREGATES.c).where(AGGREGATES.c.id == bindparam("id"))
_AGGREGATE_NAMED = select(*AGGREGATES.c).where(AGGREGATES.c.name == bindparam("name"))
_AGGREGATE_HOSTS = select(AGGREGATE_HOSTS.c.aggregate_id, AGGREGATE_HOSTS.c.host).order_by(AGGREGATE_HOSTS.c.host)
_DELETE_AGGREGATE = delete(AGGREGATES).where(AGGREGATES.c.id == bindparam("id"))
_DELETE_AGGREGATE_HOST = delete(AGGREGATE_HOSTS).where(
    AGGREGATE_HOSTS.c.aggregate_id == bindparam("id"), AGGREGATE_HOSTS.c.host == bindparam("host")
)


def aggregates(tx: Tx) -> list[AggregateRow]:
    return [AggregateRow(*row) for row in tx.rows(_AGGREGATES)]


def aggregate(tx: Tx, aggregate_id: int) -> AggregateRow | None:
    row = tx.first(_AGGREGATE, {"id": aggregate_id})
    return AggregateRow(*row) if row is not None else None


def aggregate_named(tx: Tx, name: str) -> AggregateRow | None:
    row = tx.first(_AGGREGATE_NAMED, {"name": name})
    return AggregateRow(*row) if row is not None else None


def aggregate_hosts(tx: Tx) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for aggregate_id, host in tx.rows(_AGGREGATE_HOSTS):
        found.setdefault(aggregate_id, []).append(host)
    return found


def insert_aggregate(tx: Tx, name: str, metadata: dict[str, str]) -> None:
    tx.insert(AGGREGATES, {"uuid": new_uuid(), "name": name, "metadata": metadata, "created_at": tx.now})


def update_aggregate(tx: Tx, aggregate_id: int, **values: Any) -> None:
    tx.run(update(AGGREGATES).where(AGGREGATES.c.id == aggregate_id).values(**values, updated_at=tx.now))


def delete_aggregate(tx: Tx, aggregate_id: int) -> None:
    tx.run(_DELETE_AGGREGATE, {"id": aggregate_id})


def add_aggregate_host(tx: Tx, aggregate_id: int, host: str) -> None:
    tx.insert(AGGREGATE_HOSTS, {"aggregate_id": aggregate_id, "host": host})


def remove_aggregate_host(tx: Tx, aggregate_id: int, host: str) -> bool:
    return tx.run(_DELETE_AGGREGATE_HOST, {"id": aggregate_id, "host": host}) > 0


_AGGREGATES_OF_HOSTS = (
    select(AGGREGATE_HOSTS.c.host, AGGREGATES.c.metadata)
    .join(AGGREGATES, AGGREGATES.c.id == AGGREGATE_HOSTS.c.aggregate_id)
    .order_by(AGGREGATES.c.id)
)


def aggregates_of_hosts(tx: Tx) -> dict[str, list[dict[str, str]]]:
    """Host -> metadata of the aggregates it is in."""
    found: dict[str, list[dict[str, str]]] = {}
    for host, metadata in tx.rows(_AGGREGATES_OF_HOSTS):
        found.setdefault(host, []).append(metadata)
    return found


def zone_of(aggregates: Iterable[dict[str, str]]) -> str | None:
    """The availability zone that a host's aggregates say."""
    return next((a["availability_zone"] for a in aggregates if a.get("availability_zone") is not None), None)


def zones(tx: Tx) -> dict[str, str]:
    """Host -> availability zone, for hosts that an aggregate puts into one."""
    return {host: zone for host, found in aggregates_of_hosts(tx).items() if (zone := zone_of(found)) is not None}
