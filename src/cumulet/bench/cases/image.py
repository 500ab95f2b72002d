"""Image data: up, down, and what hashing alone allows on this machine."""

import hashlib
import os
import threading
import time
from collections.abc import Iterator

from cumulet.bench.results import figure_of
from cumulet.bench.suite import Bench
from cumulet.bench.target import BenchError, Refused

_BLOCK = 1 << 20
_OCTETS = {"Content-Type": "application/octet-stream"}


def data(bench: Bench) -> None:
    """Image data up and down, beside what hashing alone allows."""
    user, size = bench.user, bench.sizes
    block = os.urandom(_BLOCK)
    up: list[float] = []
    down: list[float] = []
    hashed: list[float] = []
    both: list[float] = []
    cpu: list[float] = []
    for _ in range(3):  # in turn, so that a noisy moment falls on all of them
        bench.progress.doing("image data")
        hashed.append(size.image_mib / _hash(block, size.image_mib))
        both.append(size.image_mib / _hash(block, size.image_mib, together=True))
        body = {"name": bench.name(), "disk_format": "raw", "container_format": "bare"}
        image = user.do("POST", "image", "/images", body)["id"]
        request = user.prepare("PUT", "image", f"/images/{image}/file", length=size.image_mib << 20, headers=_OCTETS)
        spent = bench.meter.start()
        answer = user.connection(request.origin).exchange(request, _blocks(block, size.image_mib))
        used = bench.meter.since(spent).cpu_seconds
        if answer.status != 204:
            raise Refused(answer, "the upload")
        up.append(size.image_mib / answer.seconds)
        if used is not None:
            cpu.append(used * 1000 / size.image_mib)
        request = user.prepare("GET", "image", f"/images/{image}/file")
        status, total, seconds = user.connection(request.origin).download(request)
        if status != 200 or total != size.image_mib << 20:
            raise BenchError(f"the download: HTTP {status}, {total} bytes")
        down.append(size.image_mib / seconds)
        user.do("DELETE", "image", f"/images/{image}")
        bench.quiet()
    title = f"image upload, {size.image_mib} MiB"
    upload = figure_of("image.upload", title, up, unit="MiB/s", better="more")
    alone, parallel = sorted(hashed)[1], sorted(both)[1]
    upload.more = {"of md5+sha512 in turn %": round(100 * (upload.median or 0) / alone)}
    upload.more["of both at once %"] = round(100 * (upload.median or 0) / parallel)
    if cpu:
        upload.cpu_ms = round(sorted(cpu)[len(cpu) // 2], 3)
    bench.keep(upload)
    title = f"image download, {size.image_mib} MiB"
    bench.keep(figure_of("image.download", title, down, unit="MiB/s", better="more"))
    bench.keep(figure_of("image.hashes", "md5 then sha512, no cloud", hashed, unit="MiB/s", better="more"))
    title = "md5 and sha512 on two threads, no cloud"
    bench.keep(figure_of("image.hashes_together", title, both, unit="MiB/s", better="more"))


def _blocks(block: bytes, count: int) -> Iterator[bytes]:
    for _ in range(count):
        yield block


def _hash(block: bytes, count: int, *, together: bool = False) -> float:
    hashes = [hashlib.md5(usedforsecurity=False), hashlib.sha512()]
    began = time.perf_counter()
    if together:
        threads = [threading.Thread(target=_feed, args=(one, block, count)) for one in hashes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    else:
        for _ in range(count):
            for one in hashes:
                one.update(block)
    return time.perf_counter() - began


def _feed(one: "hashlib._Hash", block: bytes, count: int) -> None:
    for _ in range(count):
        one.update(block)
