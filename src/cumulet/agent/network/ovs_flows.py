"""The OpenFlow rules of this host's Open vSwitch bridges, in the manner of Neutron's agent. Pure: state in, lines out.

Every network has a local VLAN in br-int. br-tun maps it to a tunnel id and back: packets that come in by a tunnel teach
(`learn`) where their sender is, unknown ones go to all peers of the network. Bridges of physical networks map it to the
wire's VLAN, or none. Everything else on these crossings is dropped.

Actions are spelled as OpenFlow 1.4 has them: what a switch holds is compared with these lines word for word.
"""

from collections.abc import Mapping

import msgspec

from cumulet.agent.contract import Segment

INTEGRATION, TUNNEL = "br-int", "br-tun"
PATCH_TUN, PATCH_INT = "patch-tun", "patch-int"  # in br-int and in br-tun
_TABLE = {"gre": 3, "vxlan": 4}  # where packets of a kind of tunnel are told apart by id
_LEARN, _UNICAST, _FLOOD = 10, 20, 22
_UNTAGGED = "vlan_tci=0x0000/0x1fff"
_PUSH, _PRESENT = "push_vlan:0x8100", 0x1000


class LocalNetwork(msgspec.Struct, frozen=True):
    tag: int
    segment: Segment
    peers: frozenset[str] = frozenset()


def tunnel_port(kind: str, peer: str) -> str:
    """Neutron's name of the port to a peer: the kind and the address in hexadecimal."""
    if ":" in peer:
        import ipaddress

        return f"{kind}-{int(ipaddress.IPv6Address(peer)) & 0xFFFFFFFF:08x}"
    return f"{kind}-" + "".join(f"{int(part):02x}" for part in peer.split("."))


def patch_names(bridge: str) -> tuple[str, str]:
    """In br-int, in the physical network's bridge."""
    return f"int-{bridge}"[:15], f"phy-{bridge}"[:15]


def flows(
    networks: Mapping[str, LocalNetwork],
    mappings: Mapping[str, str],
    tunnels: Mapping[str, set[str]],
) -> dict[str, list[str]]:
    """Bridge -> lines. ``mappings``: physical network -> bridge (all that have patches); ``tunnels``: kind -> peers
    that have a port."""
    out: dict[str, list[str]] = {INTEGRATION: ["table=0,priority=0,actions=NORMAL"]}
    for bridge in sorted(set(mappings.values())):
        inner, outer = patch_names(bridge)
        out[INTEGRATION].append(f"table=0,priority=2,in_port={inner},actions=drop")
        out[bridge] = ["table=0,priority=0,actions=NORMAL", f"table=0,priority=2,in_port={outer},actions=drop"]
    out[TUNNEL] = _tunnel_base(tunnels)
    for network in sorted(networks.values(), key=lambda n: n.tag):
        kind = network.segment.network_type
        if kind in ("flat", "vlan"):
            found = mappings.get(network.segment.physical_network or "")
            if found:
                _physical(out, network, found)
        elif kind in _TABLE:
            out[TUNNEL] += _tunnelled(network, kind, tunnels)
    return out


def _physical(out: dict[str, list[str]], network: LocalNetwork, bridge: str) -> None:
    inner, outer = patch_names(bridge)
    tag, vlan = network.tag, network.segment.segmentation_id
    if network.segment.network_type == "flat":
        wire, enter, leave = _UNTAGGED, f"{_PUSH},{_vlan(tag)}", "pop_vlan"
    else:
        wire, enter, leave = f"dl_vlan={vlan}", _vlan(tag), _vlan(vlan or 0)
    out[INTEGRATION].append(f"table=0,priority=3,in_port={inner},{wire},actions={enter},NORMAL")
    out[bridge].append(f"table=0,priority=4,in_port={outer},dl_vlan={tag},actions={leave},NORMAL")


def _vlan(tag: int) -> str:
    return f"set_field:{_PRESENT | tag}->vlan_vid"


def _tunnel_base(tunnels: Mapping[str, set[str]]) -> list[str]:
    lines = [
        "table=0,priority=0,actions=drop",
        f"table=0,priority=1,in_port={PATCH_INT},actions=resubmit(,2)",
        f"table=2,priority=0,dl_dst=00:00:00:00:00:00/01:00:00:00:00:00,actions=resubmit(,{_UNICAST})",
        f"table=2,priority=0,dl_dst=01:00:00:00:00:00/01:00:00:00:00:00,actions=resubmit(,{_FLOOD})",
        *(f"table={table},priority=0,actions=drop" for table in _TABLE.values()),
        f"table={_LEARN},priority=1,actions=learn(table={_UNICAST},hard_timeout=300,priority=1,"
        "NXM_OF_VLAN_TCI[0..11],NXM_OF_ETH_DST[]=NXM_OF_ETH_SRC[],load:0->NXM_OF_VLAN_TCI[],"
        f"load:NXM_NX_TUN_ID[]->NXM_NX_TUN_ID[],output:OXM_OF_IN_PORT[]),output:{PATCH_INT}",
        f"table={_UNICAST},priority=0,actions=resubmit(,{_FLOOD})",
        f"table={_FLOOD},priority=0,actions=drop",
    ]
    for kind, table in _TABLE.items():
        for peer in sorted(tunnels.get(kind, ())):
            lines.append(f"table=0,priority=1,in_port={tunnel_port(kind, peer)},actions=resubmit(,{table})")
    return lines


def _tunnelled(network: LocalNetwork, kind: str, tunnels: Mapping[str, set[str]]) -> list[str]:
    vni, tag = network.segment.segmentation_id, network.tag
    lines = [
        f"table={_TABLE[kind]},priority=1,tun_id={vni},actions={_PUSH},{_vlan(tag)},resubmit(,{_LEARN})",
    ]
    outputs = [f"output:{tunnel_port(kind, p)}" for p in sorted(network.peers & tunnels.get(kind, set()))]
    if outputs:
        leave = f"pop_vlan,set_field:{vni or 0:#x}->tun_id"
        lines.append(f"table={_FLOOD},priority=1,dl_vlan={tag},actions={leave},{','.join(outputs)}")
    return lines


def difference(before: list[str], now: list[str]) -> list[str]:
    """Lines of one ``ovs-ofctl --bundle add-flows`` that turn one set into the other."""
    kept = {_match(line) for line in now}
    gone = [f"delete_strict {_match(line)}" for line in before if _match(line) not in kept]
    return gone + [f"add {line}" for line in now if line not in set(before)]


def _match(line: str) -> str:
    return line[: line.index(",actions=")]


def compared(printed: str) -> dict[str, str]:
    """What ``ovs-ofctl diff-flows`` of a switch and a file printed: match of a flow -> how it differs, ``missing``,
    ``unknown`` or ``different``. What packets taught the switch is nobody's difference."""
    sides: dict[str, set[str]] = {}
    for line in printed.splitlines():
        flow, _, _ = line[1:].strip().partition(" actions=")
        match = " ".join(word for word in flow.split() if not word.startswith(("cookie=", "idle_timeout=")))
        if line[:1] in "+-" and not (match.startswith(f"table={_UNICAST} ") and "hard_timeout=" in match):
            sides.setdefault(match, set()).add(line[0])
    words = {"+": "missing", "-": "unknown"}
    return {match: words[min(found)] if len(found) == 1 else "different" for match, found in sorted(sides.items())}
