"""Disks of a server that does not run, from host to host: offered at the source's door to one other host, fetched by
that host, on its own copy of the image.

What is sent is each file as it is, holes left out: of an overlay that is what the server wrote. The target looks at it
as at any image from a stranger and puts it on its own base. An offer is a note in the server's folder, so another life
of the agent goes on offering; a fetch that was cut off asks for what is missing.
Fails with `DriverError` (``guest-running``, ``no-space``, ``refused``, ``unreachable``, ``image-invalid``).
"""

import os
from collections.abc import Callable
from pathlib import Path

from cumulet.agent.compute.instances import Instances, grow_root, on_own_base
from cumulet.agent.compute.moving import transfer
from cumulet.agent.compute.moving.door import Caller, Hello, Writer
from cumulet.agent.compute.moving.marks import Incoming, Marks, Offer
from cumulet.agent.contract import DiskOffer, FetchDisks, OfferDisks, OfferDisksResult
from cumulet.agent.driver import Progress
from cumulet.agent.errors import DriverError

FILES = {"disk": "qcow2", "disk.eph0": "raw", "disk.swap": "raw", "disk.config": "raw", "console.log": "raw"}


class Cold:
    def __init__(
        self,
        instances: Instances,
        marks: Marks,
        open_door: Callable[[], str],
        caller: Callable[[str, str, str], Caller],
        runs: Callable[[str], bool],
        clear: Callable[[str], None],
    ) -> None:
        """``runs``: does a guest of this server run here? ``clear``: make way for what is to come."""
        self._instances, self._marks, self._open_door = instances, marks, open_door
        self._caller, self._runs, self._clear = caller, runs, clear

    # -- source ---------------------------------------------------------------------------------------------------

    def offer(self, op: OfferDisks) -> OfferDisksResult:
        folder = self._instances.folder(op.server_id)
        if self._runs(op.server_id):
            raise DriverError("guest-running", f"Server {op.server_id} runs: its disks are not at rest.")
        if not folder.exists():
            return OfferDisksResult(disks=[])  # it has none here: all it has are volumes
        self._marks.set(op.server_id, Offer(to_host=op.to_host))
        address = self._open_door()
        return OfferDisksResult(
            disks=[
                transfer.offered(folder / name, name=name, form=form, address=address, server_id=op.server_id)
                for name, form in FILES.items()
                if (folder / name).is_file()
            ]
        )

    async def serve(self, hello: Hello, writer: Writer) -> None:
        mark = self._marks.get(Offer, hello.server)
        if mark is None or mark.to_host != hello.host or hello.name not in FILES:
            raise DriverError("refused", f"{hello.name} of server {hello.server} is not offered to {hello.host}")
        path = self._instances.folder(hello.server) / hello.name
        await transfer.send(path, hello.size, writer, lambda: self._marks.get(Offer, hello.server) == mark)

    # -- target ---------------------------------------------------------------------------------------------------

    def fetch(self, op: FetchDisks, progress: Progress) -> None:
        server_id, folder = op.server.server_id, self._instances.folder(op.server.server_id)
        mark = self._marks.get(Incoming, server_id)
        if mark is None or mark.how != "fetch" or mark.from_host != op.from_host:
            self._clear(server_id)
            folder.mkdir()
            self._marks.set(server_id, Incoming(from_host=op.from_host, how="fetch", server=op.server))
        total = sum(disk.size_bytes for disk in op.disks) or 1
        before = 0
        for disk in op.disks:
            if disk.name not in FILES or FILES[disk.name] != disk.format:
                raise DriverError("refused", f"a disk {disk.name} in the format {disk.format}")
            if not (folder / disk.name).exists():
                self._fetch_one(op, disk, folder, lambda done, base=before: progress((base + done) / total))  # type: ignore[misc]
            before += disk.size_bytes
        self._instances.create(op.server, progress)  # links into the image cache, and what was not to be fetched
        grow_root(folder / "disk", op.server)

    def _fetch_one(self, op: FetchDisks, disk: DiskOffer, folder: Path, progress: Callable[[int], None]) -> None:
        caller = self._caller(op.from_host, transfer.address_of(disk), op.server.server_id)
        part = folder / f"{disk.name}.fetch"
        transfer.fetch(caller, disk, part, progress)
        if disk.name == "disk" and op.server.image is not None:
            on_own_base(part, self._instances.cache.get(op.server.image, lambda *fraction: None).path)
        part.chmod(0o600)
        with part.open("rb") as whole:
            os.fsync(whole.fileno())
        os.replace(part, folder / disk.name)
