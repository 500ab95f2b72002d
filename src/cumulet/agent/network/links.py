"""Devices of the host's own namespace: what is there (by sysfs, no process) and how to get what is wanted.

A `Plan` collects ``ip -batch`` lines; nothing is done until `Plan.run`. Every helper compares first and adds only what
differs, so that applying twice runs no command the second time.
"""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from cumulet.agent.network.shell import CommandError, has_ipv6, ip_batch

SYS = Path("/sys/class/net")
MARK = "cumulet"


def exists(device: str) -> bool:
    return (SYS / device).exists()


def names(*prefixes: str) -> list[str]:
    """All devices, or those whose names start so."""
    return sorted(n for n in os.listdir(SYS) if n.startswith(prefixes or ("",)) and (SYS / n).is_dir())


def is_bridge(device: str) -> bool:
    return (SYS / device / "bridge").is_dir()


def is_tap(device: str) -> bool:
    return (SYS / device / "tun_flags").exists()


def master(device: str) -> str | None:
    try:
        return os.path.basename(os.readlink(SYS / device / "master"))
    except OSError:
        return None


def members(bridge: str) -> list[str]:
    try:
        return sorted(os.listdir(SYS / bridge / "brif"))
    except FileNotFoundError:
        return []


def mtu(device: str) -> int | None:
    text = _read(device, "mtu")
    return int(text) if text else None


def address(device: str) -> str | None:
    return _read(device, "address")


def index(device: str) -> str:
    return _read(device, "ifindex") or ""


def is_up(device: str) -> bool:
    flags = _read(device, "flags")
    return bool(flags) and bool(int(flags or "0", 16) & 1)


def alias(device: str) -> str:
    """What we wrote on a device: ``cumulet:port:<id>``, ``cumulet:network:<id>``, ``cumulet:external``."""
    return _read(device, "ifalias") or ""


def ours() -> dict[str, tuple[str, str]]:
    """Device -> (noun, id) of all devices in this namespace that carry our mark, as the kernel has them now."""
    found = {}
    for device in names():
        mark = alias(device).split(":", 2)
        if len(mark) == 3 and mark[0] == MARK:
            found[device] = (mark[1], mark[2])
    return found


def _read(device: str, name: str) -> str | None:
    try:
        return (SYS / device / name).read_text().strip()
    except OSError:
        return None


class Plan:
    """Lines for one ``ip -batch``. Devices the plan creates count as existing for later helpers. ``look``: it is never
    to be run; its lines say what is not as it should be."""

    def __init__(self, *, look: bool = False) -> None:
        self.look = look
        self.lines: list[str] = []
        self._new: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self.lines)

    def add(self, line: str) -> None:
        self.lines.append(line)

    def words(self) -> str | None:
        """What would be done, for people; None: nothing."""
        return to_do(self.lines)

    def run(self) -> bool:
        """Do it; True if there was anything to do."""
        lines, self.lines = self.lines, []
        ip_batch(lines)
        return bool(lines)

    def bridge(self, device: str, mtu_bytes: int, mac: str | None = None) -> None:
        if not exists(device):
            at = f" address {mac}" if mac else ""
            self.add(f"link add name {device}{at} type bridge forward_delay 0 stp_state 0 mcast_snooping 0")
            self._no_ipv6(device)
            self._new.add(device)
        self.up(device, mtu_bytes)

    def vxlan(self, device: str, vni: int, local: str, port: int, mtu_bytes: int) -> None:
        if not exists(device):
            self.add(f"link add name {device} type vxlan id {vni} local {local} dstport {port} learning")
            self._no_ipv6(device)
            self._new.add(device)
        self.up(device, mtu_bytes)

    def tap(self, device: str) -> None:
        if not exists(device):
            self.add(f"tuntap add dev {device} mode tap")
            self._no_ipv6(device)
            self._new.add(device)

    def veth(self, device: str, mtu_bytes: int, peer: str, namespace: str | None, peer_mac: str | None) -> None:
        """``device`` here, ``peer`` in ``namespace`` (or here)."""
        if not exists(device):
            inside = (f" netns {namespace}" if namespace else "") + (f" address {peer_mac}" if peer_mac else "")
            self.add(f"link add name {device} mtu {mtu_bytes} type veth peer name {peer} mtu {mtu_bytes}{inside}")
            self._no_ipv6(device)
            if namespace is None:
                self._no_ipv6(peer)
            self._new.add(device)

    def mark(self, device: str, noun: str, id: str) -> None:
        """Write on the device whose it is; what carries no mark of ours is never deleted by a clean-up."""
        text = f"{MARK}:{noun}:{id}"
        if device in self._new or alias(device) != text:
            self.add(f"link set dev {device} alias {text}")

    def enslave(self, device: str, bridge: str) -> None:
        if device in self._new or master(device) != bridge:
            self.add(f"link set dev {device} master {bridge}")

    def up(self, device: str, mtu_bytes: int | None = None, up: bool = True) -> None:
        new = device in self._new
        if mtu_bytes is not None and (new or mtu(device) != mtu_bytes):
            self.add(f"link set dev {device} mtu {mtu_bytes}")
        if new or is_up(device) != up:
            self.add(f"link set dev {device} {'up' if up else 'down'}")

    def delete(self, device: str) -> None:
        if exists(device):
            self.add(f"link delete dev {device}")

    def _no_ipv6(self, device: str) -> None:
        """The host has no business of its own on tenants' networks: no link-local address there."""
        if has_ipv6():
            self.add(f"link set dev {device} addrgenmode none")


def to_do(lines: Sequence[str], namespace: str | None = None) -> str | None:
    """Lines for ``ip -batch`` as commands that are still to be given; None: there are none."""
    where = f"ip -n {namespace}" if namespace else "ip"
    return ", ".join(f"`{where} {line}`" for line in lines) + " is to be done" if lines else None


def delete(device: str) -> None:
    """Delete if it is there; another one deleting it meanwhile is no error."""
    if exists(device):
        with contextlib.suppress(CommandError):
            ip_batch([f"link delete dev {device}"])
        if exists(device):
            ip_batch([f"link delete dev {device}"])
