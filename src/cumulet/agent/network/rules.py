"""Security groups as nftables text. Pure: documents in, lines for ``nft -f`` out.

The kernel may not have connection tracking in the bridge family, so it is borrowed: on tracked bridges the inet hooks
see bridged packets between the bridge's own hooks (`bridge/nf_call_iptables`, set on our bridges only). There an inet
chain gives the connection the zone of its bridge and copies its state into two bits of the packet's mark, which the
bridge forward chain then matches. One packet meets connection tracking once, hence a zone per bridge (per network;
per port where each port has a bridge of its own, the hybrid plug), not per port.

Per port two chains: ``o-<device>`` what the guest may send (first: only with its own addresses), where ``return`` means
allowed; ``i-<device>`` what it may receive. Two verdict maps lead to them, so that the cost does not grow with ports.
"""

import ipaddress
from collections.abc import Iterable, Mapping

from cumulet.agent.contract import FirewallRule, PortDoc
from cumulet.agent.network.names import FILTER_TABLE, GUARD_TABLE, TRACK_TABLE, digest, group_set

ESTABLISHED = 0x01000000
INVALID = 0x02000000
_CLEAR = 0xFFFFFFFF ^ (ESTABLISHED | INVALID)
_TABLE = f"bridge {FILTER_TABLE}"
COMMENT = "cumulet "  # + digest, on the last rule of a port's egress chain: what the kernel holds

# Neutron's names of protocols which nft might not know on a host without /etc/protocols
_PROTOCOLS = {
    "ah": 51, "dccp": 33, "egp": 8, "esp": 50, "gre": 47, "hopopt": 0, "icmp": 1, "igmp": 2, "ip": 0, "ipip": 4,
    "ipv6-encap": 41, "ipv6-frag": 44, "ipv6-icmp": 58, "icmpv6": 58, "ipv6-nonxt": 59, "ipv6-opts": 60,
    "ipv6-route": 43, "ospf": 89, "pgm": 113, "rsvp": 46, "sctp": 132, "tcp": 6, "udp": 17, "udplite": 136, "vrrp": 112,
}  # fmt: skip
_WITH_PORTS = {6, 17, 33, 132, 136}


def base() -> str:
    """The tables that hold ports' chains; written again at every start, which leaves the ports as they are."""
    lines = [
        f"add table {_TABLE}",
        f"add map {_TABLE} from_port {{ type ifname : verdict; }}",
        f"add map {_TABLE} to_port {{ type ifname : verdict; }}",
    ]
    for chain in ("forward", "input", "output"):
        lines += [
            f"add chain {_TABLE} {chain} {{ type filter hook {chain} priority filter; policy accept; }}",
            f"flush chain {_TABLE} {chain}",
        ]
    lines += [
        f"add rule {_TABLE} forward iifname vmap @from_port",
        f"add rule {_TABLE} forward oifname vmap @to_port",
        # from a guest to the host itself, and from the host: only on bridges that are shared with the host (br-ex)
        f"add rule {_TABLE} input iifname vmap @from_port",
        f"add rule {_TABLE} output oifname vmap @to_port",
    ]
    return "\n".join(lines) + "\n"


def tracking(zones: Mapping[str, int]) -> str:
    """Replace the connection tracking of bridges: name -> zone. Zone 0 is the host's own, for shared bridges whose
    packets the host also routes and translates."""
    head = f"add table inet {TRACK_TABLE}\ndelete table inet {TRACK_TABLE}\n"
    if not zones:
        return head
    own = {b: z for b, z in zones.items() if z}
    shared = [b for b, z in zones.items() if not z]
    lines = [f"table inet {TRACK_TABLE} {{"]
    lines += ["  chain assign_zone {", "    type filter hook prerouting priority raw; policy accept;"]
    if own:
        lines.append(
            "    ct zone set iifname map { " + ", ".join(f'"{b}" : {z}' for b, z in sorted(own.items())) + " }"
        )
    lines.append("  }")
    if own:
        lines += _no_nat(own)
    lines += ["  chain copy_state {", "    type filter hook prerouting priority mangle; policy accept;"]
    lines += [f"    iifname != {_names(zones)} accept", *_marks(), "  }"]
    if shared:  # from the host's own stack, which no bridge prerouting sees
        lines += ["  chain copy_state_out {", "    type filter hook postrouting priority mangle; policy accept;"]
        lines += [f"    oifname != {_names(shared)} accept", *_marks(), "  }"]
    return head + "\n".join([*lines, "}"]) + "\n"


def _no_nat(bridges: Iterable[str]) -> list[str]:
    """Bridged packets also pass the host's nat chains, where a masquerade of others (or ours for br-ex) may match them.
    Translating them to what they are, before all others, settles the connection's translation as none."""
    lines = []
    for chain, hook, priority, verb, side, way in (
        ("keep_destination", "prerouting", "dstnat - 10", "dnat", "daddr", "iifname"),
        ("keep_source", "postrouting", "srcnat - 10", "snat", "saddr", "oifname"),
    ):
        lines += [f"  chain {chain} {{", f"    type nat hook {hook} priority {priority}; policy accept;"]
        lines += [f"    {way} {_names(bridges)} {verb} {f} to {f} {side}" for f in ("ip", "ip6")]
        lines.append("  }")
    return lines


def _marks() -> list[str]:
    return [
        f"    meta mark set meta mark and {_CLEAR:#x}",
        f"    ct state established,related meta mark set meta mark or {ESTABLISHED:#x}",
        f"    ct state invalid meta mark set meta mark or {INVALID:#x}",
    ]


def guard(devices: Iterable[str]) -> str:
    """Nothing that arrives on these devices reaches the host's own network stack."""
    head = f"add table netdev {GUARD_TABLE}\ndelete table netdev {GUARD_TABLE}\n"
    found = sorted(devices)
    if not found:
        return head
    listed = ", ".join(f'"{d}"' for d in found)
    return (
        f"{head}table netdev {GUARD_TABLE} {{\n  chain own_stack {{\n"
        f"    type filter hook ingress devices = {{ {listed} }} priority -500; policy drop;\n  }}\n}}\n"
    )


def _names(bridges: Iterable[str]) -> str:
    return "{ " + ", ".join(f'"{b}"' for b in sorted(bridges)) + " }"


# -- a port ----------------------------------------------------------------------------------------------------------


def filtered(port: PortDoc) -> bool:
    return port.port_security_enabled and not port.device_owner.startswith("network:")


def port_digest(port: PortDoc, device: str) -> str:
    return digest("\n".join(_egress(port, device) + _ingress(port, device)))[:24]


def port_chains(port: PortDoc, device: str) -> str:
    """One transaction's lines that make or replace the chains of a port. The sets of its groups must exist."""
    egress, ingress = f"o-{device}", f"i-{device}"
    lines = [f"{verb} chain {_TABLE} {chain}" for chain in (egress, ingress) for verb in ("add", "flush")]
    lines += [f"add rule {_TABLE} {egress} {rule}" for rule in _egress(port, device)]
    lines.append(f'add rule {_TABLE} {egress} drop comment "{COMMENT}{port_digest(port, device)}"')
    lines += [f"add rule {_TABLE} {ingress} {rule}" for rule in _ingress(port, device)]
    lines.append(f"add rule {_TABLE} {ingress} drop")
    lines.append(f'add element {_TABLE} from_port {{ "{device}" : jump {egress} }}')
    lines.append(f'add element {_TABLE} to_port {{ "{device}" : goto {ingress} }}')
    return "\n".join(lines) + "\n"


def no_port_chains(device: str) -> str:
    """Remove the chains of a port; also right if there are none (nft 1.0 has no ``destroy``: add, then delete)."""
    egress, ingress = f"o-{device}", f"i-{device}"
    lines = [f"add chain {_TABLE} {egress}", f"add chain {_TABLE} {ingress}"]
    for verb in ("add", "delete"):
        lines.append(f'{verb} element {_TABLE} from_port {{ "{device}" : jump {egress} }}')
        lines.append(f'{verb} element {_TABLE} to_port {{ "{device}" : goto {ingress} }}')
    for chain in (egress, ingress):
        lines += [f"flush chain {_TABLE} {chain}", f"delete chain {_TABLE} {chain}"]
    return "\n".join(lines) + "\n"


def addresses(port: PortDoc) -> dict[str, tuple[list[str], list[str]]]:
    """MAC -> the IPv4 and IPv6 addresses (or ranges) the guest may use with it."""
    found: dict[str, tuple[list[str], list[str]]] = {}

    def entry(mac: str) -> tuple[list[str], list[str]]:
        if mac not in found:
            found[mac] = ([], [link_local(mac)])
        return found[mac]

    own = port.mac_address.lower()
    entry(own)
    for fixed in port.fixed_ips:
        entry(own)[_version(fixed.ip_address) == 6].append(fixed.ip_address)
    for pair in port.allowed_address_pairs:
        mac = (pair.get("mac_address") or own).lower()
        entry(mac)[_version(pair["ip_address"]) == 6].append(pair["ip_address"])
    return {mac: (collapse(v4), collapse(v6)) for mac, (v4, v6) in found.items()}


def link_local(mac: str) -> str:
    """The IPv6 link-local address that follows from a MAC (modified EUI-64)."""
    raw = bytearray.fromhex(mac.replace(":", ""))
    raw[0] ^= 2
    raw[3:3] = b"\xff\xfe"
    return str(ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + bytes(raw)))


def _egress(port: PortDoc, device: str) -> list[str]:
    pairs = addresses(port)
    rules = [f"ether saddr != {_set(pairs)} drop"]
    for mac, (v4, _) in pairs.items():
        rules.append(
            f"ether type arp arp saddr ether {mac} arp saddr ip {_set(['0.0.0.0', *v4])} ether saddr {mac} return"
            if "0.0.0.0/0" not in v4
            else f"ether type arp arp saddr ether {mac} ether saddr {mac} return"
        )
    rules.append("ether type arp drop")
    # a guest may always ask for its address, and never give one out
    rules.append("ether type ip ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 return")
    rules.append("ether type ip udp sport 67 udp dport 68 drop")
    rules.append("ether type ip6 udp sport 547 udp dport 546 drop")
    rules.append("ether type ip6 icmpv6 type { nd-router-advert, nd-redirect } drop")
    rules.append(
        "ether type ip6 ip6 saddr :: icmpv6 type "
        "{ nd-neighbor-solicit, nd-router-solicit, mld-listener-report, mld2-listener-report } return"
    )
    for mac, (v4, v6) in pairs.items():
        if "0.0.0.0/0" not in v4:
            rules.append(f"ether saddr {mac} ether type ip {f'ip saddr != {_set(v4)} ' if v4 else ''}drop")
        if "::/0" not in v6:
            rules.append(f"ether saddr {mac} ether type ip6 ip6 saddr != {_set(v6)} drop")
            # the target of an advertisement, not only its sender; "icmpv6 taddr" needs nft 1.0.8
            rules.append(
                f"ether saddr {mac} ether type ip6 icmpv6 type nd-neighbor-advert @th,64,128 != {_numbers(v6)} drop"
            )
    rules.append("ether type ip udp sport 68 udp dport 67 return")
    rules.append("ether type ip6 udp sport 546 udp dport 547 return")
    rules.append(
        "ether type ip6 icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit, "
        "mld-listener-report, mld-listener-done, mld2-listener-report } return"
    )
    rules.append("ether type != { ip, ip6 } drop")
    rules += _states("return")
    rules += [f"{m} return" for m in _matches(port, "egress")]
    return rules


def _ingress(port: PortDoc, device: str) -> list[str]:
    servers = collapse(a for a in port.dhcp_servers if _version(a) == 4)
    source = f"ip saddr {_set(servers)} " if servers else ""
    return [
        "ether type arp accept",
        f"ether type ip {source}udp sport 67 udp dport 68 accept",
        "ether type ip6 udp sport 547 udp dport 546 ip6 saddr fe80::/10 accept",
        "ether type ip6 icmpv6 type { nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, mld-listener-query } "
        "accept",
        *_states("accept"),
        *(f"{m} accept" for m in _matches(port, "ingress")),
    ]


def _states(verdict: str) -> list[str]:
    return [
        f"meta mark and {ESTABLISHED:#x} == {ESTABLISHED:#x} {verdict}",
        f"meta mark and {INVALID:#x} == {INVALID:#x} drop",
    ]


def _matches(port: PortDoc, direction: str) -> list[str]:
    found = dict.fromkeys(match(rule) for rule in port.rules if rule.direction == direction)
    return [m for m in found if m is not None]


def match(rule: FirewallRule) -> str | None:
    """The condition of one rule; None if it can match nothing."""
    version = 6 if rule.ethertype == "IPv6" else 4
    family = "ip6" if version == 6 else "ip"
    side = "saddr" if rule.direction == "ingress" else "daddr"
    parts = [f"ether type {family}"]
    if rule.remote_group_id:
        parts.append(f"{family} {side} @{group_set(rule.remote_group_id, version)}")
    elif rule.remote_ip_prefix:
        network = ipaddress.ip_network(rule.remote_ip_prefix, strict=False)
        if network.version != version:
            return None
        if network.prefixlen:
            parts.append(f"{family} {side} {network}")
    protocol = (rule.protocol or "").lower()
    if protocol in ("", "any"):
        return " ".join(parts)
    number = int(protocol) if protocol.isdecimal() else _PROTOCOLS.get(protocol)
    if number is None or not 0 <= number <= 255:
        raise ValueError(f"unknown protocol {rule.protocol!r}")
    if version == 6 and number == 1:  # "icmp" of an IPv6 rule is ICMPv6, as Neutron has it
        number = 58
    low, high = rule.port_range_min, rule.port_range_max
    if number in (1, 58):
        word = "icmp" if number == 1 else "icmpv6"
        parts.append(f"meta l4proto {number}")
        if low is not None:
            parts.append(f"{word} type {low}" + (f" {word} code {high}" if high is not None else ""))
    else:
        parts.append(f"meta l4proto {number}")
        if number in _WITH_PORTS and (low, high) != (None, None) and (low, high) != (1, 65535):
            first, last = low if low is not None else high, high if high is not None else low
            parts.append(f"th dport {first}" if first == last else f"th dport {first}-{last}")
    return " ".join(parts)


# -- remote groups ---------------------------------------------------------------------------------------------------


def group_names(port: PortDoc) -> set[str]:
    return {
        group_set(rule.remote_group_id, 6 if rule.ethertype == "IPv6" else 4)
        for rule in port.rules
        if rule.remote_group_id
    }


def group_sets(group_id: str, members: Iterable[str]) -> dict[str, list[str]]:
    """The sets of a group, one for each IP version -> their elements."""
    members = list(members)
    return {group_set(group_id, v): collapse([a for a in members if _version(a) == v]) for v in (4, 6)}


def group(name: str, members: Iterable[str]) -> str:
    """Make or replace a set; it changes with the transaction, never half."""
    kind = "ipv6_addr" if name.startswith("g6-") else "ipv4_addr"
    lines = [f"add set {_TABLE} {name} {{ type {kind}; flags interval; }}", f"flush set {_TABLE} {name}"]
    listed = ", ".join(members)
    if listed:
        lines.append(f"add element {_TABLE} {name} {{ {listed} }}")
    return "\n".join(lines) + "\n"


def no_group(name: str) -> str:
    return f"delete set {_TABLE} {name}\n"


# -- text ------------------------------------------------------------------------------------------------------------


def collapse(members: Iterable[str]) -> list[str]:
    """Addresses and ranges without overlap (nft refuses them), single addresses without a length."""
    members = list(members)
    if not any("/" in m or ":" in m for m in members):  # thousands of members of a group
        return sorted(set(members))
    networks = [ipaddress.ip_network(m, strict=False) for m in members]
    out: list[str] = []
    for version in (4, 6):
        chosen = [n for n in networks if n.version == version]
        for network in ipaddress.collapse_addresses(chosen):  # type: ignore[type-var]
            out.append(str(network.network_address) if network.num_addresses == 1 else str(network))
    return out


def _version(address: str) -> int:
    return 6 if ":" in address else 4


def _set(items: Iterable[str]) -> str:
    return "{ " + ", ".join(items) + " }"


def _numbers(v6: Iterable[str]) -> str:
    """Addresses as the numbers a raw payload match wants; ranges as low-high."""
    out = []
    for item in v6:
        network = ipaddress.IPv6Network(item)
        low, high = int(network.network_address), int(network.broadcast_address)
        out.append(f"{low:#x}" if low == high else f"{low:#x}-{high:#x}")
    return _set(out)
