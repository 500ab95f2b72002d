"""What dnsmasq of one network is told: its command line and the three files it reads again on SIGHUP. Pure.

Options as Neutron's DHCP agent gives them: 6 (DNS), 3 (router), 121 and 249 (routes, among them the one to the metadata
address, which is on the DHCP server), 26 (MTU, also to clients that do not ask), 15 (domain), and those of
``extra_dhcp_opts`` per port.
"""

import ipaddress
from collections.abc import Iterable
from pathlib import Path

import msgspec

from cumulet.agent.contract import DhcpHost, NetworkDoc, SubnetDoc
from cumulet.agent.network.names import METADATA_IP


class Files(msgspec.Struct, frozen=True):
    """Names and contents. ``static`` is all that only a restart changes."""

    argv: list[str]
    hosts: str
    options: str
    names: str


def served(doc: NetworkDoc) -> list[SubnetDoc]:
    """The subnets this server gives addresses or options in."""
    return [s for s in doc.subnets if s.enable_dhcp and not (s.ip_version == 6 and s.ipv6_address_mode == "slaac")]


def build(doc: NetworkDoc, device: str, directory: Path, upstream: list[str], lease_seconds: int) -> Files:
    subnets = sorted(served(doc), key=lambda s: s.id)
    argv = [
        "dnsmasq",
        "--conf-file=",
        "--no-hosts",
        "--no-resolv",
        "--strict-order",
        "--bind-interfaces",
        f"--interface={device}",
        "--except-interface=lo",
        f"--pid-file={directory / 'pid'}",
        f"--dhcp-hostsfile={directory / 'host'}",
        f"--addn-hosts={directory / 'addn_hosts'}",
        f"--dhcp-optsfile={directory / 'opts'}",
        f"--dhcp-leasefile={directory / 'leases'}",
        "--dhcp-match=set:ipxe,175",
        "--dhcp-authoritative",
        "--no-negcache",
    ]
    for subnet in subnets:
        network = ipaddress.ip_network(subnet.cidr)
        if network.version == 4:
            argv.append(
                f"--dhcp-range=set:{_tag(subnet)},{network.network_address},static,{network.netmask},{lease_seconds}s"
            )
        else:
            argv.append(
                f"--dhcp-range=set:{_tag(subnet)},{network.network_address},static,{network.prefixlen},{lease_seconds}s"
            )
    leases = sum(min(ipaddress.ip_network(s.cidr).num_addresses, 65536) for s in subnets)
    argv.append(f"--dhcp-lease-max={max(leases, 256)}")
    argv.append(f"--dhcp-option-force=option:mtu,{doc.segment.mtu}")
    if doc.dns_domain:
        argv.append(f"--domain={doc.dns_domain.rstrip('.')}")
        argv.append(f"--local=/{doc.dns_domain.rstrip('.')}/")
    argv += [f"--server={server}" for server in upstream]
    return Files(argv=argv, hosts=_hosts(doc, subnets), options=_options(doc, subnets), names=_names(doc))


def reservations(doc: NetworkDoc) -> dict[str, str]:
    """IPv4 address -> MAC of the client that may have it."""
    by_id = {s.id: s for s in served(doc) if s.ip_version == 4}
    return {
        fixed.ip_address: host.mac_address.lower()
        for host in doc.hosts
        for fixed in host.fixed_ips
        if fixed.subnet_id in by_id
    }


def _tag(subnet: SubnetDoc) -> str:
    return "subnet-" + subnet.id


def _plain(text: str) -> str:
    """A value of a line of dnsmasq's files: nothing that starts another line."""
    return text.replace("\n", " ").replace("\r", " ")


def _name(host: DhcpHost, address: str, doc: NetworkDoc) -> str:
    name = host.hostname or "host-" + address.replace(".", "-").replace(":", "-")
    name = "".join(c if c.isalnum() or c in "-." else "-" for c in name.strip("."))
    domain = doc.dns_domain.rstrip(".")
    return name if not domain or name.endswith("." + domain) else f"{name}.{domain}"


def _hosts(doc: NetworkDoc, subnets: list[SubnetDoc]) -> str:
    by_id = {s.id: s for s in subnets}
    lines = []
    for host in sorted(doc.hosts, key=lambda h: h.port_id):
        tag = f"set:port-{host.port_id}," if host.extra_dhcp_opts else ""
        taken = set()
        for fixed in host.fixed_ips:
            subnet = by_id.get(fixed.subnet_id)
            if subnet is None or subnet.id in taken:  # dnsmasq gives a client one address of a range
                continue
            if subnet.ip_version == 6 and subnet.ipv6_address_mode == "dhcpv6-stateless":
                if tag:
                    lines.append(f"{host.mac_address},{tag.rstrip(',')}")
                continue
            taken.add(subnet.id)
            address = f"[{fixed.ip_address}]" if subnet.ip_version == 6 else fixed.ip_address
            lines.append(f"{host.mac_address},{tag}{_name(host, fixed.ip_address, doc)},{address}")
    return "".join(line + "\n" for line in lines)


def _options(doc: NetworkDoc, subnets: list[SubnetDoc]) -> str:
    lines = []
    for subnet in subnets:
        lines += _options_v4(doc, subnet, subnets) if subnet.ip_version == 4 else _options_v6(doc, subnet)
    for host in sorted(doc.hosts, key=lambda h: h.port_id):
        for option in host.extra_dhcp_opts:
            six = str(option.get("ip_version") or 4) == "6"
            name = option["opt_name"]
            if not name.isdecimal():
                name = f"option6:{name}" if six else f"option:{name}"
            elif six:
                name = f"option6:{name}"
            lines.append(f"tag:port-{host.port_id},{_plain(name)},{_plain(option['opt_value'])}")
    return "".join(line + "\n" for line in lines)


def _options_v4(doc: NetworkDoc, subnet: SubnetDoc, subnets: list[SubnetDoc]) -> list[str]:
    tag = f"tag:{_tag(subnet)}"
    lines = []
    servers = [a for a in subnet.dns_nameservers if ":" not in a]
    if subnet.dns_nameservers == ["0.0.0.0"]:  # Neutron's way to say: none at all
        lines.append(f"{tag},option:dns-server")
    elif servers or subnet.dhcp_ip:
        lines.append(f"{tag},option:dns-server,{','.join(servers or [subnet.dhcp_ip or ''])}")
    routes = [f"{r.destination},{r.nexthop}" for r in subnet.host_routes]
    told = {r.destination for r in subnet.host_routes}
    if subnet.dhcp_ip and f"{METADATA_IP}/32" not in told:
        routes.append(f"{METADATA_IP}/32,{subnet.dhcp_ip}")
    # the network's other subnets are on the same wire
    routes += [f"{s.cidr},0.0.0.0" for s in subnets if s.ip_version == 4 and s.id != subnet.id and s.cidr not in told]
    if subnet.gateway_ip:
        if "0.0.0.0/0" not in told:
            routes.append(f"0.0.0.0/0,{subnet.gateway_ip}")
        lines.append(f"{tag},option:router,{subnet.gateway_ip}")
    else:
        lines.append(f"{tag},option:router")
    if routes:
        lines.append(f"{tag},option:classless-static-route,{','.join(routes)}")
        lines.append(f"{tag},249,{','.join(routes)}")
    return lines


def _options_v6(doc: NetworkDoc, subnet: SubnetDoc) -> list[str]:
    servers = [a for a in subnet.dns_nameservers if ":" in a] or ([subnet.dhcp_ip] if subnet.dhcp_ip else [])
    tag = f"tag:{_tag(subnet)}"
    lines = []
    if servers:
        lines.append(f"{tag},option6:dns-server,{','.join(f'[{s}]' for s in servers)}")
    if doc.dns_domain:
        lines.append(f"{tag},option6:domain-search,{doc.dns_domain.rstrip('.')}")
    return lines


def _names(doc: NetworkDoc) -> str:
    """/etc/hosts of the network's resolver."""
    lines: list[str] = []
    for host in sorted(doc.hosts, key=lambda h: h.port_id):
        for fixed in host.fixed_ips:
            full = _name(host, fixed.ip_address, doc)
            short: Iterable[str] = [full.split(".")[0]] if "." in full else []
            lines.append("\t".join([fixed.ip_address, " ".join([full, *short])]))
    return "".join(line + "\n" for line in lines)
