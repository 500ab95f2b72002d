"""The ports of DHCP servers: one per host that serves a network, with an address in each subnet that has DHCP.

They are reserved here, in the transaction that needs them, so that hosts never ask for addresses.
"""

import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, delete, select

from cumulet.db import Tx
from cumulet.kernel.ids import new_uuid
from cumulet.services.network import ipam, state
from cumulet.services.network import tables as t
from cumulet.services.network.noun import Noun

if TYPE_CHECKING:
    from cumulet.services.network.work import Work

OWNER = "network:dhcp"
_HOSTS = select(t.DHCP_HOSTS.c.host).where(t.DHCP_HOSTS.c.network_id == bindparam("network_id"))
_PORTS = select(t.PORTS).where(t.PORTS.c.network_id == bindparam("network_id"), t.PORTS.c.device_owner == OWNER)
_OTHERS = select(t.PORTS).where(
    t.PORTS.c.network_id == bindparam("network_id"), ~t.PORTS.c.device_owner.startswith("network:router_")
)
_DROP = delete(t.ADDRESSES).where(
    t.ADDRESSES.c.port_id == bindparam("_port"), t.ADDRESSES.c.subnet_id == bindparam("_subnet")
)


def device_id(network_id: str, host: str) -> str:
    return f"dhcp{uuid.uuid5(uuid.NAMESPACE_DNS, host.split('.')[0])}-{network_id}"


class DhcpPorts(Noun[t.PortRow]):
    """The part of `ports.Ports` that keeps DHCP ports."""

    def macs_taken(self, tx: Tx, network_id: str, macs: list[str]) -> set[str]:
        raise NotImplementedError

    def addresses_of(self, tx: Tx, port_ids: Any) -> dict[str, list[t.AddressRow]]:
        raise NotImplementedError

    def set_host(self, work: "Work", row: t.PortRow, host: str) -> None:
        raise NotImplementedError

    def delete_rows(self, work: "Work", rows: Sequence[t.PortRow]) -> None:
        raise NotImplementedError

    def dhcp_hosts(self, tx: Tx, network_id: str) -> list[str]:
        return [row[0] for row in tx.rows(_HOSTS, {"network_id": network_id})]

    def dhcp_ports(self, tx: Tx, network_id: str) -> list[t.PortRow]:
        return [t.PortRow(*row) for row in tx.rows(_PORTS, {"network_id": network_id})]

    def sync_dhcp_ports(self, work: "Work", network_id: str) -> None:
        """Make ports and addresses of DHCP servers what hosts and subnets say they should be."""
        tx = work.tx
        tx.lock("subnet-addresses", network_id)
        subnets = [s for s in self.service.subnets.of_networks(tx, [network_id]) if s.enable_dhcp]
        if subnets and not self.dhcp_hosts(tx, network_id):
            self.service.agents.schedule_network(work, network_id)
        hosts = self.dhcp_hosts(tx, network_id) if subnets else []
        ports = self.dhcp_ports(tx, network_id)
        self.delete_rows(work, [port for port in ports if port.host not in hosts])
        here = {port.host: port for port in ports if port.host in hosts}
        have = self.addresses_of(tx, [port.id for port in here.values()])
        for host in hosts:
            port = here.get(host) or self._new_dhcp_port(work, network_id, host)
            mine = {a.subnet_id for a in have.get(port.id, [])}
            wanted = {s.id for s in subnets}
            for subnet_id in mine - wanted:
                tx.run(_DROP, {"_port": port.id, "_subnet": subnet_id})
            for subnet in subnets:
                if subnet.id not in mine:
                    self._add(tx, port, subnet)
        work.networks.add(network_id)

    def _add(self, tx: Tx, port: t.PortRow, subnet: t.SubnetRow) -> None:
        """A subnet without a free address goes without this DHCP server, as when an agent asks too late."""
        free = ipam.Free(tx, subnet)
        values = free.auto(port.mac_address) if ipam.is_auto_address(subnet) else free.next()
        if values is not None:
            tx.insert(t.ADDRESSES, {**values, "port_id": port.id})

    def _new_dhcp_port(self, work: "Work", network_id: str, host: str) -> t.PortRow:
        from cumulet.services.network.ports import new_mac

        tx = work.tx
        network = self.service.networks.get(tx, network_id)
        mac = new_mac()
        while self.macs_taken(tx, network_id, [mac]):
            mac = new_mac()
        row = infrastructure_port(tx, network, mac, OWNER, device_id(network_id, host), network.project_id)
        self.set_host(work, row, host)
        row.status = state.port_status(row)
        tx.insert(t.PORTS, row.values())
        work.port_changed(row)
        return row

    def add_infrastructure(
        self,
        work: "Work",
        network: t.NetworkRow,
        owner: str,
        device: str,
        project_id: str,
        wanted: Any,
        host: str,
    ) -> t.PortRow:
        """A port of a router or a floating IP, with its addresses. The caller holds the network's address lock."""
        from cumulet.services.network.allocation import Allocation
        from cumulet.services.network.ports import new_mac

        tx = work.tx
        mac = new_mac()
        while self.macs_taken(tx, network.id, [mac]):
            mac = new_mac()
        subnets = self.service.subnets.of_networks(tx, [network.id])
        addresses = Allocation(tx, network.id, subnets, bulk=False, frontiers=self.service.frontiers).choose(
            wanted, mac, owner
        )
        row = infrastructure_port(tx, network, mac, owner, device, project_id)
        if host:
            self.set_host(work, row, host)
        row.status = state.port_status(row)
        tx.insert(t.PORTS, row.values())
        tx.insert(t.ADDRESSES, [{**values, "port_id": row.id} for values in addresses])
        work.port_changed(row)
        return row

    def settle_row(self, tx: Tx, row: t.PortRow) -> None:
        row.status = state.port_status(row)
        self.save(tx, row)

    # -- when subnets come and go ------------------------------------------------------------------------------------

    def subnet_added(self, work: "Work", subnet: t.SubnetRow) -> None:
        tx = work.tx
        if ipam.is_auto_address(subnet):
            free = ipam.Free(tx, subnet)
            rows = [t.PortRow(*row) for row in tx.rows(_OTHERS, {"network_id": subnet.network_id})]
            tx.insert(t.ADDRESSES, [{**free.auto(row.mac_address), "port_id": row.id} for row in rows])
            for row in rows:
                work.port_changed(row)
        if subnet.enable_dhcp:
            self.sync_dhcp_ports(work, subnet.network_id)

    def subnet_gone(self, work: "Work", subnet: t.SubnetRow, port_ids: list[str]) -> None:
        for row in self.many(work.tx, port_ids).values():
            work.port_changed(row)
        self.sync_dhcp_ports(work, subnet.network_id)

    def delete_dhcp_ports(self, work: "Work", network_id: str) -> None:
        self.delete_rows(work, self.dhcp_ports(work.tx, network_id))


def infrastructure_port(tx: Tx, network: t.NetworkRow, mac: str, owner: str, device: str, project_id: str) -> t.PortRow:
    """A port of the cloud's own: no security groups, no filter."""
    return t.PortRow(
        id=new_uuid(),
        project_id=project_id,
        name="",
        description="",
        network_id=network.id,
        mac_address=mac,
        admin_state_up=True,
        status="DOWN",
        device_id=device,
        device_owner=owner,
        dns_name="",
        port_security_enabled=False,
        allowed_address_pairs=[],
        extra_dhcp_opts=[],
        ip_allocation="immediate",
        host="",
        vnic_type="normal",
        profile={},
        vif_type=state.UNBOUND,
        vif_details={},
        wired=False,
        powered=True,
        made_for_server=False,
        created_at=tx.now,
        updated_at=tx.now,
        revision=0,
    )
