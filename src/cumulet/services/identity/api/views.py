"""How rows look in answers."""

from typing import Any

from cumulet.http import Call
from cumulet.kernel.clock import iso
from cumulet.services.identity import store
from cumulet.services.identity.api.support import self_link


def project(call: Call, row: store.ProjectRow) -> dict[str, Any]:
    return {
        **row.extra,
        "id": row.id,
        "name": row.name,
        "domain_id": row.domain_id,
        "description": row.description or "",
        "enabled": row.enabled,
        "parent_id": row.parent_id,
        "is_domain": row.is_domain,
        "tags": row.tags,
        "options": row.options,
        "links": self_link(call, "projects", row.id),
    }


def domain(call: Call, row: store.ProjectRow) -> dict[str, Any]:
    return {
        **row.extra,
        "id": row.id,
        "name": row.name,
        "description": row.description or "",
        "enabled": row.enabled,
        "tags": row.tags,
        "options": row.options,
        "links": self_link(call, "domains", row.id),
    }


def user(call: Call, row: store.UserRow) -> dict[str, Any]:
    shown = {
        **row.extra,
        "id": row.id,
        "name": row.name,
        "domain_id": row.domain_id,
        "enabled": row.enabled,
        "password_expires_at": iso(row.password_expires_at, zone="", micros=True),
        "options": row.options,
        "links": self_link(call, "users", row.id),
    }
    if row.default_project_id is not None:
        shown["default_project_id"] = row.default_project_id
    return shown


def group(call: Call, row: store.GroupRow) -> dict[str, Any]:
    return {
        **row.extra,
        "id": row.id,
        "name": row.name,
        "domain_id": row.domain_id,
        "description": row.description or "",
        "links": self_link(call, "groups", row.id),
    }


def role(call: Call, row: store.RoleRow) -> dict[str, Any]:
    return {
        **row.extra,
        "id": row.id,
        "name": row.name,
        "domain_id": row.domain_id,
        "description": row.description,
        "options": row.options,
        "links": self_link(call, "roles", row.id),
    }


def service(call: Call, row: store.ServiceRow) -> dict[str, Any]:
    return {
        "name": "",
        **row.extra,
        "id": row.id,
        "type": row.type,
        "enabled": row.enabled,
        "links": self_link(call, "services", row.id),
    }


def region(call: Call, row: store.RegionRow) -> dict[str, Any]:
    return {
        **row.extra,
        "id": row.id,
        "description": row.description,
        "parent_region_id": row.parent_region_id,
        "links": self_link(call, "regions", row.id),
    }


def endpoint(call: Call, row: store.EndpointRow) -> dict[str, Any]:
    return {
        **row.extra,
        "id": row.id,
        "service_id": row.service_id,
        "region_id": row.region_id,
        "region": row.region_id,
        "interface": row.interface,
        "url": row.url,
        "enabled": row.enabled,
        "links": self_link(call, "endpoints", row.id),
    }


def credential(call: Call, row: store.CredentialRow, blob: str) -> dict[str, Any]:
    return {
        **row.extra,
        "id": row.id,
        "user_id": row.user_id,
        "project_id": row.project_id,
        "type": row.type,
        "blob": blob,
        "links": self_link(call, "credentials", row.id),
    }


def access_rule(row: store.AccessRuleRow) -> dict[str, Any]:
    return {"id": row.id, "service": row.service, "path": row.path, "method": row.method}


def application_credential(
    call: Call, row: store.ApplicationCredentialRow, roles: dict[str, store.RoleRow], rules: list[store.AccessRuleRow]
) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "id": row.id,
        "name": row.name,
        "description": row.description,
        "user_id": row.user_id,
        "project_id": row.project_id,
        "system": None,
        "expires_at": iso(row.expires_at, zone="", micros=True),
        "unrestricted": row.unrestricted,
        "roles": [
            {"id": id, "name": roles[id].name, "domain_id": roles[id].domain_id} for id in row.roles if id in roles
        ],
        "links": self_link(call, f"users/{row.user_id}/application_credentials", row.id),
    }
    if row.access_rules is not None:
        shown["access_rules"] = [access_rule(rule) for rule in rules]
    return shown


def registered_limit(call: Call, row: store.RegisteredLimitRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "service_id": row.service_id,
        "region_id": row.region_id,
        "resource_name": row.resource_name,
        "default_limit": row.default_limit,
        "description": row.description,
        "links": self_link(call, "registered_limits", row.id),
    }


def limit(call: Call, row: store.LimitRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "project_id": row.project_id,
        "domain_id": row.domain_id,
        "service_id": row.service_id,
        "region_id": row.region_id,
        "resource_name": row.resource_name,
        "resource_limit": row.resource_limit,
        "description": row.description,
        "links": self_link(call, "limits", row.id),
    }
