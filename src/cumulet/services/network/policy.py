"""Policy rules of the network API by upstream's names with upstream's defaults, and its ``field:`` check.

Targets handed to the rules hold the object's attributes and, where a rule looks at a parent, ``network:project_id``,
``security_group:project_id`` and the parent network's ``shared``.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from cumulet.http.policy import Check, PolicyEngine

_ADMIN = "rule:admin_only"
_READ = "(rule:admin_only) or (role:reader and project_id:%(project_id)s)"
_WRITE = "(rule:admin_only) or (role:member and project_id:%(project_id)s)"
_NETWORK_WRITE = "(rule:admin_only) or (rule:service_api) or role:member and rule:network_owner"
_SUBNET_WRITE = "role:member and project_id:%(project_id)s or (rule:admin_only) or (role:member and rule:network_owner)"

RULES: dict[str, str] = {
    "add_addresses": _WRITE,
    "add_extraroutes": _WRITE,
    "add_prefixes": _WRITE,
    "add_router_interface": _WRITE,
    "add_subports": _WRITE,
    "admin_only": "rule:context_is_admin",
    "admin_or_ext_parent_owner": "rule:context_is_admin or project_id:%(ext_parent:project_id)s",
    "admin_or_network_owner": "rule:context_is_admin or project_id:%(network:project_id)s",
    "admin_or_owner": "rule:context_is_admin or rule:owner",
    "admin_or_sg_owner": "rule:context_is_admin or project_id:%(security_group:project_id)s",
    "admin_owner_or_network_owner": "rule:owner or rule:admin_or_network_owner",
    "admin_owner_or_sg_owner": "rule:owner or rule:admin_or_sg_owner",
    "baremetal_device": "field:port:device_owner=~^baremetal:",
    "compute_device": "field:port:device_owner=~^compute:",
    "context_is_admin": "role:admin",
    "context_is_advsvc": "role:advsvc",
    "context_with_global_access": "!",
    "create_default_security_group": (
        "(rule:admin_only) or (rule:service_api) or role:reader and project_id:%(project_id)s"
    ),
    "create_dhcp-network": _ADMIN,
    "create_floatingip": _WRITE,
    "create_floatingip:floating_ip_address": "(rule:admin_only) or (role:manager and project_id:%(project_id)s)",
    "create_floatingip:tags": _WRITE,
    "create_l3-router": _ADMIN,
    "create_network": _WRITE,
    "create_network:is_default": _ADMIN,
    "create_network:port_security_enabled": _WRITE,
    "create_network:provider:network_type": _ADMIN,
    "create_network:provider:physical_network": _ADMIN,
    "create_network:provider:segmentation_id": _ADMIN,
    "create_network:router:external": _ADMIN,
    "create_network:shared": _ADMIN,
    "create_network:tags": _WRITE,
    "create_port": "(rule:admin_only) or (rule:service_api) or role:member and rule:network_owner or rule:shared",
    "create_port:allowed_address_pairs": (
        "(rule:admin_only) or (role:member and rule:network_owner) or rule:service_api"
    ),
    "create_port:allowed_address_pairs:ip_address": (
        "(rule:admin_only) or (role:member and rule:network_owner) or rule:service_api"
    ),
    "create_port:allowed_address_pairs:mac_address": (
        "(rule:admin_only) or (role:member and rule:network_owner) or rule:service_api"
    ),
    "create_port:binding:host_id": "(rule:admin_only) or (rule:service_api)",
    "create_port:binding:profile": "rule:service_api",
    "create_port:binding:vnic_type": (
        "(rule:admin_only) or (role:member and project_id:%(project_id)s) or rule:service_api"
    ),
    "create_port:device_id": "(rule:admin_only) or (role:member and project_id:%(project_id)s) or rule:service_api",
    "create_port:device_owner": (
        "not rule:network_device or (rule:admin_only) or (rule:service_api) or role:member and rule:network_owner"
    ),
    "create_port:fixed_ips": (
        "(rule:admin_only) or (rule:service_api) or role:member and rule:network_owner or rule:shared"
    ),
    "create_port:fixed_ips:ip_address": _NETWORK_WRITE,
    "create_port:fixed_ips:subnet_id": (
        "(rule:admin_only) or (rule:service_api) or role:member and rule:network_owner or rule:shared"
    ),
    "create_port:mac_address": _NETWORK_WRITE,
    "create_port:port_security_enabled": _NETWORK_WRITE,
    "create_port:tags": "(rule:admin_only) or (role:member and project_id:%(project_id)s) or rule:context_is_advsvc",
    "create_router": _WRITE,
    "create_router:external_gateway_info": _WRITE,
    "create_router:external_gateway_info:enable_snat": _ADMIN,
    "create_router:external_gateway_info:external_fixed_ips": _ADMIN,
    "create_router:external_gateway_info:network_id": _WRITE,
    "create_router:tags": _WRITE,
    "create_security_group": _WRITE,
    "create_security_group:tags": _WRITE,
    "create_security_group_rule": "(rule:admin_only) or (role:member and rule:sg_owner)",
    "create_subnet": "(rule:admin_only) or (role:member and rule:network_owner)",
    "create_subnet:service_types": _ADMIN,
    "create_subnet:tags": _SUBNET_WRITE,
    "create_subnetpool": _WRITE,
    "create_subnetpool:is_default": _ADMIN,
    "create_subnetpool:shared": _ADMIN,
    "create_subnetpool:tags": _WRITE,
    "default": "rule:admin_or_owner",
    "delete_agent": _ADMIN,
    "delete_dhcp-network": _ADMIN,
    "delete_floatingip": _WRITE,
    "delete_floatingip:tags": _WRITE,
    "delete_l3-router": _ADMIN,
    "delete_network": _WRITE,
    "delete_network:tags": _WRITE,
    "delete_port": (
        "(rule:admin_only) or (rule:service_api)"
        " or (service_roles:service and (role:member and rule:network_owner"
        " or role:member and project_id:%(project_id)s))"
        " or (not rule:compute_device and not rule:baremetal_device and not rule:manila_device"
        " and (role:member and rule:network_owner"
        " or role:member and project_id:%(project_id)s))"
    ),
    "delete_port:tags": (
        "rule:context_is_advsvc or role:member and project_id:%(project_id)s or (rule:admin_only)"
        " or (role:member and rule:network_owner)"
    ),
    "delete_quota": _ADMIN,
    "delete_router": _WRITE,
    "delete_router:tags": _WRITE,
    "delete_security_group": _WRITE,
    "delete_security_group:tags": _WRITE,
    "delete_security_group_rule": "(rule:admin_only) or (role:member and rule:sg_owner)",
    "delete_subnet": _SUBNET_WRITE,
    "delete_subnet:tags": _SUBNET_WRITE,
    "delete_subnetpool": _WRITE,
    "delete_subnetpool:tags": _WRITE,
    "ext_parent_owner": "project_id:%(ext_parent:project_id)s",
    "external": "field:networks:router:external=True",
    "external_network": "field:subnets:router:external=True",
    "get_agent": _ADMIN,
    "get_availability_zone": "role:reader",
    "get_dhcp-agents": _ADMIN,
    "get_dhcp-networks": _ADMIN,
    "get_floatingip": _READ,
    "get_floatingip:tags": _READ,
    "get_l3-agents": _ADMIN,
    "get_l3-routers": _ADMIN,
    "get_network": (
        "(rule:admin_only) or (role:reader and project_id:%(project_id)s) or rule:service_api"
        " or rule:shared or rule:external or rule:context_is_advsvc"
    ),
    "get_network:provider:network_type": _ADMIN,
    "get_network:provider:physical_network": _ADMIN,
    "get_network:provider:segmentation_id": _ADMIN,
    "get_network:tags": (
        "(rule:admin_only) or (role:reader and project_id:%(project_id)s) or rule:shared"
        " or rule:external or rule:context_is_advsvc"
    ),
    "get_network_ip_availability": "(rule:admin_only) or (rule:service_api)",
    "get_port": (
        "(rule:admin_only) or (rule:service_api) or role:reader and rule:network_owner"
        " or role:reader and project_id:%(project_id)s"
    ),
    "get_port:binding:host_id": "(rule:admin_only) or (rule:service_api)",
    "get_port:binding:profile": "(rule:admin_only) or (rule:service_api)",
    "get_port:binding:vif_details": "(rule:admin_only) or (rule:service_api)",
    "get_port:binding:vif_type": "(rule:admin_only) or (rule:service_api)",
    "get_port:tags": (
        "rule:context_is_advsvc or (rule:admin_only) or (role:reader and rule:network_owner)"
        " or role:reader and project_id:%(project_id)s"
    ),
    "get_quota": "(rule:admin_only) or (role:manager and project_id:%(project_id)s)",
    "get_router": _READ,
    "get_router:tags": _READ,
    "get_security_group": (
        "(rule:admin_only) or (role:reader and project_id:%(project_id)s) or rule:shared_security_group"
    ),
    "get_security_group:tags": (
        "(rule:admin_only) or (role:reader and project_id:%(project_id)s) or rule:shared_security_group"
    ),
    "get_security_group_rule": "(rule:admin_only) or (role:reader and rule:sg_owner)",
    "get_service_provider": "role:reader",
    "get_subnet": (
        "role:reader and project_id:%(project_id)s or rule:shared or rule:external_network"
        " or (rule:admin_only) or (role:reader and rule:network_owner) or rule:service_api"
    ),
    "get_subnet:tags": (
        "role:reader and project_id:%(project_id)s or rule:shared or rule:external_network"
        " or (rule:admin_only) or (role:reader and rule:network_owner)"
    ),
    "get_subnetpool": "(rule:admin_only) or (role:reader and project_id:%(project_id)s) or rule:shared_subnetpools",
    "get_subnetpool:tags": (
        "(rule:admin_only) or (role:reader and project_id:%(project_id)s) or rule:shared_subnetpools"
    ),
    "get_subports": _READ,
    "manila_device": "field:port:device_owner=~^manila:",
    "network_device": "field:port:device_owner=~^network:",
    "network_owner": "project_id:%(network:project_id)s",
    "owner": "project_id:%(project_id)s",
    "regular_user": "",
    "remove_addresses": _WRITE,
    "remove_extraroutes": _WRITE,
    "remove_prefixes": _WRITE,
    "remove_router_interface": _WRITE,
    "remove_subports": _WRITE,
    "restrict_wildcard": (
        "(not field:rbac_policy:target_tenant=* and not field:rbac_policy:target_project=*) or rule:admin_only"
    ),
    "rule_default_sg": "field:security_group_rules:belongs_to_default_sg=True",
    "service_api": "role:service",
    "sg_owner": "project_id:%(security_group:project_id)s",
    "shared": "field:networks:shared=True",
    "shared_security_group": "field:security_groups:shared=True",
    "shared_subnetpools": "field:subnetpools:shared=True",
    "update_agent": _ADMIN,
    "update_floatingip": _WRITE,
    "update_floatingip:tags": _WRITE,
    "update_l3-router": _ADMIN,
    "update_network": _WRITE,
    "update_network:is_default": _ADMIN,
    "update_network:port_security_enabled": _WRITE,
    "update_network:provider:network_type": _ADMIN,
    "update_network:provider:physical_network": _ADMIN,
    "update_network:provider:segmentation_id": _ADMIN,
    "update_network:router:external": _ADMIN,
    "update_network:shared": _ADMIN,
    "update_network:tags": _WRITE,
    "update_port": "(rule:admin_only) or (rule:service_api) or role:member and project_id:%(project_id)s",
    "update_port:allowed_address_pairs": (
        "(rule:admin_only) or (role:member and rule:network_owner) or rule:service_api"
    ),
    "update_port:allowed_address_pairs:ip_address": (
        "(rule:admin_only) or (role:member and rule:network_owner) or rule:service_api"
    ),
    "update_port:allowed_address_pairs:mac_address": (
        "(rule:admin_only) or (role:member and rule:network_owner) or rule:service_api"
    ),
    "update_port:binding:host_id": "(rule:admin_only) or (rule:service_api)",
    "update_port:binding:profile": "rule:service_api",
    "update_port:binding:vnic_type": (
        "(rule:admin_only) or (rule:service_api) or role:member and project_id:%(project_id)s"
    ),
    "update_port:device_id": "(rule:admin_only) or (role:member and project_id:%(project_id)s) or rule:service_api",
    "update_port:device_owner": (
        "not rule:network_device or (rule:admin_only) or (rule:service_api) or role:member and rule:network_owner"
    ),
    "update_port:fixed_ips": _NETWORK_WRITE,
    "update_port:fixed_ips:ip_address": _NETWORK_WRITE,
    "update_port:fixed_ips:subnet_id": (
        "(rule:admin_only) or (rule:service_api) or role:member and rule:network_owner or rule:shared"
    ),
    "update_port:mac_address": "(rule:admin_only) or (rule:service_api) or role:manager and rule:network_owner",
    "update_port:port_security_enabled": _NETWORK_WRITE,
    "update_port:tags": "(rule:admin_only) or (role:member and project_id:%(project_id)s) or rule:context_is_advsvc",
    "update_quota": _ADMIN,
    "update_router": _WRITE,
    "update_router:external_gateway_info": _WRITE,
    "update_router:external_gateway_info:enable_snat": _ADMIN,
    "update_router:external_gateway_info:external_fixed_ips": _ADMIN,
    "update_router:external_gateway_info:network_id": _WRITE,
    "update_router:tags": _WRITE,
    "update_security_group": _WRITE,
    "update_security_group:tags": _WRITE,
    "update_subnet": _SUBNET_WRITE,
    "update_subnet:service_types": _ADMIN,
    "update_subnet:tags": _SUBNET_WRITE,
    "update_subnetpool": _WRITE,
    "update_subnetpool:is_default": _ADMIN,
    "update_subnetpool:tags": _WRITE,
}


def field_check(engine: PolicyEngine, match: str) -> Check:
    """``field:<collection>:<attribute>=<value>``; a value that begins with ``~`` is a regular expression."""
    _, _, condition = match.partition(":")
    name, _, text = condition.partition("=")
    if text.startswith("~"):
        pattern = re.compile(text[1:])

        def matches(target: Mapping[str, Any], creds: Mapping[str, Any]) -> bool:
            value = target.get(name)
            return value is not None and pattern.match(str(value)) is not None

        return matches
    wanted: Any = {"true": True, "false": False}.get(text.lower(), text)

    def equals(target: Mapping[str, Any], creds: Mapping[str, Any]) -> bool:
        value = target.get(name)
        return value is not None and (value == wanted if isinstance(wanted, bool) else str(value) == wanted)

    return equals


def service_roles_check(engine: PolicyEngine, match: str) -> Check:
    """``service_roles:<role>``: of the service token that came with the request."""
    return lambda target, creds: match in (creds.get("service_roles") or ())


FACTORIES = {"field": field_check, "service_roles": service_roles_check}


_REFERENCE = re.compile(r"%\(([^)]+)\)s|field:[^:\s]+:([^=\s]+)=|rule:([^\s()]+)")


def looks_at(engine: PolicyEngine, rules: Iterable[str]) -> tuple[str, ...]:
    """The attributes of a target on which these rules, with all that they refer to, depend."""
    names: set[str] = set()
    seen: set[str] = set()
    todo = list(rules)
    while todo:
        rule = todo.pop()
        if rule in seen:
            continue
        seen.add(rule)
        for in_target, in_field, other in _REFERENCE.findall(engine.texts.get(rule, "")):
            if other:
                todo.append(other)
            else:
                names.add(in_target or in_field)
    return tuple(sorted(names))
