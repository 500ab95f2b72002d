"""Notes in a server's folder of what is being done with it between hosts: they outlive the agent, and go with the
folder. While one is there, what libvirt says of the server is not the guest's state (`Marks.hidden`)."""

import os
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from cumulet.agent.compute.instances import Instances
from cumulet.agent.contract import ImageSource, ServerSpec

T = TypeVar("T", bound=msgspec.Struct)


class Incoming(msgspec.Struct, frozen=True, kw_only=True):
    """At the target. ``settled``: the guest is this host's, running or paused as its user wants it; the source may ask
    for it again until the door is closed."""

    from_host: str
    how: Literal["receive", "fetch"]
    server: ServerSpec
    settled: bool = False


class Outgoing(msgspec.Struct, frozen=True, kw_only=True):
    """At the source of a live migration. ``xml``: the definition here, for the case that the target loses the guest
    before it ran there. ``paused``: by its user. ``stopped``: it stands still, and was not told to go on since.
    ``moved``: it runs there; only files are left here."""

    to_host: str
    xml: str
    paused: bool
    stopped: bool
    moved: bool = False


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """At the source of a cold move."""

    to_host: str


class ImagesOffer(msgspec.Struct, frozen=True, kw_only=True):
    """At the source of any move whose images were deleted."""

    to_host: str
    images: list[ImageSource]


_FILES: dict[type, str] = {
    Incoming: "incoming.json",
    Outgoing: "outgoing.json",
    Offer: "offer.json",
    ImagesOffer: "images.json",
}


class Marks:
    def __init__(self, instances: Instances) -> None:
        self._instances = instances

    def _path(self, kind: type, server_id: str) -> Path:
        return self._instances.folder(server_id) / _FILES[kind]

    def get(self, kind: type[T], server_id: str) -> T | None:
        try:
            return msgspec.json.decode(self._path(kind, server_id).read_bytes(), type=kind)
        except FileNotFoundError:
            return None

    def set(self, server_id: str, mark: msgspec.Struct) -> None:
        path = self._path(type(mark), server_id)
        part = path.with_name(path.name + ".part")
        with open(part, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(msgspec.json.encode(mark))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)

    def drop(self, kind: type, server_id: str) -> None:
        self._path(kind, server_id).unlink(missing_ok=True)

    def all(self, kind: type[T]) -> dict[str, T]:
        found = ((server_id, self.get(kind, server_id)) for server_id in self._instances.ids())
        return {server_id: mark for server_id, mark in found if mark is not None}

    def state(self, server_id: str) -> str:
        """What its files are here for, if not for a server that is simply here: arriving, leaving, offered."""
        incoming = self.get(Incoming, server_id)
        if incoming is not None and not incoming.settled:
            return "arriving"
        if self.get(Outgoing, server_id) is not None:
            return "leaving"
        return "offered" if self.get(Offer, server_id) is not None else ""

    def hidden(self, server_id: str, *, runs: bool) -> bool:
        """Is what is seen of this server not its guest's state? At the target: until it is settled there. At the
        source: whatever does not run, from the first moment of the move until its files are deleted."""
        incoming = self.get(Incoming, server_id)
        if incoming is not None and not incoming.settled:
            return True
        return not runs and self.get(Outgoing, server_id) is not None
