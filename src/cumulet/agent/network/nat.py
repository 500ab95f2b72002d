"""Address translation and daemons' files of a router. Pure: a document in, text out.

Floating IPs are two maps, so a thousand cost one lookup. A table is replaced whole in one transaction; connections
that exist go on, as their translation stands in connection tracking.
"""

import ipaddress

from cumulet.agent.contract import RouterDoc, RouterPort
from cumulet.agent.network.names import METADATA_IP, ROUTER_TABLE, digest, gateway_device, router_device

COMMENT = "cumulet "


def external_address(doc: RouterDoc) -> str | None:
    """The router's own IPv4 address outside."""
    if doc.gateway is None:
        return None
    return next((f.ip_address for f in doc.gateway.port.fixed_ips if ":" not in f.ip_address), None)


def inside_cidrs(doc: RouterDoc, version: int = 4) -> list[str]:
    networks = [ipaddress.ip_network(s.cidr) for leg in doc.interfaces for s in leg.subnets if s.ip_version == version]
    return [str(n) for n in ipaddress.collapse_addresses(networks)]  # type: ignore[type-var]


def ruleset(doc: RouterDoc) -> str:
    body = _body(doc)
    head = f"add table ip {ROUTER_TABLE}\ndelete table ip {ROUTER_TABLE}\n"
    about = f'  chain about {{\n    return comment "{COMMENT}{digest(body)[:24]}"\n  }}\n'
    return f"{head}table ip {ROUTER_TABLE} {{\n{about}{body}}}\n"


def ruleset_digest(doc: RouterDoc) -> str:
    return digest(_body(doc))[:24]


def _body(doc: RouterDoc) -> str:
    inner = ", ".join(f'"{router_device(leg.port.id)}"' for leg in doc.interfaces)
    lines: list[str] = []
    # the metadata address answers inside only
    lines += ["  chain guard {", "    type filter hook prerouting priority raw; policy accept;"]
    if inner:
        lines.append(f'    iifname != {{ {inner}, "lo" }} ip daddr {METADATA_IP} drop')
    else:
        lines.append(f'    iifname != "lo" ip daddr {METADATA_IP} drop')
    lines.append("  }")
    outside = external_address(doc)
    if doc.gateway is None:
        return "\n".join(lines) + "\n"
    qg = gateway_device(doc.gateway.port.id)
    floating = sorted((f.floating_ip_address, f.fixed_ip_address) for f in doc.floating_ips)
    if floating:
        pairs_in = ", ".join(f"{a} : {b}" for a, b in floating)
        pairs_out = ", ".join(f"{fixed} : {address}" for fixed, address in _outgoing(floating).items())
        lines.append(f"  map floating_in {{ type ipv4_addr : ipv4_addr; elements = {{ {pairs_in} }}; }}")
        lines.append(f"  map floating_out {{ type ipv4_addr : ipv4_addr; elements = {{ {pairs_out} }}; }}")
        lines += [
            "  chain prerouting {",
            "    type nat hook prerouting priority dstnat; policy accept;",
            "    dnat to ip daddr map @floating_in",
            "  }",
            "  chain output {",
            "    type nat hook output priority -100; policy accept;",
            "    dnat to ip daddr map @floating_in",
            "  }",
        ]
    lines += ["  chain postrouting {", "    type nat hook postrouting priority srcnat; policy accept;"]
    if floating:
        lines.append(f'    oifname "{qg}" snat to ip saddr map @floating_out')
    if outside:
        cidrs = inside_cidrs(doc)
        if cidrs and floating:  # from inside to a floating IP and back inside: the answer must come by the router
            lines.append(f'    oifname != "{qg}" ip saddr {{ {", ".join(cidrs)} }} ct status dnat snat to {outside}')
        if doc.enable_snat:
            lines.append(f'    oifname "{qg}" ct status dnat accept')
            lines.append(f'    oifname "{qg}" snat to {outside}')
    lines.append("  }")
    return "\n".join(lines) + "\n"


def _outgoing(floating: list[tuple[str, str]]) -> dict[str, str]:
    """Fixed -> the first of its floating addresses."""
    out: dict[str, str] = {}
    for address, fixed in floating:
        out.setdefault(fixed, address)
    return out


def radvd(doc: RouterDoc) -> str:
    """radvd's configuration; empty if no subnet wants advertisements."""
    parts = [_advertised(leg) for leg in doc.interfaces]
    return "".join(p for p in parts if p)


def _advertised(leg: RouterPort) -> str:
    subnets = [s for s in leg.subnets if s.ip_version == 6 and s.ipv6_ra_mode]
    if not subnets:
        return ""
    modes = {s.ipv6_ra_mode for s in subnets}
    lines = [
        f"interface {router_device(leg.port.id)}",
        "{",
        "   AdvSendAdvert on;",
        "   MinRtrAdvInterval 30;",
        "   MaxRtrAdvInterval 100;",
        f"   AdvLinkMTU {leg.port.segment.mtu};",
    ]
    if "dhcpv6-stateless" in modes:
        lines.append("   AdvOtherConfigFlag on;")
    if "dhcpv6-stateful" in modes:
        lines.append("   AdvManagedFlag on;")
    servers = [a for s in subnets for a in s.dns_nameservers if ":" in a and s.ipv6_ra_mode == "slaac"]
    if servers:
        lines.append(f"   RDNSS {' '.join(servers[:3])} {{}};")
    for subnet in subnets:
        autonomous = "off" if subnet.ipv6_ra_mode == "dhcpv6-stateful" else "on"
        lines += [
            f"   prefix {subnet.cidr}",
            "   {",
            "        AdvOnLink on;",
            f"        AdvAutonomous {autonomous};",
            "   };",
        ]
    lines += [f"   route {r.destination} {{\n   }};" for s in subnets for r in s.host_routes if ":" in r.destination]
    lines.append("};")
    return "\n".join(lines) + "\n"
