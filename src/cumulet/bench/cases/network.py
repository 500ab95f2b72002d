"""Networks, subnets, ports, rules: one by one at a steady pace, many at once, and lists of them."""

import time
from collections.abc import Callable
from typing import Any

from cumulet.bench.results import figure_of
from cumulet.bench.suite import Bench
from cumulet.bench.target import Refused

_BATCH = 100  # ports in one request


def made(bench: Bench) -> None:
    """Each kind POSTed at a steady pace."""
    target, user, size = bench.target, bench.user, bench.sizes
    n = size.samples
    networks: list[str] = []
    reason = target.lacks(networks=n + 4, ports=n + 4, security_group_rules=n + 4)
    if reason:
        bench.skip("network.post", "POST network, subnet, port, rule", reason)
        return

    def post(path: str, key: str, body: Callable[[], dict[str, Any]], ids: list[str] | None = None) -> Any:
        def once() -> float:
            answer = user.ask("POST", "network", path, {key: body()})
            if answer.status != 201:
                raise Refused(answer, f"POST {path}")
            if ids is not None:
                ids.append(answer.json[key]["id"])
            return answer.seconds

        return once

    bench.samples(
        "network.post",
        "POST network",
        post("/networks", "network", lambda: {"name": bench.name()}, networks),
        n,
        pace=size.pace,
    )
    bare = iter(list(networks))
    subnet = {"ip_version": 4, "cidr": "10.20.0.0/24"}
    bench.samples(
        "subnet.post",
        "POST subnet",
        post("/subnets", "subnet", lambda: {**subnet, "network_id": next(bare), "name": bench.name()}),
        n,
        pace=size.pace,
    )
    bench.samples(
        "port.post",
        "POST port",
        post("/ports", "port", lambda: {"network_id": target.network, "name": bench.name()}),
        n,
        pace=size.pace,
    )
    numbers = iter(range(1, 65536))

    def rule() -> dict[str, Any]:
        number = next(numbers)
        rule = {"direction": "ingress", "protocol": "tcp", "port_range_min": number, "port_range_max": number}
        return {**rule, "security_group_id": target.group}

    bench.samples(
        "rule.post", "POST rule", post("/security-group-rules", "security_group_rule", rule), n, pace=size.pace
    )
    listed = user.prepare("GET", "network", f"/networks?project_id={user.project_id}&limit=20")
    bench.samples("networks.list", "GET networks, a page of 20", bench.asking(listed), n)
    bench.rate("networks.rate", f"GET networks by {size.clients} clients", listed)
    bench.delete_all("ports", "networks")


def many_ports(bench: Bench) -> None:
    """As many ports as a large tenant has, in requests of a hundred; and their list."""
    target, user, size = bench.target, bench.user, bench.sizes
    reason = target.lacks(ports=size.ports)
    if reason:
        bench.skip("ports.bulk", f"{size.ports} ports created in bulk", reason)
        return
    spent = bench.meter.start()
    began = time.perf_counter()
    for first in range(0, size.ports, _BATCH):
        count = min(_BATCH, size.ports - first)
        ports = [{"network_id": target.network, "name": bench.name()} for _ in range(count)]
        user.do("POST", "network", "/ports", {"ports": ports})
    took = time.perf_counter() - began
    title = f"{size.ports} ports created, {_BATCH} a request"
    bench.keep(figure_of("ports.bulk", title, [took], unit="s"), bench.meter.since(spent), size.ports)
    listed = user.prepare("GET", "network", f"/ports?network_id={target.network}")
    bench.samples("ports.list", f"GET {size.ports} ports", bench.asking(listed), max(3, size.samples // 5))
    bench.delete_all("ports")
