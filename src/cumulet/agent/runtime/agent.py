"""One host's agent: takes messages on ``agent.<host>``, gives them to its parts, and tells the conductor how it is.

Owns the threads: bus handlers (the transport's), operation workers, document workers, one for heartbeats and one for
the outbox. Never touches the control plane's database. Stopping it stops no server and cuts no packet.
"""

import logging
import threading
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

import cumulet
from cumulet.agent.contract import (
    Absent,
    Answer,
    Ask,
    AskOutcome,
    Audited,
    AuditHost,
    Execute,
    FetchVolume,
    Heartbeat,
    HostResources,
    Inventory,
    LookAgain,
    MendHost,
    MendHostResult,
    MendItem,
    Operation,
    PasswordPosted,
    PasswordTaken,
    Query,
    ServerReport,
)
from cumulet.agent.driver import Driver, Facts, OperationBody, Progress, QueryBody
from cumulet.agent.errors import DriverError
from cumulet.agent.runtime.documents import DocumentSync
from cumulet.agent.runtime.link import Link
from cumulet.agent.runtime.operations import Operations, working_on
from cumulet.agent.runtime.store import AgentStore
from cumulet.bus import Bus, RemoteFault
from cumulet.bus.model import Service
from cumulet.kernel import structs
from cumulet.kernel.clock import SECOND, Clock, Signal, SystemClock
from cumulet.kernel.errors import Unavailable
from cumulet.kernel.process import usage

_log = logging.getLogger(__name__)


_STOCK_PAUSE_S = 5.0  # after an inventory that settled not all; then twice as long


class AgentSettings(msgspec.Struct, frozen=True, kw_only=True):
    host: str
    ip: str = "127.0.0.1"
    tunnel_ip: str | None = None
    bridge_mappings: dict[str, str] = {}
    heartbeat_seconds: float = 5.0
    inventory_seconds: float = 300.0
    compare_seconds: float = 30.0
    identity: Path | None = None  # the folder with this host's certificate
    identity_seconds: float = 3600.0  # how often it is looked at
    operation_threads: int = 16
    document_threads: int = 4


class Agent:
    def __init__(
        self,
        settings: AgentSettings,
        bus: Bus,
        store: AgentStore,
        drivers: Iterable[Driver],
        clock: Clock | None = None,
    ) -> None:
        self.settings = settings
        self._bus = bus
        self._store = store
        self._drivers = list(drivers)
        self._clock = clock or SystemClock()
        self._link = Link(bus)
        bodies: dict[type[Operation], OperationBody] = {}
        queries: dict[type[Query], QueryBody] = {}
        appliers: dict[str, Any] = {}
        for driver in self._drivers:
            bodies.update(driver.operations())
            queries.update(driver.queries())
            appliers.update(driver.documents())
        queries[AuditHost] = lambda query: msgspec.to_builtins(self.audit())
        bodies[MendHost] = self._mend
        self._queries = queries
        self._outbox_wanted = threading.Event()
        self.documents = DocumentSync(
            settings.host,
            store,
            self._link,
            appliers,
            threads=settings.document_threads,
            compare_seconds=settings.compare_seconds,
        )
        self.operations = Operations(
            settings.host,
            store,
            self._link,
            self._clock,
            bodies,
            threads=settings.operation_threads,
            report=self._outbox_wanted.set,
            expect=self.documents.expect,
            carried=self.documents.carried,
            before_outcome=self._report_first,
        )
        self._sequence = store.last_sequence()
        self._report_lock = threading.Lock()
        self._reports = {report.server_id: report for report in store.reports()}
        self._started = 0
        self._stopping = threading.Event()
        self._beat_now = Signal()
        self._inventory_at = self._identity_at = float("-inf")
        self._stock_pause = 0.0  # after an inventory that was not settled, doubled each time
        self._service: Service | None = None
        self._threads: list[threading.Thread] = []

    # -- life ------------------------------------------------------------

    def start(self) -> None:
        """Take over what runs, take up what was under way, and report. Returns when messages are taken."""
        structs.prepare()
        for driver in self._drivers:
            driver.start(self)
        self._started = self._clock.now()
        self._store.prune(self._started)
        self._service = self._bus.serve(f"agent.{self.settings.host}", self._handle, threads=8)
        self._threads = [
            threading.Thread(target=self._beat, name="heartbeat", daemon=True),
            threading.Thread(target=self._outbox, name="outbox", daemon=True),
        ]
        self.operations.resume()  # first: an inventory tells what is on its way here
        for thread in self._threads:
            thread.start()
        self.documents.start()

    def stop(self, seconds: float = 5.0) -> None:
        """Within about ``seconds``, whatever hangs: what did not end is taken up again by the next life."""
        end = time.monotonic() + seconds
        self._stopping.set()
        self._beat_now.set()
        self._outbox_wanted.set()
        if self._service is not None:
            self._service.stop()
        self.operations.stop(seconds)
        self.documents.stop(max(end - time.monotonic(), 0.1))
        for thread in self._threads:
            thread.join(max(end - time.monotonic(), 0.1))
        for driver in self._drivers:
            driver.stop()

    def busy(self) -> tuple[int, bool]:
        """How many bodies and documents are being worked on, and whether a conductor is still to be told something."""
        with self._report_lock:
            waits = bool(self._reports)
        return self.operations.busy() + self.documents.busy(), waits or self.documents.waits()

    def close(self) -> None:
        """After `stop`: let go of the file."""
        self._store.close()

    # -- messages ------------------------------------------------------------

    def _handle(self, message: Any) -> msgspec.Struct | None:
        match message:
            case Execute():
                return self.operations.execute(message)
            case AskOutcome():
                return self.operations.ask(message)
            case LookAgain():
                self.documents.look_again(message.keys)
                return None
            case Ask():
                return self._answer(message.query)
        raise TypeError(f"an agent takes no {type(message).__name__}")

    def _answer(self, query: Query) -> Answer:
        body = self._queries.get(type(query))
        if body is None:
            return Answer(error="This host does not answer that.", error_code="unsupported")
        try:
            found = body(query)
        except DriverError as error:
            return Answer(error=error.message, error_code=error.code)
        return Answer(text=found) if isinstance(found, str) else Answer(data=found)

    # -- audit ------------------------------------------------------------

    def audit(self) -> Audited:
        """What is on this host, and what of it is not as its documents say."""
        documents = self.documents.held()
        found = [driver.audit(documents) for driver in self._drivers]
        return Audited(
            kinds=sorted({kind for one in found for kind in one.kinds}),
            things=[thing for one in found for thing in one.things],
            drift=[drift for one in found for drift in one.drift],
        )

    def _mend(self, operation: MendHost, progress: Progress) -> MendHostResult:
        done = []
        for item in operation.items:
            done.append(self._mend_one(item))
            progress()
        return MendHostResult(done=done)

    def _mend_one(self, item: MendItem) -> str:
        if item.document is not None:
            for driver in self._drivers:
                driver.distrust(item)
            try:
                error = self.documents.apply_now(*item.document)
            except KeyError:
                return "this host is not to have it any more"
            if error is not None:
                raise DriverError("not-applied", f"{item.kind} {item.id}: {error}")
            return f"{item.document[0]} {item.document[1]} was applied again"
        for kind, held in self.documents.held().items():
            if item.id in held and held[item.id].generation > item.generation:
                raise DriverError("newer", f"This host has a newer document of {kind} {item.id}: it is left alone.")
        for driver in self._drivers:
            words = driver.mend(item)
            if words is not None:
                return words
        raise DriverError("unsupported", f"No driver of this host mends a {item.kind}.")

    # -- hooks of the drivers ------------------------------------------------------------

    def server_changed(self, server_id: str, power_state: int, reason: str = "") -> None:
        with self._report_lock:
            self._sequence = max(self._sequence + 1, self._clock.now())
            report = ServerReport(
                host=self.settings.host,
                server_id=server_id,
                sequence=self._sequence,
                power_state=power_state,
                reason=reason,
            )
            self._store.save_report(report)
            self._reports[server_id] = report
        if working_on() != server_id:  # else it goes out when the operation is done
            self._outbox_wanted.set()

    def reapply(self, kind: str, ids: Iterable[str] | None = None) -> None:
        self.documents.reapply(kind, ids)

    def document(self, kind: str, object_id: str) -> Any | None:
        return self.documents.document(kind, object_id)

    def password_posted(self, server_id: str, password: str) -> PasswordTaken:
        try:
            taken = self._link.call(PasswordPosted(server_id=server_id, password=password))
        except (Unavailable, RemoteFault) as error:
            _log.warning("the password of server %s could not be kept: %s", server_id, error)
            return PasswordTaken(outcome="unavailable")
        return taken if isinstance(taken, PasswordTaken) else PasswordTaken(outcome="unavailable")

    def heartbeat_now(self) -> None:
        self._beat_now.set()

    # -- outbox ------------------------------------------------------------

    def _outbox(self) -> None:
        """Server reports as they come; outcomes that were not acknowledged; both again until they are."""
        again = 0.0  # seconds until what waits is tried again; 0: nothing waits
        self._outbox_wanted.set()  # what a former life left
        while True:
            self._outbox_wanted.wait(again or None)
            self._outbox_wanted.clear()
            if self._stopping.is_set():
                return
            sent, left = self._send_reports()
            if not left:
                more, left = self.operations.deliver_waiting()
                sent += more
            if not left:
                again = 0.0
            else:  # patience grows only while nothing gets through
                again = 0.2 if sent else min(max(again * 2, 0.2), 3.0)
                if self._stopping.wait(again):
                    return

    def _report_first(self, server_id: str) -> None:
        """What an operation changed is told before the operation's outcome, which then finds it told."""
        with self._report_lock:
            report = self._reports.get(server_id)
        if report is None:
            return
        if not self._link.send(report, 3.0, only_if_up=True):
            self._outbox_wanted.set()
            return
        with self._report_lock:
            if self._reports.get(server_id) is report:
                del self._reports[server_id]
            self._store.forget_reports([report])

    def _send_reports(self) -> tuple[int, int]:
        """How many a conductor took, and how many still wait."""
        with self._report_lock:
            waiting = sorted(self._reports.values(), key=lambda report: report.sequence)
        done = []
        for report in waiting:
            if not self._link.send(report, 3.0):
                break
            done.append(report)
        if done:
            with self._report_lock:
                for report in done:
                    if self._reports.get(report.server_id) is report:
                        del self._reports[report.server_id]
                self._store.forget_reports(done)
        return len(done), len(waiting) - len(done)

    # -- heartbeats and inventory ------------------------------------------------------------

    def _beat(self) -> None:
        pause = self.settings.heartbeat_seconds
        while not self._stopping.is_set():
            was_up = self._link.up
            try:
                sent = self._link.send(self.heartbeat(), 3.0)
                if sent and not was_up:  # a conductor came back: what waits goes out, and documents are compared
                    self._outbox_wanted.set()
                    self.documents.look_again(())
                if sent and self._clock.monotonic() >= self._inventory_at:
                    self._take_stock()
                if sent and self.settings.identity is not None and self._clock.monotonic() >= self._identity_at:
                    self._renew_identity(self.settings.identity)
            except Exception:  # noqa: BLE001 - a defect in a driver must not make the host look dead
                _log.exception("looking after the host failed")
                sent = False
                self._inventory_at = self._clock.monotonic() + 5.0
            self._clock.wait(self._beat_now, pause if sent else min(1.0, pause))
            self._beat_now.clear()

    def heartbeat(self) -> Heartbeat:
        facts = [self._facts(driver) for driver in self._drivers]
        used = usage()
        resources: dict[str, Any] = {
            "vcpus": 0, "memory_mb": 0, "local_gb": 0, "operations": self.operations.in_flight(), "pid": used.pid,
            "cpu_seconds": used.cpu_seconds, "rss_mb": round(used.rss_mb, 1),
        }  # fmt: skip
        mappings = dict(self.settings.bridge_mappings)
        for one in facts:
            resources.update(one.resources)
            mappings.update(one.bridge_mappings)
        return Heartbeat(
            host=self.settings.host,
            started=self._started,
            roles=sorted({driver.role for driver in self._drivers if driver.role}),
            version=cumulet.__version__,
            tunnel_ip=next((one.tunnel_ip for one in facts if one.tunnel_ip), self.settings.tunnel_ip),
            ip=self.settings.ip,
            speed_factor=next((one.speed_factor for one in facts if one.speed_factor is not None), 1.0),
            mechanism=next((one.mechanism for one in facts if one.mechanism), ""),
            virt_type=next((one.virt_type for one in facts if one.virt_type), ""),
            bridge_mappings=mappings,
            resources=msgspec.convert(resources, HostResources),
            warnings=[warning for one in facts for warning in one.warnings],
            sent_at=self._clock.now(),
        )

    def _facts(self, driver: Driver) -> Facts:
        try:
            return driver.facts()
        except DriverError as error:
            _log.warning("the %s driver does not know how it is: %s", driver.role, error.message)
            return Facts(
                warnings=[{"code": error.code, "message": error.message, "cure": f"Look at the {driver.role} driver."}]
            )

    def _take_stock(self) -> None:
        """Send everything of ours on this host; remove what the conductor says is nobody's. Soon again, if there was no
        answer, the conductor could not say of something, or something is just being worked on."""
        pause = self.settings.inventory_seconds
        if self._compare_stock():
            self._stock_pause = 0.0
        else:
            pause = self._stock_pause = min(max(_STOCK_PAUSE_S, 2 * self._stock_pause), 60.0, pause)
        self._inventory_at = self._clock.monotonic() + pause

    def _compare_stock(self) -> bool:
        """False: what is to be removed is not known, or not removed."""
        self._store.prune(self._clock.now())
        self.operations.watch()
        try:
            inventory = self._inventory()
            answer = self._link.call(inventory)
        except (Unavailable, RemoteFault, DriverError) as error:
            _log.warning("no inventory this time: %s", error)
            return False
        if not isinstance(answer, Absent):
            return True
        settled = not answer.again
        if answer not in (Absent(), Absent(again=True)):
            _log.info("removing leftovers: %s", answer)
            self._remove(Absent(ports=answer.ports, exports=answer.exports))
            leftovers = [(one, Absent(servers=[one])) for one in answer.servers]
            leftovers += [(one, Absent(volumes=[one])) for one in answer.volumes]
            for object_id, gone in leftovers:
                # the answer is of a while ago: it may arrive here since, and the next inventory tells
                if not self.operations.unless_touched(object_id, partial(self._remove, gone)):
                    _log.info("%s is being worked on: it is not removed now", object_id)
                    settled = False
        return settled

    def _remove(self, absent: Absent) -> None:
        for driver in self._drivers:
            try:
                driver.remove_absent(absent)
            except DriverError as error:
                _log.warning("cannot remove leftovers: %s", error.message)
            except Exception:  # noqa: BLE001 - the next inventory names them again
                _log.exception("cannot remove leftovers")

    def _renew_identity(self, folder: Path) -> None:
        from cumulet.agent.runtime import identity  # what reads certificates is large, and few agents have one

        self._identity_at = self._clock.monotonic() + self.settings.identity_seconds
        try:
            if identity.renew(folder, self.settings.host, self._link.call, self._clock.now() / SECOND):
                _log.info("the certificate of this host was renewed")
        except (Unavailable, RemoteFault, OSError, ValueError) as error:
            _log.warning("the certificate of this host could not be renewed: %s", error)

    def _inventory(self) -> Inventory:
        with self._report_lock:  # numbered before it looks: what is reported meanwhile is newer
            sequence = self._sequence = max(self._sequence + 1, self._clock.now())
            self._store.save_sequence(sequence)
        fetched = [operation.volume_id for operation in self.operations.under_way(FetchVolume)]
        found = [driver.inventory() for driver in self._drivers]
        servers = [
            ServerReport(
                host=self.settings.host,
                server_id=server.server_id,
                sequence=sequence,
                power_state=server.power_state,
                reason=server.reason,
            )
            for one in found
            for server in one.servers
        ]
        return Inventory(
            host=self.settings.host,
            sequence=sequence,
            servers=servers,
            ports=list(dict.fromkeys(port for one in found for port in one.ports)),
            volumes=list(dict.fromkeys([*fetched, *(volume for one in found for volume in one.volumes)])),
            exports=[export for one in found for export in one.exports],
            moving=[server for one in found for server in one.moving],
        )
