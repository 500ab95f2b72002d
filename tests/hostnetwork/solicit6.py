"""DHCPv6 Solicit on eth0; prints the address that is advertised. `solicit6.py MAC`"""

import ipaddress
import socket
import struct
import sys


def option(code: int, body: bytes) -> bytes:
    return struct.pack("!HH", code, len(body)) + body


def main() -> None:
    duid = struct.pack("!HH", 3, 1) + bytes.fromhex(sys.argv[1].replace(":", ""))
    packet = b"\x01\x00\x00\x07" + option(1, duid) + option(3, struct.pack("!III", 1, 0, 0)) + option(8, b"\0\0")
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
        client.settimeout(1)
        client.bind(("::", 546))
        for _ in range(5):
            client.sendto(packet, ("ff02::1:2", 547, 0, socket.if_nametoindex("eth0")))
            try:
                reply = client.recv(2048)
            except TimeoutError:
                continue
            at = reply.find(struct.pack("!HH", 5, 24))  # IA address
            print(ipaddress.IPv6Address(reply[at + 4 : at + 20]) if at > 0 else reply.hex())
            return


if __name__ == "__main__":
    main()
