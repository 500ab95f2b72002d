"""The source of a live migration, and the one who decides where the guest is.

libvirtd talks to the target's through tunnels of ours (`door`), and leaves the guest paused there. When the guest is
stopped here for good, and not before, the target is asked to run it: whatever dies at whatever moment, there is one
running copy at most, and this side's libvirt knows which host has it:

=====================================  =====================================================================
the domain here                        so
=====================================  =====================================================================
runs, or is paused by its user         it did not move; the copy there is never run
paused in the middle of a migration    libvirtd died before it knew: it goes on here
was shut down                          it went off by itself meanwhile
is off because it migrated, or gone    it moved: the target is asked until it answers
is off, nobody knows why               libvirtd died: it moved if it stood still, as the mark tells
=====================================  =====================================================================

Should the target have lost the guest by then, it is defined here again, off, with its disks as they were.

A migration that is cancelled just when QEMU stops the guest may be forgotten, by QEMU or by libvirt. The guest would
stand still, or the migration never end. Whoever watches reminds them (`remind`).
"""

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import libvirt
import msgspec

from cumulet.agent.compute.hypervisor import Event, Hypervisor, translated
from cumulet.agent.compute.instances import Instances
from cumulet.agent.compute.moving import relocate
from cumulet.agent.compute.moving.door import Caller
from cumulet.agent.compute.moving.marks import Marks, Outgoing
from cumulet.agent.compute.moving.receive import Sockets
from cumulet.agent.compute.power import unless_off
from cumulet.agent.contract import MigrateServer, MigrateServerResult, MigrationProgress, SteerMigration
from cumulet.agent.driver import Progress
from cumulet.agent.errors import DriverError, not_found

LOG = logging.getLogger(__name__)
_POLL_SECONDS = 0.1
_END_SECONDS = 0.01  # between looks when the guest stands still
_CONFIRMED = "phase='confirm3'"  # in what libvirt keeps of a domain that runs
_ASK_AGAIN_SECONDS = 1.0
_TAKE_SECONDS = 600.0
_SETTLE_SECONDS = 120.0
_WISH_AGAIN_SECONDS = 5.0  # libvirt 9.0 may hang when it is told twice in a row
_STANDS_LONG_SECONDS = 1.0  # a guest that moves, or whose move was ended, stands still for tenths of that
_FORGOTTEN_SECONDS = 20.0  # what disks had sent to a slow network is waited for, too
_FLAGS = (
    libvirt.VIR_MIGRATE_LIVE
    | libvirt.VIR_MIGRATE_PEER2PEER
    | libvirt.VIR_MIGRATE_PAUSED
    | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
    | libvirt.VIR_MIGRATE_ABORT_ON_ERROR
)
_SECURE = libvirt.VIR_DOMAIN_XML_SECURE
_STANDS = (libvirt.VIR_DOMAIN_EVENT_SUSPENDED, libvirt.VIR_DOMAIN_EVENT_SUSPENDED_MIGRATED)
_IN_BETWEEN = {libvirt.VIR_DOMAIN_PAUSED_MIGRATION, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY}
_LOST = {"not-found", "refused"}

Where = Literal["here", "off", "moved"]


class _Course:
    """A migration under way in this life of the agent."""

    def __init__(self) -> None:
        self.wish: Literal["", "abort", "force_complete"] = ""
        self.wished_at = float("-inf")
        self.ended_at = 0.0  # when libvirt was told to abort it, first
        self.why = ""  # the error code, if it was us who ended it
        self.stopped_at = 0.0
        self.taken_at = 0.0
        self.reminded_at = 0.0
        self.stats: dict[str, Any] = {}

    def waited(self) -> float:
        """Seconds since it was to end."""
        return time.monotonic() - self.ended_at if self.ended_at else 0.0

    def stands_long(self) -> bool:
        """Something should have happened; once in a while."""
        now = time.monotonic()
        since = max(self.stopped_at, self.wished_at, self.reminded_at)
        if not (self.stopped_at or self.wish) or now - since < _STANDS_LONG_SECONDS:
            return False
        self.reminded_at = now
        return True


class Live:
    def __init__(
        self,
        hypervisor: Callable[[], Hypervisor],
        instances: Instances,
        marks: Marks,
        sockets: Callable[[], Sockets],
        caller: Callable[[str, str, str], Caller],
        tell: Callable[[str], None],
    ) -> None:
        """``caller``: of the door of a host (name, address) about a server."""
        self._hypervisor, self._instances, self._marks = hypervisor, instances, marks
        self._sockets, self._caller, self._tell = sockets, caller, tell
        self._courses: dict[str, _Course] = {}
        self._marking = threading.Lock()  # events come while an operation concludes

    # -- the operation --------------------------------------------------------------------------------------------

    def migrate(self, op: MigrateServer, progress: Progress) -> MigrateServerResult:
        server_id, course = op.server.server_id, _Course()
        caller = self._caller(op.to_host, op.address, server_id)
        mark = self._marks.get(Outgoing, server_id)
        error: DriverError | None = None
        if mark is None or mark.to_host != op.to_host:
            mark, xml, inside = self._describe(op, caller)
            self._marks.set(server_id, mark)
            self._courses[server_id] = course
            try:
                error = self._run(op, mark, caller, xml, inside, course, progress)
            except DriverError as failed:
                error = failed
            finally:
                del self._courses[server_id]
        elif not mark.moved:
            error = DriverError("interrupted", "The agent of the source stopped during the migration.")
        return self._conclude(op, mark, caller, course, error, progress)

    def _describe(self, op: MigrateServer, caller: Caller) -> tuple[Outgoing, str, str]:
        """The mark of this migration, the guest's XML as it is to be there, and where sockets are for QEMU there."""

        def look(connection: Any) -> tuple[str, str, bool]:
            domain = self._hypervisor().domain(connection, op.server.server_id)
            if not domain.isActive():
                raise DriverError("not-running", "The server does not run: it cannot be moved live.")
            paused = domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED
            running = domain.XMLDesc(_SECURE | libvirt.VIR_DOMAIN_XML_MIGRATABLE)
            return running, domain.XMLDesc(_SECURE | libvirt.VIR_DOMAIN_XML_INACTIVE), paused

        running, inactive, paused = self._hypervisor().call("look", look)
        there = caller.ask("describe")
        xml = relocate.for_target(running, there["xml"])
        relocate.check(xml, there["xml"])  # here the reason can be told
        return Outgoing(to_host=op.to_host, xml=inactive, paused=paused, stopped=paused), xml, there["inside"]

    def _run(
        self,
        op: MigrateServer,
        mark: Outgoing,
        caller: Caller,
        xml: str,
        inside: str,
        course: _Course,
        progress: Progress,
    ) -> DriverError | None:
        """Try it once; the error, if libvirt says that it failed."""
        server_id = op.server.server_id
        drive = self._instances.files(server_id).config_drive
        if drive is not None:
            caller.put(drive.name, drive.read_bytes())
        log = self._instances.console_log(server_id)
        caller.put(log.name, self._instances.end_of_console(server_id))
        sockets = self._sockets()
        names = {stream: sockets.seen_inside(server_id, stream) for stream in ("control", "memory", "disks")}
        if inside != str(sockets.inside):
            return DriverError("unsupported", f"host {op.to_host} keeps its sockets in {inside}")
        parameters: dict[str, Any] = {
            libvirt.VIR_MIGRATE_PARAM_URI: f"unix://{names['memory']}",
            libvirt.VIR_MIGRATE_PARAM_DEST_NAME: op.server.instance_name,
            libvirt.VIR_MIGRATE_PARAM_DEST_XML: xml,
        }
        flags = _FLAGS
        disks = list(relocate.local_disks(relocate.parsed(xml)))
        if disks:
            flags |= libvirt.VIR_MIGRATE_NON_SHARED_INC  # the rest is in the target's own copy of the image
            parameters[libvirt.VIR_MIGRATE_PARAM_MIGRATE_DISKS] = disks
            parameters[libvirt.VIR_MIGRATE_PARAM_DISKS_URI] = f"unix://{names['disks']}"
        failure: list[DriverError] = []

        def go() -> None:
            try:
                self._hypervisor().run(lambda connection: self._domain(connection, server_id).migrateToURI3(
                    f"qemu+unix:///system?socket={names['control']}", parameters, flags))  # fmt: skip
            except libvirt.libvirtError as error:
                failure.append(translated("migrate", error))
            except DriverError as error:
                failure.append(error)

        with self._tunnels(caller, sockets, server_id):
            thread = threading.Thread(target=go, name=f"migrate-{server_id[:8]}", daemon=True)
            thread.start()
            self._watch(op, course, thread, progress, lambda: self._hand_over(op, mark, caller, course))
        if not failure:
            return None
        error = failure[0]
        return DriverError(course.why, f"The migration was ended: {error.message}") if course.why else error

    @contextlib.contextmanager
    def _tunnels(self, caller: Caller, sockets: Sockets, server_id: str) -> Iterator[None]:
        sockets.prepare()
        with contextlib.ExitStack() as open_ones:
            for stream in ("control", "memory", "disks"):
                open_ones.enter_context(caller.tunnel(stream, sockets.path(server_id, stream), admit=sockets.give))
            yield

    def _watch(
        self,
        op: MigrateServer,
        course: _Course,
        thread: threading.Thread,
        progress: Progress,
        hand_over: Callable[[], None],
    ) -> None:
        end = time.monotonic() + op.timeout_seconds if op.timeout_seconds else None
        while thread.is_alive():
            if end is not None and time.monotonic() > end and not course.wish:
                course.wish = op.on_timeout
                course.why = "timeout" if op.on_timeout == "abort" else ""
            if course.stands_long():
                with contextlib.suppress(DriverError):
                    self._hypervisor().of(op.server.server_id, lambda domain: remind(domain, course.waited()))
            if course.stopped_at and not course.wish:
                hand_over()
                progress()
                thread.join(_END_SECONDS)
                continue
            with contextlib.suppress(DriverError):  # libvirtd may be gone: the thread will hear it
                self._hypervisor().call("look at a migration", lambda c: self._look(c, op, course))
            done, total = (course.stats.get(name, 0) for name in ("data_processed", "data_total"))
            progress(min(0.99, done / total) if total else None)
            thread.join(_POLL_SECONDS)

    def _hand_over(self, op: MigrateServer, mark: Outgoing, caller: Caller, course: _Course) -> None:
        """As soon as libvirt has written down that the guest has left for good, which is some tenths of a second before
        it has ended the old QEMU: from then on it only ever ends it, also in another life."""
        server_id = op.server.server_id
        if course.taken_at:
            return
        try:
            if _CONFIRMED not in (self._sockets().states / f"{op.server.instance_name}.xml").read_text():
                return
        except OSError:
            return
        with self._marking:
            self._marks.set(server_id, msgspec.structs.replace(mark, stopped=True, moved=True))
        with contextlib.suppress(DriverError):  # it is asked again when libvirt is done
            caller.ask("run", run=not mark.paused)
            course.taken_at = time.monotonic()

    def _look(self, connection: Any, op: MigrateServer, course: _Course) -> None:
        domain = self._domain(connection, op.server.server_id)
        try:
            stats = domain.jobStats()
        except libvirt.libvirtError:
            return
        if stats.get("type", libvirt.VIR_DOMAIN_JOB_NONE) == libvirt.VIR_DOMAIN_JOB_NONE:
            return
        course.stats = stats
        wish, now = course.wish, time.monotonic()
        if wish and now - course.wished_at > _WISH_AGAIN_SECONDS:
            with contextlib.suppress(libvirt.libvirtError):  # too early or too late: the next look tells
                domain.abortJob() if wish == "abort" else domain.suspend()
                course.wished_at = now
                if wish == "abort":
                    course.ended_at = course.ended_at or now
                course.why = course.why or ("aborted" if wish == "abort" else "")

    def happened(self, event: Event) -> None:
        """libvirt says that a guest stands still for its move, or goes on."""
        resumed = event.what[0] == libvirt.VIR_DOMAIN_EVENT_RESUMED
        if not resumed and event.what != _STANDS:
            return
        course = self._courses.get(event.uuid)
        if course is not None:
            course.stopped_at = 0.0 if resumed else event.at
        with self._marking:
            mark = self._marks.get(Outgoing, event.uuid)
            if mark is not None and not mark.moved:
                self._marks.set(event.uuid, msgspec.structs.replace(mark, stopped=not resumed))

    def steer(self, op: SteerMigration) -> None:
        course = self._courses.get(op.server_id)
        if course is None:
            raise not_found(f"live migration of server {op.server_id}")
        course.wish = op.action

    def progress(self, query: MigrationProgress) -> dict[str, Any]:
        course = self._courses.get(query.server_id)
        if course is None or not course.stats:
            return {}
        return {
            f"{what}_{part}_bytes": course.stats.get(f"{what}_{part}", 0)
            for what in ("memory", "disk")
            for part in ("total", "processed", "remaining")
        }

    # -- who has it -----------------------------------------------------------------------------------------------

    def _conclude(
        self,
        op: MigrateServer,
        mark: Outgoing,
        caller: Caller,
        course: _Course,
        error: DriverError | None,
        progress: Progress,
    ) -> MigrateServerResult:
        server_id = op.server.server_id
        mark = self._marks.get(Outgoing, server_id) or mark
        where = "moved" if mark.moved else self._where(server_id, mark, progress)
        if where != "moved":
            self._unmark(server_id)
            if where == "off":
                raise DriverError("not-running", "The guest went off during the migration.")
            raise error or DriverError("hypervisor", "libvirt said that the guest moved, and it is here.")
        try:
            if not course.taken_at:
                self._until_taken(caller, mark, progress)
                course.taken_at = time.monotonic()
        except DriverError:
            self._back(server_id, mark)
            raise
        with self._marking:
            self._marks.set(server_id, msgspec.structs.replace(mark, stopped=True, moved=True))
        self._hypervisor().of(server_id, _forget)
        downtime = round((course.taken_at - course.stopped_at) * 1000) if course.stopped_at else None
        sent = course.stats.get("data_processed")
        return MigrateServerResult(downtime_ms=downtime, transferred_bytes=sent)

    def _where(self, server_id: str, mark: Outgoing, progress: Progress) -> Where:
        """What libvirt made of it, once it is done with it."""
        began = time.monotonic()
        end = began + _SETTLE_SECONDS
        while True:
            try:
                found = self._hypervisor().of(server_id, lambda domain: self._seen(domain, mark, began))
                if found != "busy":
                    return found or "moved"  # undefined by the migration: nothing else may, during this operation
            except DriverError as error:  # libvirtd starts again
                if time.monotonic() > end:
                    raise
                LOG.info("looking where server %s is: %s", server_id, error.message)
            if time.monotonic() > end:
                raise DriverError("timeout", "libvirt does not come to an end with the migration.")
            progress()
            time.sleep(_POLL_SECONDS)

    def _seen(self, domain: Any, mark: Outgoing, began: float) -> Where | Literal["busy"]:
        if not domain.isActive():
            reason = domain.state()[1]
            if reason == libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED:
                return "moved"
            by_itself = reason in (libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN, libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED)
            newest = self._marks.get(Outgoing, domain.UUIDString()) or mark
            return "moved" if newest.stopped and not by_itself else "off"
        busy = domain.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE
        remind(domain, time.monotonic() - began if busy else 0.0)
        if busy:
            return "busy"  # it ends: its tunnels are gone
        state, reason = domain.state()
        if state == libvirt.VIR_DOMAIN_PAUSED and reason in _IN_BETWEEN and not mark.paused:
            domain.resume()
        return "here"

    def _until_taken(self, caller: Caller, mark: Outgoing, progress: Progress) -> None:
        """The guest is nowhere until the target runs it. ``guest-lost`` if it has it no more; ``unreachable`` if it
        is silent for long: then nobody but the target knows, and who asks it next decides."""
        end = time.monotonic() + _TAKE_SECONDS
        while True:
            try:
                caller.ask("run", run=not mark.paused)
                return
            except DriverError as error:
                if error.code in _LOST:
                    raise DriverError(
                        "guest-lost", f"Host {mark.to_host} lost the guest before it ran there; it is off, here."
                    ) from error
                if time.monotonic() > end:
                    raise
                LOG.warning("the guest waits at host %s: %s", mark.to_host, error.message)
            progress()
            time.sleep(_ASK_AGAIN_SECONDS)

    def _back(self, server_id: str, mark: Outgoing) -> None:
        self._hypervisor().call("define again", lambda connection: connection.defineXML(mark.xml), 60)
        self._unmark(server_id)

    def _unmark(self, server_id: str) -> None:
        with self._marking:
            self._marks.drop(Outgoing, server_id)
        self._tell(server_id)

    def _domain(self, connection: Any, server_id: str) -> Any:
        return self._hypervisor().domain(connection, server_id)


def remind(domain: Any, waited: float) -> None:
    """Of a migration that is to end since ``waited`` seconds, as far as somebody forgot that."""
    import libvirt_qemu

    with contextlib.suppress(libvirt.libvirtError):  # it ended just now
        status = end_cancelled(lambda words: libvirt_qemu.qemuMonitorCommand(domain, words, 0))
        if status == "cancelling":
            LOG.warning("QEMU had forgotten that the migration of %s was cancelled", domain.name())
        elif status == "cancelled" and waited > _FORGOTTEN_SECONDS and domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING:
            # libvirt 9.0: QEMU stopped the guest, was told to cancel and resumed it before libvirt's migration looked,
            # which now waits for the stop before it looks for anything else, and resumes the guest when it fails
            LOG.warning("libvirt had forgotten that the migration of %s was cancelled", domain.name())
            domain.suspend()


def end_cancelled(command: Callable[[str], str]) -> str:
    """QEMU (7.2 as Debian 12 has it) pauses before it switches over, for libvirt to look after the disks. Cancelled
    just before that pause, it goes into it all the same, and nobody wakes it: another `migrate_cancel` does not.
    `migrate-continue` does, in whatever state it is told to expect (QEMU's QMP reference). What the state was.
    ``command``: of QEMU's monitor."""
    status: str = json.loads(command('{"execute": "query-migrate"}')).get("return", {}).get("status", "none")
    if status == "cancelling":
        command('{"execute": "migrate-continue", "arguments": {"state": "cancelling"}}')
    return status


def _forget(domain: Any) -> None:
    """What a migration was to take away, and was killed before it did: the guest runs elsewhere."""
    if domain.isActive():
        unless_off(domain, domain.destroy)  # libvirt may be ending it, too
    if domain.isPersistent():
        domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_NVRAM)
