"""Rules of users and groups. Passwords come hashed: hashing has no place in a unit of work."""

from typing import Any

from msgspec import UNSET

from cumulet.db import Tx
from cumulet.kernel.errors import BadInput, Conflict, NotFound
from cumulet.kernel.ids import new_hex
from cumulet.services.identity import store
from cumulet.services.identity.schema import GroupChange, NewGroup, NewUser, UserChange, changed_options, chosen
from cumulet.services.identity.store import GroupRow, ProjectRow, UserRow


def domain_for(tx: Tx, domain_id: str | None, default: str | None) -> ProjectRow:
    """The domain a new thing goes into: the one named, else the caller's."""
    domain_id = domain_id or default
    domain = store.projects.get(tx, domain_id)
    if domain is None or not domain.is_domain:
        raise NotFound(f"Could not find domain: {domain_id}.")
    return domain


def create(tx: Tx, new: NewUser, extra: dict[str, Any], hashed: str | None, default_domain: str | None) -> UserRow:
    store.lock(tx)
    domain = domain_for(tx, new.domain_id, default_domain)
    _name_is_free(tx, domain.id, new.name)
    _may_be_default(tx, new.default_project_id)
    row = UserRow(
        new_hex(),
        domain.id,
        new.name,
        new.enabled,
        new.default_project_id,
        hashed,
        None,
        0,
        chosen(new.options),
        extra,
    )
    return store.users.add(tx, row)


def _name_is_free(tx: Tx, domain_id: str, name: str) -> None:
    if store.users.one(tx, domain_id=domain_id, name=name) is not None:
        raise Conflict(f"There is a user with the name {name} in this domain already.")


def _may_be_default(tx: Tx, project_id: str | None) -> None:
    project = store.projects.get(tx, project_id)
    if project is not None and project.is_domain:
        raise BadInput("A domain cannot be the default project of a user.")


def update(tx: Tx, row: UserRow, change: UserChange, extra: dict[str, Any], hashed: str | None) -> UserRow:
    store.lock(tx)
    if change.domain_id is not UNSET and change.domain_id != row.domain_id:
        raise BadInput("The domain of a user cannot be changed.")
    if change.name is not UNSET and change.name != row.name:
        _name_is_free(tx, row.domain_id, change.name)
        row.name = change.name
    if change.default_project_id is not UNSET:
        _may_be_default(tx, change.default_project_id)
        row.default_project_id = change.default_project_id
    if change.enabled is not UNSET and change.enabled != row.enabled:
        row.enabled = change.enabled
        if not row.enabled:
            row.tokens_after = tx.now
    if change.password is not UNSET:
        row.password_hash, row.tokens_after = hashed, tx.now
    row.options = changed_options(row.options, change.options)
    row.extra = {**row.extra, **extra}
    store.bump(tx, f"user:{row.id}")
    return store.users.save(tx, row)


def delete(tx: Tx, row: UserRow) -> None:
    store.lock(tx)
    store.leave_all_groups(tx, row.id)
    store.remove_assignments_of_actor(tx, "user", row.id)
    for credential in store.credentials.list(tx, user_id=row.id):
        store.credentials.remove(tx, credential.id)
    for application in store.application_credentials.list(tx, user_id=row.id):
        store.application_credentials.remove(tx, application.id)
    for rule in store.access_rules.list(tx, user_id=row.id):
        store.access_rules.remove(tx, rule.id)
    for role in ("trustor_user_id", "trustee_user_id"):
        for trust in store.trusts.list(tx, **{role: row.id}):
            store.trusts.remove(tx, trust.id)
            store.bump(tx, f"user:{trust.trustee_user_id}", f"user:{trust.trustor_user_id}")
    store.users.remove(tx, row.id)
    store.bump(tx, f"user:{row.id}")


def create_group(tx: Tx, new: NewGroup, extra: dict[str, Any], default_domain: str | None) -> GroupRow:
    store.lock(tx)
    domain = domain_for(tx, new.domain_id, default_domain)
    _group_name_is_free(tx, domain.id, new.name)
    return store.groups.add(tx, GroupRow(new_hex(), domain.id, new.name, new.description or "", extra))


def _group_name_is_free(tx: Tx, domain_id: str, name: str) -> None:
    if store.groups.one(tx, domain_id=domain_id, name=name) is not None:
        raise Conflict(f"There is a group with the name {name} in this domain already.")


def update_group(tx: Tx, row: GroupRow, change: GroupChange, extra: dict[str, Any]) -> GroupRow:
    store.lock(tx)
    if change.domain_id is not UNSET and change.domain_id != row.domain_id:
        raise BadInput("The domain of a group cannot be changed.")
    if change.name is not UNSET and change.name != row.name:
        _group_name_is_free(tx, row.domain_id, change.name)
        row.name = change.name
    if change.description is not UNSET:
        row.description = change.description or ""
    row.extra = {**row.extra, **extra}
    return store.groups.save(tx, row)


def delete_group(tx: Tx, row: GroupRow) -> None:
    store.lock(tx)
    members = store.user_ids_in(tx, row.id)
    store.empty_group(tx, row.id)
    store.remove_assignments_of_actor(tx, "group", row.id)
    store.groups.remove(tx, row.id)
    store.bump(tx, *(f"user:{user_id}" for user_id in members))
