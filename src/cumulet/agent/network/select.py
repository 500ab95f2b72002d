"""Which mechanism this host uses, and why: one sentence for the log and ``cumulet doctor``."""

from pathlib import Path

from cumulet.agent.errors import DriverError
from cumulet.agent.network.config import NetworkConfig
from cumulet.agent.network.linuxbridge import LinuxBridge
from cumulet.agent.network.mechanism import Mechanism
from cumulet.agent.network.openvswitch import OpenVSwitch, kernel_datapath
from cumulet.agent.network.store import DocumentStore


def choose(config: NetworkConfig, store: DocumentStore) -> tuple[Mechanism, str]:
    """Open vSwitch if it runs and the kernel has its datapath; in user space only if asked for, as Linux bridges are
    then ten times faster."""
    if config.mechanism == "linuxbridge":
        return LinuxBridge(config, store), "linuxbridge: as set"
    running = Path(config.ovsdb_socket).exists()
    if config.mechanism == "openvswitch":
        if not running:
            raise DriverError(
                "openvswitch-not-running", f"mechanism is openvswitch, but there is no {config.ovsdb_socket}"
            )
        datapath = config.ovs_datapath
        if datapath == "auto":
            datapath = "system" if kernel_datapath() else "netdev"
        return OpenVSwitch(config, store, datapath), f"openvswitch: as set, {datapath} datapath"
    if not running:
        return LinuxBridge(config, store), "linuxbridge: Open vSwitch does not run on this host"
    if config.ovs_datapath == "netdev" or not kernel_datapath():
        return LinuxBridge(config, store), "linuxbridge: this kernel has no Open vSwitch datapath"
    return OpenVSwitch(config, store, "system"), "openvswitch: it runs, and the kernel has its datapath"
