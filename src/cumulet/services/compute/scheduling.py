"""Between compute and the scheduler: what is asked for a server, and the claim of the host that was chosen."""

from collections.abc import Collection, Sequence
from typing import Any

from cumulet.db import Tx
from cumulet.services.compute import catalogue, migrations, store
from cumulet.services.compute.parts import Parts
from cumulet.services.compute.rows import ServerRow
from cumulet.services.compute.scheduler import SchedulerRequest


def resources_of(flavor: dict[str, Any], *, volume_backed: bool) -> dict[str, int]:
    """What a server of this flavor takes of its host."""
    disk = flavor["ephemeral"] + -(-(flavor.get("swap") or 0) // 1024)
    if not volume_backed:
        disk += flavor["disk"]
    wanted = {"VCPU": flavor["vcpus"], "MEMORY_MB": flavor["ram"], "DISK_GB": disk}
    return {name: amount for name, amount in wanted.items() if amount}


class Scheduling:
    def __init__(self, parts: Parts) -> None:
        self.parts = parts

    def zones(self, tx: Tx) -> set[str]:
        """Zones that have an enabled compute host."""
        by_host = catalogue.zones(tx)
        return {
            by_host.get(host.name, self.parts.default_zone)
            for host in self.parts.hosts.snapshot(tx)
            if "compute" in host.roles and not host.disabled
        }

    def place(
        self,
        tx: Tx,
        server_ids: Sequence[str],
        flavor: dict[str, Any],
        project_id: str,
        user_id: str,
        request: dict[str, Any],
        excluded: Collection[str] = (),
    ) -> list[str]:
        """Choose a host for each server and claim it, in this transaction; NoValidHost claims nothing."""
        hosts = self.parts.scheduler.hold(tx)  # before looking where the others of its group are
        asked = self._asked(tx, server_ids, flavor, project_id, request, excluded)
        return [host.name for host in self.parts.scheduler.place(tx, asked, list(server_ids), user_id, hosts)]

    def _asked(
        self,
        tx: Tx,
        server_ids: Sequence[str],
        flavor: dict[str, Any],
        project_id: str,
        request: dict[str, Any],
        excluded: Collection[str],
    ) -> SchedulerRequest:
        asked = SchedulerRequest(
            resources=resources_of(flavor, volume_backed=bool(request.get("volume_backed"))),
            availability_zone=request.get("zone"),
            host=request.get("host"),
            force=bool(request.get("force")),
            excluded=sorted(excluded),
            image_properties=request.get("image_properties") or {},
            extra_specs=flavor.get("extra_specs") or {},
            project_id=project_id,
        )
        hints = request.get("hints") or {}
        asked.same_hosts = self._hosts_of(tx, hints.get("same_host"))
        asked.different_hosts = self._hosts_of(tx, hints.get("different_host"))
        group = catalogue.group(tx, request["group"]) if request.get("group") else None
        if group is not None:
            members = catalogue.members(tx, [group.id]).get(group.id, [])
            asked.group_policy = group.policy
            asked.group_hosts = [host for server, host, _ in members if host and server not in server_ids]
            asked.max_server_per_host = int(group.rules.get("max_server_per_host") or 1)
        return asked

    # -- moves -------------------------------------------------------------------------------------------------------

    def volume_backed(self, tx: Tx, server: ServerRow) -> bool:
        return any(disk.boot_index == 0 for disk in store.disks(tx, [server.id]).get(server.id, []))

    def move(
        self,
        tx: Tx,
        server: ServerRow,
        migration_id: str,
        status: str,
        *,
        flavor: dict[str, Any],
        host: str | None,
        excluded: Collection[str],
        force: bool = False,
    ) -> str:
        """Choose where the server moves to and claim it. What it takes of its host is the migration's from now on;
        ``status`` is what that one is in now. A host that has the server's disks of another time is none for it."""
        self.parts.scheduler.hold(tx)  # all locks in one order, before any claim
        self.parts.placement.hand_over(tx, server.id, migration_id, consumer_type="MIGRATION")
        request = self.request(tx, server, host=host, force=force)
        excluded = [*excluded, *migrations.kept_at(tx, server.id)]
        [chosen] = self.place(tx, [server.id], flavor, server.project_id, server.user_id, request, excluded=excluded)
        migrations.place(tx, migration_id, chosen, status)
        return chosen

    def judge(self, tx: Tx, server: ServerRow, *, host: str | None, force: bool) -> None:
        """Would `move` find a host? NoValidHost if not."""
        asked = self._asked(
            tx,
            [server.id],
            server.flavor,
            server.project_id,
            self.request(tx, server, host=host, force=force),
            [server.host or ""],
        )
        self.parts.scheduler.select(tx, asked)

    def move_back(self, tx: Tx, server_id: str, migration_id: str) -> None:
        """The server takes what it took before the move. Idempotent."""
        if self.parts.placement.allocations(tx, migration_id):
            self.parts.placement.release(tx, server_id)
            self.parts.placement.hand_over(tx, migration_id, server_id, consumer_type="INSTANCE")

    def request(self, tx: Tx, server: ServerRow, *, host: str | None = None, force: bool = False) -> dict[str, Any]:
        """What was asked for the server, as `place` takes it."""
        return {
            "zone": server.availability_zone,
            "host": host,
            "force": force,
            "hints": server.scheduler_hints,
            "group": catalogue.groups_of_servers(tx, [server.id]).get(server.id),
            "image_properties": server.image_properties,
            "volume_backed": self.volume_backed(tx, server),
        }

    def _hosts_of(self, tx: Tx, hint: str | list[str] | None) -> list[str]:
        ids = [hint] if isinstance(hint, str) else list(hint or [])
        servers = [store.server(tx, server_id) for server_id in ids]
        return [server.host for server in servers if server is not None and server.host is not None]
