"""A volume from another storage host, over the NBD export that it made for this host: copied, holes left out, and
compared with what is still there.

Nothing is written under the volume's name before the copy is whole. A copy that works goes on however long it takes;
one that waits in vain for the other host is given up.
Fails with `DriverError` (``unreachable``, ``no-space``, ``copy-differs``).
"""

import contextlib
import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO
from urllib.parse import parse_qs, unquote, urlsplit

from cumulet.agent.contract import DiskConnection
from cumulet.agent.driver import Progress
from cumulet.agent.errors import DriverError

SILENT_SECONDS = 120.0  # in which the copy does no work at all
_CREDENTIALS = "tls0"
_PERCENT = re.compile(rb"\(([0-9.]+)/100%\)")
_LOOK_SECONDS = 0.5


def fetch(
    connection: DiskConnection, part: Path, need_space: Callable[[int], None], tls: Path | None, progress: Progress
) -> None:
    """Write ``part``, a qcow2 file. ``tls``: the folder of this host's certificate."""
    objects, source = _source(connection, tls)
    measured = json.loads(_run(["measure", *objects, "--output=json", "-O", "qcow2", *source]))
    need_space(int(measured["required"]))
    _run(["convert", *objects, "-p", "-O", "qcow2", *source, str(part)], lambda done: progress(done * 0.6))
    target = f"driver=qcow2,file.driver=file,file.filename={_escaped(str(part))}"
    _run(["compare", *objects, "-p", *source, target], lambda done: progress(0.6 + done * 0.4))


def _source(connection: DiskConnection, tls: Path | None) -> tuple[list[str], list[str]]:
    """For qemu-img: what proves who we are, and what to read."""
    url = urlsplit(connection.uri or "")
    name = _escaped(unquote(url.path.lstrip("/")))
    if connection.driver == "nbd" and url.scheme == "nbd+unix":
        path = parse_qs(url.query).get("socket", [""])[0]
        where = f"server.type=unix,server.path={_escaped(path)}"
    elif connection.driver == "nbd" and url.scheme == "nbd" and url.hostname and url.port:
        where = f"server.type=inet,server.host={_escaped(url.hostname)},server.port={url.port}"
    else:
        raise DriverError("unsupported", f"volumes are not fetched from {connection.uri}")
    objects = []
    if connection.tls:
        if tls is None:
            raise DriverError("unreachable", "the volume is served to hosts with a certificate, and this one has none")
        objects = ["--object", f"tls-creds-x509,id={_CREDENTIALS},dir={_escaped(str(tls))},endpoint=client"]
        where += f",tls-creds={_CREDENTIALS}"
    return objects, ["--image-opts", f"driver=nbd,{where},export={name}"]


def _escaped(text: str) -> str:
    return text.replace(",", ",,")


def _run(arguments: list[str], ahead: Callable[[float], None] = lambda done: None) -> bytes:
    """`qemu-img`, which is killed when it only waits. ``ahead``: is told, while it works, how far it is (0 to 1)."""
    process = subprocess.Popen(
        ["qemu-img", *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    os.set_blocking(process.stdout.fileno(), False)
    said, far, worked, end = b"", 0.0, -1, time.monotonic() + SILENT_SECONDS
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_LOOK_SECONDS)
            said = (said + _read(process.stdout))[-10_000:]
            found = _PERCENT.findall(said)
            far = float(found[-1]) / 100 if found else far
            if process.returncode is not None:
                break
            if (work := _work(process.pid)) != worked:
                worked, end = work, time.monotonic() + SILENT_SECONDS
                ahead(far)
            if time.monotonic() > end:
                raise DriverError("unreachable", f"the volume's host has sent nothing for {SILENT_SECONDS:g} s")
        words = process.stderr.read().decode(errors="replace").strip()[-400:]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
    if arguments[0] == "compare" and process.returncode == 1:
        raise DriverError("copy-differs", "the copy is not what the other host has")
    if process.returncode:
        code = "no-space" if "No space left" in words else "unreachable"
        raise DriverError(code, f"qemu-img {arguments[0]}: {words}")
    return said


def _work(pid: int) -> int:
    """The processor time that it has used: whoever waits for a host uses none. (It says how far it is by whole percents
    alone, and one of a large volume takes long.)"""
    with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])
    return 0


def _read(stream: IO[bytes]) -> bytes:
    return stream.read() or b""
