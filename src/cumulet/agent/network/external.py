"""An external network for a single machine: a bridge with the gateway address of the external range on the host, routed
and masqueraded to wherever the host's own default route goes.

Every change to the host is written down before it is made, and `remove_host_changes` takes back what still is as we
left it: the bridge if we made it, its addresses, the sysctls' former values, our own nftables table ``inet
cumulet_external``. Others' tables are never changed. A forward chain of others with policy drop (Docker, ufw,
firewalld) wins over any accept of ours: nftables asks every chain. Then addresses of the external range are reached
from this host itself, but guests do not reach beyond it; `ensure_external_bridge` says so in its warnings, with the
command that cures it.
"""

import ipaddress
import json
from pathlib import Path

import msgspec

from cumulet.agent.errors import DriverError
from cumulet.agent.network import links, names
from cumulet.agent.network.firewall import foreign_forward_drops, forward_cure
from cumulet.agent.network.shell import ip_batch, ip_json, nft, nft_json, run, write_atomically, write_sysctls


class HostChange(msgspec.Struct, frozen=True):
    """``undo``: sysctl (name, former value), bridge, ovs-bridge (name), address (device, cidr), nft (family, table)."""

    what: str
    undo: tuple[str, str, str]


class ExternalBridge(msgspec.Struct, frozen=True):
    changes: list[HostChange]  # all that are in force, from this and earlier calls
    warnings: list[dict[str, str]]  # code, message, cure


def ensure_external_bridge(
    state_dir: Path,
    name: str,
    gateway_cidrs: list[str],
    masquerade: bool = True,
    mtu: int = 1500,
    ovs: str | None = None,
) -> ExternalBridge:
    """``gateway_cidrs``: addresses with length, e.g. 172.24.4.1/24. ``ovs``: make it an Open vSwitch bridge with this
    datapath. Idempotent."""
    book = _Book(state_dir)
    if links.exists(name) and links.is_bridge(name) == bool(ovs):
        kind = "an Open vSwitch" if ovs else "a Linux"
        raise DriverError("conflict", f"{name} exists on this host and is not {kind} bridge")
    plan = links.Plan()
    if ovs and not links.exists(name):
        book.note(f"Open vSwitch bridge {name} made", ("ovs-bridge", name, ""))
        run(["ovs-vsctl", "--timeout=20", "--may-exist", "add-br", name, "--", "set", "Bridge", name,
             f"datapath_type={ovs}", f'other_config:hwaddr="{names.fixed_mac(f"{name} {_machine()}")}"',
             "external_ids:cumulet=external"])  # fmt: skip
    elif not links.exists(name):
        book.note(f"bridge {name} made", ("bridge", name, ""))
        plan.bridge(name, mtu, names.fixed_mac(f"{name} {_machine()}"))
        plan.mark(name, "external", name)
        plan.run()
    plan.up(name)
    present = {
        f"{a['local']}/{a['prefixlen']}" for link in ip_json("addr", "show", "dev", name) for a in link["addr_info"]
    }
    for cidr in gateway_cidrs:
        if cidr not in present:
            _refuse_taken(name, cidr)
            book.note(f"address {cidr} on {name}", ("address", name, cidr))
            plan.add(f"addr add {cidr} dev {name}{' nodad' if ':' in cidr else ''}")
    plan.run()
    wanted_sysctls = {"net/ipv4/ip_forward": "1"}
    if any(":" in cidr for cidr in gateway_cidrs):
        for path in sorted(Path("/proc/sys/net/ipv6/conf").glob("*/accept_ra")):
            if path.read_text().strip() == "1":  # a host that forwards ignores its own router's advertisements at 1
                wanted_sysctls[str(path.relative_to("/proc/sys"))] = "2"
        wanted_sysctls["net/ipv6/conf/all/forwarding"] = "1"
    for sysctl, value in wanted_sysctls.items():
        held = (Path("/proc/sys") / sysctl).read_text().strip()
        if held != value:
            book.note(f"sysctl {sysctl.replace('/', '.')} set to {value} (was {held})", ("sysctl", sysctl, held))
            write_sysctls({sysctl: value})
    wanted = ruleset(name, gateway_cidrs, masquerade)
    if _held_digest() != names.digest(wanted)[:24]:
        book.note(f"nftables table inet {names.EXTERNAL_TABLE}", ("nft", "inet", names.EXTERNAL_TABLE))
        nft(_with_digest(wanted))
    return ExternalBridge(changes=book.changes(), warnings=_warnings(name))


def remove_host_changes(state_dir: Path) -> list[str]:
    """Take back what `ensure_external_bridge` did, newest first; what was done, for people."""
    book, done = _Book(state_dir), []
    for change in reversed(book.changes()):
        kind, first, second = change.undo
        if kind == "nft":
            if nft_json("-t", "list", "table", first, second) is not None:
                nft(f"delete table {first} {second}\n")
                done.append(f"removed {change.what}")
        elif kind == "sysctl":
            path = Path("/proc/sys") / first
            ours = "2" if path.name == "accept_ra" else "1"
            if path.exists() and path.read_text().strip() == ours:
                path.write_text(second)
                done.append(f"restored {first.replace('/', '.')} to {second}")
        elif kind == "address":
            if links.exists(first) and any(
                f"{a['local']}/{a['prefixlen']}" == second
                for link in ip_json("addr", "show", "dev", first)
                for a in link["addr_info"]
            ):
                ip_batch([f"addr del {second} dev {first}"])
                done.append(f"removed {change.what}")
        elif kind == "ovs-bridge":
            run(["ovs-vsctl", "--timeout=20", "--if-exists", "del-br", first])
            done.append(f"removed Open vSwitch bridge {first}")
        elif kind == "bridge" and links.exists(first) and links.alias(first).startswith(links.MARK + ":external:"):
            links.delete(first)
            done.append(f"removed bridge {first}")
        book.strike(change)
    return done


def ruleset(name: str, gateway_cidrs: list[str], masquerade: bool) -> str:
    """Pure: the body of our table."""
    lines = [
        "  chain forward {",
        "    type filter hook forward priority filter; policy accept;",
        f'    iifname "{name}" accept',
        f'    oifname "{name}" accept',
        "  }",
    ]
    if masquerade:
        lines += ["  chain postrouting {", "    type nat hook postrouting priority srcnat; policy accept;"]
        for cidr in gateway_cidrs:
            network = ipaddress.ip_interface(cidr).network
            family = "ip6" if network.version == 6 else "ip"
            lines.append(f'    {family} saddr {network} {family} daddr != {network} oifname != "{name}" masquerade')
        lines.append("  }")
    return "\n".join(lines) + "\n"


def _with_digest(body: str) -> str:
    table = f"inet {names.EXTERNAL_TABLE}"
    about = f'  chain about {{\n    return comment "{names.digest(body)[:24]}"\n  }}\n'
    return f"add table {table}\ndelete table {table}\ntable {table} {{\n{about}{body}}}\n"


def _held_digest() -> str | None:
    for entry in nft_json("list", "chain", "inet", names.EXTERNAL_TABLE, "about") or []:
        if "rule" in entry:
            return str(entry["rule"].get("comment", ""))
    return None


def _warnings(name: str) -> list[dict[str, str]]:
    return [
        {
            "code": "forward-policy-drop",
            "message": f"{chain} drops forwarded packets of this host: guests will not reach beyond it by {name}",
            "cure": forward_cure(chain, name),
        }
        for chain in foreign_forward_drops()
    ]


def _refuse_taken(name: str, cidr: str) -> None:
    """An external range that the host already has on another device would cut that off."""
    wanted = ipaddress.ip_interface(cidr).network
    for link in ip_json("addr", "show"):
        if link["ifname"] == name:
            continue
        for entry in link.get("addr_info", []):
            if entry.get("scope") == "global":
                held = ipaddress.ip_interface(f"{entry['local']}/{entry['prefixlen']}").network
                if held.version == wanted.version and held.overlaps(wanted):
                    raise DriverError("conflict", f"{wanted} overlaps {held} on {link['ifname']}: choose another range")


def _machine() -> str:
    for path in ("/etc/machine-id", "/etc/hostname"):
        try:
            return Path(path).read_text().strip()
        except OSError:
            continue
    return ""


class _Book:
    """The list of host changes on disk."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "host-changes.json"

    def changes(self) -> list[HostChange]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=list[HostChange])
        except FileNotFoundError:
            return []

    def note(self, what: str, undo: tuple[str, str, str]) -> None:
        held = self.changes()
        if any(c.undo[:2] == undo[:2] and (undo[0] == "sysctl" or c.undo == undo) for c in held):
            return  # the first value of a sysctl is the one to go back to
        self._write([*held, HostChange(what, undo)])

    def strike(self, change: HostChange) -> None:
        self._write([c for c in self.changes() if c != change])

    def _write(self, changes: list[HostChange]) -> None:
        if changes:
            write_atomically(self._path, json.dumps(msgspec.to_builtins(changes), indent=1))
        else:
            self._path.unlink(missing_ok=True)
