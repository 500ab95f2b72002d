"""The attribute maps of the network resources: what may be given, what is the default, what filters and sorts.

Facts of upstream's API definitions for exactly the extensions that `extensions.py` announces.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Table

from cumulet.services.network import attributes as a
from cumulet.services.network import tables as t
from cumulet.services.network.attributes import REQUIRED, UNSET, Attr


@dataclass(frozen=True, kw_only=True)
class Resource:
    """``name`` is the key of one in bodies and the noun of policy rules, ``collection`` that of many, ``path`` the
    collection's place in URLs. ``columns``: attribute -> column, where the names differ."""

    name: str
    collection: str
    path: str
    attributes: dict[str, Attr]
    table: Table
    not_found: str
    label: str
    columns: dict[str, str]
    key: str = "id"
    native_bulk: bool = True


def _id() -> Attr:
    return Attr(filter=True, sort=True, check=a.uuid)


def _project() -> dict[str, Attr]:
    owner = Attr(post=True, filter=True, sort=True, check=a.text(255), default=UNSET)
    return {"tenant_id": owner, "project_id": owner}


def _name(check: Any = None) -> Attr:
    return Attr(post=True, put=True, default="", filter=True, sort=True, check=check or a.text(255))


def _flag(default: Any, **more: Any) -> Attr:
    more = {"post": True, "put": True, "filter": True, "sort": True, **more}
    return Attr(default=default, check=a.boolean, kind="boolean", **more)


def _standard(*, tags: bool = True) -> dict[str, Attr]:
    found = {
        "description": Attr(post=True, put=True, default="", filter=True, check=a.text(255)),
        "created_at": Attr(),
        "updated_at": Attr(),
        "revision_number": Attr(filter=True, kind="integer", sort=True),
    }
    if tags:
        found["tags"] = Attr(filter=True, kind="tags")
        for name in ("tags-any", "not-tags", "not-tags-any"):
            found[name] = Attr(filter=True, show=False, kind="tags")
    return found


_hints = Attr(post=True, default=[], check=a.text_list, kind="list")

NETWORK = Resource(
    name="network",
    collection="networks",
    path="networks",
    table=t.NETWORKS,
    not_found="NetworkNotFound",
    label="Network",
    columns={
        "tenant_id": "project_id",
        "revision_number": "revision",
        "router:external": "external",
        "provider:network_type": "network_type",
        "provider:physical_network": "physical_network",
        "provider:segmentation_id": "segmentation_id",
    },
    attributes={
        "id": _id(),
        "name": _name(),
        "subnets": Attr(),
        "admin_state_up": _flag(True),
        "status": Attr(filter=True, sort=True),
        **_project(),
        "shared": _flag(False, policy=True),
        "router:external": _flag(False, policy=True, sort=False),
        "is_default": _flag(False, policy=True, sort=False),
        "mtu": Attr(
            post=True, put=True, default=0, filter=True, sort=True, policy=True, check=a.integer(0), kind="integer"
        ),
        "port_security_enabled": _flag(True, policy=True, filter=False, sort=False),
        "provider:network_type": Attr(post=True, put=True, policy=True, filter=True, check=a.text(32)),
        "provider:physical_network": Attr(post=True, put=True, policy=True, filter=True, check=a.text(64, null=True)),
        "provider:segmentation_id": Attr(
            post=True, put=True, policy=True, filter=True, check=a.integer(null=True), kind="integer"
        ),
        "dns_domain": Attr(post=True, put=True, default="", check=a.dns_domain),
        "availability_zone_hints": _hints,
        "availability_zones": Attr(),
        "ipv4_address_scope": Attr(),
        "ipv6_address_scope": Attr(),
        **_standard(),
    },
)

_subnet_mode = Attr(
    post=True,
    filter=True,
    sort=True,
    default=UNSET,
    check=a.one_of("dhcpv6-stateful", "dhcpv6-stateless", "slaac", None),
)

SUBNET = Resource(
    name="subnet",
    collection="subnets",
    path="subnets",
    table=t.SUBNETS,
    not_found="SubnetNotFound",
    label="Subnet",
    columns={"tenant_id": "project_id", "revision_number": "revision"},
    attributes={
        "id": _id(),
        "name": _name(),
        "network_id": Attr(post=True, default=REQUIRED, filter=True, sort=True, check=a.uuid),
        **_project(),
        "ip_version": Attr(post=True, default=REQUIRED, filter=True, sort=True, check=a.ip_version, kind="integer"),
        "cidr": Attr(post=True, filter=True, sort=True, check=a.cidr_or_none),
        "prefixlen": Attr(post=True, show=False, check=a.integer(0), kind="integer"),
        "subnetpool_id": Attr(
            post=True,
            filter=True,
            sort=True,
            check=lambda n, v: v if v == "prefix_delegation" else a.uuid_or_none(n, v),
        ),
        "use_default_subnetpool": _flag(False, put=False, show=False, filter=False, sort=False),
        "gateway_ip": Attr(post=True, put=True, filter=True, sort=True, check=a.ip_address_or_none),
        "enable_dhcp": _flag(True),
        "allocation_pools": Attr(post=True, put=True, check=a.pools, kind="list"),
        "dns_nameservers": Attr(post=True, put=True, check=a.nameservers, kind="list"),
        "host_routes": Attr(post=True, put=True, check=a.host_routes, kind="list"),
        "ipv6_address_mode": _subnet_mode,
        "ipv6_ra_mode": _subnet_mode,
        "service_types": Attr(post=True, put=True, policy=True, check=a.service_types, kind="list"),
        "router:external": Attr(filter=True, kind="boolean"),
        "shared": Attr(filter=True, show=False, kind="boolean"),
        **_standard(),
    },
)

SUBNETPOOL = Resource(
    name="subnetpool",
    collection="subnetpools",
    path="subnetpools",
    table=t.SUBNETPOOLS,
    not_found="SubnetPoolNotFound",
    label="Subnet pool",
    columns={"tenant_id": "project_id", "revision_number": "revision"},
    attributes={
        "id": _id(),
        "name": Attr(post=True, put=True, default=REQUIRED, filter=True, sort=True, check=a.text(255, empty=False)),
        **_project(),
        "ip_version": Attr(filter=True, sort=True, kind="integer"),
        "prefixes": Attr(post=True, put=True, default=REQUIRED, check=a.cidr_list, kind="list"),
        **{
            f"{part}_prefixlen": Attr(
                post=True, put=True, filter=True, sort=True, check=a.integer(0, 128), kind="integer"
            )
            for part in ("min", "default", "max")
        },
        "default_quota": Attr(
            post=True, put=True, filter=True, sort=True, check=a.integer(0, null=True), kind="integer"
        ),
        "shared": _flag(False, put=False, policy=True),
        "is_default": _flag(False, policy=True),
        "address_scope_id": Attr(),
        **_standard(),
    },
)

_vnic_types = (
    *("normal", "direct", "macvtap", "baremetal", "direct-physical", "virtio-forwarder", "smart-nic", "vdpa"),
    *("accelerator-direct", "accelerator-direct-physical", "remote-managed"),
)

PORT = Resource(
    name="port",
    collection="ports",
    path="ports",
    table=t.PORTS,
    not_found="PortNotFound",
    label="Port",
    columns={
        "tenant_id": "project_id",
        "revision_number": "revision",
        "binding:host_id": "host",
        "binding:vnic_type": "vnic_type",
    },
    attributes={
        "id": _id(),
        "name": _name(),
        "network_id": Attr(post=True, default=REQUIRED, filter=True, sort=True, check=a.uuid),
        **_project(),
        "admin_state_up": _flag(True),
        "mac_address": Attr(post=True, put=True, filter=True, sort=True, policy=True, check=a.mac_address),
        "fixed_ips": Attr(post=True, put=True, filter=True, policy=True, check=a.fixed_ips, kind="fixed_ips"),
        "device_id": Attr(
            post=True, put=True, default="", filter=True, sort=True, policy=True, check=a.text(255, null=True)
        ),
        "device_owner": Attr(post=True, put=True, default="", filter=True, sort=True, policy=True, check=a.text(255)),
        "status": Attr(filter=True, sort=True),
        "security_groups": Attr(post=True, put=True, filter=True, check=a.uuid_list, kind="security_groups"),
        "port_security_enabled": _flag(UNSET, policy=True, filter=False, sort=False),
        "allowed_address_pairs": Attr(post=True, put=True, policy=True, check=a.address_pairs, kind="list"),
        "extra_dhcp_opts": Attr(post=True, put=True, default=None, check=a.dhcp_options, kind="list"),
        "binding:host_id": Attr(post=True, put=True, policy=True, filter=True, check=a.text(255, null=True)),
        "binding:profile": Attr(post=True, put=True, policy=True, check=a.mapping_or_none, kind="object"),
        "binding:vif_type": Attr(policy=True),
        "binding:vif_details": Attr(policy=True, kind="object"),
        "binding:vnic_type": Attr(post=True, put=True, default="normal", policy=True, check=a.one_of(*_vnic_types)),
        "dns_name": Attr(post=True, put=True, default="", check=a.dns_name),
        "dns_assignment": Attr(),
        "ip_allocation": Attr(filter=True, sort=True),
        **_standard(),
        # given at creation, these are written with the port (tag-ports-during-bulk-creation)
        "tags": Attr(post=True, default=[], filter=True, check=a.text_list, kind="tags"),
    },
)

ROUTER = Resource(
    name="router",
    collection="routers",
    path="routers",
    table=t.ROUTERS,
    not_found="RouterNotFound",
    label="Router",
    columns={"tenant_id": "project_id", "revision_number": "revision"},
    attributes={
        "id": _id(),
        "name": _name(),
        "admin_state_up": _flag(True),
        "status": Attr(sort=True, filter=True),
        **_project(),
        "external_gateway_info": Attr(
            post=True, put=True, default=None, policy=True, check=a.gateway_info, kind="object"
        ),
        "routes": Attr(put=True, check=a.host_routes, kind="list"),
        "availability_zone_hints": _hints,
        "availability_zones": Attr(),
        **_standard(),
    },
)

FLOATING_IP = Resource(
    name="floatingip",
    collection="floatingips",
    path="floatingips",
    table=t.FLOATING_IPS,
    not_found="FloatingIPNotFound",
    label="Floating IP",
    columns={"tenant_id": "project_id", "revision_number": "revision"},
    attributes={
        "id": _id(),
        **_project(),
        "floating_network_id": Attr(post=True, default=REQUIRED, filter=True, sort=True, check=a.uuid),
        "floating_ip_address": Attr(
            post=True, default=None, filter=True, sort=True, policy=True, check=a.ip_address_or_none
        ),
        "subnet_id": Attr(post=True, default=None, show=False, check=a.uuid_or_none),
        "port_id": Attr(post=True, put=True, default=None, filter=True, check=a.uuid_or_none),
        "fixed_ip_address": Attr(post=True, put=True, default=None, filter=True, sort=True, check=a.ip_address_or_none),
        "router_id": Attr(filter=True, sort=True),
        "status": Attr(filter=True, sort=True),
        "port_details": Attr(),
        "dns_name": Attr(post=True, default="", check=a.dns_name),
        "dns_domain": Attr(post=True, default="", check=a.dns_domain),
        **_standard(),
    },
)


def _not_default(name: str, value: Any) -> str:
    found: str = a.text(255)(name, value)
    if found.lower() == "default":
        from cumulet.services.network.faults import conflict

        raise conflict("SecurityGroupDefaultAlreadyExists", "The default security group exists already.")
    return found


SECURITY_GROUP = Resource(
    name="security_group",
    collection="security_groups",
    path="security-groups",
    table=t.SECURITY_GROUPS,
    not_found="SecurityGroupNotFound",
    label="Security group",
    columns={"tenant_id": "project_id", "revision_number": "revision"},
    attributes={
        "id": _id(),
        "name": _name(_not_default),
        **_project(),
        "stateful": _flag(True, sort=False),
        "security_group_rules": Attr(),
        "shared": Attr(kind="boolean"),
        **_standard(),
    },
)


def _rule(check: Any = None, **more: Any) -> Attr:
    return Attr(post=True, default=None, filter=True, sort=True, check=check, **more)


SECURITY_GROUP_RULE = Resource(
    name="security_group_rule",
    collection="security_group_rules",
    path="security-group-rules",
    table=t.SECURITY_GROUP_RULES,
    not_found="SecurityGroupRuleNotFound",
    label="Security group rule",
    columns={"tenant_id": "project_id", "revision_number": "revision"},
    attributes={
        "id": _id(),
        **_project(),
        "security_group_id": Attr(post=True, default=REQUIRED, filter=True, sort=True, check=a.text(36)),
        "direction": Attr(post=True, default=REQUIRED, filter=True, sort=True, check=a.one_of("ingress", "egress")),
        "ethertype": Attr(post=True, default="IPv4", filter=True, sort=True, check=lambda n, v: v),
        "protocol": _rule(lambda n, v: v),
        "port_range_min": _rule(lambda n, v: v, kind="integer"),
        "port_range_max": _rule(lambda n, v: v, kind="integer"),
        "remote_group_id": _rule(a.text(255, null=True)),
        "remote_ip_prefix": _rule(lambda n, v: v),
        "normalized_cidr": Attr(),
        "belongs_to_default_sg": Attr(filter=True, kind="boolean"),
        "description": Attr(post=True, default="", filter=True, check=a.text(255)),
        "created_at": Attr(),
        "updated_at": Attr(),
        "revision_number": Attr(filter=True, kind="integer"),
    },
)
