"""What the network side of one host is told; composed from the process's settings by the composition root."""

from pathlib import Path
from typing import Literal

import msgspec

RESOLVER_FILES = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))


class NetworkConfig(msgspec.Struct, frozen=True, kw_only=True):
    state_dir: Path  # documents and host changes: survives a reboot
    run_dir: Path  # daemons' files: gone with a reboot, as the kernel's state is; must be readable by all users
    tunnel_ip: str | None = None
    mechanism: Literal["auto", "openvswitch", "linuxbridge"] = "auto"
    bridge_mappings: dict[str, str] = {}  # physical network -> bridge or NIC of the host
    dns_servers: list[str] = []  # where the DHCP servers' resolvers ask; empty: this host's own resolvers
    vxlan_port: int = 4789
    dhcp_lease_seconds: int = 86400
    metadata_port: int = 80
    # how an Open vSwitch bridge moves packets: "system" (kernel module) or "netdev" (user space)
    ovs_datapath: Literal["auto", "system", "netdev"] = "auto"
    ovsdb_socket: str = "/run/openvswitch/db.sock"
    # NICs a user space datapath takes over: tunnel underlay
    tunnel_nic: str | None = None

    def resolvers(self) -> list[str]:
        """Name servers that a namespace can ask: a stub on the host's loopback is none, what it asks is."""
        if self.dns_servers:
            return self.dns_servers
        for path in RESOLVER_FILES:
            try:
                lines = path.read_text().splitlines()
            except OSError:
                continue
            found = [words[1] for words in map(str.split, lines) if words[:1] == ["nameserver"] and len(words) > 1]
            usable = [a for a in found if not a.startswith(("127.", "::1", "fe80:"))]
            if usable:
                return usable[:3]
        return []

    @property
    def documents_dir(self) -> Path:
        return self.state_dir / "documents"
