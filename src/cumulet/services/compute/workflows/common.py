"""What every server saga shares: settling, faults, the common host calls."""

import json
from typing import Any

import msgspec

from cumulet.agent.contract import (
    CacheImage,
    DiskOffer,
    FetchImages,
    ImageSource,
    OfferImages,
    PlugPorts,
    UndefineServer,
    UnplugPorts,
    WithdrawDisks,
)
from cumulet.db import Tx
from cumulet.kernel.context import RequestContext
from cumulet.saga.model import HostCall, Run, Step
from cumulet.services.compute import migrations, state, store
from cumulet.services.compute.parts import Parts
from cumulet.services.compute.rows import ServerRow
from cumulet.services.compute.specs import Specs


def settle(tx: Tx, run: Run, step: Step | None) -> None:
    """While unwinding, the task of the step being undone stays visible; at the end none."""
    state.settle(tx, run.object_id, step.task_state if step is not None else None)


def settle_child(tx: Tx, run: Run, step: Step | None) -> None:
    """Of a saga on the same server as its parent, which goes on: its last task stays visible."""
    if step is None:
        state.settle(tx, run.object_id)
    else:
        settle(tx, run, step)


def record_fault(tx: Tx, server_id: str, run: Run, message: str | None = None) -> None:
    details = {"error": run.error, "code": run.error_code, **run.error_details}
    text = json.dumps(details, default=str, sort_keys=True)
    store.set_fault(tx, server_id, 500, message or run.error or "Unexpected error.", text)


class Workflow:
    """Base of workflows: collaborators and the calls that several of them make."""

    def __init__(self, parts: Parts, specs: Specs) -> None:
        self.parts = parts
        self.specs = specs

    def server(self, tx: Tx, run: Run) -> ServerRow:
        found = store.server(tx, run.object_id)
        assert found is not None, f"server {run.object_id} has no row"
        return found

    def plug(self, tx: Tx, run: Run) -> HostCall | None:
        server = self.server(tx, run)
        assert server.host is not None
        ports = self.specs.ports(tx, server.id, server.host)
        run.memo["ports", server.host] = ports
        return (server.host, PlugPorts(server_id=server.id, ports=ports)) if ports else None

    def plugged(self, tx: Tx, run: Run, result: dict[str, Any] | None) -> dict[str, Any] | None:
        """The host has made the ports: their documents came with the operation."""
        server = self.server(tx, run)
        ports = [row.port_id for row in store.interfaces(tx, server.id)]
        if server.host is not None and ports:
            self.parts.network.ports_wired(tx, server.host, ports)
        return result

    def unplug(self, tx: Tx, run: Run) -> HostCall | None:
        server = self.server(tx, run)
        ports = [row.port_id for row in store.interfaces(tx, server.id)]
        if server.host is None or not ports:
            return None
        return server.host, UnplugPorts(server_id=server.id, port_ids=ports)

    def undefine(self, tx: Tx, run: Run) -> HostCall | None:
        server = self.server(tx, run)
        return undefined(server, server.host) if server.host is not None else None

    def devices_change(self, tx: Tx, server_id: str) -> bool:
        """Is a disk or an interface of the server just being attached or detached?"""
        things = [("block_device", disk.id) for disk in store.disks(tx, [server_id]).get(server_id, [])]
        things += [("interface", row.port_id) for row in store.interfaces(tx, server_id)]
        return any(self.parts.sagas.owner(tx, kind, id) is not None for kind, id in things)

    # -- moves ------------------------------------------------------------------------------------------------------

    def alone_with(self, tx: Tx, run: Run) -> None:
        """No report of the server is taken until the end of the unit of work: the first thing that it does."""
        tx.lock("server", run.object_id)

    def on_both_hosts(self, tx: Tx, server_id: str, target: str) -> None:
        """Its ports and metadata are to be at the target, too: what goes wrong there takes nothing from the source."""
        ports = [row.port_id for row in store.interfaces(tx, server_id)]
        if ports:
            self.parts.network.begin_move(tx, ports, target)
        self.bring_metadata(tx, server_id, target)

    def on_one_host(self, tx: Tx, server_id: str, *, leaving: str) -> None:
        """They are to be only at the server's host."""
        server, ports = store.server(tx, server_id), [row.port_id for row in store.interfaces(tx, server_id)]
        assert server is not None
        assert server.host is not None
        if ports:
            self.parts.network.end_move(tx, ports)
        self.bring_metadata(tx, server_id, server.host, leaving=leaving)
        store.forget_reports(tx, server_id, leaving)

    def move_over(self, tx: Tx, run: Run, status: str) -> None:
        """The move ended, or waits for its confirmation: from now on only the server's host tells of it. What the other
        said since the server left it, or never came, is forgotten."""
        self.alone_with(tx, run)
        migrations.set_status(tx, run.params.migration_id, status)
        store.forget_reports_elsewhere(tx, run.object_id)

    # -- images on their way with a server ---------------------------------------------------------------------------

    def offer_images(self, tx: Tx, server: ServerRow, here: str, there: str) -> HostCall | None:
        """Of those the server stands on, the ones that were deleted: only hosts have them."""
        gone = self._deleted_images(tx, server, there)
        return (here, OfferImages(server_id=server.id, to_host=there, images=gone)) if gone else None

    def withdraw_images(self, tx: Tx, server: ServerRow, here: str, there: str) -> HostCall | None:
        """What was deleted stays so: whatever was offered is withdrawn."""
        return (here, WithdrawDisks(server_id=server.id)) if self._deleted_images(tx, server, there) else None

    def bring_images(self, tx: Tx, run: Run, server: ServerRow, here: str, there: str) -> HostCall | None:
        images = self._images_of(tx, server, there)
        offered = run.outputs.get("offer_images")
        if offered:
            offers = msgspec.convert(offered["disks"], list[DiskOffer])
            return there, FetchImages(server_id=server.id, from_host=here, images=images, offers=offers)
        root = next((one for one in images if one.image_id == server.image_id), None)
        return (there, CacheImage(image=root)) if root is not None else None

    def _deleted_images(self, tx: Tx, server: ServerRow, host: str) -> list[ImageSource]:
        return [one for one in self._images_of(tx, server, host) if one.path is None and one.url is None]

    def _images_of(self, tx: Tx, server: ServerRow, host: str) -> list[ImageSource]:
        disks = store.disks(tx, [server.id]).get(server.id, [])
        backed = any(disk.boot_index == 0 for disk in disks)
        return [one for one in self.specs.images(tx, server, host, volume_backed=backed) if one is not None]

    def publish_metadata(self, tx: Tx, server: ServerRow) -> None:
        """Have the hosts that answer the server's metadata requests fetch its document."""
        names = self.parts.network.metadata_hosts(tx, server.id)
        if server.host is not None:
            names.add(server.host)
        self.parts.desired.touch_many(tx, [(host, "metadata", server.id) for host in sorted(names)])

    def bring_metadata(self, tx: Tx, server_id: str, host: str, *, leaving: str | None = None) -> None:
        """The host of a server that moves is to answer its metadata requests; the one it leaves is not, unless its
        network's requests come in there."""
        self.parts.desired.touch(tx, host, "metadata", server_id)
        if leaving is not None and leaving not in self.parts.network.metadata_hosts(tx, server_id):
            self.parts.desired.remove(tx, leaving, "metadata", server_id)

    def withdraw_metadata(self, tx: Tx, server: ServerRow) -> None:
        for host in self.parts.desired.holders(tx, "metadata", server.id):
            self.parts.desired.remove(tx, host, "metadata", server.id)

    def actor(self, run: Run) -> RequestContext:
        """Who asked, for calls that record an owner."""
        return RequestContext(
            request_id=run.request_id, user_id=run.user_id, project_id=run.project_id, roles=frozenset({"admin"})
        )


def undefined(server: ServerRow, host: str) -> HostCall:
    """Ask a host to undefine the server."""
    return host, UndefineServer(server_id=server.id, instance_name=server.instance_name)
