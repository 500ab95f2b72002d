"""Rules of projects and domains: names, the tree, what goes with them when they go."""

from typing import Any

from msgspec import UNSET

from cumulet.db import Tx
from cumulet.kernel.errors import BadInput, Conflict, Forbidden
from cumulet.kernel.ids import new_hex
from cumulet.services.identity import assignments, store, users
from cumulet.services.identity.schema import (
    DomainChange,
    NewDomain,
    NewProject,
    ProjectChange,
    changed_options,
    chosen,
)
from cumulet.services.identity.store import ProjectRow

MAX_TREE_DEPTH = 5


def create_domain(tx: Tx, new: NewDomain | NewProject, extra: dict[str, Any]) -> ProjectRow:
    store.lock(tx)
    explicit = new.explicit_domain_id if isinstance(new, NewDomain) else None
    _domain_name_is_free(tx, new.name)
    if explicit is not None and store.projects.get(tx, explicit) is not None:
        raise Conflict(f"There is a domain or project with the id {explicit} already.")
    tags = sorted(set(new.tags))
    row = ProjectRow(
        explicit or new_hex(),
        new.name,
        None,
        None,
        True,
        new.description or "",
        new.enabled,
        tags,
        chosen(new.options),
        extra,
    )
    return store.projects.add(tx, row)


def _domain_name_is_free(tx: Tx, name: str) -> None:
    if store.projects.one(tx, name=name, is_domain=True) is not None:
        raise Conflict(f"There is a domain with the name {name} already.")


def create(tx: Tx, new: NewProject, extra: dict[str, Any], default_domain: str | None) -> ProjectRow:
    if new.is_domain:
        if new.domain_id is not None or new.parent_id is not None:
            raise BadInput("A project that acts as a domain has neither domain_id nor parent_id.")
        return create_domain(tx, new, extra)
    store.lock(tx)
    domain_id = new.domain_id
    parent = None
    if new.parent_id is not None:
        parent = store.projects.get(tx, new.parent_id)
        if parent is None:
            raise BadInput(f"The parent project {new.parent_id} does not exist.")
        parents_domain = parent.id if parent.is_domain else parent.domain_id
        domain_id = domain_id or parents_domain
        if domain_id != parents_domain:
            raise BadInput("A project is in the domain of its parent.")
    domain_id = domain_id or default_domain
    domain = store.projects.get(tx, domain_id)
    if domain is None or not domain.is_domain:
        raise BadInput(f"The domain {domain_id} does not exist.")
    parent = parent or domain
    above = [parent, *assignments.ancestors(tx, parent)]
    if not all(row.enabled for row in above):
        raise Forbidden("A project cannot be created below a disabled project or domain.")
    if len(above) > MAX_TREE_DEPTH:
        raise Forbidden(f"The tree of projects would become deeper than {MAX_TREE_DEPTH}.")
    _name_is_free(tx, domain.id, new.name)
    row = ProjectRow(
        new_hex(),
        new.name,
        domain.id,
        parent.id,
        False,
        new.description or "",
        new.enabled,
        sorted(set(new.tags)),
        chosen(new.options),
        extra,
    )
    return store.projects.add(tx, row)


def _name_is_free(tx: Tx, domain_id: str, name: str) -> None:
    if store.projects.one(tx, domain_id=domain_id, name=name, is_domain=False) is not None:
        raise Conflict(f"There is a project with the name {name} in this domain already.")


def refuse_immutable(options: dict[str, Any], change: Any, kind: str) -> None:
    """An immutable thing can only be made mutable again, in a request that does nothing else."""
    if not options.get("immutable"):
        return
    if change is not None:
        others = [
            name for name in change.__struct_fields__ if name != "options" and getattr(change, name, UNSET) is not UNSET
        ]
        given = change.options
        if not others and given is not UNSET and given.immutable in (False, None):
            return
    raise Forbidden(f"This {kind} is immutable; clear its option 'immutable' first.")


def update(tx: Tx, row: ProjectRow, change: ProjectChange | DomainChange, extra: dict[str, Any]) -> ProjectRow:
    store.lock(tx)
    refuse_immutable(row.options, change, "domain" if row.is_domain else "project")
    if isinstance(change, ProjectChange):
        if change.domain_id is not UNSET and change.domain_id != row.domain_id:
            raise BadInput("The domain of a project cannot be changed.")
        if change.parent_id is not UNSET and change.parent_id != row.parent_id:
            raise Forbidden("The parent of a project cannot be changed.")
        if change.is_domain is not UNSET and change.is_domain != row.is_domain:
            raise BadInput("A project cannot be turned into a domain, nor a domain into a project.")
    if change.name is not UNSET and change.name != row.name:
        if row.is_domain:
            _domain_name_is_free(tx, change.name)
        else:
            _name_is_free(tx, row.domain_id or "", change.name)
        row.name = change.name
    if change.enabled is not UNSET and change.enabled != row.enabled:
        if not change.enabled and not row.is_domain:
            if any(below.enabled for below in assignments.subtree(tx, row.id)):
                raise Forbidden("A project with enabled projects below it cannot be disabled.")
        elif change.enabled and not all(above.enabled for above in assignments.ancestors(tx, row)):
            raise Forbidden("A project below a disabled project cannot be enabled.")
        row.enabled = change.enabled
    if change.description is not UNSET:
        row.description = change.description or ""
    if change.tags is not UNSET:
        row.tags = sorted(set(change.tags))
    row.options = changed_options(row.options, change.options)
    row.extra = {**row.extra, **extra}
    store.bump(tx, "all")
    return store.projects.save(tx, row)


def delete(tx: Tx, row: ProjectRow) -> None:
    store.lock(tx)
    refuse_immutable(row.options, None, "domain" if row.is_domain else "project")
    if row.is_domain:
        if row.enabled:
            raise Forbidden("An enabled domain cannot be deleted; disable it first.")
        _delete_domain_content(tx, row.id)
    elif store.projects.list(tx, parent_id=row.id):
        raise Forbidden("A project with projects below it cannot be deleted.")
    _delete_row(tx, row)
    store.bump(tx, "all")


def _delete_row(tx: Tx, row: ProjectRow) -> None:
    kinds = ("domain", "project") if row.is_domain else ("project",)
    for kind in kinds:
        store.remove_assignments_on(tx, kind, row.id)
    for credential in store.credentials.list(tx, project_id=row.id):
        store.credentials.remove(tx, credential.id)
    for application in store.application_credentials.list(tx, project_id=row.id):
        store.application_credentials.remove(tx, application.id)
    for user in store.users.list(tx, default_project_id=row.id):
        user.default_project_id = None
        store.users.save(tx, user)
    for limit in store.limits.list(tx, project_id=row.id):
        store.limits.remove(tx, limit.id)
    for trust in store.trusts.list(tx, project_id=row.id):
        store.trusts.remove(tx, trust.id)
    store.projects.remove(tx, row.id)


def _delete_domain_content(tx: Tx, domain_id: str) -> None:
    for group in store.groups.list(tx, domain_id=domain_id):
        users.delete_group(tx, group)
    for user in store.users.list(tx, domain_id=domain_id):
        users.delete(tx, user)
    for role in store.roles.list(tx, domain_id=domain_id):
        store.remove_assignments_with(tx, role.id)
        store.unimply_role(tx, role.id)
        store.roles.remove(tx, role.id)
    for project in reversed(assignments.subtree(tx, domain_id)):
        _delete_row(tx, project)
    for limit in store.limits.list(tx, domain_id=domain_id):
        store.limits.remove(tx, limit.id)
