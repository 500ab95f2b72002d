"""Pure rules about ports: addresses against security, DNS names, address pairs."""

import ipaddress
from collections.abc import Sequence

from cumulet.services.network import tables as t
from cumulet.services.network.faults import bad, conflict


def with_mac(pairs: list[dict[str, str]], mac: str) -> list[dict[str, str]]:
    """Pairs without a MAC are about the port's own."""
    return [{"mac_address": pair.get("mac_address") or mac, "ip_address": pair["ip_address"]} for pair in pairs or []]


def check_security(row: t.PortRow, groups: list[str], *, explicit: bool) -> None:
    if row.port_security_enabled:
        return
    if groups:
        if explicit:
            raise bad("Security groups need port security.", "PortSecurityAndIPRequiredForSecurityGroups")
        raise conflict("PortSecurityPortHasSecurityGroup", "Port has security group associated: take them away first.")
    if row.allowed_address_pairs:
        raise conflict("AddressPairAndPortSecurityRequired", "Allowed address pairs need port security.")


def match_addresses(
    have: list[t.AddressRow], wanted: list[dict[str, str]]
) -> tuple[list[t.AddressRow], list[dict[str, str]]]:
    """Which of the addresses a port has are among those wanted, and which wanted ones are left to find. An entry
    with only a subnet is met by any address the port has there."""
    left, kept, rest = list(have), [], []
    exact = [w for w in wanted if "ip_address" in w]
    for item in [*exact, *(w for w in wanted if "ip_address" not in w)]:
        for address in left:
            if item.get("ip_address", address.ip_address) == address.ip_address and (
                item.get("subnet_id", address.subnet_id) == address.subnet_id
            ):
                left.remove(address)
                kept.append(address)
                break
        else:
            rest.append(item)
    return kept, rest


def host_name(name: str, address: str) -> str:
    """What DNS and DHCP call a port's address."""
    if name:
        return name.rstrip(".").split(".")[0]
    if ":" in address:
        address = ipaddress.ip_address(address).exploded.replace(":", "-")
    return "host-" + address.replace(".", "-")


def dns_assignment(name: str, addresses: Sequence[t.AddressRow], domain: str) -> list[dict[str, str]]:
    found = []
    for address in addresses:
        hostname = host_name(name, address.ip_address)
        fqdn = name if name.endswith(".") else f"{hostname}.{domain}"
        found.append({"ip_address": address.ip_address, "hostname": hostname, "fqdn": fqdn})
    return found
