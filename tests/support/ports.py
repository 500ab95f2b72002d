"""TCP ports on the loopback that stay this process's.

Not of those that the kernel gives to whoever asks for any: what is started to listen there may take half a minute, and
meanwhile any connection or server of the machine could have it.
"""

import random
import socket
from pathlib import Path

_LOWEST = 20_000
_claims: list[socket.socket] = []  # until this process ends


def free_ports(number: int) -> list[int]:
    """So many different ports where nobody listens, and that no other run of tests is given."""
    first_of_kernel = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    candidates = random.sample(range(_LOWEST, first_of_kernel), k=first_of_kernel - _LOWEST)
    return [port for _, port in zip(range(number), filter(_claim, candidates), strict=False)]


def _claim(port: int) -> bool:
    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(f"\0cumulet-tests-port-{port}")  # a name in this network namespace, like the port itself
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(("127.0.0.1", port))
    except OSError:
        claim.close()
        return False
    _claims.append(claim)
    return True
