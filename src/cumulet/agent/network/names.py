"""The names of everything this package makes on a host: those a Neutron operator knows, nftables tables of our own.

Pure. A device name holds at most 15 characters, hence the first 11 of an id.
"""

import hashlib

TRACK_TABLE = "cumulet_track"  # inet: conntrack zones and marks of bridged packets
FILTER_TABLE = "cumulet_sg"  # bridge: security groups
GUARD_TABLE = "cumulet_guard"  # netdev: what may not reach the host's own stack
EXTERNAL_TABLE = "cumulet_external"  # inet: masquerading and forwarding of an external bridge made by us
ROUTER_TABLE = "cumulet_router"  # ip and ip6, inside router namespaces
HOST_TABLES = (
    ("inet", TRACK_TABLE),
    ("bridge", FILTER_TABLE),
    ("netdev", GUARD_TABLE),
    ("inet", EXTERNAL_TABLE),
)

DHCP_PREFIX = "qdhcp-"
ROUTER_PREFIX = "qrouter-"
METADATA_IP = "169.254.169.254"


def bridge(network_id: str) -> str:
    return "brq" + network_id[:11]


def tap(port_id: str) -> str:
    return "tap" + port_id[:11]


def dhcp_device(port_id: str) -> str:
    return "ns-" + port_id[:11]


def router_device(port_id: str) -> str:
    return "qr-" + port_id[:11]


def gateway_device(port_id: str) -> str:
    return "qg-" + port_id[:11]


def vxlan(vni: int) -> str:
    return f"vxlan-{vni}"


def dhcp_namespace(network_id: str) -> str:
    return DHCP_PREFIX + network_id


def router_namespace(router_id: str) -> str:
    return ROUTER_PREFIX + router_id


def hybrid_bridge(port_id: str) -> str:
    return "qbr" + port_id[:11]


def hybrid_inner(port_id: str) -> str:
    return "qvb" + port_id[:11]


def hybrid_outer(port_id: str) -> str:
    return "qvo" + port_id[:11]


def group_set(group_id: str, version: int) -> str:
    """The nftables set of a remote group's members; ids may be anything, so hashed."""
    return f"g{version}-{digest(group_id)[:16]}"


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def fixed_mac(text: str) -> str:
    """A locally administered MAC address that follows from ``text``: bridges with an address must not change theirs."""
    raw = digest(text)
    return "fe:16:3f:" + ":".join(raw[i : i + 2] for i in (0, 2, 4))
