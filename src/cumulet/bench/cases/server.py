"""Servers: POST at a steady pace, until ACTIVE, until gone; a crowd of clients; a host full of them and their lists."""

import time
from typing import Any

from cumulet.bench.results import figure_of
from cumulet.bench.suite import Bench
from cumulet.bench.target import BenchError, Refused
from cumulet.bench.wire import Answer

_CROWD_CLIENTS = 10


def server_body(bench: Bench) -> dict[str, Any]:
    target = bench.target
    server = {"name": bench.name(), "imageRef": target.image, "flavorRef": target.flavor}
    return {"server": {**server, "networks": [{"uuid": target.network}]}}


def post_server(bench: Bench) -> Answer:
    answer = bench.user.ask("POST", "compute", "/servers", server_body(bench))
    if answer.status != 202:
        raise Refused(answer, "POST server")
    return answer


def first(bench: Bench) -> None:
    """From the first process's start, where it is known, to the first ACTIVE server; else from the first request."""
    began = time.perf_counter()
    server = post_server(bench).json["server"]["id"]
    bench.until("compute", f"/servers/{server}", "server", "ACTIVE", began, [])
    took = time.perf_counter() - began
    since = bench.launched
    if since is not None:
        title = "first process to first ACTIVE server"
        bench.keep(figure_of("first.active", title, [time.perf_counter() - since], unit="s"))
    bench.keep(figure_of("first.server", "the first server: POST to ACTIVE", [took * 1000]))
    bench.delete_all("servers")


def one_by_one(bench: Bench) -> None:
    """Alternating: made, ACTIVE, deleted, gone, a pause; then POSTs at a steady pace."""
    user, size = bench.user, bench.sizes
    reason = bench.target.lacks(servers=size.samples)
    if reason:
        bench.skip("server.active", "POST server to ACTIVE", reason)
        return
    posted: list[float] = []
    active: list[float] = []
    journal: list[float] = []
    gone: list[float] = []
    shown: list[float] = []
    spent = bench.meter.start()
    for number in range(-3, size.slow_samples):
        bench.progress.doing(f"servers: {number} of {size.slow_samples}")
        began = time.perf_counter()
        answer = post_server(bench)
        path = f"/servers/{answer.json['server']['id']}"
        bench.until("compute", path, "server", "ACTIVE", began, active)
        took = time.perf_counter() - began
        show = user.ask("GET", "compute", path).seconds
        bench.quiet(0.1)
        began = time.perf_counter()
        user.do("DELETE", "compute", path)
        bench.until_gone("compute", path, began, gone)
        ended = time.perf_counter() - began
        if number < 0:
            active.clear()
            gone.clear()
            spent = bench.meter.start()
            continue
        posted.append(answer.seconds * 1000)
        active.append(took * 1000)
        gone.append(ended * 1000)
        shown.append(show * 1000)
        told = _by_the_journal(bench, path)
        if told is not None:
            journal.append(told * 1000)
        bench.quiet(0.1)
    both = bench.meter.since(spent)
    bench.keep(figure_of("server.post_alone", "POST server, one now and then", posted))
    bench.keep(figure_of("server.active", "POST server to ACTIVE", active))
    if journal:
        bench.keep(figure_of("server.active_journal", "the same by the cloud's own journal", journal))
    bench.keep(figure_of("server.show", "GET server", shown))
    bench.keep(figure_of("server.delete", "DELETE server until gone", gone))
    figure = figure_of(
        "server.life", "a server's whole life, polls included", [a + g for a, g in zip(active, gone, strict=True)]
    )
    bench.keep(figure, both, size.slow_samples)

    def post() -> float:
        return post_server(bench).seconds

    bench.samples("server.post", f"POST server at {size.pace:.0f}/s", post, size.samples, pace=size.pace)
    bench.delete_all("servers")


def _by_the_journal(bench: Bench, path: str) -> float | None:
    """Seconds of the create as the cloud's journal has them, where the cloud is ours."""
    if not bench.target.admin.has("operator"):
        return None
    answer = bench.target.admin.ask("GET", "operator", f"/explain{path}?xml=0")
    if answer.status != 200:
        return None
    created = [one for one in answer.json["operations"] if one["action"] == "create"]
    return created[0]["seconds"] if created else None


def crowd(bench: Bench) -> None:
    """Ten clients at once, until every server is ACTIVE."""
    size = bench.sizes
    title = f"{size.crowd} servers by {_CROWD_CLIENTS} clients, all ACTIVE"
    reason = bench.target.lacks(servers=size.crowd)
    if reason:
        bench.skip("crowd.active", title, reason)
        return
    times: list[float] = []
    posts: list[float] = []
    for _ in range(3):
        times.append(_fill(bench, size.crowd, _CROWD_CLIENTS, posts))
        bench.delete_all("servers")
        bench.quiet(1)
    bench.keep(figure_of("crowd.active", title, times, unit="s"))
    bench.keep(figure_of("crowd.post", f"POST server by {_CROWD_CLIENTS} clients", posts))


def _fill(bench: Bench, count: int, clients: int, posts: list[float]) -> float:
    """Make so many; seconds until all are ACTIVE. What is refused for a moment (503) is sent again."""
    began = time.perf_counter()
    posts += bench.make("/servers", "compute", lambda: server_body(bench), count, connections=clients)
    wait_all_active(bench, count)
    return time.perf_counter() - began


def wait_all_active(bench: Bench, count: int) -> None:
    """Asks for those that are not there yet only, a few at a time, so that asking costs the cloud little."""
    user = bench.user

    def left() -> bool:
        for status in ("ERROR", "BUILD"):
            found = user.do("GET", "compute", f"/servers?status={status}&limit=1&name={bench.target.prefix}-x-")[
                "servers"
            ]
            if found and status == "ERROR":
                raise BenchError(f"server {found[0]['id']} is in ERROR")
        return not found

    bench.target.wait(f"{count} servers ACTIVE", left, seconds=bench.sizes.patience, step=0.01 if count < 200 else 0.1)


def thousand(bench: Bench) -> None:
    """One host filled, its lists looked at when it holds 1, 100 and all."""
    user, size = bench.user, bench.sizes
    title = f"{size.servers} servers, all ACTIVE"
    reason = bench.target.lacks(servers=size.servers)
    if reason:
        bench.skip("thousand.active", title, reason)
        return
    total, made, seconds = size.servers, 0, 0.0
    posts: list[float] = []
    spent = bench.meter.start()
    for stop in (1, min(100, total), total):
        if stop > made:
            before = bench.meter.start()
            seconds = _fill(bench, stop - made, size.clients, posts)
            spent = bench.meter.since(before)
            made, filled = stop, stop - made
        detail = user.prepare("GET", "compute", "/servers/detail?limit=1000")
        found = user.send(detail).json["servers"]
        if len(found) != min(made, 1000):
            raise BenchError(f"{made} servers are there, {len(found)} are listed")
        samples = max(5, size.samples // (1 if made <= 100 else 5))
        bench.samples(f"servers.detail.{made}", f"GET {made} servers in detail", bench.asking(detail), samples)
    figure = figure_of("thousand.active", f"{filled} more servers on one host, all ACTIVE", [seconds], unit="s")
    bench.keep(figure, spent, filled)
    page = user.prepare("GET", "compute", "/servers/detail?limit=20")
    bench.samples("servers.page", f"GET a page of 20 of {made} servers", bench.asking(page), size.samples)
    bench.rate("servers.page_rate", f"GET servers/detail?limit=20 by {size.clients} clients", page)
    began = time.perf_counter()
    bench.delete_all("servers")
    bench.keep(figure_of("thousand.gone", f"{made} servers deleted", [time.perf_counter() - began], unit="s"))
