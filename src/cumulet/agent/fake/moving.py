"""Servers of fake hosts move: disks that another host reads, a resize on the spot, and live migration.

What a disk holds is one text (`world.Disks.content`), which goes from host to host inside the offers. A guest moves
live through a door: a TCP port of the target's, at which the source hands it over. Three words make it: ``bring`` (the
guest waits there, paused), ``run``, and ``where`` (does it run there? after a word whose answer was lost). Whoever
closes the door before ``run`` was heard keeps the guest at its source.
"""

import json
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import msgspec

from cumulet.agent import contract as c
from cumulet.agent.driver import Progress
from cumulet.agent.errors import DriverError, not_found
from cumulet.agent.fake.faults import Faults
from cumulet.agent.fake.world import Disks, Domain, Incoming, State, World
from cumulet.kernel.clock import Signal
from cumulet.kernel.ids import new_uuid

RUNNING, PAUSED, SHUTDOWN = 1, 3, 4
_ANSWER_S = 5.0
_ASK_AGAIN_S = 10.0  # for so long after a lost answer


class Migration:
    """One that goes on, out of here. ``seconds``: how long it takes."""

    def __init__(self, spec: c.ServerSpec, seconds: float, now: Callable[[], float]) -> None:
        self.memory, self.disk = spec.memory_mb << 20, (spec.root_gb + spec.ephemeral_gb) << 30
        self.seconds, self.now, self.began = seconds, now, now()
        self.steered: str | None = None
        self.signal = Signal()

    def steer(self, action: str) -> None:
        self.steered = action
        self.signal.set()

    def data(self) -> dict[str, Any]:
        done = min(1.0, (self.now() - self.began) / self.seconds) if self.seconds else 1.0
        found = {}
        for what, total in (("memory", self.memory), ("disk", self.disk)):
            processed = int(total * done)
            found[f"{what}_total_bytes"] = total
            found[f"{what}_processed_bytes"] = processed
            found[f"{what}_remaining_bytes"] = total - processed
        return found


class Moving:
    def __init__(
        self,
        world: World,
        faults: Faults,
        name: str,
        report: Callable[[str, int, str], None],
        cached: Callable[..., None],
    ) -> None:
        """``report``: tells what became of a server here. ``cached``: sees to it that images are here."""
        self.world = world
        self.faults = faults
        self.name = name
        self.seconds = 0.0  # how long a live migration takes, on the host's clock
        self._report = report
        self._cached = cached
        self._under_way: dict[str, Migration] = {}
        self._server: socketserver.ThreadingTCPServer | None = None

    def bodies(self) -> dict[type[c.Operation], Callable[[Any, Progress], c.Result | None]]:
        return {
            c.OfferDisks: self._offer,
            c.WithdrawDisks: self._withdraw,
            c.OfferImages: self._offer_images,
            c.FetchImages: self._fetch_images,
            c.FetchDisks: self._fetch,
            c.ResizeDisks: self._resize,
            c.RevertDisks: self._revert,
            c.DropDisksAside: self._drop_aside,
            c.PrepareReceive: self._prepare,
            c.EndReceive: self._end,
            c.MigrateServer: self._migrate,
            c.SteerMigration: self._steer,
        }

    # -- disks --------------------------------------------------------------------------------

    def _offer(self, op: c.OfferDisks, progress: Progress) -> c.OfferDisksResult:
        with self.world.change() as state:
            domain = state.domains.get(op.server_id)
            if domain is not None and domain.power_state != SHUTDOWN:
                raise DriverError("running", "The server runs: its disks change.")
            disks = state.disks.get(op.server_id)
            if disks is None or disks.image_id is None:  # its root disk is a volume
                return c.OfferDisksResult(disks=[])
            state.offers[op.server_id] = op.to_host
            return c.OfferDisksResult(disks=[self._offered(op, "disk", disks.root_gb << 30, content=disks.content)])

    def _offered(self, op: c.OfferDisks | c.OfferImages, name: str, size: int, **more: str) -> c.DiskOffer:
        uri = f"nbd://{self.name}:10809/{op.server_id}/{name}?{urlencode({'to': op.to_host, **more})}"
        connection = c.DiskConnection(driver="nbd", uri=uri)
        return c.DiskOffer(name=name, connection=connection, format="raw", size_bytes=size)

    def _asked(self, offer: c.DiskOffer) -> dict[str, list[str]]:
        asked = parse_qs(urlsplit(offer.connection.uri or "").query)
        if asked.get("to") != [self.name]:
            raise DriverError("refused", f"{offer.name} is offered to another host.")
        return asked

    def _offer_images(self, op: c.OfferImages, progress: Progress) -> c.OfferDisksResult:
        with self.world.change() as state:
            for source in op.images:
                if source.image_id not in state.images:
                    raise DriverError("image-gone", f"Image {source.image_id} was deleted, and is not here.")
            state.offers[op.server_id] = op.to_host
            images = {source.image_id: state.images[source.image_id] for source in op.images}
        return c.OfferDisksResult(disks=[self._offered(op, one, size) for one, size in images.items()])

    def _fetch_images(self, op: c.FetchImages, progress: Progress) -> None:
        for offer in op.offers:
            self._asked(offer)
            with self.world.change() as state:
                state.images.setdefault(offer.name, offer.size_bytes)
        for source in op.images:
            self._cached(source)

    def _withdraw(self, op: c.WithdrawDisks, progress: Progress) -> None:
        with self.world.change() as state:
            state.offers.pop(op.server_id, None)

    def _fetch(self, op: c.FetchDisks, progress: Progress) -> None:
        spec, content = op.server, new_uuid()
        for offer in op.disks:
            if offer.size_bytes > spec.root_gb << 30:
                raise DriverError("no-space", "A disk does not shrink.")
            content = self._asked(offer)["content"][0]
        self._cached(spec.image, spec.kernel, spec.ramdisk)
        with self.world.change() as state:
            state.disks[spec.server_id] = disks_of(spec, content)

    def _resize(self, op: c.ResizeDisks, progress: Progress) -> None:
        spec = op.server
        with self.world.change() as state:
            disks = state.disks.get(spec.server_id)
            if disks is None:
                raise not_found(f"disks of server {spec.server_id}")
            kept = state.aside.get(spec.server_id)
            if kept is None:
                kept = state.aside[spec.server_id] = msgspec.structs.replace(disks)
            if spec.image is not None and spec.root_gb < kept.root_gb:
                raise DriverError("no-space", "A disk does not shrink.")
            state.disks[spec.server_id] = disks_of(spec, kept.content)

    def _revert(self, op: c.RevertDisks, progress: Progress) -> None:
        with self.world.change() as state:
            kept = state.aside.pop(op.server_id, None)
            if kept is not None:
                state.disks[op.server_id] = kept

    def _drop_aside(self, op: c.DropDisksAside, progress: Progress) -> None:
        with self.world.change() as state:
            state.aside.pop(op.server_id, None)

    # -- the target of a live migration -------------------------------------------------------

    def _listen(self) -> str:
        if self._server is None:
            moving = self

            class Door(socketserver.StreamRequestHandler):
                def handle(self) -> None:
                    for line in self.rfile:
                        answer = moving._heard(json.loads(line))
                        self.wfile.write(json.dumps(answer).encode() + b"\n")

            self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Door)
            self._server.daemon_threads = True
            threading.Thread(target=self._server.serve_forever, name="fake-door", daemon=True).start()
        return f"127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()

    def _prepare(self, op: c.PrepareReceive, progress: Progress) -> c.PrepareReceiveResult:
        spec = op.server
        self._cached(spec.image, spec.kernel, spec.ramdisk)
        with self.world.change() as state:
            domain = state.domains.get(spec.server_id)
            if domain is None:
                missing = [port.id for port in spec.ports if port.id not in state.taps]
                if missing:
                    raise DriverError("no-tap", f"Ports are not plugged: {', '.join(missing)}.")
                if spec.image is not None:
                    state.disks[spec.server_id] = disks_of(spec, "")
                state.doors[spec.server_id] = Incoming(from_host=op.from_host, spec=spec)
        return c.PrepareReceiveResult(address=self._listen())

    def _end(self, op: c.EndReceive, progress: Progress) -> None:
        with self.world.change() as state:
            state.doors.pop(op.server_id, None)
            if not op.discard:
                return
            domain = state.domains.get(op.server_id)
            if domain is not None and domain.power_state == RUNNING:
                raise DriverError("guest-running", "The guest runs here.")
            state.domains.pop(op.server_id, None)
            forget_disks(state, op.server_id)

    def _heard(self, word: dict[str, Any]) -> dict[str, Any]:
        server_id = word["server_id"]
        with self.world.change() as state:
            domain, door = state.domains.get(server_id), state.doors.get(server_id)
            if word["say"] == "bring":
                if door is None or door.from_host != word["from"]:
                    return {"error": "refused"}
                brought = msgspec.convert(word["domain"], Domain)
                brought.spec, brought.power_state, brought.leaving = door.spec, PAUSED, 0
                brought.volumes = {volume.volume_id: volume for volume in door.spec.volumes}
                state.domains[server_id] = brought
                if server_id in state.disks:
                    state.disks[server_id].content = word["content"]
            elif word["say"] == "run" and domain is not None and door is not None:
                domain.power_state = word["power_state"]
                del state.doors[server_id]
            here = domain is not None and door is None
            power = domain.power_state if domain is not None else SHUTDOWN
        if word["say"] == "run" and server_id in self._domains():
            self._report(server_id, word["power_state"], "migrated")
            return {"here": True}
        return {"here": here, "power_state": power}

    def _domains(self) -> set[str]:
        with self.world.look() as state:
            return {one for one in state.domains if one not in state.doors}

    # -- its source ---------------------------------------------------------------------------

    def _migrate(self, op: c.MigrateServer, progress: Progress) -> c.MigrateServerResult:
        spec = op.server
        with self.world.look() as state:
            domain = state.domains.get(spec.server_id)
            if domain is None:  # done by a former life
                return c.MigrateServerResult()
            power_state = domain.leaving or domain.power_state
            if power_state not in (RUNNING, PAUSED):
                raise DriverError("not-running", "The server is not running.")
            disks = state.disks.get(spec.server_id)
            word = {
                "server_id": spec.server_id,
                "from": self.name,
                "content": disks.content if disks else "",
                "domain": msgspec.to_builtins(domain),
                "power_state": power_state,
            }
        going = self._under_way[spec.server_id] = Migration(spec, self.seconds, self.faults.monotonic)
        try:
            if not self._asks(op.address, {**word, "say": "where"}).get("here"):
                self._copy(op, going, progress)
                self._hand_over(op.address, word)
        except DriverError:
            self._hold(spec.server_id, power_state, 0)
            raise
        finally:
            self._under_way.pop(spec.server_id, None)
        with self.world.change() as state:
            state.domains.pop(spec.server_id, None)
        return c.MigrateServerResult(downtime_ms=1, transferred_bytes=going.memory + going.disk)

    def _copy(self, op: c.MigrateServer, going: Migration, progress: Progress) -> None:
        limit = op.timeout_seconds or float("inf")
        self.faults.sleep(min(going.seconds, limit), progress, going.signal)
        if going.steered == "abort":
            raise DriverError("aborted", "The migration was aborted.")
        if going.steered is None and going.seconds > limit and op.on_timeout == "abort":
            raise DriverError("timeout", f"The migration was not over after {op.timeout_seconds} seconds.")

    def _hand_over(self, address: str, word: dict[str, Any]) -> None:
        """A guest never runs twice: when nobody can say whether the target runs it, ours stays paused for so long."""
        if self._asks(address, {**word, "say": "bring"}).get("error"):
            raise DriverError("refused", "The target does not expect the server.")
        self._hold(word["server_id"], PAUSED, word["power_state"])
        try:
            if self._asks(address, {**word, "say": "run"}).get("here"):
                return
        except DriverError:
            end = time.monotonic() + _ASK_AGAIN_S
            while time.monotonic() < end:
                try:
                    if self._asks(address, {**word, "say": "where"}).get("here"):
                        return
                    break
                except DriverError:
                    time.sleep(0.2)
        raise DriverError("unreachable", "The target did not take the server.")

    def _hold(self, server_id: str, power_state: int, leaving: int) -> None:
        with self.world.change() as state:
            domain = state.domains.get(server_id)
            if domain is not None:
                domain.power_state, domain.leaving = power_state, leaving

    def _asks(self, address: str, word: dict[str, Any]) -> dict[str, Any]:
        host, _, port = address.rpartition(":")
        try:
            with socket.create_connection((host, int(port)), timeout=_ANSWER_S) as link:
                link.sendall(json.dumps(word).encode() + b"\n")
                with link.makefile("rb") as answers:
                    line = answers.readline()
        except OSError as error:
            raise DriverError("unreachable", f"The target does not answer: {error}") from error
        if not line:
            raise DriverError("unreachable", "The target does not answer.")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _steer(self, op: c.SteerMigration, progress: Progress) -> None:
        going = self._under_way.get(op.server_id)
        if going is None:
            raise not_found(f"migration of server {op.server_id}")
        going.steer(op.action)

    def progress_of(self, query: c.MigrationProgress) -> dict[str, Any]:
        going = self._under_way.get(query.server_id)
        return going.data() if going is not None else {}


def disks_of(spec: c.ServerSpec, content: str) -> Disks:
    return Disks(
        root_gb=spec.root_gb,
        image_id=spec.image.image_id if spec.image else None,
        ephemeral_gb=spec.ephemeral_gb,
        swap_mb=spec.swap_mb,
        config_drive=spec.config_drive,
        content=content,
    )


def forget_disks(state: State, server_id: str) -> None:
    state.disks.pop(server_id, None)
    state.aside.pop(server_id, None)
    state.offers.pop(server_id, None)
