"""Moves of servers between hosts: what is judged before the 202, and the beginning of each."""

from collections.abc import Callable
from typing import Any, Literal

import msgspec

from cumulet.agent.contract import MigrationProgress
from cumulet.db import Tx
from cumulet.kernel.clock import SECOND
from cumulet.kernel.context import RequestContext, system_context
from cumulet.kernel.errors import BadInput, CloudError, Conflict, NotFound, NoValidHost
from cumulet.saga.journal import LeftUndone
from cumulet.saga.model import Saga
from cumulet.services.compute import catalogue, migrations, rules, store
from cumulet.services.compute.parts import Parts
from cumulet.services.compute.quotas import Quotas
from cumulet.services.compute.rows import FlavorRow, MigrationRow, ServerRow
from cumulet.services.compute.scheduling import Scheduling
from cumulet.services.compute.state import Power
from cumulet.services.compute.workflows.evacuate import EvacuateWorkflows, FleeParams, LeaveDeadParams
from cumulet.services.compute.workflows.live import LiveParams, LiveWorkflows, SteerParams
from cumulet.services.compute.workflows.move import BackParams, MoveParams, MoveWorkflows
from cumulet.services.compute.workflows.power import PowerWorkflows, TakeBackParams

# then what a resize left is an operator's: cumulet doctor names it
_LEFT_DAYS = 30
_TRIES = 3
UNAVAILABLE = "Service is unavailable at this time."
NOT_RESIZED = "Instance has not been resized."


class Moves:
    """``start(tx, server, saga, params, ctx, action)`` begins a saga on a server and notes it as an action of it;
    ``start_on`` one on something of it."""

    def __init__(
        self,
        parts: Parts,
        quotas: Quotas,
        scheduling: Scheduling,
        workflows: MoveWorkflows,
        live: LiveWorkflows,
        evacuation: EvacuateWorkflows,
        power: PowerWorkflows,
        start: Any,
        start_on: Any,
        *,
        resize_to_same_host: bool = True,
    ) -> None:
        self.parts = parts
        self.quotas = quotas
        self.scheduling = scheduling
        self.workflows = workflows
        self.live = live
        self.evacuation = evacuation
        self.power = power
        self.start = start
        self.start_on = start_on
        self.resize_to_same_host = resize_to_same_host

    # -- live ----------------------------------------------------------------------------------------------------------

    def live_migrate(
        self,
        tx: Tx,
        ctx: RequestContext,
        server: ServerRow,
        host: str | None,
        *,
        copy_disks: bool,
        force: bool,
        at_once: bool,
    ) -> None:
        """``at_once``: what no host can do is refused here, not found out later."""
        rules.check_state(server, "live_migrate", "os-migrateLive")
        self.check_quiet(tx, server)
        if host is not None:
            self.check_host(tx, host)
            if host == server.host and force:
                raise BadInput(f"Unable to migrate instance ({server.id}) to current host ({host}).")
        rules.check_host(server)
        assert server.host is not None
        if at_once:
            self._judge_live(tx, server, host, copy_disks=copy_disks, force=force)
        params = LiveParams(
            migration_id=self._begin(tx, ctx, server, migrations.LIVE, dest=host),
            host=host,
            force=force,
            copy_disks=copy_disks,
        )
        self.start(tx, server, self.live.migrate, params, ctx, "os-migrateLive")

    def _judge_live(self, tx: Tx, server: ServerRow, host: str | None, *, copy_disks: bool, force: bool) -> None:
        assert server.host is not None
        for name in (server.host, host):
            if name is not None and not self.host_up(tx, name):
                raise BadInput(f"Compute service of {name} is unavailable at this time.")
        if not copy_disks and not self.scheduling.volume_backed(tx, server):
            raise BadInput(
                f"{server.id} is not on shared storage: its disks are local, block_migration must copy them."
            )
        try:
            self.scheduling.judge(tx, server, host=host, force=force)
        except NoValidHost as error:
            raise BadInput(error.message) from None

    def force_complete(self, tx: Tx, ctx: RequestContext, server: ServerRow, number: str) -> None:
        rules.check_migrating(server, "force_complete", ("active",))
        migration = self.numbered(tx, server, number, BadInput)
        self._check_running(migration, ("running",), "force complete")
        self._steer(tx, ctx, server, migration, "force_complete")

    def abort(self, tx: Tx, ctx: RequestContext, server: ServerRow, number: str, *, queued: bool) -> None:
        """``queued``: also one that does not run yet."""
        rules.check_migrating(server, "abort live migration")
        migration = self.numbered(tx, server, number, NotFound)
        early = ("accepted", "queued", "preparing") if queued else ()
        self._check_running(migration, ("running", *early), "abort live migration")
        self.stop_live(tx, ctx, server, migration)

    def stop_live(self, tx: Tx, ctx: RequestContext, server: ServerRow, migration: MigrationRow) -> None:
        if migration.status == "running":
            self._steer(tx, ctx, server, migration, "abort")
        else:
            self.parts.sagas.cancel(tx, "server", server.id)

    def _steer(
        self,
        tx: Tx,
        ctx: RequestContext,
        server: ServerRow,
        migration: MigrationRow,
        action: Literal["abort", "force_complete"],
    ) -> None:
        params = SteerParams(server_id=server.id, action=action)
        self.start_on(tx, server, self.live.steering[action], migration.id, params, ctx)

    def numbered(
        self,
        tx: Tx,
        server: ServerRow,
        number: str,
        refusal: type[Exception],
        words: str = "Migration {number} not found for instance {id}",
    ) -> MigrationRow:
        known = number.isascii() and number.isdecimal() and len(number) < 19
        found = migrations.numbered(tx, server.id, int(number)) if known else None
        if found is None:
            raise refusal(words.format(number=number, id=server.id))
        return found

    def progress(self, source: str, server_id: str, instance_name: str) -> dict[str, int]:
        """What the source says of a live migration; nothing when it does not answer, or it is over."""
        try:
            answer = self.parts.ask(source, MigrationProgress(server_id=server_id, instance_name=instance_name))
        except CloudError:
            return {}
        return {key: int(value) for key, value in (answer.data or {}).items()}

    def _check_running(self, migration: MigrationRow, statuses: tuple[str, ...], method: str) -> None:
        if migration.type != migrations.LIVE or migration.status not in statuses:
            raise BadInput(
                f"Migration {migration.number} state of instance {migration.server_id} is {migration.status}. Cannot"
                f" {method} while the migration is in this state."
            )

    # -- evacuation --------------------------------------------------------------------------------------------------

    def evacuate(
        self,
        tx: Tx,
        ctx: RequestContext,
        server: ServerRow,
        host: str | None,
        *,
        force: bool,
        stopped: bool,
        shared: bool,
        password: str | None,
    ) -> None:
        """``stopped``: it is not to run afterwards; else it does what it did."""
        if host is not None:
            if not any(one.name == host for one in self.parts.hosts.list(tx, role="compute")):
                raise NotFound(f"Compute host {host} not found.")
            if host == server.host:
                raise BadInput("The target host can't be the same one.")
            if host in migrations.kept_at(tx, server.id):
                raise BadInput(f"Compute host {host} has the disks of the instance from before its resize.")
        rules.check_state(server, "evacuate")
        rules.check_host(server)
        assert server.host is not None
        if self.host_up(tx, server.host):
            raise BadInput(f"Compute service of {server.host} is still in use.")
        self._check_not_evacuated(tx, server)
        params = FleeParams(
            migration_id=self._begin(tx, ctx, server, migrations.EVACUATION, dest=host),
            host=host,
            force=force,
            goal="stopped" if stopped or server.vm_state == "stopped" else "active",
            shared=shared,
            admin_password=password,
        )
        self.start(tx, server, self.evacuation.evacuate, params, ctx, "evacuate")

    def _check_not_evacuated(self, tx: Tx, server: ServerRow) -> None:
        """One evacuation goes on, or waits for its turn: another might be meant for another host, and is not that."""
        tx.lock("server", server.id)
        owner = self.parts.sagas.owner(tx, "server", server.id)
        going = owner is not None and owner.kind == self.evacuation.evacuate.kind
        if going or any(move.type == migrations.EVACUATION for move in migrations.open_ones(tx, server.id)):
            raise Conflict(f"Cannot 'evacuate' instance {server.id} while it is being evacuated")

    def leave_dead(self, tx: Tx) -> int:
        """Hosts that were dead and are back are to be rid of the servers that were evacuated from them."""
        begun = 0
        for migration in migrations.done(tx):
            server = store.server(tx, migration.server_id)
            known = any(host.name == migration.source for host in self.parts.hosts.list(tx))
            if server is None or server.deleted_at is not None or server.host == migration.source or not known:
                migrations.set_status(tx, migration.id, "completed")  # by inventory, or there is nothing to be rid of
            elif self.host_up(tx, migration.source):
                params = LeaveDeadParams(migration_id=migration.id)
                begun += self._try(tx, self.evacuation.leave_dead, server.id, params, "evacuation")
        return begun

    def left_undone(self, tx: Tx) -> list[LeftUndone]:
        """Resizes that failed, and whose disks nobody took back."""
        since = tx.now - _LEFT_DAYS * 86_400 * SECOND
        found: list[LeftUndone] = self.parts.sagas.left_undone(tx, self.workflows.resize, "disks", since)
        return found

    def take_back(self, tx: Tx) -> int:
        """A host that was down when a resize on it was undone has the server on the new disks, and the old aside."""
        begun = 0
        for left in self.left_undone(tx):
            tx.lock("server", left.object_id)
            server = store.server(tx, left.object_id)
            if server is None or server.deleting or server.deleted_at is not None or server.host != left.host:
                continue  # what is left there goes with that host's next inventory
            if not self.host_up(tx, left.host):
                continue
            if self._stands(tx, left):
                params = TakeBackParams(resize=left.saga_id, run=left.params["was_running"])
                begun += self._try(tx, self.power.take_back, server.id, params, "take-back")
        return begun

    def _stands(self, tx: Tx, left: LeftUndone) -> bool:
        """Was it a resize on the spot, and is what it left there still, and worth another try?"""
        moves = migrations.of_server(tx, left.object_id)
        mine = next((move for move in moves if move.id == left.params["migration_id"]), None)
        if mine is None or mine.source != mine.dest:
            return False
        later = [move.status for move in moves if move.number > mine.number]
        if any(status in migrations.OPEN for status in later):
            return False
        if any(status not in migrations.UNDONE for status in later):
            self.parts.sagas.made_up_for(tx, left.saga_id)  # it moved since: what was kept went with that
            return False
        history = self.parts.sagas.history(tx, "server", left.object_id)
        tries = [past.saga for past in history if past.saga.kind == self.power.take_back.kind]
        tries = [saga for saga in tries if (saga.params or {}).get("resize") == left.saga_id]
        return sum(saga.error_code != "host-down" for saga in tries) < _TRIES

    def _try(self, tx: Tx, saga: Saga, server_id: str, params: msgspec.Struct, name: str) -> bool:
        """False: somebody works on the server, so the next time."""
        try:
            self.parts.sagas.start(tx, saga, server_id, params, system_context(name))
        except Conflict:
            return False
        return True

    # -- judging -----------------------------------------------------------------------------------------------------

    def host_up(self, tx: Tx, name: str) -> bool:
        host = self.parts.hosts.get(tx, name)
        return bool(host.up and not host.forced_down)

    def check_source(self, tx: Tx, server: ServerRow) -> None:
        rules.check_host(server)
        assert server.host is not None
        if not self.host_up(tx, server.host):
            raise Conflict(UNAVAILABLE)
        self.check_quiet(tx, server)

    def check_quiet(self, tx: Tx, server: ServerRow) -> None:
        """No disk and no interface is being attached or detached, until the end of the unit of work."""
        tx.lock("server", server.id)
        if self.workflows.devices_change(tx, server.id):
            raise Conflict(f"A device of instance {server.id} is being attached or detached.")

    def check_host(self, tx: Tx, host: str, refusal: type[Exception] = BadInput) -> None:
        if not any(one.name == host for one in self.parts.hosts.list(tx, role="compute")):
            raise refusal(f"Compute host {host} could not be found.")

    def _new_flavor(
        self, tx: Tx, ctx: RequestContext, server: ServerRow, flavor_id: str, disk_config: str | None
    ) -> FlavorRow:
        flavor = catalogue.flavor(tx, flavor_id)
        if flavor is None or not catalogue.may_use(tx, flavor, ctx):
            raise BadInput(f"Flavor {flavor_id} could not be found.")
        backed = self.scheduling.volume_backed(tx, server)
        if flavor.root_gb == 0 and server.root_gb != 0 and not backed:
            raise BadInput("Server disk was unable to be resized because: Resize to zero disk flavor is not allowed.")
        if flavor.id == server.flavor_id:
            raise BadInput("When resizing, instances must change flavor!")
        if disk_config == "AUTO" and str(server.image_properties.get("auto_disk_config", "")).lower() in ("disabled",):
            raise BadInput(f"Requested image {server.image_id} has automatic disk resize disabled.")
        self.quotas.admit_change(
            tx,
            server.project_id,
            server.user_id,
            flavor.vcpus - server.vcpus,
            flavor.memory_mb - server.memory_mb,
        )
        try:
            image = self.parts.images.get(tx, system_context("compute"), server.image_id) if server.image_id else None
        except NotFound:
            image = None  # deleted since: what its server was made with was good enough
        if image is not None and image.status == "active":
            rules.flavor_fits_image(flavor, image, volume_backed=backed, root_gb=flavor.root_gb)
        return flavor

    # -- cold ----------------------------------------------------------------------------------------------------------

    def resize(self, tx: Tx, ctx: RequestContext, server: ServerRow, flavor_id: str, disk_config: str | None) -> None:
        rules.check_state(server, "resize")
        self.check_source(tx, server)
        flavor = self._new_flavor(tx, ctx, server, flavor_id, disk_config)
        sizes = {
            "flavor_id": flavor.id,
            "flavor": flavor.embedded(),
            "vcpus": flavor.vcpus,
            "memory_mb": flavor.memory_mb,
            "root_gb": flavor.root_gb,
            "ephemeral_gb": flavor.ephemeral_gb,
        }
        params = MoveParams(
            migration_id=self._begin(tx, ctx, server, "resize", flavor.number),
            sizes=sizes,
            disk_config=disk_config or "MANUAL",
            was_running=self._runs(tx, server),
            same_host_allowed=self.resize_to_same_host,
        )
        self.start(tx, server, self.workflows.resize, params, ctx, "resize")

    def migrate(
        self, tx: Tx, ctx: RequestContext, server: ServerRow, host: str | None, *, confirmed: bool = False
    ) -> None:
        """``confirmed``: it ends where it arrives, with nobody to confirm it."""
        rules.check_state(server, "resize", "migrate")
        self.check_source(tx, server)
        if host is not None:
            if host == server.host:
                raise BadInput("Cannot migrate to the host where the server exists.")
            self.check_host(tx, host)
        params = MoveParams(
            migration_id=self._begin(tx, ctx, server, "migration", dest=host),
            host=host,
            disk_config=server.disk_config,
            was_running=self._runs(tx, server),
            confirmed=confirmed,
        )
        saga = self.workflows.relocate if confirmed else self.workflows.migrate
        self.start(tx, server, saga, params, ctx, "migrate")

    def _begin(
        self,
        tx: Tx,
        ctx: RequestContext,
        server: ServerRow,
        kind: str,
        new_flavor: int | None = None,
        *,
        dest: str | None = None,
    ) -> str:
        found = catalogue.flavor(tx, server.flavor_id)
        number = found.number if found is not None else None
        return migrations.begin(tx, server, kind, ctx.user_id, (number, new_flavor or number), dest)

    def _runs(self, tx: Tx, server: ServerRow) -> bool:
        return store.reported(tx, server.id, server.host) in (Power.RUNNING, Power.PAUSED)

    def _resized(self, tx: Tx, server: ServerRow) -> MigrationRow:
        found = migrations.resized(tx, server.id)
        if found is None or server.resize is None:
            raise BadInput(NOT_RESIZED)
        return found

    def confirm(self, tx: Tx, ctx: RequestContext, server: ServerRow) -> None:
        rules.check_state(server, "confirm_resize", "confirmResize")
        self._confirm(tx, ctx, server, self._resized(tx, server))

    def _confirm(self, tx: Tx, ctx: RequestContext, server: ServerRow, migration: MigrationRow) -> None:
        if not self.host_up(tx, migration.source) and not self.workflows.left_dead(tx, server, migration):
            raise Conflict(UNAVAILABLE)
        migrations.set_status(tx, migration.id, "confirming")
        self.start(tx, server, self.workflows.confirm, BackParams(migration_id=migration.id), ctx, "confirmResize")

    def revert(self, tx: Tx, ctx: RequestContext, server: ServerRow) -> None:
        rules.check_state(server, "revert_resize", "revertResize")
        migration = self._resized(tx, server)
        assert server.resize is not None
        self.quotas.admit_change(
            tx,
            server.project_id,
            server.user_id,
            server.resize["vcpus"] - server.vcpus,
            server.resize["memory_mb"] - server.memory_mb,
        )
        params = BackParams(migration_id=migration.id, was_running=self._runs(tx, server))
        self.start(tx, server, self.workflows.revert, params, ctx, "revertResize")

    def confirm_old(self, tx: Tx, before: int) -> int:
        """Confirm what has waited since before then; what cannot be, is tried again the next time."""

        def waits(server: ServerRow, migration: MigrationRow) -> bool:
            newest = migrations.resized(tx, server.id)
            return server.vm_state == "resized" and newest is not None and newest.id == migration.id

        return self._confirm_all(tx, migrations.unconfirmed(tx, before), waits)

    def confirm_abandoned(self, tx: Tx) -> int:
        """Confirm what nobody can confirm any more."""
        return self._confirm_all(tx, migrations.abandoned(tx), lambda server, migration: server.goal != "resized")

    def _confirm_all(self, tx: Tx, moves: list[MigrationRow], may_be: Callable[[ServerRow, MigrationRow], bool]) -> int:
        confirmed = 0
        for migration in moves:
            tx.lock("server", migration.server_id)
            server = store.server(tx, migration.server_id)
            if (
                server is None
                or not may_be(server, migration)
                or self.parts.sagas.owner(tx, "server", server.id) is not None
            ):
                continue
            try:
                self._confirm(tx, system_context("resize-confirm"), server, migration)
                confirmed += 1
            except (BadInput, Conflict):
                continue
        return confirmed
