"""The target of a live migration: disks to copy into, a door for one host and one server, and the guest that arrives.

The guest arrives paused and transient: it runs only when the source says that it does not run there any more (stream
``run``), so that there are never two. Then it gets this host's own definition, whatever libvirt was told.
Streams of a prepared server: ``describe``, ``put``, ``control`` (libvirt's, as far as `rpcguard` lets it),
``memory``, ``disks``, ``run``. Files of `cold` are served at the same door.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import threading
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import libvirt
import msgspec

from cumulet.agent.compute.hypervisor import Hypervisor
from cumulet.agent.compute.instances import Instances
from cumulet.agent.compute.libvirtd import qemu_group
from cumulet.agent.compute.moving import relocate, rpcguard
from cumulet.agent.compute.moving.door import Hello, Reader, Writer, connect_unix, pump, relay, say
from cumulet.agent.compute.moving.marks import Incoming, Marks
from cumulet.agent.contract import EndReceive, PrepareReceive, ServerSpec
from cumulet.agent.driver import Progress
from cumulet.agent.errors import DriverError, not_found

LOG = logging.getLogger(__name__)
_PUT = {"disk.config", "console.log"}
_PUT_BYTES = 64 << 20
_CALL_SECONDS = 60
_ANNOUNCE = '{"execute":"announce-self","arguments":{"initial":50,"max":550,"rounds":10,"step":50}}'


class Sockets(msgspec.Struct, frozen=True):
    """Where the streams of a migration enter and leave QEMU. ``outside``: the folder as this process sees it;
    ``inside``: as libvirtd and QEMU do, the same on every host. ``libvirtd``: its own socket."""

    outside: Path
    libvirtd: Path
    inside: Path = Path("/run/libvirt/moves")

    @property
    def states(self) -> Path:
        """Where libvirt keeps what it knows of domains that run."""
        return self.outside.parent / "qemu"

    def prepare(self) -> None:
        self.outside.mkdir(parents=True, exist_ok=True)
        self.give(self.outside, 0o770)

    def give(self, path: Path, mode: int = 0o660) -> None:
        """To QEMU's own user."""
        group = qemu_group()
        if group is not None:
            shutil.chown(path, group=group)
        path.chmod(mode)

    def path(self, server_id: str, stream: str) -> Path:
        return self.outside / self._name(server_id, stream)

    def seen_inside(self, server_id: str, stream: str) -> Path:
        return self.inside / self._name(server_id, stream)

    @staticmethod
    def _name(server_id: str, stream: str) -> str:
        """Short: a socket's path holds 107 bytes."""
        return f"{server_id.replace('-', '')[:16]}.{stream[0]}"


class Receive:
    def __init__(
        self,
        hypervisor: Callable[[], Hypervisor],
        instances: Instances,
        marks: Marks,
        sockets: Callable[[], Sockets],
        describe: Callable[[ServerSpec], str],
        tell: Callable[[str], None],
    ) -> None:
        """``describe``: this host's XML of a server. ``tell``: report what a server does."""
        self._hypervisor, self._instances, self._marks = hypervisor, instances, marks
        self._sockets, self._describe, self._tell = sockets, describe, tell
        self._guard = threading.Lock()
        self._locks: dict[str, threading.Lock] = defaultdict(threading.Lock)

    def _lock(self, server_id: str) -> threading.Lock:
        with self._guard:
            return self._locks[server_id]

    # -- operations ---------------------------------------------------------------------------------------------

    def prepare(self, op: PrepareReceive, progress: Progress) -> None:
        server_id = op.server.server_id
        with self._lock(server_id):
            if self._domain_state(server_id) is not None:
                raise DriverError("conflict", f"Server {server_id} has a domain on this host.")
            self.clear(server_id)
            self._sockets().prepare()
            self._instances.folder(server_id).mkdir()
            self._marks.set(server_id, Incoming(from_host=op.from_host, how="receive", server=op.server))
            self._instances.create(op.server, progress)

    def clear(self, server_id: str) -> None:
        """What came in an earlier try goes; files of another origin are moved aside."""
        folder = self._instances.folder(server_id)
        if not folder.exists():
            return
        mark = self._marks.get(Incoming, server_id)
        if (mark is not None and not mark.settled) or not any(folder.iterdir()):
            self._instances.delete(server_id)
        else:
            LOG.warning(
                "files of server %s are in the way: moved to %s", server_id, self._instances.put_aside(server_id)
            )

    def end(self, op: EndReceive) -> None:
        with self._lock(op.server_id):
            mark = self._marks.get(Incoming, op.server_id)
            state = self._domain_state(op.server_id)
            if op.discard:
                if state is not None and (mark is None or mark.settled or state == libvirt.VIR_DOMAIN_RUNNING):
                    raise DriverError("guest-running", f"The guest of server {op.server_id} runs on this host.")
                if mark is not None:
                    self._discard(op.server_id)
            elif mark is not None:
                self._marks.drop(Incoming, op.server_id)
                if state is not None:
                    self._tell(op.server_id)
            for stream in ("memory", "disks"):
                self._sockets().path(op.server_id, stream).unlink(missing_ok=True)

    def _discard(self, server_id: str) -> None:
        def remove(domain: Any) -> None:
            if domain.isActive():
                domain.destroy()
            if domain.isPersistent():
                domain.undefine()

        self._hypervisor().of(server_id, remove, _CALL_SECONDS)
        self._instances.delete(server_id)

    def _domain_state(self, server_id: str) -> int | None:
        return self._hypervisor().of(server_id, lambda domain: int(domain.state()[0]))

    # -- at the door --------------------------------------------------------------------------------------------

    async def serve(self, hello: Hello, reader: Reader, writer: Writer) -> None:
        mark = self._marks.get(Incoming, hello.server)
        if mark is None or mark.how != "receive" or mark.from_host != hello.host:
            raise DriverError("refused", f"server {hello.server} is not expected from host {hello.host}")
        sockets = self._sockets()
        match hello.stream:
            case "describe":
                xml = self._describe(mark.server)
                await say(writer, xml=xml, inside=str(sockets.inside))
            case "put":
                await self._put(hello, reader, writer)
            case "control":
                await self._control(mark, reader, writer)
            case "memory" | "disks":
                there = await connect_unix(sockets.path(hello.server, hello.stream))
                await say(writer)
                await relay(reader, writer, *there)
            case "run":
                await asyncio.to_thread(self.run, hello.server, runs=hello.run)
                await say(writer)
            case _:
                raise DriverError("refused", f"there is no stream {hello.stream}")

    async def _put(self, hello: Hello, reader: Reader, writer: Writer) -> None:
        if hello.name not in _PUT or not 0 <= hello.size <= _PUT_BYTES:
            raise DriverError("refused", f"a file {hello.name} of {hello.size} bytes")
        await say(writer)
        data = await reader.readexactly(hello.size)
        path = self._instances.folder(hello.server) / hello.name
        part = path.with_name(path.name + ".part")
        part.write_bytes(data)
        part.chmod(0o600)
        os.replace(part, path)
        await say(writer)

    async def _control(self, mark: Incoming, reader: Reader, writer: Writer) -> None:
        server_id, sockets = mark.server.server_id, self._sockets()
        wanted = self._describe(mark.server)
        agreed = rpcguard.Agreed(
            instance_name=mark.server.instance_name,
            check_xml=lambda xml: relocate.check(xml, wanted),
            uri=f"unix://{sockets.seen_inside(server_id, 'memory')}",
            disks_uri=f"unix://{sockets.seen_inside(server_id, 'disks')}",
            disks=set(relocate.local_disks(relocate.parsed(wanted))),
        )
        there_reader, there_writer = await connect_unix(sockets.libvirtd)
        await say(writer)
        answers = asyncio.create_task(pump(there_reader, writer))
        asked = asyncio.create_task(self._asked(reader, there_writer, agreed))
        try:
            await asyncio.wait((answers, asked), return_when=asyncio.FIRST_COMPLETED)
            if asked.done():
                asked.result()
        except DriverError as error:
            LOG.warning("host %s, server %s: %s: not let through", mark.from_host, server_id, error.message)
        finally:
            answers.cancel()
            asked.cancel()
            there_writer.close()

    @staticmethod
    async def _asked(reader: Reader, writer: Writer, agreed: rpcguard.Agreed) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                length = await reader.readexactly(4)
                size = int.from_bytes(length)
                if not 4 <= size <= rpcguard.MAX_PACKET:
                    raise DriverError("refused", f"a packet of {size} bytes")
                packet = await reader.readexactly(size - 4)
                rpcguard.judge(packet, agreed)
                writer.write(length + packet)
                await writer.drain()

    def run(self, server_id: str, *, runs: bool) -> None:
        """The source has stopped: from here on the guest is this host's. ``not-found`` if it did not arrive whole."""
        with self._lock(server_id):
            mark = self._marks.get(Incoming, server_id)
            if mark is None:
                raise not_found(f"migration of server {server_id}")
            if mark.settled:
                return
            xml = self._describe(mark.server)
            self._hypervisor().call("take over", lambda connection: self._take(connection, server_id, xml, runs), 120)
            self._marks.set(server_id, msgspec.structs.replace(mark, settled=True))
        self._tell(server_id)

    def _take(self, connection: Any, server_id: str, xml: str, runs: bool) -> None:
        domain = self._hypervisor().domain(connection, server_id)
        if not domain.isActive():
            raise not_found(f"guest of server {server_id}")
        if runs and domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
            domain.resume()
            import libvirt_qemu

            with contextlib.suppress(libvirt.libvirtError):  # switches learn where it is now; they would, in time
                libvirt_qemu.qemuMonitorCommand(domain, _ANNOUNCE, 0)
        connection.defineXML(xml)
