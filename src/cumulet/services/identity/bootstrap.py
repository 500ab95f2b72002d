"""The first domain, roles, projects, users and catalog of a cloud."""

import msgspec

from cumulet.db import Database, Tx
from cumulet.kernel.ids import new_hex
from cumulet.services.identity import store
from cumulet.services.identity.assignments import SYSTEM
from cumulet.services.identity.passwords import Passwords
from cumulet.services.identity.store import (
    AssignmentRow,
    EndpointRow,
    ProjectRow,
    RegionRow,
    RoleRow,
    ServiceRow,
    UserRow,
)

DEFAULT_DOMAIN = "default"
ROLES = ("admin", "manager", "member", "reader", "service")
IMPLIED = (("admin", "manager"), ("manager", "member"), ("member", "reader"))


class CatalogEntry(msgspec.Struct, frozen=True):
    """``path`` follows the public URL; it may hold ``%(project_id)s``."""

    type: str
    name: str
    path: str


CATALOG = (
    CatalogEntry("identity", "keystone", "/identity"),
    CatalogEntry("compute", "nova", "/compute/v2.1"),
    CatalogEntry("placement", "placement", "/placement"),
    CatalogEntry("image", "glance", "/image"),
    CatalogEntry("network", "neutron", "/network"),
    CatalogEntry("block-storage", "cinder", "/volume/v3"),
    CatalogEntry("volumev3", "cinderv3", "/volume/v3/%(project_id)s"),
    CatalogEntry("operator", "cumulet", "/operator"),
)


class Bootstrapped(msgspec.Struct):
    admin_user_id: str
    admin_project_id: str
    roles: dict[str, str]
    demo_user_id: str | None = None
    demo_project_id: str | None = None
    created: list[str] = []


def bootstrap(
    db: Database,
    passwords: Passwords,
    *,
    region: str,
    admin_password: str,
    demo_password: str | None,
    public_url: str,
    catalog: list[CatalogEntry] | None,
) -> Bootstrapped:
    """Idempotent; hashes outside of the unit of work, and only the passwords of users that are still missing."""

    def missing(name: str) -> bool:
        return db.read(lambda tx: store.users.one(tx, domain_id=DEFAULT_DOMAIN, name=name)) is None

    admin_hash = passwords.hash(admin_password) if missing("admin") else None
    demo_hash = passwords.hash(demo_password) if demo_password is not None and missing("demo") else None

    def work(tx: Tx) -> Bootstrapped:
        store.lock(tx)
        created: list[str] = []
        if store.projects.get(tx, DEFAULT_DOMAIN) is None:
            domain = _project(DEFAULT_DOMAIN, "Default", None, is_domain=True, description="The default domain")
            store.projects.add(tx, domain)
            created.append("domain Default")
        roles = {name: _role(tx, name, created) for name in ROLES}
        known = store.implied_roles(tx)
        for prior, implied in IMPLIED:
            if roles[implied] not in known.get(roles[prior], ()):
                store.imply(tx, roles[prior], roles[implied])
        admin_project = _named_project(tx, "admin", created)
        admin = _named_user(tx, "admin", admin_hash, admin_project, created)
        _grant(tx, admin, ("project", admin_project), roles["admin"])
        _grant(tx, admin, SYSTEM, roles["admin"])
        found = Bootstrapped(admin, admin_project, roles, created=created)
        if demo_password is not None:
            found.demo_project_id = _named_project(tx, "demo", created)
            found.demo_user_id = _named_user(tx, "demo", demo_hash, found.demo_project_id, created)
            _grant(tx, found.demo_user_id, ("project", found.demo_project_id), roles["member"])
            _grant(tx, admin, ("project", found.demo_project_id), roles["admin"])
        if store.regions.get(tx, region) is None:
            store.regions.add(tx, RegionRow(region, None, "", {}))
        for entry in catalog if catalog is not None else CATALOG:
            _catalog_entry(tx, entry, region, public_url.rstrip("/"), created)
        return found

    return db.write(work)


def _project(id: str, name: str, domain_id: str | None, *, is_domain: bool, description: str) -> ProjectRow:
    return ProjectRow(id, name, domain_id, domain_id, is_domain, description, True, [], {}, {})


def _role(tx: Tx, name: str, created: list[str]) -> str:
    found = store.roles.one(tx, name=name, domain_id=None)
    if found is None:
        options = {"immutable": True} if name in ("admin", "manager", "member", "reader", "service") else {}
        found = store.roles.add(tx, RoleRow(new_hex(), name, None, None, options, {}))
        created.append(f"role {name}")
    return found.id


def _named_project(tx: Tx, name: str, created: list[str]) -> str:
    found = store.projects.one(tx, domain_id=DEFAULT_DOMAIN, name=name, is_domain=False)
    if found is None:
        row = _project(new_hex(), name, DEFAULT_DOMAIN, is_domain=False, description="")
        found = store.projects.add(tx, row)
        created.append(f"project {name}")
    return found.id


def _named_user(tx: Tx, name: str, hashed: str | None, project_id: str, created: list[str]) -> str:
    found = store.users.one(tx, domain_id=DEFAULT_DOMAIN, name=name)
    if found is None:
        row = UserRow(new_hex(), DEFAULT_DOMAIN, name, True, project_id, hashed, None, 0, {}, {})
        found = store.users.add(tx, row)
        created.append(f"user {name}")
    return found.id


def _grant(tx: Tx, user_id: str, target: tuple[str, str], role_id: str) -> None:
    store.add_assignment(tx, AssignmentRow("user", user_id, target[0], target[1], role_id, False))


def _catalog_entry(tx: Tx, entry: CatalogEntry, region: str, public_url: str, created: list[str]) -> None:
    service = store.services.one(tx, type=entry.type)
    if service is None:
        service = store.services.add(tx, ServiceRow(new_hex(), entry.type, True, {"name": entry.name}))
        created.append(f"service {entry.type}")
    url = public_url + entry.path
    for interface in ("public", "internal", "admin"):
        found = store.endpoints.one(tx, service_id=service.id, interface=interface, region_id=region)
        if found is None:
            store.endpoints.add(tx, EndpointRow(new_hex(), service.id, region, interface, url, True, {}))
        elif found.url != url:
            found.url = url
            store.endpoints.save(tx, found)
