"""Faults of an emulated cloud, said in the words of its users.

Of hosts: ``fail``, ``delay`` or ``hang`` the next boots, volumes, … wherever they are tried. One fault is of one
object: a server whose boot fails does so on every host that is tried, once each, and ends in ERROR as on a real cloud.
Of requests: ``answer`` them with a status, ``slow`` them down, ``drop`` their connections.
"""

import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import count
from typing import Any, Literal

from cumulet.agent.contract import Operation, Query
from cumulet.agent.fake import FakeHost
from cumulet.emulator.host import EmulatedHost

# what users say -> operations of the agent contract; a boot is what starts a guest
OPERATIONS: dict[str, tuple[str, ...]] = {
    "boot": ("PowerServer",),
    "stop": ("PowerServer",),
    "reboot": ("PowerServer",),
    "image": ("CacheImage", "FetchImages"),
    "disk": ("CreateDisks",),
    "port": ("PlugPorts", "AttachPort"),
    "delete": ("UndefineServer",),
    "snapshot": ("SnapshotServer",),
    "attach": ("AttachVolume",),
    "detach": ("DetachVolume",),
    "volume": ("CreateVolume",),
    "volume-delete": ("DeleteVolume",),
    "volume-extend": ("ExtendVolume",),
    "volume-snapshot": ("CreateVolumeSnapshot",),
    "backup": ("BackupVolume",),
}
_ACTIONS = {"boot": ("start",), "stop": ("stop",), "reboot": ("soft_reboot", "hard_reboot")}
_OBJECT_FIELDS = ("snapshot_id", "backup_id", "server_id", "volume_id")


def operations(name: str) -> tuple[str, ...]:
    """The operations that a user's word means. ValueError says which words there are."""
    if name in OPERATIONS:
        return OPERATIONS[name]
    known = {"*"}
    for base in (Operation, Query):
        for kind in base.__subclasses__():
            known |= {kind.__name__, str(kind.__struct_config__.tag)}
    if name not in known:
        raise ValueError(f"there is no operation {name!r}; there are {', '.join(OPERATIONS)} and those of the contract")
    return (name,)


class HostFault:
    """One fault on the hosts of a cloud. ``times`` counts objects: servers, volumes."""

    def __init__(
        self,
        what: Literal["fail", "delay", "hang"],
        operation: str,
        *,
        times: int | None,
        host: str | None,
        seconds: float,
        message: str,
        code: str,
    ) -> None:
        self.what, self.operation, self.times, self.host = what, operation, times, host
        self.seconds, self.message, self.code = seconds, message, code
        self.kinds = operations(operation)
        self._lock = threading.Lock()
        self._objects: set[Any] = set()
        self._met: set[tuple[Any, str]] = set()  # object, host
        self._release = threading.Event()

    def describe(self) -> dict[str, Any]:
        told: dict[str, Any] = {self.what: self.operation, "times": self.times, "met": len(self._objects)}
        if self.host is not None:
            told["host"] = self.host
        if self.what == "delay":
            told["seconds"] = self.seconds
        return told

    def put_on(self, fake: FakeHost) -> None:
        if self.host is not None and fake.name != self.host:
            return
        for kind in self.kinds:
            fits = self._fits(fake.name)
            if self.what == "fail":
                fake.faults.fail(kind, times=None, code=self.code, message=self.message, only_if=fits, owner=self)
            elif self.what == "delay":
                fake.faults.delay(kind, self.seconds, only_if=fits, owner=self)
            else:
                fake.faults.hang(kind, times=None, only_if=fits, owner=self, until=self._release)

    def _fits(self, host: str) -> Callable[[Any], bool]:
        actions = _ACTIONS.get(self.operation)

        def fits(body: Any) -> bool:
            if actions is not None and getattr(body, "action", None) not in actions:
                return False
            if self.times is None:
                return True
            return self._take(_object_of(body), host)

        return fits

    def _take(self, thing: Any, host: str) -> bool:
        assert self.times is not None
        with self._lock:
            if (thing, host) in self._met or (thing not in self._objects and len(self._objects) >= self.times):
                return False
            self._objects.add(thing)
            self._met.add((thing, host))
            return True


def _object_of(body: Any) -> Any:
    for name in _OBJECT_FIELDS:
        found = getattr(body, name, None)
        if found:
            return found
    return getattr(getattr(body, "server", None), "server_id", None) or object()


@dataclass
class RequestFault:
    """One fault of requests. ``path``: a shell pattern of the path behind the service's prefix (``/servers*``), or of
    the whole path when no service is named. ``times`` None: until it is cleared."""

    status: int | None = None
    times: int | None = 1
    service: str | None = None
    method: str | None = None
    path: str | None = None
    seconds: float = 0.0
    drop: bool = False
    message: str = "The service is temporarily unavailable."
    retry_after: int | None = None
    met: int = field(default=0, init=False)

    def describe(self) -> dict[str, Any]:
        told: dict[str, Any] = {"times": self.times, "met": self.met}
        for name in ("status", "service", "method", "path", "retry_after"):
            if getattr(self, name) is not None:
                told[name] = getattr(self, name)
        if self.seconds:
            told["seconds"] = self.seconds
        if self.drop:
            told["drop"] = True
        return told

    def matches(self, method: str, path: str) -> bool:
        if self.times is not None and self.met >= self.times:
            return False
        if self.method is not None and self.method.upper() != method:
            return False
        service, _, rest = path[1:].partition("/")
        rest = _VERSION.sub("/", "/" + rest)
        if self.service is not None and service != _SERVICES.get(self.service, self.service):
            return False
        if self.path is None:
            return True
        return fnmatchcase(rest if self.service is not None else path, self.path)


_VERSION = re.compile(r"^/v[0-9.]+(/[0-9a-f]{32})?(/|$)")
_SERVICES = {"block-storage": "volume", "volumev3": "volume", "keystone": "identity", "nova": "compute",
             "neutron": "network", "glance": "image", "cinder": "volume"}  # fmt: skip


class CloudFaults:
    """All faults of one cloud. Each of the methods that make one answers its number, for `remove`."""

    def __init__(self, hosts: Callable[[], Iterable[EmulatedHost]]) -> None:
        self._hosts = hosts
        self._lock = threading.Lock()
        self._numbers = count(1)
        self._of_hosts: dict[int, HostFault] = {}
        self._of_requests: dict[int, RequestFault] = {}

    # -- of hosts -----------------------------------------------------------------------------------------------------

    def fail(
        self,
        operation: str,
        *,
        times: int | None = 1,
        host: str | None = None,
        message: str = "a fault was injected",
        code: str = "internal",
    ) -> int:
        """The next ``times`` objects (None: all) fail at this operation."""
        return self._put(HostFault("fail", operation, times=times, host=host, seconds=0, message=message, code=code))

    def delay(self, operation: str, seconds: float, *, times: int | None = 1, host: str | None = None) -> int:
        """It takes so long, on the cloud's clock."""
        return self._put(HostFault("delay", operation, times=times, host=host, seconds=seconds, message="", code=""))

    def hang(self, operation: str, *, times: int | None = 1, host: str | None = None) -> int:
        """It neither ends nor says anything, until it is cleared."""
        return self._put(HostFault("hang", operation, times=times, host=host, seconds=0, message="", code=""))

    # -- of requests --------------------------------------------------------------------------------------------------

    def answer(self, status: int = 503, *, seconds: float = 0.0, **which: Any) -> int:
        """The next ``times`` requests that match ``service``, ``method`` and ``path`` are answered so, after
        ``seconds``; with ``retry_after`` and ``message``."""
        if not 400 <= status <= 599:
            raise ValueError("a fault's status is 400 to 599")
        return self._put(RequestFault(status, seconds=seconds, **which))

    def slow(self, seconds: float, **which: Any) -> int:
        """They are answered as ever, but later (in real time)."""
        return self._put(RequestFault(None, seconds=seconds, **which))

    def drop(self, **which: Any) -> int:
        """Their connections are cut without an answer."""
        return self._put(RequestFault(None, drop=True, **which))

    # -- all of them --------------------------------------------------------------------------------------------------

    def _put(self, fault: HostFault | RequestFault) -> int:
        if fault.times is not None and fault.times < 1:
            raise ValueError("times is at least 1, or null for all")
        with self._lock:
            number = next(self._numbers)
            if isinstance(fault, RequestFault):
                self._of_requests[number] = fault
                return number
            self._of_hosts[number] = fault
            for host in self._hosts():
                fault.put_on(host.fake)
        return number

    def put_all_on(self, fake: FakeHost) -> None:
        """A host came."""
        with self._lock:
            for fault in self._of_hosts.values():
                fault.put_on(fake)

    def remove(self, number: int) -> bool:
        """One fault less; what it held goes on. False if there is none of this number."""
        with self._lock:
            if self._of_requests.pop(number, None) is not None:
                return True
            fault = self._of_hosts.pop(number, None)
            if fault is None:
                return False
            for host in self._hosts():
                host.fake.faults.remove(fault)
        return True

    def clear(self) -> None:
        """No more faults; what hangs or sleeps goes on."""
        with self._lock:
            self._of_requests.clear()
            self._of_hosts.clear()
            for host in self._hosts():
                host.fake.faults.clear()

    def list(self) -> dict[int, dict[str, Any]]:
        with self._lock:
            every: dict[int, HostFault | RequestFault] = {**self._of_hosts, **self._of_requests}
            return {number: every[number].describe() for number in sorted(every)}

    def of_request(self, method: str, path: str) -> RequestFault | None:
        """The first that this request meets, which is thereby used once."""
        if not self._of_requests:
            return None
        with self._lock:
            for fault in self._of_requests.values():
                if fault.matches(method, path):
                    fault.met += 1
                    return fault
        return None
