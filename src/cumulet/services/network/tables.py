"""Tables of the network service and their rows as structs.

The structs have the columns' order: ``PortRow(*row)``. Standard attributes (``created_at``, ``updated_at``,
``revision``, ``description``) stand in every resource's own table; tags have one table for all.
"""

from typing import Any

import msgspec
from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, String, Table, UniqueConstraint

from cumulet.db import METADATA, Bool, Id, Json, Text, Time


def _standard() -> list[Column[Any]]:
    return [
        Column("created_at", Time, nullable=False),
        Column("updated_at", Time, nullable=False),
        Column("revision", Integer, nullable=False),
    ]


def _named() -> list[Column[Any]]:
    return [
        Column("id", Id, primary_key=True),
        Column("project_id", Id, nullable=False, index=True),
        Column("name", String(255), nullable=False),
        Column("description", Text, nullable=False),
    ]


class Row(msgspec.Struct):
    """Base of the rows; mutable, so that an update can be tried on a copy."""

    def values(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__struct_fields__}


class StandardRow(Row):
    id: str
    project_id: str
    name: str
    description: str


NETWORKS = Table(
    "networks",
    METADATA,
    *_named(),
    Column("admin_state_up", Bool, nullable=False),
    Column("status", String(16), nullable=False),
    Column("shared", Bool, nullable=False),
    Column("external", Bool, nullable=False),
    Column("is_default", Bool, nullable=False),
    Column("mtu", Integer, nullable=False),
    Column("port_security_enabled", Bool, nullable=False),
    Column("network_type", String(32), nullable=False),
    Column("physical_network", String(64), nullable=False),  # "" for none, so that the constraint below counts it
    Column("segmentation_id", Integer),
    Column("dns_domain", String(255), nullable=False),
    Column("availability_zone_hints", Json, nullable=False),
    *_standard(),
    UniqueConstraint("network_type", "physical_network", "segmentation_id"),
)


class NetworkRow(StandardRow):
    admin_state_up: bool
    status: str
    shared: bool
    external: bool
    is_default: bool
    mtu: int
    port_security_enabled: bool
    network_type: str
    physical_network: str
    segmentation_id: int | None
    dns_domain: str
    availability_zone_hints: list[str]
    created_at: int
    updated_at: int
    revision: int


SUBNETPOOLS = Table(
    "subnetpools",
    METADATA,
    *_named(),
    Column("ip_version", Integer, nullable=False),
    Column("prefixes", Json, nullable=False),
    Column("min_prefixlen", Integer, nullable=False),
    Column("default_prefixlen", Integer, nullable=False),
    Column("max_prefixlen", Integer, nullable=False),
    Column("default_quota", BigInteger),
    Column("shared", Bool, nullable=False),
    Column("is_default", Bool, nullable=False),
    *_standard(),
)


class SubnetPoolRow(StandardRow):
    ip_version: int
    prefixes: list[str]
    min_prefixlen: int
    default_prefixlen: int
    max_prefixlen: int
    default_quota: int | None
    shared: bool
    is_default: bool
    created_at: int
    updated_at: int
    revision: int


SUBNETS = Table(
    "subnets",
    METADATA,
    *_named(),
    Column("network_id", Id, ForeignKey("networks.id"), nullable=False, index=True),
    Column("ip_version", Integer, nullable=False),
    Column("cidr", String(64), nullable=False),
    Column("gateway_ip", String(64)),
    Column("enable_dhcp", Bool, nullable=False),
    Column("allocation_pools", Json, nullable=False),  # [[first, last], ...] as text
    Column("dns_nameservers", Json, nullable=False),
    Column("host_routes", Json, nullable=False),
    Column("ipv6_address_mode", String(32)),
    Column("ipv6_ra_mode", String(32)),
    Column("subnetpool_id", Id, ForeignKey("subnetpools.id"), index=True),
    Column("service_types", Json, nullable=False),
    *_standard(),
)


class SubnetRow(StandardRow):
    network_id: str
    ip_version: int
    cidr: str
    gateway_ip: str | None
    enable_dhcp: bool
    allocation_pools: list[list[str]]
    dns_nameservers: list[str]
    host_routes: list[dict[str, str]]
    ipv6_address_mode: str | None
    ipv6_ra_mode: str | None
    subnetpool_id: str | None
    service_types: list[str]
    created_at: int
    updated_at: int
    revision: int


PORTS = Table(
    "ports",
    METADATA,
    *_named(),
    Column("network_id", Id, ForeignKey("networks.id"), nullable=False),
    Column("mac_address", String(32), nullable=False),
    Column("admin_state_up", Bool, nullable=False),
    Column("status", String(16), nullable=False),  # written by state.settle only
    Column("device_id", String(255), nullable=False, index=True),
    Column("device_owner", String(255), nullable=False),
    Column("dns_name", String(255), nullable=False),
    Column("port_security_enabled", Bool, nullable=False),
    Column("allowed_address_pairs", Json, nullable=False),
    Column("extra_dhcp_opts", Json, nullable=False),
    Column("ip_allocation", String(16), nullable=False),
    Column("host", String(255), nullable=False, index=True),  # binding:host_id
    Column("vnic_type", String(64), nullable=False),
    Column("profile", Json, nullable=False),
    Column("vif_type", String(64), nullable=False),
    Column("vif_details", Json, nullable=False),
    Column("wired", Bool, nullable=False),  # observed: the bound host has made the port
    Column("powered", Bool, nullable=False),  # observed: the server of the port has a running VMM
    Column("made_for_server", Bool, nullable=False),  # goes with its server; others are only let go
    *_standard(),
    Column("moving", String(255), nullable=False, server_default=""),  # the other host, while its server moves live
    UniqueConstraint("network_id", "mac_address"),
    Index("ix_ports_network_owner", "network_id", "device_owner"),
    Index("ix_ports_page", "project_id", "id"),  # a page of a project's, in their order
    Index("ix_ports_network_project", "network_id", "project_id", "id"),  # others' in one's networks
)


class PortRow(StandardRow):
    network_id: str
    mac_address: str
    admin_state_up: bool
    status: str
    device_id: str
    device_owner: str
    dns_name: str
    port_security_enabled: bool
    allowed_address_pairs: list[dict[str, str]]
    extra_dhcp_opts: list[dict[str, Any]]
    ip_allocation: str
    host: str
    vnic_type: str
    profile: dict[str, Any]
    vif_type: str
    vif_details: dict[str, Any]
    wired: bool
    powered: bool
    made_for_server: bool
    created_at: int
    updated_at: int
    revision: int
    moving: str = ""


ADDRESSES = Table(
    "port_addresses",
    METADATA,
    Column("subnet_id", Id, ForeignKey("subnets.id"), primary_key=True),
    Column("ip_address", String(64), primary_key=True),
    Column("network_id", Id, nullable=False),
    Column("port_id", Id, ForeignKey("ports.id"), nullable=False, index=True),
    # how far into the subnet, for finding the lowest free one; None when it does not fit in 63 bits
    Column("position", BigInteger),
    Index("ix_port_addresses_position", "subnet_id", "position"),
    Index("ix_port_addresses_address", "network_id", "ip_address"),
)


class AddressRow(Row):
    subnet_id: str
    ip_address: str
    network_id: str
    port_id: str
    position: int | None


SECURITY_GROUPS = Table(
    "security_groups",
    METADATA,
    *_named(),
    Column("stateful", Bool, nullable=False),
    Column("default_for", Id, unique=True),  # the project whose default group it is
    *_standard(),
)


class SecurityGroupRow(StandardRow):
    stateful: bool
    default_for: str | None
    created_at: int
    updated_at: int
    revision: int


SECURITY_GROUP_RULES = Table(
    "security_group_rules",
    METADATA,
    Column("id", Id, primary_key=True),
    Column("project_id", Id, nullable=False, index=True),
    Column("description", Text, nullable=False),
    Column("security_group_id", Id, ForeignKey("security_groups.id"), nullable=False, index=True),
    Column("direction", String(8), nullable=False),
    Column("ethertype", String(8), nullable=False),
    Column("protocol", String(40)),
    Column("port_range_min", Integer),
    Column("port_range_max", Integer),
    Column("remote_group_id", Id, ForeignKey("security_groups.id"), index=True),
    Column("remote_ip_prefix", String(64)),
    *_standard(),
)


class SecurityGroupRuleRow(Row):
    id: str
    project_id: str
    description: str
    security_group_id: str
    direction: str
    ethertype: str
    protocol: str | None
    port_range_min: int | None
    port_range_max: int | None
    remote_group_id: str | None
    remote_ip_prefix: str | None
    created_at: int
    updated_at: int
    revision: int


PORT_GROUPS = Table(
    "port_security_groups",
    METADATA,
    Column("port_id", Id, ForeignKey("ports.id"), primary_key=True),
    Column("security_group_id", Id, ForeignKey("security_groups.id"), primary_key=True, index=True),
)

ROUTERS = Table(
    "routers",
    METADATA,
    *_named(),
    Column("admin_state_up", Bool, nullable=False),
    Column("status", String(16), nullable=False),
    Column("gateway_port_id", Id, ForeignKey("ports.id")),
    Column("gateway_network_id", Id, index=True),
    Column("enable_snat", Bool, nullable=False),
    Column("routes", Json, nullable=False),
    Column("availability_zone_hints", Json, nullable=False),
    *_standard(),
)


class RouterRow(StandardRow):
    admin_state_up: bool
    status: str
    gateway_port_id: str | None
    gateway_network_id: str | None
    enable_snat: bool
    routes: list[dict[str, str]]
    availability_zone_hints: list[str]
    created_at: int
    updated_at: int
    revision: int


FLOATING_IPS = Table(
    "floating_ips",
    METADATA,
    Column("id", Id, primary_key=True),
    Column("project_id", Id, nullable=False, index=True),
    Column("description", Text, nullable=False),
    Column("status", String(16), nullable=False),  # written by state.settle only
    Column("floating_network_id", Id, nullable=False),
    Column("floating_ip_address", String(64), nullable=False),
    Column("floating_port_id", Id, ForeignKey("ports.id"), nullable=False),
    Column("port_id", Id, ForeignKey("ports.id"), index=True),
    Column("fixed_ip_address", String(64)),
    Column("router_id", Id, ForeignKey("routers.id"), index=True),
    Column("dns_name", String(255), nullable=False),
    Column("dns_domain", String(255), nullable=False),
    Column("wanted_generation", BigInteger, nullable=False),  # of the router's document that carries it
    *_standard(),
)


class FloatingIpRow(Row):
    id: str
    project_id: str
    description: str
    status: str
    floating_network_id: str
    floating_ip_address: str
    floating_port_id: str
    port_id: str | None
    fixed_ip_address: str | None
    router_id: str | None
    dns_name: str
    dns_domain: str
    wanted_generation: int
    created_at: int
    updated_at: int
    revision: int


TAGS = Table(
    "network_tags",
    METADATA,
    Column("resource_id", Id, primary_key=True),
    Column("tag", String(255), primary_key=True),
)

# Which hosts serve a network's DHCP (with the port reserved there), and which host runs a router.
DHCP_HOSTS = Table(
    "network_dhcp_hosts",
    METADATA,
    Column("network_id", Id, ForeignKey("networks.id"), primary_key=True),
    Column("host", String(255), primary_key=True, index=True),
)

ROUTER_HOSTS = Table(
    "router_hosts",
    METADATA,
    Column("router_id", Id, ForeignKey("routers.id"), primary_key=True),
    Column("host", String(255), nullable=False, index=True),
)

# What an operator said of an agent; the agents themselves follow from the hosts.
AGENT_SETTINGS = Table(
    "network_agent_settings",
    METADATA,
    Column("id", Id, primary_key=True),
    Column("admin_state_up", Bool, nullable=False),
    Column("description", String(255)),
)

QUOTAS = Table(
    "network_quotas",
    METADATA,
    Column("project_id", Id, primary_key=True),
    Column("resource", String(64), primary_key=True),
    Column("limit", BigInteger, nullable=False),
)
