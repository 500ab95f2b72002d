"""Security groups of the ports of this host, kept in nftables tables of our own (`rules` says what is in them).

Owns: ``bridge cumulet_sg``, ``inet cumulet_track``, ``netdev cumulet_guard`` and, on the bridges that carry filtered
ports, the sysfs switches ``bridge/nf_call_iptables`` and ``nf_call_ip6tables``. The machine-wide sysctls
``bridge-nf-call-*`` are never touched, so other bridges behave as before. What the kernel holds is read from the kernel
(a digest in a rule's comment), so a restarted agent rewrites nothing.

Refuses nothing by itself; text that nft refuses is a DriverError and leaves the old rules in force.

Limit that cannot be cured here: packets of tracked bridges also pass the inet forward hook, so a foreign forward chain
with policy drop stops them. `foreign_forward_drops` names such chains; the driver reports them as a warning.
"""

import json
import re
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

from cumulet.agent.contract import FirewallRule, PortDoc
from cumulet.agent.errors import DriverError
from cumulet.agent.network import links, names, rules, scratch
from cumulet.agent.network.names import FILTER_TABLE, GUARD_TABLE, HOST_TABLES, TRACK_TABLE
from cumulet.agent.network.shell import CommandError, nft, nft_json, run, write_atomically

Members = Callable[[str], Iterable[str]]
_FIRST_ZONE = 20000
_LAST_ZONE = 60000
_DEVICES = re.compile(r"ingress devices? (?:= )?({[^}]*}|\S+)")
_SWITCHES = ("nf_call_iptables", "nf_call_ip6tables")


class Firewall:
    """Not thread-safe: the driver calls it under its wiring lock."""

    def __init__(self, run_dir: Path) -> None:
        self._zones_file = run_dir / "zones.json"
        self._zones: dict[str, int] = self._load()  # tracked bridge -> conntrack zone, 0 for shared ones
        self._written: tuple[str, str, str] | None = None  # tracking and guard as last given to nft, for which devices
        self._guarded: list[str] = []
        self._groups: dict[str, list[str]] = {}  # set -> members as last given to nft
        self._base_known = False
        self._distrusted: set[str] = set()  # devices whose filters are written again, whatever they say of themselves

    # -- bridges -----------------------------------------------------------------------------------------------------

    def track(self, bridge: str, private: bool) -> None:
        """Have connections on this bridge tracked, in a zone of its own if it is private to a network."""
        if bridge not in self._zones:
            self._zones[bridge] = self._free_zone() if private else 0
            self._save()
        for name in _SWITCHES:
            switch = links.SYS / bridge / "bridge" / name
            try:
                if switch.read_text().strip() != "1":
                    switch.write_text("1")
            except FileNotFoundError as error:
                raise DriverError(
                    "unsupported", "this kernel has no br_netfilter: load it (modprobe br_netfilter)"
                ) from error

    def sync_bridges(self, guarded: Iterable[str]) -> None:
        """Bring tracking and guard tables to the bridges that exist."""
        gone = [bridge for bridge in self._zones if not links.exists(bridge)]
        for bridge in gone:
            zone = self._zones.pop(bridge)
            if zone:
                self._flush("-w", str(zone))
        if gone:
            self._save()
        devices = [d for d in guarded if links.exists(d)]
        # a device made anew under its old name is not the one the chain hangs on
        wanted = (rules.tracking(self._zones), rules.guard(devices), " ".join(map(links.index, devices)))
        if wanted != self._written:
            nft(wanted[0] + wanted[1])
            self._written, self._guarded = wanted, devices

    def zone(self, bridge: str) -> int:
        return self._zones.get(bridge, 0)

    # -- ports ------------------------------------------------------------------------------------------------------

    def ensure_base(self) -> bool:
        """At start, or when nft refuses: the tables themselves may be gone. True if one was."""
        present = nft_json("-t", "list", "table", "bridge", FILTER_TABLE)
        lost = present is None
        if present is None:
            self._groups.clear()
        for family, table in (("inet", TRACK_TABLE), ("netdev", GUARD_TABLE)):
            if nft_json("-t", "list", "table", family, table) is None:
                lost = lost or self._written is not None
                self._written = None
        nft(rules.base())
        for entry in present or []:
            if "set" in entry:
                self._groups.setdefault(entry["set"]["name"], ["unknown"])
        self._base_known = True
        return lost

    def apply(self, port: PortDoc, device: str, bridge: str, before: PortDoc | None, members: Members) -> bool:
        """Filters of ``device`` as ``port`` wants them; True if anything changed. ``before`` is the document applied
        last: connections that only it admitted are cut. ``members``: of a group, as far as this host was told."""
        if not rules.filtered(port):
            return self.remove(device)
        if not self._base_known:
            self.ensure_base()
        remote = {rule.remote_group_id for rule in port.rules if rule.remote_group_id}
        sets = {name: found for id in remote for name, found in rules.group_sets(id, members(id)).items()}
        changed_sets = {name: members for name, members in sets.items() if self._groups.get(name) != members}
        chains = ""
        if device in self._distrusted or self.held_digest(device) != rules.port_digest(port, device):
            chains = rules.port_chains(port, device)
        script = self._with_sets(changed_sets, chains)
        if script:
            try:
                nft(script)
            except CommandError:
                if not self.ensure_base():
                    raise
                changed_sets = sets
                nft(self._with_sets(sets, chains))
            self._groups.update(changed_sets)
        self._distrusted.discard(device)
        if before is not None and before != port:
            self._cut(before, port, self.zone(bridge))
        return bool(script)

    def apply_group(self, group_id: str, members: Iterable[str], left: Iterable[str], ports: Iterable[PortDoc]) -> None:
        """Members of a group as a set of this host knows them, if one does; ``ports``: of this host. Connections that
        those who ``left`` were admitted to by the group are cut."""
        sets = rules.group_sets(group_id, members)
        changed = {n: found for n, found in sets.items() if n in self._groups and self._groups[n] != found}
        if changed:
            try:
                nft(self._with_sets(changed, ""))
            except CommandError:
                if not self.ensure_base():
                    raise
                nft(self._with_sets(changed, ""))
            self._groups.update(changed)
        gone = list(left)
        for port in ports if gone else ():
            zone = self.zone(links.master(names.tap(port.id)) or "")
            own = {fixed.ip_address for fixed in port.fixed_ips}
            for rule in port.rules:
                if rule.remote_group_id == group_id and rules.filtered(port):
                    for member in gone:
                        self._cut_rule(rule, own, zone, member)

    @staticmethod
    def _with_sets(sets: dict[str, list[str]], chains: str) -> str:
        return "".join(rules.group(name, members) for name, members in sets.items()) + chains

    def remove(self, device: str) -> bool:
        if self.held_digest(device) is None:
            return False
        nft(rules.no_port_chains(device))
        return True

    def forget(self, port: PortDoc, bridge: str) -> None:
        """The port is gone: its connections too, or the next owner of its addresses would inherit them."""
        zone = self.zone(bridge)
        for fixed in port.fixed_ips:
            self._flush("-w", str(zone), "-s", fixed.ip_address)
            self._flush("-w", str(zone), "-d", fixed.ip_address)

    def sweep_groups(self, used: Iterable[str]) -> None:
        """Remove sets that no port refers to any more."""
        stale = set(self._groups) - set(used)
        if stale:
            nft("".join(rules.no_group(name) for name in sorted(stale)))
            for name in stale:
                del self._groups[name]

    def held_digest(self, device: str) -> str | None:
        """Of the filter that the kernel has for the device; None: it has none of ours."""
        for entry in reversed(nft_json("list", "chain", "bridge", FILTER_TABLE, f"o-{device}") or []):
            comment = entry.get("rule", {}).get("comment", "")
            if comment.startswith(rules.COMMENT):
                return str(comment[len(rules.COMMENT) :])
        return None

    def filtered_devices(self) -> list[str]:
        entries = nft_json("-t", "list", "table", "bridge", FILTER_TABLE) or []
        chains = (e["chain"]["name"] for e in entries if "chain" in e)
        return sorted(c[2:] for c in chains if c.startswith("o-"))

    # -- what an operator looks for -----------------------------------------------------------------------------------

    def held(self) -> scratch.Table:
        """The filters as the kernel has them."""
        return scratch.parsed(nft_json("list", "table", "bridge", FILTER_TABLE) or [])

    def wanted(self, ports: Iterable[PortDoc], members: Members) -> scratch.Table:
        """The filters as the kernel would have them, were it told of these ports now."""
        found = list(ports)
        remote = sorted({rule.remote_group_id for port in found for rule in port.rules if rule.remote_group_id})
        sets = {name: some for id in remote for name, some in rules.group_sets(id, members(id)).items()}
        chains = "".join(rules.port_chains(port, names.tap(port.id)) for port in found)
        return scratch.table(rules.base() + self._with_sets(sets, chains), "bridge", FILTER_TABLE)

    def around_astray(self) -> dict[str, str]:
        """Which of the tables and switches that all filters rest on are not as they should be -> in words."""
        found = {}
        present = {bridge: zone for bridge, zone in self._zones.items() if links.exists(bridge)}
        held = scratch.parsed(nft_json("list", "table", "inet", TRACK_TABLE) or [])
        if present and held != scratch.table(rules.tracking(present), "inet", TRACK_TABLE):
            found[TRACK_TABLE] = "connections of bridges are not tracked as they should be"
        if open_to := sorted({device for device in self._guarded if links.exists(device)} - _kept_out()):
            found[GUARD_TABLE] = f"what arrives on {', '.join(open_to)} reaches the host's own stack"
        for bridge in sorted(present):
            switches = [links.SYS / bridge / "bridge" / name for name in _SWITCHES]
            if any(switch.exists() and switch.read_text().strip() != "1" for switch in switches):
                found[bridge] = f"filters of {bridge} do not see connections: {' or '.join(_SWITCHES)} is off"
        return found

    def set_right(self, guarded: Iterable[str]) -> None:
        """All tables and switches that filters rest on, written again."""
        self.ensure_base()
        self._written = None
        self.sync_bridges(guarded)
        for bridge, zone in self._zones.items():
            self.track(bridge, bool(zone))

    def distrust(self, device: str) -> None:
        self._distrusted.add(device)

    def distrust_group(self, group_id: str) -> None:
        for version in (4, 6):
            name = names.group_set(group_id, version)
            if name in self._groups:
                self._groups[name] = ["unknown"]

    def drop(self, chain: str) -> None:
        """A chain in our table that nobody made for a port."""
        nft(f"flush chain bridge {FILTER_TABLE} {chain}\ndelete chain bridge {FILTER_TABLE} {chain}\n")

    def cleanup(self) -> None:
        for bridge in self._zones:
            for name in _SWITCHES:
                switch = links.SYS / bridge / "bridge" / name
                if switch.exists():
                    switch.write_text("0")
        nft("".join(f"add table {f} {t}\ndelete table {f} {t}\n" for f, t in HOST_TABLES if t != names.EXTERNAL_TABLE))
        self._zones.clear()
        self._zones_file.unlink(missing_ok=True)
        self._groups.clear()
        self._guarded.clear()
        self._written, self._base_known = None, False

    # -- inside -----------------------------------------------------------------------------------------------------

    def _cut(self, before: PortDoc, now: PortDoc, zone: int) -> None:
        """Flush tracked connections that a removed rule or address let in."""
        same = {a.ip_address for a in before.fixed_ips} & {a.ip_address for a in now.fixed_ips}
        for fixed in before.fixed_ips:
            if fixed.ip_address not in same:
                self._flush("-w", str(zone), "-s", fixed.ip_address)
                self._flush("-w", str(zone), "-d", fixed.ip_address)
        for rule in before.rules:
            if rule not in now.rules:
                self._cut_rule(rule, same, zone, None)
        if not rules.filtered(before) and rules.filtered(now):
            for fixed in now.fixed_ips:  # what was not looked at until now
                self._flush("-w", str(zone), "-s", fixed.ip_address)
                self._flush("-w", str(zone), "-d", fixed.ip_address)

    def _cut_rule(self, rule: FirewallRule, own: set[str], zone: int, remote: str | None) -> None:
        mine, theirs = ("-d", "-s") if rule.direction == "ingress" else ("-s", "-d")
        remote = remote or rule.remote_ip_prefix
        version = 6 if rule.ethertype == "IPv6" else 4
        for address in own:
            if (":" in address) != (version == 6):
                continue
            arguments = ["-w", str(zone), mine, address]
            if remote and not remote.endswith("/0"):
                arguments += [theirs, remote]
            if rule.protocol in ("tcp", "udp", "icmp", "sctp", "dccp", "udplite") and version == 4:
                arguments += ["-p", rule.protocol]
            self._flush(*arguments)

    def _flush(self, *arguments: str) -> None:
        for family in ("ipv4", "ipv6"):
            given = [a for a in arguments if "." in a or ":" in a]
            if any((":" in a) != (family == "ipv6") for a in given):
                continue
            run(["conntrack", "-D", "-f", family, *arguments], ok=(0, 1))  # 1: there were none

    def _free_zone(self) -> int:
        used = set(self._zones.values())
        for zone in range(_FIRST_ZONE, _LAST_ZONE):
            if zone not in used:
                return zone
        raise DriverError("no-space", "all connection tracking zones are in use")

    def _load(self) -> dict[str, int]:
        try:
            held = json.loads(self._zones_file.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return {}
        return {str(b): int(z) for b, z in held.items() if links.exists(str(b))}

    def _save(self) -> None:
        write_atomically(self._zones_file, json.dumps(self._zones, sort_keys=True))


def foreign_forward_drops() -> list[str]:
    """Forward chains with policy drop that others put on this host, as "family table chain"."""
    found = []
    for entry in nft_json("list", "chains") or []:
        chain = entry.get("chain", {})
        if (
            chain.get("hook") == "forward"
            and chain.get("policy") == "drop"
            and chain.get("family") in ("ip", "ip6", "inet")
            and not chain["table"].startswith("cumulet_")
        ):
            found.append(f"{chain['family']} {chain['table']} {chain['name']}")
    for program, tables in (("iptables-legacy", "ip_tables_names"), ("ip6tables-legacy", "ip6_tables_names")):
        try:  # only if it has the table: asking would make it
            if "filter" not in (Path("/proc/net") / tables).read_text().split():
                continue
            listed = subprocess.run([program, "-S", "FORWARD"], capture_output=True, text=True, check=False, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if "-P FORWARD DROP" in listed.stdout:
            found.append(f"{program} filter FORWARD")
    return found


def forward_cure(chain: str, *devices: str) -> str:
    """The commands with which the administrator lets packets of these devices ("brq*") through such a chain."""
    program = chain.split()[0]
    if program in ("ip", "ip6", "inet"):
        return "; ".join(
            f'nft insert rule {chain} {side} "{d}" accept' for d in devices for side in ("iifname", "oifname")
        )
    return "; ".join(
        f"{program} -I FORWARD {side} {d.replace('*', '+')} -j ACCEPT" for d in devices for side in ("-i", "-o")
    )


def _kept_out() -> set[str]:
    """Devices that the guard stands before. As text: nft's JSON names no devices of a chain (1.0)."""
    try:
        text = run(["nft", "list", "table", "netdev", GUARD_TABLE])
    except CommandError:
        return set()
    hooks = [line for line in text.splitlines() if "hook ingress" in line and "policy drop" in line]
    return {name.strip('" ') for hook in hooks for name in _DEVICES.findall(hook)[0].strip("{ }").split(",")}
