"""What an attribute of a network resource is, and the checks of values that come in.

Owns: parsing and normalising single values (addresses, MACs, routes, UUIDs, booleans). Refuses with 400
HTTPBadRequest. A check returns the value in the form it is stored in. Whether a value makes sense together with
others, or with what is in the database, is decided in the noun's own module.
"""

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cumulet.kernel.ids import is_uuid
from cumulet.services.network.faults import bad

Check = Callable[[str, Any], Any]


class _Marker:
    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


REQUIRED: Any = _Marker("REQUIRED")
UNSET: Any = _Marker("UNSET")  # not given, and there is no fixed default: the noun decides


@dataclass(frozen=True, kw_only=True)
class Attr:
    """``post``/``put``: may be given there. ``default``: when not given in POST. ``policy``: giving another value than
    the default needs the attribute's own rule. ``show``: in answers."""

    check: Check | None = None
    post: bool = False
    put: bool = False
    default: Any = UNSET
    show: bool = True
    filter: bool = False
    sort: bool = False
    policy: bool = False
    kind: str = "string"  # type in OpenAPI, and how filter values are read


def refuse(name: str, why: str) -> Exception:
    return bad(f"Invalid input for {name}. Reason: {why}")


def _quote(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


# -- simple values ----------------------------------------------------------------------------------------


def text(limit: int | None, *, null: bool = False, empty: bool = True, strip: bool = False) -> Check:
    def check(name: str, value: Any) -> Any:
        if value is None and null:
            return None
        if not isinstance(value, str):
            raise refuse(name, f"{_quote(value)} is not a valid string.")
        if strip:
            value = value.strip()
        if limit is not None and len(value) > limit:
            raise refuse(name, f"{_quote(value)} exceeds the maximum length of {limit}.")
        if not empty and not value.strip():
            raise refuse(name, "it must not be blank.")
        if "\x00" in value:
            raise refuse(name, "it holds a NUL character.")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise refuse(name, "it is not valid Unicode.") from None
        return value

    return check


def to_boolean(value: Any) -> bool | None:
    """The forms in which clients write a boolean; None: not one."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return {0: False, 1: True}.get(value)
    if isinstance(value, str):
        return {"true": True, "1": True, "false": False, "0": False}.get(value.lower())
    return None


def boolean(name: str, value: Any) -> bool:
    found = to_boolean(value)
    if found is None:
        raise refuse(name, f"{_quote(value)} cannot be taken as a boolean.")
    return found


def integer(low: int | None = None, high: int | None = None, *, null: bool = False) -> Check:
    def check(name: str, value: Any) -> Any:
        if value is None and null:
            return None
        try:
            if isinstance(value, bool | float):
                raise ValueError
            number = int(value)
        except (TypeError, ValueError):
            raise refuse(name, f"{_quote(value)} is not an integer.") from None
        if (low is not None and number < low) or (high is not None and number > high):
            raise refuse(name, f"{number} is not between {low} and {high if high is not None else 'unlimited'}.")
        return number

    return check


def one_of(*values: Any) -> Check:
    def check(name: str, value: Any) -> Any:
        if value not in values or isinstance(value, bool):
            raise refuse(name, f"{_quote(value)} is not in {list(values)}.")
        return value

    return check


def ip_version(name: str, value: Any) -> int:
    return int(one_of(4, 6)(name, integer()(name, value)))


def uuid(name: str, value: Any) -> str:
    if not is_uuid(value) or len(value) != 36:
        raise refuse(name, f"{_quote(value)} is not a valid UUID.")
    return str(value)


def uuid_or_none(name: str, value: Any) -> str | None:
    return None if value is None else uuid(name, value)


def _list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise refuse(name, f"{_quote(value)} is not a list.")
    return value


def uuid_list(name: str, value: Any) -> list[str]:
    found = [uuid(name, item) for item in _list(name, value or [])]
    if len(set(found)) != len(found):
        raise refuse(name, "it holds duplicate items.")
    return found


def text_list(name: str, value: Any) -> list[str]:
    found = [text(255)(name, item) for item in _list(name, value or [])]
    if len(set(found)) != len(found):
        raise refuse(name, "it holds duplicate items.")
    return found


def mapping_or_none(name: str, value: Any) -> dict[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise refuse(name, f"{_quote(value)} is not a dictionary.")
    return value or {}


# -- addresses ----------------------------------------------------------------------------------------------


def ip_address(name: str, value: Any) -> str:
    try:
        if not isinstance(value, str) or "/" in value:
            raise ValueError
        return str(ipaddress.ip_address(value))
    except ValueError:
        raise refuse(name, f"{_quote(value)} is not a valid IP address.") from None


def ip_address_or_none(name: str, value: Any) -> str | None:
    return None if value is None else ip_address(name, value)


def cidr(name: str, value: Any) -> str:
    """A network address with its length, without host bits."""
    try:
        if not isinstance(value, str):
            raise ValueError
        return str(ipaddress.ip_network(value))
    except ValueError:
        raise refuse(name, f"{_quote(value)} is not a valid IP subnet.") from None


def cidr_or_none(name: str, value: Any) -> str | None:
    return None if value is None else cidr(name, value)


def cidr_list(name: str, value: Any) -> list[str]:
    found = [cidr(name, item) for item in _list(name, value)]
    if len(set(found)) != len(found):
        raise refuse(name, "it holds duplicate items.")
    return found


_MAC = re.compile(r"[0-9a-f]{2}([:-][0-9a-f]{2}){5}\Z")


def mac_address(name: str, value: Any) -> str:
    if not isinstance(value, str) or not _MAC.match(value.lower()):
        raise refuse(name, f"{_quote(value)} is not a valid MAC address.")
    found = value.lower().replace("-", ":")
    if found == "00:00:00:00:00:00" or int(found[:2], 16) & 1:
        raise refuse(name, f"{value} is not the address of one interface.")
    return found


def pools(name: str, value: Any) -> list[list[str]]:
    found = []
    for item in _list(name, value):
        if not isinstance(item, dict) or set(item) != {"start", "end"}:
            raise refuse(name, f"{_quote(item)} is not a pool with start and end.")
        found.append([ip_address(name, item["start"]), ip_address(name, item["end"])])
    return found


def nameservers(name: str, value: Any) -> list[str]:
    found = [ip_address(name, item) for item in _list(name, value or [])]
    if len(set(found)) != len(found):
        raise refuse(name, "it holds duplicate items.")
    return found


def host_routes(name: str, value: Any) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    for item in _list(name, value or []):
        if not isinstance(item, dict) or set(item) != {"destination", "nexthop"}:
            raise refuse(name, f"{_quote(item)} is not a route with destination and nexthop.")
        route = {
            "destination": cidr(name, item["destination"]),
            "nexthop": ip_address(name, item["nexthop"]),
        }
        if route in found:
            raise refuse(name, "it holds duplicate items.")
        found.append(route)
    return found


def fixed_ips(name: str, value: Any) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    for item in _list(name, value if value is not None else []):
        if not isinstance(item, dict) or not item or set(item) - {"subnet_id", "ip_address"}:
            raise refuse(name, f"{_quote(item)} is not a fixed IP with subnet_id or ip_address.")
        one = {}
        if item.get("ip_address") is not None:
            one["ip_address"] = ip_address(name, item["ip_address"])
        if item.get("subnet_id") is not None:
            one["subnet_id"] = uuid(name, item["subnet_id"])
        if "ip_address" in one and any(one["ip_address"] == other.get("ip_address") for other in found):
            raise refuse(name, f"duplicate IP address {one['ip_address']}.")
        found.append(one)
    return found


def address_pairs(name: str, value: Any) -> list[dict[str, str]]:
    if value is None:
        value = []
    found: list[dict[str, str]] = []
    for item in _list(name, value):
        if not isinstance(item, dict) or set(item) - {"ip_address", "mac_address"}:
            raise refuse(name, f"{_quote(item)} is not a pair of ip_address and mac_address.")
        if "ip_address" not in item:
            raise bad("An allowed address pair must have an ip_address.", "AllowedAddressPairsMissingIP")
        raw = item["ip_address"]
        try:
            if not isinstance(raw, str):
                raise ValueError
            network = ipaddress.ip_network(raw, strict=False)
        except ValueError:
            raise refuse(name, f"{_quote(raw)} is not a valid IP subnet.") from None
        one = {"ip_address": str(network) if "/" in raw else str(network.network_address)}
        if item.get("mac_address") is not None:
            one["mac_address"] = mac_address(name, item["mac_address"])
        if one in found:
            raise bad(f"The allowed address pair {one} is given twice.", "DuplicateAddressPairInRequest")
        found.append(one)
    if len(found) > 10:
        raise bad("A port may have 10 allowed address pairs.", "AllowedAddressPairExhausted")
    return found


def dhcp_options(name: str, value: Any) -> list[dict[str, Any]] | None:
    if value is None:
        return None
    found = []
    for item in _list(name, value):
        if not isinstance(item, dict) or set(item) - {"opt_name", "opt_value", "ip_version", "id"}:
            raise refuse(name, f"{_quote(item)} is not a DHCP option.")
        if "opt_value" not in item:
            raise refuse(name, "an option has no opt_value.")
        found.append(
            {
                "opt_name": text(64, empty=False)(name, item.get("opt_name")),
                "opt_value": text(255, null=True)(name, item["opt_value"]),
                "ip_version": ip_version(name, item.get("ip_version", 4)),
            }
        )
    return found


_LABEL = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)\Z", re.IGNORECASE)


def dns_name(name: str, value: Any) -> str:
    """A host name, in full or in part; "" for none."""
    found: str = text(255)(name, value)
    for label in found.rstrip(".").split(".") if found else []:
        if not _LABEL.match(label):
            raise refuse(name, f"{_quote(value)} is not a valid DNS name.")
    return found.lower()


def dns_domain(name: str, value: Any) -> str:
    found = dns_name(name, value)
    if found and not found.endswith("."):
        raise refuse(name, f"{_quote(value)} must end with a dot.")
    return found


def service_types(name: str, value: Any) -> list[str]:
    found = text_list(name, value)
    for item in found:
        if not (item.startswith(("network:", "compute:"))):
            raise refuse(name, f"{_quote(item)} is not a service type of a port.")
    return found


def gateway_info(name: str, value: Any) -> dict[str, Any] | None:
    """external_gateway_info: None or {} takes the gateway away."""
    if not value:
        if value not in (None, {}, ""):
            raise refuse(name, f"{_quote(value)} is not a dictionary.")
        return None
    if not isinstance(value, dict):
        raise refuse(name, f"{_quote(value)} is not a dictionary.")
    extra = set(value) - {"network_id", "enable_snat", "external_fixed_ips"}
    if extra:
        raise refuse(name, f"unknown keys {sorted(map(str, extra))}.")
    found: dict[str, Any] = {}
    if value.get("network_id") is None:
        raise refuse(name, "network_id is missing.")
    found["network_id"] = uuid(name, value["network_id"])
    if value.get("enable_snat") is not None:
        found["enable_snat"] = boolean(name, value["enable_snat"])
    if value.get("external_fixed_ips") is not None:
        found["external_fixed_ips"] = fixed_ips(name, value["external_fixed_ips"])
    return found
