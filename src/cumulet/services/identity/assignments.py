"""Who has which role where: direct, through groups, inherited from domains and parent projects, and implied."""

from collections.abc import Iterable

import msgspec

from cumulet.db import Tx
from cumulet.services.identity import store
from cumulet.services.identity.store import AssignmentRow, ProjectRow

Target = tuple[str, str]  # ("project" | "domain" | "system", id)
SYSTEM: Target = ("system", "system")
MAX_DEPTH = 64


class Effective(msgspec.Struct, frozen=True):
    """One role that a user really has on a target, and the assignment and inference it comes from."""

    user_id: str
    role_id: str
    target: Target
    source: AssignmentRow
    prior_role_id: str | None = None  # the assigned role, when this one is implied


def expand(role_ids: Iterable[str], implied: dict[str, list[str]]) -> dict[str, str]:
    """Role id -> the assigned role it comes from (itself, when assigned)."""
    found = {role_id: role_id for role_id in role_ids}
    waiting = list(found)
    while waiting:
        role_id = waiting.pop()
        for inner in implied.get(role_id, ()):
            if inner not in found:
                found[inner] = found[role_id]
                waiting.append(inner)
    return found


def ancestors(tx: Tx, project: ProjectRow) -> list[ProjectRow]:
    """Parents from the nearest up to the domain."""
    found: list[ProjectRow] = []
    at: ProjectRow | None = project
    while at is not None and at.parent_id is not None and len(found) < MAX_DEPTH:
        at = store.projects.get(tx, at.parent_id)
        if at is not None:
            found.append(at)
    return found


def subtree(tx: Tx, project_id: str) -> list[ProjectRow]:
    """Every project below, nearest first."""
    found: list[ProjectRow] = []
    level = [project_id]
    for _ in range(MAX_DEPTH):
        below = [row for parent in level for row in store.projects.list(tx, parent_id=parent)]
        if not below:
            break
        found += below
        level = [row.id for row in below]
    return found


def grants_of(tx: Tx, user_id: str) -> list[AssignmentRow]:
    """Assignments of the user and of the groups it is in."""
    groups = set(store.group_ids_of(tx, user_id))
    return [
        row
        for row in store.assignments_of(tx, [user_id, *groups])
        if (row.actor_id == user_id if row.actor_kind == "user" else row.actor_id in groups)
    ]


def roles_on(tx: Tx, user_id: str, target: Target) -> set[str]:
    """Ids of all roles the user has there, implied ones included."""
    inherited_from: set[Target] = set()
    if target[0] == "project":
        project = store.projects.get(tx, target[1])
        if project is None:
            return set()
        for row in ancestors(tx, project):
            inherited_from.add(("domain" if row.is_domain else "project", row.id))
    assigned = {
        row.role_id
        for row in grants_of(tx, user_id)
        if ((row.target_kind, row.target_id) == target and not row.inherited)
        or (row.inherited and (row.target_kind, row.target_id) in inherited_from)
    }
    return set(expand(assigned, store.implied_roles(tx))) if assigned else set()


def targets_of(tx: Tx, user_id: str) -> set[Target]:
    """Every project, domain or system on which the user has some role."""
    found: set[Target] = set()
    for row in grants_of(tx, user_id):
        if not row.inherited:
            found.add((row.target_kind, row.target_id))
        elif row.target_kind != "system":
            found |= {("project", project.id) for project in subtree(tx, row.target_id) if not project.is_domain}
    return found


def effective(tx: Tx, rows: Iterable[AssignmentRow]) -> list[Effective]:
    """What the assignments amount to: groups replaced by their members, inheritance and inference carried out. Roles
    of domains only imply others; they do not count themselves."""
    implied = store.implied_roles(tx)
    of_domains = {role.id for role in store.roles.list(tx) if role.domain_id is not None}
    members: dict[str, list[str]] = {}
    found: dict[tuple[str, str, Target], Effective] = {}
    for row in rows:
        if row.actor_kind == "group":
            if row.actor_id not in members:
                members[row.actor_id] = store.user_ids_in(tx, row.actor_id)
            user_ids = members[row.actor_id]
        else:
            user_ids = [row.actor_id]
        targets: list[Target] = [(row.target_kind, row.target_id)]
        if row.inherited:
            targets = [("project", below.id) for below in subtree(tx, row.target_id) if not below.is_domain]
        for role_id in expand([row.role_id], implied).keys() - of_domains:
            prior = row.role_id if role_id != row.role_id else None
            for user_id in user_ids:
                for target in targets:
                    found.setdefault((user_id, role_id, target), Effective(user_id, role_id, target, row, prior))
    return list(found.values())
