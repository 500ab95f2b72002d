"""Serves topic ``conductor``: takes what hosts say into the database, answers what they ask.

Every message may come twice, late and out of order; each is one transaction, and its answer means that it is
recorded. A host that joined with a token speaks for itself alone: the broker vouches for its account. Services join in
by listeners, registered at composition: they run inside that transaction.
"""

import logging
import threading
from collections.abc import Callable
from typing import Any

from cumulet.agent.contract import (
    Absent,
    Answer,
    Applied,
    Ask,
    Heartbeat,
    Inventory,
    Outcome,
    PasswordPosted,
    Pull,
    PullIndex,
    Query,
    RenewCertificate,
    ServerReport,
)
from cumulet.bus import Bus, speaker
from cumulet.bus.model import Service
from cumulet.conductor.desired import AppliedListener, Desired
from cumulet.conductor.hosts import HostRegistry
from cumulet.db import Database, Tx
from cumulet.kernel.clock import Signal
from cumulet.kernel.errors import CloudError
from cumulet.saga import SagaEngine, WakeSagas

_log = logging.getLogger(__name__)
TOPIC = "conductor"
FROM_HOSTS = frozenset(
    {Outcome, Heartbeat, PullIndex, Pull, Applied, ServerReport, Inventory, RenewCertificate, PasswordPosted}
)  # each but the last names its host

ReportListener = Callable[[Tx, ServerReport], object]
InventoryListener = Callable[[Tx, Inventory], Absent | None]


class Conductor:
    """``start`` begins to serve and to drive sagas; ``stop`` ends both."""

    def __init__(
        self,
        db: Database,
        bus: Bus,
        sagas: SagaEngine,
        hosts: HostRegistry,
        desired: Desired,
        *,
        threads: int = 8,
        watch_seconds: float = 2.0,
    ) -> None:
        self.db = db
        self.bus = bus
        self.sagas = sagas
        self.hosts = hosts
        self.desired = desired
        self._threads = threads
        self._watch_seconds = watch_seconds
        self._reports: list[ReportListener] = []
        self._inventories: list[InventoryListener] = []
        self._changes: list[Callable[[], object]] = []
        self._service: Service | None = None
        self._stopping = Signal()
        self._watcher: threading.Thread | None = None
        self._handlers: dict[type[Any], Callable[[Any], Any]] = {
            Outcome: sagas.outcome,
            WakeSagas: sagas.on_wake,
            Heartbeat: self._heartbeat,
            PullIndex: lambda m: db.read(lambda tx: desired.index(tx, m.host)),
            Pull: lambda m: db.read(lambda tx: desired.pull(tx, m)),
            Applied: lambda m: db.write(lambda tx: desired.report(tx, m)),
            ServerReport: lambda m: db.write(lambda tx: self._report(tx, m)),
            Inventory: lambda m: db.write(lambda tx: self._inventory(tx, m)),
        }
        sagas.hosts = hosts

    # -- composition ----------------------------------------------------------------------------------------------

    def on_server_report(self, listener: ReportListener) -> None:
        self._reports.append(listener)

    def on_applied(self, listener: AppliedListener) -> None:
        self.desired.on_applied(listener)

    def on_inventory(self, listener: InventoryListener) -> None:
        """``fn(tx, inventory)`` -> what of it to remove for sure."""
        self._inventories.append(listener)

    def on_hosts_changed(self, listener: Callable[[], object]) -> None:
        """Called when hosts came or went, outside of any unit of work."""
        self._changes.append(listener)

    def on_message(self, kind: type[Any], handler: Callable[[Any], Any]) -> None:
        """Let another part take messages of its own kind on this topic."""
        self._handlers[kind] = handler

    # -- life -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._stopping.clear()
        self.hosts.listening()
        self.hosts.changes()
        self._service = self.bus.serve(TOPIC, self.handle, threads=self._threads)
        self.sagas.run()
        self._watcher = threading.Thread(target=self._watch, name="host-watch", daemon=True)
        self._watcher.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._service is not None:
            self._service.stop()
            self._service = None
        self.sagas.stop()
        if self._watcher is not None:
            self._watcher.join(5)
            self._watcher = None

    def _watch(self) -> None:
        """Notice hosts that come and go, and have the sagas that wait for them look again."""
        while not self._stopping.is_set():
            try:
                self._look_after_hosts()
            except Exception:  # noqa: BLE001 - the database may be away; look again
                _log.exception("looking after the hosts failed")
            self.db.clock.wait(self._stopping, self._watch_seconds)

    def _look_after_hosts(self) -> None:
        changed = self.hosts.changes()
        for name in changed:
            _log.info("host %s is %s", name, "up" if self.hosts.is_up(name) else "down")
            self.sagas.host_changed(name)
        if changed:
            for listener in self._changes:
                listener()

    # -- messages -------------------------------------------------------------------------------------------------

    def handle(self, message: Any) -> Any:
        host = speaker()
        if host is not None and (type(message) not in FROM_HOSTS or getattr(message, "host", host) != host):
            raise PermissionError(f"host {host} may not send this {type(message).__name__}")
        handler = self._handlers.get(type(message))
        if handler is None:
            raise TypeError(f"a conductor does not take a {type(message).__name__}")
        return handler(message)

    def _heartbeat(self, beat: Heartbeat) -> None:
        was_up = self.hosts.is_up(beat.host)
        self.db.write(lambda tx: self.hosts.beat(tx, beat))
        if not was_up:
            self._look_after_hosts()

    def _report(self, tx: Tx, report: ServerReport) -> None:
        for listener in self._reports:
            listener(tx, report)

    def _inventory(self, tx: Tx, inventory: Inventory) -> Absent:
        for report in sorted(inventory.servers, key=lambda one: one.server_id):  # their locks are taken in one order
            self._report(tx, report)
        servers: list[str] = []
        ports: list[str] = []
        exports: list[tuple[str, str]] = []
        volumes: list[str] = []
        again = False
        for listener in self._inventories:
            absent = listener(tx, inventory)
            if absent is not None:
                servers.extend(absent.servers)
                ports.extend(absent.ports)
                exports.extend(absent.exports)
                volumes.extend(absent.volumes)
                again = again or absent.again
        self.hosts.inventoried(tx, inventory.host)
        return Absent(servers=servers, ports=ports, exports=exports, volumes=volumes, again=again)

    # -- asking hosts ---------------------------------------------------------------------------------------------

    def ask(self, host: str, query: Query, timeout: float | None = None) -> Answer:
        """Ask a host directly; never inside a unit of work. Unavailable if it does not answer."""
        return ask(self.bus, host, query, timeout)


def ask(bus: Bus, host: str, query: Query, timeout: float | None = None) -> Answer:
    """A query over the bus (API processes, which have no conductor, use this)."""
    body: Any = query
    answer = bus.call(f"agent.{host}", Ask(query=body), timeout=timeout)
    if not isinstance(answer, Answer):
        raise CloudError(f"Host {host} gave no answer.")
    return answer
