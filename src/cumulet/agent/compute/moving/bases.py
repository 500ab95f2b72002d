"""Images that were deleted, from host to host: what a server stands on is offered from the source's cache to one other
host, which takes it into its own before the server comes.

Which images, says the control plane, not the server's disk: a guest that broke out of its QEMU may have written there
what it likes. An offer is a note in the server's folder, as that of its disks.
Fails with `DriverError` (``image-gone``, ``image-invalid``, ``no-space``, ``refused``, ``unreachable``).
"""

from collections.abc import Callable
from pathlib import Path

from cumulet.agent.compute.moving import transfer
from cumulet.agent.compute.moving.door import Caller, Hello, Writer
from cumulet.agent.compute.moving.marks import ImagesOffer, Marks
from cumulet.agent.contract import DiskOffer, FetchImages, ImageSource, OfferDisksResult, OfferImages
from cumulet.agent.driver import Progress
from cumulet.agent.errors import DriverError
from cumulet.agent.image.cache import ImageCache


class Bases:
    def __init__(
        self,
        cache: ImageCache,
        marks: Marks,
        open_door: Callable[[], str],
        caller: Callable[[str, str, str], Caller],
    ) -> None:
        self._cache, self._marks, self._open_door, self._caller = cache, marks, open_door, caller

    def offer(self, op: OfferImages) -> OfferDisksResult:
        paths = {source.image_id: self._path(source) for source in op.images}
        self._marks.set(op.server_id, ImagesOffer(to_host=op.to_host, images=op.images))
        address = self._open_door()
        return OfferDisksResult(
            disks=[
                transfer.offered(path, name=name, form="raw", address=address, server_id=op.server_id)
                for name, path in paths.items()
            ]
        )

    def _path(self, source: ImageSource) -> Path:
        found = self._cache.find(source)
        if found is None:
            raise DriverError("image-gone", f"image {source.image_id} was deleted, and this host does not have it")
        return found.path

    async def serve(self, hello: Hello, writer: Writer) -> None:
        mark = self._marks.get(ImagesOffer, hello.server)
        sources = {source.image_id: source for source in mark.images} if mark is not None else {}
        if mark is None or mark.to_host != hello.host or hello.name not in sources:
            raise DriverError("refused", f"{hello.name} of server {hello.server} is not offered to {hello.host}")
        await transfer.send(
            self._path(sources[hello.name]),
            hello.size,
            writer,
            lambda: self._marks.get(ImagesOffer, hello.server) == mark,
        )

    def fetch(self, op: FetchImages, progress: Progress) -> None:
        offers = {offer.name: offer for offer in op.offers}
        for source in op.images:
            offer = offers.get(source.image_id)
            if offer is None:
                self._cache.get(source, progress)
                continue
            caller = self._caller(op.from_host, transfer.address_of(offer), op.server_id)
            total = offer.size_bytes or 1

            def bring(part: Path, caller: Caller = caller, offer: DiskOffer = offer, total: int = total) -> None:
                transfer.fetch(caller, offer, part, lambda done: progress(min(1.0, done / total)))

            self._cache.get(source, progress, bring)
