"""What the network side of one host is told; composed from the process's settings by the composition root."""

from pathlib import Path
from typing import Literal

import msgspec


class NetworkConfig(msgspec.Struct, frozen=True, kw_only=True):
    state_dir: Path  # documents and host changes: survives a reboot
    run_dir: Path  # daemons' files: gone with a reboot, as the kernel's state is; must be readable by all users
    tunnel_ip: str | None = None
    mechanism: Literal["auto", "openvswitch", "linuxbridge"] = "auto"
    bridge_mappings: dict[str, str] = {}  # physical network -> bridge or NIC of the host
    dns_servers: list[str] = []  # where the DHCP servers' resolvers ask; empty: they answer for their networks only
    vxlan_port: int = 4789
    dhcp_lease_seconds: int = 86400
    metadata_port: int = 80
    # how an Open vSwitch bridge moves packets: "system" (kernel module) or "netdev" (user space)
    ovs_datapath: Literal["auto", "system", "netdev"] = "auto"
    ovsdb_socket: str = "/run/openvswitch/db.sock"
    # NICs a user space datapath takes over: tunnel underlay
    tunnel_nic: str | None = None

    @property
    def documents_dir(self) -> Path:
        return self.state_dir / "documents"
