"""What is where: servers on several fake hosts, as the API, the rows and the hosts themselves say."""

from typing import Any

from sqlalchemy import select, update

from cumulet.agent.contract import ServerReport
from cumulet.conductor.tables import HOSTS
from cumulet.services.compute import store
from cumulet.services.compute.tables import VMMS
from tests.compute.helpers import Nova
from tests.support.cloud import unique


class Places:
    """A cloud of its own with some hosts, and what is where."""

    def __init__(self, nova: Nova) -> None:
        self.nova = nova
        self.admin = nova.as_user("admin")
        self.cloud = nova.cloud
        self.network = self._network()

    def _network(self) -> str:
        api = self.cloud.api("demo")
        made = api.post("network", "/networks", {"network": {"name": unique("net")}})
        assert made.status == 201, made.text
        network: str = made["network"]["id"]
        subnet = {"network_id": network, "cidr": "10.8.0.0/24", "ip_version": 4}
        assert api.post("network", "/subnets", {"subnet": subnet}).status == 201
        return network

    def volume(self, size: int = 1) -> str:
        api = self.cloud.api("demo")
        made = api.post("volume", "/volumes", {"volume": {"size": size}})
        assert made.status == 202, made.text
        volume: str = made["volume"]["id"]
        self.cloud.wait(lambda: api.get("volume", f"/volumes/{volume}")["volume"]["status"] == "available")
        return volume

    def boot(self, *, volume: bool = False, **more: Any) -> str:
        server = self.nova.boot(networks=[{"uuid": self.network}], **more)
        if volume:
            body = {"volumeAttachment": {"volumeId": self.volume()}}
            assert self.nova.post(f"/servers/{server}/os-volume_attachments", body).status == 200
            self.cloud.wait(lambda: self.exports(server))
        return server

    def host(self, server: str) -> str:
        name: str = self.admin.show(server)["OS-EXT-SRV-ATTR:host"]
        return name

    def world(self, host: str) -> Any:
        return self.cloud.hosts[host].fake.world.state

    def content(self, server: str) -> str:
        """What the root disk holds, at the host where the server is."""
        text: str = self.world(self.host(server)).disks[server].content
        return text

    def running(self, server: str) -> list[str]:
        """The hosts where the guest runs."""
        return [
            name
            for name in self.cloud.hosts
            if (domain := dict.get(self.world(name).domains, server)) is not None and domain.power_state == 1
        ]

    def say(self, host: str, server: str, power_state: int) -> None:
        """The host reports this of the server, and nothing that is newer."""
        report = ServerReport(host=host, server_id=server, sequence=1 << 62, power_state=power_state)
        self.cloud.bus.call("conductor", report)

    def force_down(self, host: str, *, down: bool) -> None:
        """An operator vouches for it."""
        found = self.admin.get(f"/os-services?host={host}&binary=nova-compute")["services"][0]
        assert self.admin.put(f"/os-services/{found['id']}", {"forced_down": down}).status == 200

    def unheard_of(self, host: str) -> None:
        """It has been silent for longer than a host that lives."""
        hosts = self.cloud.control.hosts

        def work(tx: Any) -> None:
            tx.run(update(HOSTS).where(HOSTS.c.name == host).values(seen_at=0))
            tx.after_commit(hosts.refresh)

        self.cloud.control.db.write(work)
        self.cloud.wait(lambda: host not in self.cloud.up_hosts())

    def tellers(self, server: str) -> list[str]:
        """The hosts whose word of the server is kept."""
        statement = select(VMMS.c.host).where(VMMS.c.server_id == server)
        return sorted(self.cloud.control.db.read(lambda tx: [row[0] for row in tx.rows(statement)]))

    def traces(self, server: str) -> list[str]:
        """The hosts where something of the server is."""
        found = []
        for name in self.cloud.hosts:
            world = self.world(name)
            kinds = (world.domains, world.disks, world.aside, world.offers, world.doors)
            if any(server in kind for kind in kinds) or server in world.taps.values():
                found.append(name)
        return found

    def exports(self, server: str) -> dict[str, str]:
        """Volume -> which host its one export goes to."""
        compute = self.cloud.control.compute

        def work(tx: Any) -> dict[str, str]:
            found = {}
            for disk in store.disks(tx, [server]).get(server, []):
                attachment = compute.parts.volumes.attachment(tx, disk.attachment_id)
                if attachment.status == "attached" and disk.connection is not None:
                    found[disk.volume_id] = attachment.host
            return found

        return dict(self.cloud.control.db.read(work))

    def port(self, server: str) -> dict[str, Any]:
        found = self.cloud.api("admin").get("network", f"/ports?device_id={server}")["ports"]
        assert len(found) == 1
        port: dict[str, Any] = found[0]
        return port

    def allocations(self, consumer: str) -> dict[str, dict[str, int]]:
        """Host -> what of it the consumer has."""
        control = self.cloud.control

        def work(tx: Any) -> dict[str, dict[str, int]]:
            names = {host.uuid: host.name for host in control.hosts.list(tx)}
            return {names[uuid]: used for uuid, used in control.placement.allocations(tx, consumer).items()}

        return dict(control.db.read(work))

    def migrations(self, server: str, **query: str) -> list[dict[str, Any]]:
        path = "/os-migrations?" + "&".join(f"{k}={v}" for k, v in {"instance_uuid": server, **query}.items())
        found = self.admin.get(path)
        assert found.status == 200, found.text
        rows: list[dict[str, Any]] = found["migrations"]
        return rows

    def events(self, server: str, action: str) -> list[str]:
        for one in self.admin.get(f"/servers/{server}/os-instance-actions")["instanceActions"]:
            if one["action"] == action:
                path = f"/servers/{server}/os-instance-actions/{one['request_id']}"
                return [event["event"] for event in self.admin.get(path)["instanceAction"]["events"]]
        raise AssertionError(f"no action {action}")

    def remove(self, server: str) -> None:
        self.nova.remove(server)
        self.cloud.settle()
        assert self.traces(server) == []
        assert self.allocations(server) == {}


def failed_action(nova: Nova, server: str, name: str) -> Any:
    """The instance action of this name, when it has failed."""
    admin = nova.as_user("admin")
    for one in admin.get(f"/servers/{server}/os-instance-actions")["instanceActions"]:
        found = admin.get(f"/servers/{server}/os-instance-actions/{one['request_id']}")["instanceAction"]
        if found["action"] == name and found["message"]:
            return found
    return None
