"""The operations of moving, put together: what is let in by the `door`, what arrives (`receive`) and leaves (`live`)
with its guest running, disks at rest (`cold`), images that were deleted (`bases`), and a `resize` on this host. What is
under way is noted in the server's folder (`marks`); the door is open while somebody is expected, in this life of the
agent and in the next.
"""

import logging
import threading
from collections.abc import Callable
from typing import Any

from cumulet.agent import contract as c
from cumulet.agent.compute.hypervisor import Event, Hypervisor
from cumulet.agent.compute.instances import Instances
from cumulet.agent.compute.moving.bases import Bases
from cumulet.agent.compute.moving.cold import FILES, Cold
from cumulet.agent.compute.moving.door import Caller, Door, Hello, Identity, Loop, Reader, Writer
from cumulet.agent.compute.moving.live import Live
from cumulet.agent.compute.moving.marks import ImagesOffer, Incoming, Marks, Offer
from cumulet.agent.compute.moving.receive import Receive, Sockets
from cumulet.agent.compute.moving.resize import Resize
from cumulet.agent.driver import OperationBody, Progress, QueryBody
from cumulet.agent.errors import DriverError

LOG = logging.getLogger(__name__)


class Moves:
    """``hypervisor`` and ``sockets``: as they are by the time of a call. ``xml``: the domain of a spec here. ``tell``:
    a server changed. ``running``: the servers whose guests run here."""

    def __init__(
        self,
        instances: Instances,
        identity: Identity,
        address: tuple[str, int],
        *,
        hypervisor: Callable[[], Hypervisor],
        sockets: Callable[[], Sockets],
        xml: Callable[[c.ServerSpec], str],
        tell: Callable[[str], None],
        running: Callable[[], set[str]],
    ) -> None:
        self._hypervisor, self._identity, self._running = hypervisor, identity, running
        self._loop = Loop()
        self._at_door = threading.Lock()
        self.marks = Marks(instances)
        self._door = Door(self._loop, identity, address, self._serve)
        self._receive = Receive(hypervisor, instances, self.marks, sockets, xml, tell)
        self._live = Live(hypervisor, instances, self.marks, sockets, self._caller, tell)
        self._cold = Cold(instances, self.marks, self._open_door, self._caller, self._active, self._receive.clear)
        self._bases = Bases(instances.cache, self.marks, self._open_door, self._caller)
        self._resize = Resize(instances, self._active)

    def operations(self) -> dict[type[c.Operation], OperationBody]:
        return {
            c.OfferDisks: lambda op, progress: self._cold.offer(op),
            c.WithdrawDisks: self._withdraw_disks,
            c.OfferImages: lambda op, progress: self._bases.offer(op),
            c.FetchImages: lambda op, progress: self._bases.fetch(op, progress),
            c.FetchDisks: lambda op, progress: self._cold.fetch(op, progress),
            c.ResizeDisks: lambda op, progress: self._resize.resize(op.server, progress),
            c.RevertDisks: lambda op, progress: self._resize.revert(op.server_id),
            c.DropDisksAside: lambda op, progress: self._resize.drop(op.server_id),
            c.PrepareReceive: self._prepare_receive,
            c.EndReceive: self._end_receive,
            c.MigrateServer: lambda op, progress: self._live.migrate(op, progress),
            c.SteerMigration: lambda op, progress: self._live.steer(op),
        }

    def queries(self) -> dict[type[c.Query], QueryBody]:
        return {c.MigrationProgress: lambda query: self._live.progress(query)}

    def stop(self) -> None:
        self._door.close()
        self._loop.stop()

    def happened(self, event: Event) -> None:
        self._live.happened(event)

    def look_after_arrivals(self) -> None:
        """At start and now and then."""
        try:
            self._settle_arrivals()
            self.open_or_close_door()
        except DriverError as error:
            LOG.warning("servers from other hosts cannot arrive yet: %s", error.message)

    def open_or_close_door(self) -> None:
        with self._at_door:
            offered = bool(self.marks.all(Offer) or self.marks.all(ImagesOffer))
            if offered or any(mark.how == "receive" for mark in self.marks.all(Incoming).values()):
                self._door.open()
            else:
                self._door.close()

    def _open_door(self) -> str:
        with self._at_door:
            return self._door.open()

    def _caller(self, to_host: str, address: str, server_id: str) -> Caller:
        return Caller(self._loop, self._identity, to_host, address, server_id)

    async def _serve(self, hello: Hello, reader: Reader, writer: Writer) -> None:
        if hello.stream != "disk":
            await self._receive.serve(hello, reader, writer)
        else:
            await (self._cold if hello.name in FILES else self._bases).serve(hello, writer)

    def _active(self, server_id: str) -> bool:
        """Does a guest of this server run here, or wait for its memory?"""
        answer: Any = self._hypervisor().of(server_id, lambda domain: domain.isActive())
        return bool(answer)

    def _settle_arrivals(self) -> None:
        """A guest that was let run here, by a life of the agent that did not come to say so."""
        for server_id, mark in self.marks.all(Incoming).items():
            if mark.how == "receive" and not mark.settled and server_id in self._running():
                self._receive.run(server_id, runs=True)

    def _prepare_receive(self, op: c.PrepareReceive, progress: Progress) -> c.PrepareReceiveResult:
        self._receive.prepare(op, progress)
        return c.PrepareReceiveResult(address=self._open_door())

    def _end_receive(self, op: c.EndReceive, progress: Progress) -> None:
        self._receive.end(op)
        self.open_or_close_door()

    def _withdraw_disks(self, op: c.WithdrawDisks, progress: Progress) -> None:
        for kind in (Offer, ImagesOffer):
            self.marks.drop(kind, op.server_id)
        self.open_or_close_door()
