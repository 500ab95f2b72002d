"""What must cost the same in a large cloud: each thing is measured in a small one, then among very many rows."""

from collections.abc import Callable
from pathlib import Path

import msgspec

from cumulet.bench import crowd
from cumulet.bench.cases.server import post_server, server_body
from cumulet.bench.results import Figure, figure_of
from cumulet.bench.suite import Bench
from cumulet.bench.target import BenchError


class Counts(msgspec.Struct, kw_only=True, frozen=True):
    hosts: int = 1000
    scheduled_among: int = 10_000  # servers on those hosts
    ports: int = 50_000
    servers: int = 100_000
    users: int = 10_000
    schedule_rate: float = 100.0  # servers a second
    schedule_seconds: float = 5.0


QUICK_COUNTS = Counts(hosts=100, scheduled_among=1000, ports=5000, servers=10_000, users=1000, schedule_seconds=2)


def rows(bench: Bench, database: Path, counts: Counts) -> None:
    """Pages, ports and tokens in one project that has very many. ``database``: the private cloud's SQLite file."""
    user, size = bench.user, bench.sizes
    like, host = _small_cloud(bench)
    page = user.prepare("GET", "compute", "/servers/detail?limit=20")
    check = user.prepare("GET", "identity", "/auth/tokens", headers={"X-Subject-Token": user.token})
    listed = user.prepare("GET", "network", "/ports?limit=20")

    def port() -> float:
        body = {"port": {"network_id": bench.target.network, "name": bench.name()}}
        return _created(bench, "network", "/ports", body)

    def small(case: str, title: str, operation: Callable[[], float]) -> Callable[..., None]:
        before = bench.samples(f"scale.{case}.small", f"{title}, small cloud", operation, size.samples)

        def large(among: str, operation: Callable[[], float] = operation, suffix: str = "") -> None:
            found = bench.samples(f"scale.{case}{suffix}", f"{title} {among}", operation, size.samples)
            found.more = _ratios(before, found)

        return large

    pages = small("page", "a page of 20 servers", bench.asking(page))
    port_pages = small("ports", "a page of 20 ports", bench.asking(listed))
    checks = small("token", "a token checked", bench.asking(check))
    creates = small("port", "POST port", port)
    crowded = crowd.Crowd(database)
    try:
        bench.progress.line(f"  filling the database: {counts.ports} ports")
        crowd.hosts(crowded, host, range(1, counts.hosts + 1))
        crowd.groups(crowded, like, range(1, counts.servers // crowd.GROUP + 2))
        crowd.servers(crowded, like, range(1, counts.ports + 1), hosts=counts.hosts)
        creates(f"among {counts.ports}")
        port_pages(f"of {counts.ports}")
        bench.progress.line(f"  filling the database: {counts.servers} servers, {counts.users} users")
        crowd.servers(crowded, like, range(counts.ports + 1, counts.servers + 1), hosts=counts.hosts)
        crowd.users(crowded, user.user_id, range(1, counts.users + 1))
        pages(f"of {counts.servers}")
        middle = crowd.scattered(like, counts.servers // 2)
        deep = user.prepare("GET", "compute", f"/servers/detail?limit=20&marker={middle}")
        pages(f"from the middle of {counts.servers}", bench.asking(deep), "_deep")
        checks(f"among {counts.users} users")
    finally:
        crowded.close()


def hosts(bench: Bench, database: Path, counts: Counts) -> None:
    """Servers scheduled among very many hosts. Nobody answers for those, so that only scheduling is measured."""
    size = bench.sizes
    like, host = _small_cloud(bench)
    n = min(size.samples, 50)

    def post() -> float:
        return post_server(bench).seconds

    before = bench.samples("scale.post.small", "POST server, one host", post, n, pace=10)
    bench.target.wait("all servers ACTIVE", lambda: not _building(bench), seconds=size.patience)
    crowded = crowd.Crowd(database)
    try:
        bench.progress.line(f"  filling the database: {counts.hosts} hosts, {counts.scheduled_among} servers")
        crowd.hosts(crowded, host, range(1, counts.hosts + 1))
        crowd.groups(crowded, like, range(1, counts.scheduled_among // crowd.GROUP + 2))
        crowd.servers(crowded, like, range(1, counts.scheduled_among + 1), hosts=counts.hosts)
    finally:
        crowded.close()
    among = f"among {counts.hosts} hosts with {counts.scheduled_among} servers"
    found = bench.samples("scale.post", f"POST server {among}", post, n, pace=10)
    found.more = _ratios(before, found)
    _schedule(bench, counts, among)


def _small_cloud(bench: Bench) -> tuple[str, str]:
    """A network with room, a few servers on it; one of them, and its host."""
    target, user = bench.target, bench.user
    network = {"network": {"name": target.name("large")}}
    target.network = user.do("POST", "network", "/networks", network)["network"]["id"]
    target.new_subnet(target.network, "10.0.0.0/8")
    like: str = post_server(bench).json["server"]["id"]
    bench.make("/servers", "compute", lambda: server_body(bench), 24)
    target.wait("all servers ACTIVE", lambda: not _building(bench), seconds=bench.sizes.patience)
    return like, target.status()["hosts"][0]["name"]


def _ratios(small: Figure, large: Figure) -> dict[str, float]:
    found = {}
    for name, one, other in (
        ("time ×", small.median, large.median),
        ("CPU ×", small.cpu_ms, large.cpu_ms),
        ("SQL ×", small.statements, large.statements),
    ):
        if one and other is not None:
            found[name] = round(other / one, 2)
    return found


def _created(bench: Bench, service: str, path: str, body: object) -> float:
    answer = bench.user.ask("POST", service, path, body)
    if answer.status not in (201, 202):
        raise BenchError(f"POST {path}: HTTP {answer.status} {answer.body[:200].decode(errors='replace')}")
    return answer.seconds


def _building(bench: Bench) -> bool:
    return bool(bench.user.do("GET", "compute", "/servers?status=BUILD&limit=1")["servers"])


def _schedule(bench: Bench, counts: Counts, among: str) -> None:
    """POSTs by eight clients at a given pace: a POST claims a host. Refused ones count as not scheduled."""
    size = bench.sizes
    spent = bench.meter.start()
    total = int(counts.schedule_rate * counts.schedule_seconds)
    bodies = [bench.user.prepare("POST", "compute", "/servers", server_body(bench)) for _ in range(total)]
    left = iter(bodies)
    found = bench.user.flood(
        lambda: next(left, None), bodies[0].origin, connections=size.clients, seconds=counts.schedule_seconds * 6
    )
    bad = {status: count for status, count in found.statuses.items() if status >= 300 and status != 503}
    if bad:
        raise BenchError(f"POST server among many hosts: {bad}")
    title = f"servers scheduled by {size.clients} clients {among}"
    figure = figure_of("scale.schedule", title, [found.succeeded / found.seconds], unit="/s", better="more")
    figure.n = found.succeeded
    if found.statuses.get(503):
        figure.more = {"refused (503)": found.statuses[503]}
    bench.keep(figure, bench.meter.since(spent), total)


GROUPS = {"rows": rows, "hosts": hosts}
