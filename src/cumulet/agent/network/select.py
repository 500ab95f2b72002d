"""Which mechanism this host uses, and why: one sentence for the log and ``cumulet doctor``."""

from cumulet.agent.network.config import NetworkConfig
from cumulet.agent.network.linuxbridge import LinuxBridge
from cumulet.agent.network.mechanism import Mechanism
from cumulet.agent.network.store import DocumentStore


def choose(config: NetworkConfig, store: DocumentStore) -> tuple[Mechanism, str]:
    return LinuxBridge(config, store), "linuxbridge: the default"
