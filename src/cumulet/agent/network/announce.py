"""Tell neighbours where an address lives now: gratuitous ARP and unsolicited neighbour advertisements, without external
programs. Sent at once and again a second later, for switches that were not ready."""

import contextlib
import ipaddress
import socket
import struct
import threading

from cumulet.agent.network.shell import in_namespace

_ETH_ARP = 0x0806
_ETH_IPV6 = 0x86DD


def announce(namespace: str, device: str, addresses: list[str], again_after: float = 1.0) -> None:
    in_namespace(namespace, lambda: _send(device, addresses))
    if again_after:
        timer = threading.Timer(again_after, _again, (namespace, device, addresses))
        timer.daemon = True
        timer.start()


def _again(namespace: str, device: str, addresses: list[str]) -> None:
    with contextlib.suppress(OSError):  # the namespace or device may be gone by now
        in_namespace(namespace, lambda: _send(device, addresses))


def _send(device: str, addresses: list[str]) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as packet:
        packet.bind((device, 0))
        mac = packet.getsockname()[4]
        for address in addresses:
            if ":" in address:
                packet.send(_advertisement(mac, ipaddress.IPv6Address(address)))
            else:
                raw = socket.inet_aton(address)
                for operation, target in ((1, b"\0" * 6), (2, mac)):
                    head = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation)
                    packet.send(b"\xff" * 6 + mac + struct.pack("!H", _ETH_ARP) + head + mac + raw + target + raw)


def _advertisement(mac: bytes, address: ipaddress.IPv6Address) -> bytes:
    """Unsolicited, override, to all nodes."""
    source, target = address.packed, ipaddress.IPv6Address("ff02::1").packed
    body = struct.pack("!BBHI", 136, 0, 0, 0x20000000) + source + b"\x02\x01" + mac
    pseudo = source + target + struct.pack("!II", len(body), 58)
    body = body[:2] + struct.pack("!H", _checksum(pseudo + body)) + body[4:]
    head = struct.pack("!IHBB", 0x60000000, len(body), 58, 255) + source + target
    return b"\x33\x33\x00\x00\x00\x01" + mac + struct.pack("!H", _ETH_IPV6) + head + body


def _checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
