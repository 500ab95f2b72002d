"""`ComputeService`: what the API and other services call, put together from its parts.

Registers sagas, listeners to hosts' reports and the builder of metadata documents. Methods meant for other services
take ``tx`` first. Owns no state of its own but the wiring.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec

from cumulet.agent.contract import (
    DISKS_ONLY,
    Absent,
    Inventory,
    MetadataDoc,
    PasswordPosted,
    PasswordTaken,
    ServerReport,
)
from cumulet.conductor import drains
from cumulet.db import Database, Tx
from cumulet.kernel.clock import SECOND, Clock
from cumulet.kernel.context import RequestContext, system_context
from cumulet.kernel.errors import Conflict, NotFound
from cumulet.kernel.ids import new_uuid
from cumulet.saga import SagaHistory
from cumulet.saga.model import HostCall, Saga
from cumulet.services.compute import catalogue, migrations, rules, state, store
from cumulet.services.compute.drains import Drains
from cumulet.services.compute.intake import Created, Intake, May
from cumulet.services.compute.moves import Moves
from cumulet.services.compute.parts import Parts
from cumulet.services.compute.quotas import Quotas
from cumulet.services.compute.rows import ActionRow, ServerRow
from cumulet.services.compute.scheduling import Scheduling, resources_of
from cumulet.services.compute.schema import Hints, ServerCreate
from cumulet.services.compute.specs import Specs
from cumulet.services.compute.state import Power
from cumulet.services.compute.workflows.create import CreateWorkflows
from cumulet.services.compute.workflows.delete import DeleteParams, DeleteWorkflow
from cumulet.services.compute.workflows.evacuate import EvacuateWorkflows
from cumulet.services.compute.workflows.guest import GuestWorkflows
from cumulet.services.compute.workflows.interfaces import InterfaceWorkflows
from cumulet.services.compute.workflows.leave import LeaveWorkflow
from cumulet.services.compute.workflows.live import LiveSettings, LiveWorkflows
from cumulet.services.compute.workflows.move import MoveWorkflows
from cumulet.services.compute.workflows.power import PowerParams, PowerWorkflows
from cumulet.services.compute.workflows.volumes import ConnectParams, ExtendParams, VolumeWorkflows


class ComputeService:
    def __init__(
        self,
        *,
        db: Database,
        clock: Clock,
        sagas: Any,
        hosts: Any,
        desired: Any,
        images: Any,
        placement: Any,
        scheduler: Any,
        network: Any,
        volumes: Any,
        identity: Any = None,
        ask: Any = None,
        quotas: dict[str, int] | None = None,
        default_zone: str = "nova",
        resize_to_same_host: bool = True,
        live: LiveSettings | None = None,
    ) -> None:
        self.db = db
        self.clock = clock
        self.identity = identity
        self.parts = Parts(
            clock=clock,
            sagas=sagas,
            hosts=hosts,
            desired=desired,
            images=images,
            placement=placement,
            scheduler=scheduler,
            network=network,
            volumes=volumes,
            ask=ask,
            default_zone=default_zone,
        )
        self.quotas = Quotas(quotas)
        self.specs = Specs(self.parts)
        self.scheduling = Scheduling(self.parts)
        self.volume_workflows = VolumeWorkflows(self.parts, self.specs)
        self.create_workflows = CreateWorkflows(self.parts, self.specs, self.volume_workflows, self.scheduling)
        self.power = PowerWorkflows(self.parts, self.specs)
        self.guest = GuestWorkflows(self.parts, self.specs)
        self.interfaces = InterfaceWorkflows(self.parts, self.specs)
        self.leave_workflow = LeaveWorkflow(self.parts, self.specs)
        arrival = (self.parts, self.specs, self.volume_workflows, self.scheduling, self.leave_workflow)
        self.move_workflows = MoveWorkflows(*arrival)
        self.evacuate_workflows = EvacuateWorkflows(*arrival)
        self.live_workflows = LiveWorkflows(*arrival, live or LiveSettings())
        self.moves = Moves(
            self.parts,
            self.quotas,
            self.scheduling,
            self.move_workflows,
            self.live_workflows,
            self.evacuate_workflows,
            self.power,
            self.start,
            self.start_on,
            resize_to_same_host=resize_to_same_host,
        )
        self.drains = Drains(self.moves)
        self.delete_workflow = DeleteWorkflow(self.parts, self.specs, self.volume_workflows, self.leave_workflow)
        self.intake = Intake(self.parts, self.quotas, self.scheduling, self.create_workflows)
        sagas.register(*self.all_sagas())
        desired.register(
            "metadata", lambda tx, host, object_id, generation: self.metadata_doc(tx, object_id, generation)
        )

    def all_sagas(self) -> list[Saga]:
        return [
            *self.volume_workflows.sagas(),
            *self.create_workflows.sagas(),
            *self.delete_workflow.sagas(),
            *self.power.sagas(),
            *self.guest.sagas(),
            *self.interfaces.sagas(),
            *self.move_workflows.sagas(),
            *self.live_workflows.sagas(),
            *self.evacuate_workflows.sagas(),
            *self.leave_workflow.sagas(),
        ]

    # -- for other services ----------------------------------------------------------------------------------------

    def metadata_doc(self, tx: Tx, server_id: str, generation: int) -> MetadataDoc | None:
        return self.specs.metadata_doc(tx, server_id, generation)

    def volume_changed(self, tx: Tx, volume_id: str) -> None:
        """A volume became ready, failed or is gone: who waits for it looks again."""
        for disk in store.disks_of_volume(tx, volume_id):
            tx.after_commit(partial(self.parts.sagas.wake, "block_device", disk.id))

    def volume_grown(self, tx: Tx, volume_id: str, size_gb: int, ctx: RequestContext) -> None:
        """A volume in use has grown: each server that has it learns of it, as an action of its own (upstream's
        ``volume-extended`` event). A disk that is just being attached or detached needs no telling."""
        for disk in store.disks_of_volume(tx, volume_id):
            server = store.server(tx, disk.server_id)
            if server is None or server.host is None or server.deleting or disk.connection is None:
                continue
            if self.parts.sagas.owner(tx, "block_device", disk.id) is None:
                params = ExtendParams(server_id=server.id, size_gb=size_gb)
                self.start_on(tx, server, self.volume_workflows.extend, disk.id, params, ctx)

    def reconnect_volumes(self) -> str | None:
        """Servers have their volumes exported to their host, also when going back there after a move that failed did
        not succeed: the volume's host was down, or refused."""
        if not self.db.read(store.unreached_disks):
            return None
        begun = self.db.write(self._reconnect_volumes)
        return f"{begun} begun" if begun else None

    def _reconnect_volumes(self, tx: Tx) -> int:
        begun, sagas, volumes = 0, self.parts.sagas, self.parts.volumes
        for disk in sorted(store.unreached_disks(tx), key=lambda disk: disk.server_id):
            tx.lock("server", disk.server_id)
            server = store.server(tx, disk.server_id)
            busy = any(sagas.owner(tx, *one) for one in (("server", disk.server_id), ("block_device", disk.id)))
            if busy or server is None or not volumes.can_be_exported_again(tx, disk.attachment_id):
                continue
            params = ConnectParams(server_id=server.id, host=server.host)
            sagas.start(tx, self.volume_workflows.connect, disk.id, params, system_context("reconnect"))
            begun += 1
        return begun

    def uses_attachment(self, tx: Tx, volume_id: str, attachment_id: str) -> bool:
        """Is it a disk of a living server?"""
        for disk in store.disks_of_volume(tx, volume_id):
            mine = attachment_id in (disk.attachment_id, (disk.move or {}).get("attachment_id"))
            server = store.server(tx, disk.server_id) if mine else None
            if server is not None and server.deleted_at is None:
                return True
        return False

    # -- hosts -----------------------------------------------------------------------------------------------------

    def on_host(self, tx: Tx, host: str) -> list[tuple[str, str, str]]:
        """Those that are not quite there yet, or not quite gone, too."""
        moving = store.servers_of(tx, migrations.touching(tx, host))
        here = {row.id: row for row in [*store.servers_on(tx, host), *moving] if row.deleted_at is None}
        return [("server", row.id, row.name) for row in here.values()]

    def leave_host(self, tx: Tx, host: str) -> None:
        """Servers move away in their turn (`go_on_draining`)."""

    def return_to_host(self, tx: Tx, host: str) -> None:
        """Moves that are under way go on."""

    def why_left(self, tx: Tx, host: str, server_ids: Sequence[str]) -> dict[str, str]:
        """Why servers are on a host that is to be empty."""
        return self.drains.why(tx, host, store.servers_of(tx, server_ids))

    def go_on_draining(self) -> str | None:
        """Begin the next moves from the hosts that are to be empty."""
        begun = 0
        for host, asked_at in self.db.read(drains.hosts):
            begun += self.db.write(lambda tx, host=host, at=asked_at: self.drains.go_on(tx, host, at))  # type: ignore[misc]
        return f"{begun} moves begun" if begun else None

    def forget_host(self, tx: Tx, host: Any) -> None:
        """A host that holds no server is gone for good."""
        tx.lock("aggregates", "")
        self.parts.placement.remove_provider(tx, host.uuid)
        for row in catalogue.aggregates(tx):
            catalogue.remove_aggregate_host(tx, row.id, host.name)
        store.forget_host(tx, host.name)

    def image_in_use(self, tx: Tx, image_id: str) -> str | None:
        """Images of servers may be deleted, as upstream allows it."""
        return None

    def password_posted(self, message: PasswordPosted, host: str | None) -> PasswordTaken:
        return self.db.write(lambda tx: self.on_password(tx, message, host))

    def on_password(self, tx: Tx, message: PasswordPosted, host: str | None = None) -> PasswordTaken:
        """A guest made a password. The first stays until the user clears it. ``host``: who says so, where the bus
        vouches for it: only one that serves this server's metadata may."""
        if host is not None and host not in self.parts.desired.holders(tx, "metadata", message.server_id):
            return PasswordTaken(outcome="gone")
        tx.lock("server", message.server_id)
        server = store.server(tx, message.server_id)
        if server is None or server.deleted_at is not None:
            return PasswordTaken(outcome="gone")
        if server.password:
            return PasswordTaken(outcome="conflict")
        self.changed(tx, server, password=message.password)
        return PasswordTaken(outcome="kept")

    def on_server_report(self, tx: Tx, report: ServerReport) -> None:
        """What a host says one QEMU process does. Older reports and those of hosts a server left change nothing."""
        tx.lock("server", report.server_id)
        server = store.server(tx, report.server_id)
        if server is None or server.deleted_at is not None:
            return
        here = report.host == server.host
        if not here and not self._arrives_from(tx, server.id, report.host):
            return  # it was tried there, or left; what was known of that is forgotten
        if not store.record_report(
            tx, report.server_id, report.host, report.power_state, report.reason, report.sequence
        ):
            return
        if not here:
            tx.after_commit(lambda: self.parts.sagas.wake("server", server.id))
            return
        self.parts.network.server_power(tx, server.id, report.power_state in (Power.RUNNING, Power.PAUSED))
        if self.parts.sagas.owner(tx, "server", server.id) is None:
            self._follow(tx, server, report.power_state)
        state.settle(tx, server.id)
        tx.after_commit(lambda: self.parts.sagas.wake("server", server.id))

    def _arrives_from(self, tx: Tx, server_id: str, host: str) -> bool:
        """Is the host one of those that a move of the server, which is under way, is between? Hosts that wait for its
        confirmation have nothing to tell."""
        moves = migrations.open_ones(tx, server_id)
        return any(host in (move.source, move.dest) for move in moves if move.status != "finished")

    def ports_changed(self, tx: Tx, server_id: str) -> None:
        """A port of the server works now: what waits for that looks again."""
        tx.after_commit(partial(self.parts.sagas.wake, "server", server_id))

    def _follow(self, tx: Tx, server: ServerRow, power: int) -> None:
        """Nobody works on the server: what the guest did by itself becomes what it is meant to do."""
        stopped = power in (Power.SHUTDOWN, Power.CRASHED)
        if stopped and server.launched_at is None:
            return  # a build that failed has taken its guest away, and this is the last word of it
        if stopped and server.goal in ("active", "paused"):
            store.update_server(tx, server.id, goal="stopped")
        elif power == Power.SUSPENDED and server.goal == "active":
            store.update_server(tx, server.id, goal="suspended")
        elif power == Power.RUNNING and server.goal == "stopped" and server.launched_at is not None:
            self._start_system(tx, server, "stop")

    def _start_system(self, tx: Tx, server: ServerRow, name: str) -> None:
        ctx = system_context("power-sync")
        ctx = msgspec.structs.replace(ctx, project_id=server.project_id)
        self.start(tx, server, self.power.by_name[name], PowerParams(), ctx, name)

    def on_inventory(self, tx: Tx, inventory: Inventory) -> Absent:
        """Servers on the host that are gone or live elsewhere are to be removed; unknown ones are not named. A guest
        that runs stays while the host where it should be does not answer: it might be the only one. Of those whose move
        is under way it is said later."""
        absent, again = [], False
        seen = {report.server_id for report in inventory.servers}
        running = {report.server_id for report in inventory.servers if report.power_state == Power.RUNNING}
        for server_id in [*(report.server_id for report in inventory.servers), *inventory.moving]:
            # first: a move that ends meanwhile is then seen
            moves = [m for m in migrations.open_ones(tx, server_id) if inventory.host in (m.source, m.dest)]
            server = store.server(tx, server_id)
            if server is None:
                continue
            elsewhere = server.host is not None and server.host != inventory.host
            if elsewhere and server_id in running and not self.parts.hosts.is_up_in(tx, server.host):
                again = True
                continue
            again = again or (elsewhere and any(move.status != "finished" for move in moves))
            if server.deleted_at is not None or (elsewhere and not moves):
                absent.append(server_id)
        for server in store.servers_on(tx, inventory.host):
            if server.id in seen or server.launched_at is None or server.goal != "active" or server.deleting:
                continue
            if not store.reported_before(tx, server.id, inventory.host, inventory.sequence):
                continue  # it came while the inventory was on its way
            if self.parts.sagas.owner(tx, "server", server.id) is None:
                store.forget_reports(tx, server.id, inventory.host)
                store.update_server(tx, server.id, goal="stopped")
                state.settle(tx, server.id)
        later = self._define_again(tx, inventory)
        return Absent(servers=absent, again=again or later)

    def _define_again(self, tx: Tx, inventory: Inventory) -> bool:
        """A host that was down when a move, or its revert, was undone may have no domain of a server that is to be
        there and does not run. True if there is one for which that cannot be begun now."""
        later = False
        defined = {report.server_id for report in inventory.servers if report.reason != DISKS_ONLY}
        for server in store.servers_on(tx, inventory.host) if inventory.sequence else ():
            if server.id in defined or server.vm_state not in ("stopped", "resized") or server.deleting:
                continue
            if store.reported_after(tx, server.id, inventory.host, inventory.sequence):
                continue  # it came while the inventory was on its way
            if self.parts.sagas.owner(tx, "server", server.id) is not None or not self.moves.host_up(
                tx, inventory.host
            ):
                later = True
                continue
            ctx = system_context("define-again")
            self.parts.sagas.start(tx, self.power.define_again, server.id, PowerParams(), ctx)
        return later

    # -- for audits -----------------------------------------------------------------------------------------------

    def row(self, tx: Tx, server_id: str) -> ServerRow | None:
        """Deleted ones too."""
        return store.server(tx, server_id)

    def end_resize(self, tx: Tx, server_id: str) -> None:
        """Nothing is known any more of what it was before: it is what it is."""
        running = store.reported(tx, server_id, self._host_of(tx, server_id)) in (Power.RUNNING, Power.PAUSED)
        store.update_server(tx, server_id, goal="active" if running else "stopped", resize=None)
        state.settle(tx, server_id)

    def _host_of(self, tx: Tx, server_id: str) -> str | None:
        server = store.server(tx, server_id)
        return server.host if server is not None else None

    def settle(self, tx: Tx, server_id: str, task: str | None) -> None:
        state.settle(tx, server_id, task)

    def resources_of(self, tx: Tx, server: ServerRow) -> dict[str, int]:
        """What the server takes of its host."""
        booted = any(disk.boot_index == 0 for disk in store.disks(tx, [server.id]).get(server.id, []))
        return resources_of(server.flavor, volume_backed=booted)

    # -- servers ---------------------------------------------------------------------------------------------------

    def visible(self, tx: Tx, ctx: RequestContext, server_id: str) -> ServerRow:
        """The living server if the caller may know of it, else NotFound (another project's is not found)."""
        row = store.server(tx, server_id)
        if row is None or row.deleted_at is not None or (row.project_id != ctx.project_id and not ctx.is_admin):
            raise NotFound(f"Instance {server_id} could not be found.", type_name="InstanceNotFound")
        return row

    def create(self, ctx: RequestContext, body: ServerCreate, hints: Hints, may: May) -> Created:
        return self.db.write(lambda tx: self.intake.create(tx, ctx, body, hints, may))

    def delete(self, tx: Tx, ctx: RequestContext, server: ServerRow) -> None:
        """Begin to delete; asked again while it is under way, nothing more."""
        if server.deleting:
            owner = self.parts.sagas.owner(tx, "server", server.id)
            if owner is not None:
                return
        store.update_server(tx, server.id, deleting=True)
        for migration in migrations.in_progress(tx, server.id):
            if migration.status == "running" and self.parts.sagas.owner(tx, "migration", migration.id) is None:
                self.moves.stop_live(tx, ctx, server, migration)
        self.start(tx, server, self.delete_workflow.delete, DeleteParams(), ctx, "delete")

    def start(
        self, tx: Tx, server: ServerRow, saga: Saga, params: msgspec.Struct, ctx: RequestContext, action: str
    ) -> str:
        """Start a saga on the server and note it as an instance action."""
        try:
            saga_id: str = self.parts.sagas.start(tx, saga, server.id, params, ctx)
        except Conflict:
            raise Conflict(
                f"Cannot '{action}' instance {server.id} while it is in task_state {server.task_state}"
            ) from None
        self.note(tx, server.id, saga.action or action, ctx, saga_id)
        return saga_id

    def start_on(
        self, tx: Tx, server: ServerRow, saga: Saga, object_id: str, params: msgspec.Struct, ctx: RequestContext
    ) -> str:
        """Start a saga on something of the server (an attachment, an interface)."""
        saga_id: str = self.parts.sagas.start(tx, saga, object_id, params, ctx)
        self.note(tx, server.id, saga.action or saga.kind, ctx, saga_id, (saga.object_kind, object_id))
        return saga_id

    def note(
        self,
        tx: Tx,
        server_id: str,
        action: str,
        ctx: RequestContext,
        saga_id: str | None = None,
        thing: tuple[str, str] | None = None,
    ) -> None:
        """Record an instance action; without a saga it is done already. ``thing``: what the saga works on."""
        if saga_id is not None and any(row.saga_id == saga_id for row in store.actions(tx, server_id)):
            return
        kind, object_id = thing or ("server", server_id)
        row = ActionRow(
            saga_id or new_uuid(),
            server_id,
            ctx.request_id,
            action,
            ctx.user_id,
            ctx.project_id,
            tx.now,
            kind,
            object_id,
        )
        store.insert_actions(tx, [row])

    def history(self, tx: Tx, server_id: str, actions: Sequence[ActionRow] | None = None) -> list[SagaHistory]:
        """The sagas of a server, newest first, and of what was attached to it and detached. ``actions``: only of
        these."""
        actions = store.actions(tx, server_id) if actions is None else actions
        sagas = self.parts.sagas
        found = list(sagas.history(tx, "server", server_id))
        ours = {row.saga_id for row in actions}
        for kind, object_id in dict.fromkeys((row.object_kind, row.object_id) for row in actions):
            if kind != "server":  # a port may have been another server's before
                found += [
                    one
                    for one in sagas.history(tx, kind, object_id)
                    if one.saga.id in ours or one.saga.parent_id in ours
                ]
        return sorted(found, key=lambda one: -one.saga.created_at)

    def define_operation(self, tx: Tx, server_id: str) -> HostCall | None:
        """What has its host define a server again, as it is to be; None: it is on no host any more."""
        server = self.row(tx, server_id)
        return None if server is None or server.deleting else self.power.define_operation(tx, server)

    def power_action(self, tx: Tx, ctx: RequestContext, server: ServerRow, name: str) -> None:
        rules.check_state(server, name, {"soft_reboot": "reboot", "hard_reboot": "reboot"}.get(name))
        rules.check_host(server)
        action = self.power.actions[name]
        self.start(tx, server, self.power.by_name[name], PowerParams(), ctx, action.action)

    def clear_after_moves(self) -> str | None:
        """Hosts that came back are rid of servers that were evacuated from them, and take back resizes that failed
        while they were down; moves that were never confirmed and cannot be any more, are."""
        moves = self.moves
        if not self.db.read(lambda tx: migrations.done(tx) or migrations.abandoned(tx) or moves.left_undone(tx)):
            return None
        count = sum(self.db.write(work) for work in (moves.leave_dead, moves.confirm_abandoned, moves.take_back))
        return f"{count} begun" if count else None

    def confirm_old_resizes(self, seconds: float) -> str | None:
        """Those that nobody confirmed or reverted in so long."""
        count = self.db.write(lambda tx: self.moves.confirm_old(tx, tx.now - int(seconds * SECOND)))
        return f"{count} confirmed" if count else None

    def changed(self, tx: Tx, server: ServerRow, **values: Any) -> ServerRow:
        """Change what the user set; the metadata service follows."""
        store.update_server(tx, server.id, **values)
        for host in self.parts.desired.holders(tx, "metadata", server.id):
            self.parts.desired.touch(tx, host, "metadata", server.id)
        found = store.server(tx, server.id)
        assert found is not None
        return found

    def listed(self, tx: Tx, query: store.ServerQuery) -> Sequence[ServerRow] | None:
        return query.read(tx)
