"""The programs that change the network of a host, and the way into a namespace.

Owns: running ``ip``, ``bridge``, ``nft``, ``conntrack`` with the C locale, without a shell, and turning a failure into
`DriverError("network-command", ...)` that holds the command and what it said. `in_namespace` runs a function in a
short-lived thread that entered a network namespace: neither the caller's thread nor the process ever changes theirs,
and a program started by that thread is born in the namespace.
"""

import ctypes
import json
import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from cumulet.agent.errors import DriverError

T = TypeVar("T")

NETNS_DIR = Path("/run/netns")
CLONE_NEWNET = 0x40000000
_ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
_UNFINISHED = re.compile(r"\..+\.(\d+)\.\d+")  # as `write_atomically` names a file that it is writing
_libc = ctypes.CDLL(None, use_errno=True)


class CommandError(DriverError):
    def __init__(self, argv: list[str], returncode: int, said: str, script: str | None = None) -> None:
        self.argv, self.returncode, self.said = argv, returncode, said
        told = f" with:\n{script.rstrip()[:2000]}" if script else ""
        super().__init__("network-command", f"{' '.join(argv)[:500]}: exit {returncode}: {said.strip()[:1000]}{told}")


def run(argv: list[str], *, script: str | None = None, ok: Iterable[int] = (0,), timeout: float = 60) -> str:
    """Standard output of a finished program; CommandError for another exit status than ``ok``."""
    try:
        done = subprocess.run(
            argv,
            input=script,
            stdin=subprocess.DEVNULL if script is None else None,
            capture_output=True,
            text=True,
            env=_ENV,
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError as error:
        raise DriverError("network-program-missing", f"{argv[0]} is not installed on this host") from error
    except subprocess.TimeoutExpired as error:
        raise CommandError(argv, -1, f"no end within {timeout:.0f} s", script) from error
    if done.returncode not in tuple(ok):
        raise CommandError(argv, done.returncode, done.stderr or done.stdout, script)
    return done.stdout


def ip_batch(lines: Iterable[str], namespace: str | None = None) -> None:
    """One ``ip`` process for many commands; nothing for none."""
    script = "\n".join(lines)
    if script:
        run(["ip", *(["-n", namespace] if namespace else []), "-batch", "-"], script=script + "\n")


def ip_json(*arguments: str, namespace: str | None = None) -> list[dict[str, Any]]:
    text = run(["ip", *(["-n", namespace] if namespace else []), "-j", *arguments])
    return [entry for entry in json.loads(text or "[]") if entry]


def nft(script: str) -> None:
    """One transaction: all of it or nothing."""
    run(["nft", "-f", "-"], script=script)


def nft_json(*arguments: str) -> list[dict[str, Any]] | None:
    """The listing's entries; None if what was asked for does not exist."""
    try:
        text = run(["nft", "-j", *arguments])
    except CommandError as error:
        if "No such file or directory" in error.said:
            return None
        raise
    return [entry for entry in json.loads(text)["nftables"] if "metainfo" not in entry]


def namespaces() -> set[str]:
    try:
        return set(os.listdir(NETNS_DIR))
    except FileNotFoundError:
        return set()


def in_namespace(namespace: str, function: Callable[[], T]) -> T:
    """``function()`` in a thread of its own inside ``namespace``; FileNotFoundError if there is no such namespace."""
    descriptor = os.open(NETNS_DIR / namespace, os.O_RDONLY | os.O_CLOEXEC)

    def job() -> T:
        if _libc.setns(descriptor, CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), namespace)
        return function()

    try:
        return in_thread(job, f"netns-{namespace[:20]}")
    finally:
        os.close(descriptor)


def in_thread(function: Callable[[], T], name: str) -> T:
    """``function()`` in a thread made for it, whose namespaces it may change."""
    outcome: list[tuple[bool, Any]] = []

    def job() -> None:
        try:
            outcome.append((True, function()))
        except BaseException as error:  # noqa: BLE001  handed to the caller
            outcome.append((False, error))

    thread = threading.Thread(target=job, name=name, daemon=True)
    thread.start()
    thread.join()
    good, value = outcome[0]
    if not good:
        raise value
    result: T = value
    return result


def sysctls_astray(values: dict[str, str]) -> list[str]:
    """Which of them are not so, in the namespace of the calling thread."""
    found = []
    for name, value in values.items():
        path = Path("/proc/sys") / name
        if path.exists() and path.read_text().strip() != value:
            found.append(name)
    return found


def devices() -> list[str]:
    """In the namespace of the calling thread, whatever /sys was mounted in."""
    lines = Path("/proc/thread-self/net/dev").read_text().splitlines()[2:]
    return [line.partition(":")[0].strip() for line in lines]


def write_sysctls(values: dict[str, str]) -> None:
    """``net/ipv4/ip_forward`` -> value, in the namespace of the calling thread; written only if it differs. Names that
    this kernel does not have (no IPv6) are passed over."""
    for name in sysctls_astray(values):
        (Path("/proc/sys") / name).write_text(values[name])


def has_ipv6() -> bool:
    return Path("/proc/sys/net/ipv6").is_dir()


def write_atomically(path: Path, text: str, mode: int = 0o644) -> bool:
    """True if the file's content changed. A reader sees the old or the new content. Not synced: nothing here is
    the only copy, and a reader of what a power cut tore takes it as absent."""
    try:
        if path.read_text() == text:
            return False
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text)
    os.replace(part, path)
    return True


def sweep_unfinished(directory: Path) -> None:
    """Remove what `write_atomically` of processes that are gone did not come to rename."""
    for path in directory.rglob(".*.*.*"):
        found = _UNFINISHED.fullmatch(path.name)
        if found and not Path("/proc", found[1]).exists():
            path.unlink(missing_ok=True)
