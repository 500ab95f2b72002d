"""SQL of the identity service: typed rows and the statements over them.

Each noun has one `Entity` with its statements made once; lists filter by equality on columns, each combination of
columns being compiled once. The writers of names take ``tx.lock("identity", "names")`` first (`lock`)."""

from typing import Any, Generic, TypeVar

import msgspec
from sqlalchemy import Select, Table, bindparam, delete, literal_column, or_, select, update

from cumulet.db import Tx
from cumulet.services.identity import tables as t

Row = TypeVar("Row", bound=msgspec.Struct)


class ProjectRow(msgspec.Struct):
    id: str
    name: str
    domain_id: str | None
    parent_id: str | None
    is_domain: bool
    description: str | None
    enabled: bool
    tags: list[str]
    options: dict[str, Any]
    extra: dict[str, Any]


class UserRow(msgspec.Struct):
    id: str
    domain_id: str
    name: str
    enabled: bool
    default_project_id: str | None
    password_hash: str | None
    password_expires_at: int | None
    tokens_after: int
    options: dict[str, Any]
    extra: dict[str, Any]


class GroupRow(msgspec.Struct):
    id: str
    domain_id: str
    name: str
    description: str | None
    extra: dict[str, Any]


class RoleRow(msgspec.Struct):
    id: str
    name: str
    domain_id: str | None
    description: str | None
    options: dict[str, Any]
    extra: dict[str, Any]


class AssignmentRow(msgspec.Struct, frozen=True):
    actor_kind: str
    actor_id: str
    target_kind: str
    target_id: str
    role_id: str
    inherited: bool


class ServiceRow(msgspec.Struct):
    id: str
    type: str
    enabled: bool
    extra: dict[str, Any]


class RegionRow(msgspec.Struct):
    id: str
    parent_region_id: str | None
    description: str
    extra: dict[str, Any]


class EndpointRow(msgspec.Struct):
    id: str
    service_id: str
    region_id: str | None
    interface: str
    url: str
    enabled: bool
    extra: dict[str, Any]


class CredentialRow(msgspec.Struct):
    id: str
    user_id: str
    project_id: str | None
    type: str
    blob: str
    extra: dict[str, Any]


class ApplicationCredentialRow(msgspec.Struct):
    id: str
    user_id: str
    project_id: str
    name: str
    secret_hash: str
    description: str | None
    expires_at: int | None
    unrestricted: bool
    roles: list[str]
    access_rules: list[str] | None


class AccessRuleRow(msgspec.Struct):
    id: str
    user_id: str
    service: str | None
    path: str | None
    method: str | None


class RegisteredLimitRow(msgspec.Struct):
    id: str
    service_id: str
    region_id: str | None
    resource_name: str
    default_limit: int
    description: str | None


class LimitRow(msgspec.Struct):
    id: str
    project_id: str | None
    domain_id: str | None
    service_id: str
    region_id: str | None
    resource_name: str
    resource_limit: int
    description: str | None


class TrustRow(msgspec.Struct):
    id: str
    trustor_user_id: str
    trustee_user_id: str
    project_id: str | None
    impersonation: bool
    expires_at: int | None
    remaining_uses: int | None
    allow_redelegation: bool
    redelegation_count: int
    redelegated_trust_id: str | None
    roles: list[str]
    deleted_at: int | None


class PolicyRow(msgspec.Struct):
    id: str
    type: str
    blob: Any
    extra: dict[str, Any]


class KeyRow(msgspec.Struct):
    id: str
    kind: str
    secret: str
    created_at: int


class Entity(Generic[Row]):
    """Rows of one table with an ``id``."""

    def __init__(self, table: Table, row: type[Row]) -> None:
        self._table = table
        self._row = row
        names = [column.name for column in table.columns]
        if names != list(row.__struct_fields__):
            raise TypeError(f"{row.__name__} does not follow {table.name}")
        self._get = select(table).where(table.c.id == bindparam("id"))
        self._delete = delete(table).where(table.c.id == bindparam("id"))
        values: dict[str, Any] = {name: bindparam(name) for name in names if name != "id"}
        self._update = update(table).where(table.c.id == bindparam("key")).values(values)
        self._lists: dict[tuple[str, ...], Select[Any]] = {}

    def get(self, tx: Tx, id: str | None) -> Row | None:
        if id is None:
            return None
        found = tx.first(self._get, {"id": id})
        return None if found is None else self._row(*found)

    def list(self, tx: Tx, **equal: Any) -> list[Row]:
        """Rows whose columns equal these values (None: IS NULL), in the order of their ids."""
        key = tuple(sorted(name if value is not None else f"{name} " for name, value in equal.items()))
        statement = self._lists.get(key)
        if statement is None:
            columns = self._table.c
            statement = select(self._table).order_by(columns.id)
            for name, value in equal.items():
                statement = statement.where(
                    columns[name].is_(None) if value is None else columns[name] == bindparam(name)
                )
            self._lists[key] = statement
        found = tx.rows(statement, {name: value for name, value in equal.items() if value is not None})
        return [self._row(*row) for row in found]

    def one(self, tx: Tx, **equal: Any) -> Row | None:
        found = self.list(tx, **equal)
        return found[0] if found else None

    def add(self, tx: Tx, row: Row) -> Row:
        tx.insert(self._table, msgspec.structs.asdict(row))
        return row

    def save(self, tx: Tx, row: Row) -> Row:
        values = msgspec.structs.asdict(row)
        values["key"] = values.pop("id")
        tx.run(self._update, values)
        return row

    def remove(self, tx: Tx, id: str) -> int:
        return tx.run(self._delete, {"id": id})


projects = Entity(t.PROJECTS, ProjectRow)
users = Entity(t.USERS, UserRow)
groups = Entity(t.GROUPS, GroupRow)
roles = Entity(t.ROLES, RoleRow)
services = Entity(t.SERVICES, ServiceRow)
regions = Entity(t.REGIONS, RegionRow)
endpoints = Entity(t.ENDPOINTS, EndpointRow)
credentials = Entity(t.CREDENTIALS, CredentialRow)
application_credentials = Entity(t.APPLICATION_CREDENTIALS, ApplicationCredentialRow)
access_rules = Entity(t.ACCESS_RULES, AccessRuleRow)
registered_limits = Entity(t.REGISTERED_LIMITS, RegisteredLimitRow)
limits = Entity(t.LIMITS, LimitRow)
trusts = Entity(t.TRUSTS, TrustRow)
policies = Entity(t.POLICIES, PolicyRow)
keys = Entity(t.KEYS, KeyRow)


def lock(tx: Tx) -> None:
    """Serialise writers: names are unique, hierarchies and inference rules have no loops."""
    tx.lock("identity", "names")


# -- groups ------------------------------------------------------------------------------------------------

_GROUPS_OF = select(t.GROUPS).join(t.MEMBERS).where(t.MEMBERS.c.user_id == bindparam("user_id")).order_by(t.GROUPS.c.id)
_GROUP_IDS_OF = select(t.MEMBERS.c.group_id).where(t.MEMBERS.c.user_id == bindparam("user_id"))
_USERS_IN = select(t.USERS).join(t.MEMBERS).where(t.MEMBERS.c.group_id == bindparam("group_id")).order_by(t.USERS.c.id)
_USER_IDS_IN = select(t.MEMBERS.c.user_id).where(t.MEMBERS.c.group_id == bindparam("group_id"))
_MEMBERSHIP = select(t.MEMBERS).where(
    t.MEMBERS.c.group_id == bindparam("group_id"), t.MEMBERS.c.user_id == bindparam("user_id")
)
_LEAVE = delete(t.MEMBERS).where(t.MEMBERS.c.group_id == bindparam("group"), t.MEMBERS.c.user_id == bindparam("user"))
_LEAVE_ALL = delete(t.MEMBERS).where(t.MEMBERS.c.user_id == bindparam("user"))
_EMPTY_GROUP = delete(t.MEMBERS).where(t.MEMBERS.c.group_id == bindparam("group"))


def groups_of(tx: Tx, user_id: str) -> list[GroupRow]:
    return [GroupRow(*row) for row in tx.rows(_GROUPS_OF, {"user_id": user_id})]


def group_ids_of(tx: Tx, user_id: str) -> list[str]:
    return [row[0] for row in tx.rows(_GROUP_IDS_OF, {"user_id": user_id})]


def users_in(tx: Tx, group_id: str) -> list[UserRow]:
    return [UserRow(*row) for row in tx.rows(_USERS_IN, {"group_id": group_id})]


def user_ids_in(tx: Tx, group_id: str) -> list[str]:
    return [row[0] for row in tx.rows(_USER_IDS_IN, {"group_id": group_id})]


def is_member(tx: Tx, group_id: str, user_id: str) -> bool:
    return tx.first(_MEMBERSHIP, {"group_id": group_id, "user_id": user_id}) is not None


def join_group(tx: Tx, group_id: str, user_id: str) -> None:
    if not is_member(tx, group_id, user_id):
        tx.insert(t.MEMBERS, {"group_id": group_id, "user_id": user_id})


def leave_group(tx: Tx, group_id: str, user_id: str) -> int:
    return tx.run(_LEAVE, {"group": group_id, "user": user_id})


def leave_all_groups(tx: Tx, user_id: str) -> None:
    tx.run(_LEAVE_ALL, {"user": user_id})


def empty_group(tx: Tx, group_id: str) -> None:
    tx.run(_EMPTY_GROUP, {"group": group_id})


# -- roles -------------------------------------------------------------------------------------------------

_IMPLIED = select(t.IMPLIED_ROLES).order_by(t.IMPLIED_ROLES.c.prior_role_id, t.IMPLIED_ROLES.c.implied_role_id)
_UNIMPLY = delete(t.IMPLIED_ROLES).where(
    t.IMPLIED_ROLES.c.prior_role_id == bindparam("prior"), t.IMPLIED_ROLES.c.implied_role_id == bindparam("implied")
)
_UNIMPLY_ROLE = delete(t.IMPLIED_ROLES).where(
    or_(t.IMPLIED_ROLES.c.prior_role_id == bindparam("role"), t.IMPLIED_ROLES.c.implied_role_id == bindparam("role"))
)
_A = t.ASSIGNMENTS.c
_ASSIGNMENTS_OF = select(t.ASSIGNMENTS).where(_A.actor_id.in_(bindparam("actors", expanding=True)))
_ALL_ASSIGNMENTS = select(t.ASSIGNMENTS)
_REMOVE_ASSIGNMENT = delete(t.ASSIGNMENTS).where(
    _A.actor_kind == bindparam("b_actor_kind"),
    _A.actor_id == bindparam("b_actor_id"),
    _A.target_kind == bindparam("b_target_kind"),
    _A.target_id == bindparam("b_target_id"),
    _A.role_id == bindparam("b_role_id"),
    _A.inherited == bindparam("b_inherited"),
)
_REMOVE_BY_ACTOR = delete(t.ASSIGNMENTS).where(_A.actor_kind == bindparam("kind"), _A.actor_id == bindparam("key"))
_REMOVE_BY_TARGET = delete(t.ASSIGNMENTS).where(_A.target_kind == bindparam("kind"), _A.target_id == bindparam("key"))
_REMOVE_BY_ROLE = delete(t.ASSIGNMENTS).where(_A.role_id == bindparam("key"))


def implied_roles(tx: Tx) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for prior, implied in tx.rows(_IMPLIED):
        found.setdefault(prior, []).append(implied)
    return found


def imply(tx: Tx, prior: str, implied: str) -> None:
    tx.insert(t.IMPLIED_ROLES, {"prior_role_id": prior, "implied_role_id": implied})


def unimply(tx: Tx, prior: str, implied: str) -> int:
    return tx.run(_UNIMPLY, {"prior": prior, "implied": implied})


def unimply_role(tx: Tx, role_id: str) -> None:
    tx.run(_UNIMPLY_ROLE, {"role": role_id})


def assignments_of(tx: Tx, actor_ids: list[str]) -> list[AssignmentRow]:
    return [AssignmentRow(*row) for row in tx.rows(_ASSIGNMENTS_OF, {"actors": actor_ids})]


def all_assignments(tx: Tx) -> list[AssignmentRow]:
    return [AssignmentRow(*row) for row in tx.rows(_ALL_ASSIGNMENTS)]


def add_assignment(tx: Tx, row: AssignmentRow) -> None:
    if row not in assignments_of(tx, [row.actor_id]):
        tx.insert(t.ASSIGNMENTS, msgspec.structs.asdict(row))


def remove_assignment(tx: Tx, row: AssignmentRow) -> int:
    return tx.run(_REMOVE_ASSIGNMENT, {f"b_{name}": value for name, value in msgspec.structs.asdict(row).items()})


def remove_assignments_of_actor(tx: Tx, kind: str, id: str) -> None:
    tx.run(_REMOVE_BY_ACTOR, {"kind": kind, "key": id})


def remove_assignments_on(tx: Tx, kind: str, id: str) -> None:
    tx.run(_REMOVE_BY_TARGET, {"kind": kind, "key": id})


def remove_assignments_with(tx: Tx, role_id: str) -> None:
    tx.run(_REMOVE_BY_ROLE, {"key": role_id})


# -- epochs and revocations --------------------------------------------------------------------------------

_E = t.EPOCHS.c
EPOCHS_OF = (
    select(_E.key, _E.value).where(or_(_E.key == literal_column("'all'"), _E.key == bindparam("user"))).order_by(_E.key)
)
_BUMP = update(t.EPOCHS).where(t.EPOCHS.c.key == bindparam("b_key")).values(value=t.EPOCHS.c.value + 1)
_REVOKED = select(t.REVOCATIONS.c.audit_id).where(t.REVOCATIONS.c.audit_id == bindparam("audit_id"))
_PURGE = delete(t.REVOCATIONS).where(t.REVOCATIONS.c.expires_at < bindparam("now"))


def epochs(tx: Tx, user_id: str) -> list[tuple[str, int]]:
    return [tuple(row) for row in tx.rows(EPOCHS_OF, {"user": f"user:{user_id}"})]


def bump(tx: Tx, *keys: str) -> None:
    """Make every process look again at the tokens these keys concern."""
    for key in sorted(set(keys)):
        if tx.run(_BUMP, {"b_key": key}) == 0:
            tx.lock("identity-epoch", key)
            if tx.run(_BUMP, {"b_key": key}) == 0:
                tx.insert(t.EPOCHS, {"key": key, "value": 1})


def revoke(tx: Tx, audit_id: str, expires_at: int) -> None:
    if not revoked(tx, audit_id):
        tx.insert(t.REVOCATIONS, {"audit_id": audit_id, "expires_at": expires_at})


def revoked(tx: Tx, audit_id: str) -> bool:
    return tx.first(_REVOKED, {"audit_id": audit_id}) is not None


def purge_revocations(tx: Tx) -> int:
    return tx.run(_PURGE, {"now": tx.now})
