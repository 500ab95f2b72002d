"""Volumes: until available, until gone, and a list of them."""

import time

from cumulet.bench.results import figure_of
from cumulet.bench.suite import Bench
from cumulet.bench.target import BenchError, Refused


def volumes(bench: Bench) -> None:
    """Volumes one by one until available and gone, and a list of many."""
    target, user, size = bench.target, bench.user, bench.sizes
    if not user.has("block-storage"):
        bench.skip("volume.available", "volume available", "the cloud has no volumes")
        return
    reason = target.lacks(volumes=size.volumes)
    if reason:
        bench.skip("volume.available", "volume available", reason)
        return
    posted: list[float] = []
    available: list[float] = []
    gone: list[float] = []
    spent = bench.meter.start()
    for number in range(-2, size.slow_samples):
        bench.progress.doing(f"volumes: {number} of {size.slow_samples}")
        began = time.perf_counter()
        body = {"volume": {"name": bench.name(), "size": 1}}
        answer = user.ask("POST", "block-storage", "/volumes", body)
        if answer.status >= 300:
            raise Refused(answer, "POST volume")
        volume = answer.json["volume"]["id"]
        bench.until("block-storage", f"/volumes/{volume}", "volume", "available", began, available)
        took = time.perf_counter() - began
        began = time.perf_counter()
        user.do("DELETE", "block-storage", f"/volumes/{volume}")
        bench.until_gone("block-storage", f"/volumes/{volume}", began, gone)
        ended = time.perf_counter() - began
        if number < 0:
            spent = bench.meter.start()
            continue
        posted.append(answer.seconds * 1000)
        available.append(took * 1000)
        gone.append(ended * 1000)
        bench.quiet(0.05)
    both = bench.meter.since(spent)
    bench.keep(figure_of("volume.post", "POST volume", posted))
    bench.keep(figure_of("volume.available", "volume available", available), both, size.slow_samples)
    bench.keep(figure_of("volume.delete", "volume gone", gone))
    bench.make("/volumes", "block-storage", lambda: {"volume": {"name": bench.name(), "size": 1}}, size.volumes)

    def all_there() -> bool:
        found = user.do("GET", "block-storage", "/volumes/detail?limit=1000")["volumes"]
        if any(one["status"] == "error" for one in found):
            raise BenchError("a volume is in error")
        return sum(one["status"] == "available" for one in found) >= size.volumes

    target.wait("all volumes available", all_there, seconds=size.patience, step=0.05)
    listed = user.prepare("GET", "block-storage", "/volumes/detail")
    bench.samples("volumes.list", f"GET {size.volumes} volumes in detail", bench.asking(listed), size.samples)
    bench.delete_all("volumes")
