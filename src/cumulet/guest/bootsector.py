"""A guest of 512 bytes, assembled here: it prints a line on the serial console and then halts, using no CPU.

Enough for whatever needs a QEMU process and no operating system. A *cooperative* one looks at the ACPI registers of
QEMU's ``pc`` machine at each timer tick: it powers off when the power button is pressed and lets go of PCI devices
that are unplugged, as an operating system would; another (``cooperative=False``) is deaf to both.
"""

import struct

DISK_BYTES = 1 << 20
_LOAD = 0x7C00
_COM1 = 0x3F8
_PM1_STATUS, _PM1_CONTROL = 0x600, 0x604  # where SeaBIOS puts the PIIX4's power management
_PCI_DOWN, _PCI_EJECT, _PCI_SELECT = 0xAE04, 0xAE08, 0xAE10


class _Assembler:
    """Bytes with labels and short jumps."""

    def __init__(self) -> None:
        self.code = bytearray()
        self._labels: dict[str, int] = {}
        self._jumps: list[tuple[int, str]] = []
        self._addresses: list[tuple[int, str]] = []

    def emit(self, text: str) -> None:
        self.code += bytes.fromhex(text)

    def label(self, name: str) -> None:
        self._labels[name] = len(self.code)

    def jump(self, opcode: str, name: str) -> None:
        self.emit(opcode + "00")
        self._jumps.append((len(self.code), name))

    def address(self, opcode: str, name: str) -> None:
        self.emit(opcode + "0000")
        self._addresses.append((len(self.code) - 2, name))

    def port(self, number: int) -> None:
        self.emit("ba" + struct.pack("<H", number).hex())  # mov dx, number

    def sector(self) -> bytes:
        for after, name in self._jumps:
            self.code[after - 1 : after] = struct.pack("<b", self._labels[name] - after)
        for place, name in self._addresses:
            self.code[place : place + 2] = struct.pack("<H", _LOAD + self._labels[name])
        if len(self.code) > 440:  # what follows belongs to the partition table
            raise ValueError("the boot sector is full: shorten the message")
        return bytes(self.code).ljust(510, b"\0") + b"\x55\xaa"


def _start(asm: _Assembler) -> None:
    asm.emit("fa 31c0 8ed8 8ec0 8ed0 bc007c fb fc")  # cli; ds = es = ss = 0; sp = 7c00; sti; cld


def _print_routine(asm: _Assembler) -> None:
    """``print``: the zero-ended text at si, to the first serial port."""
    asm.label("print")
    asm.emit("ac 84c0")  # lodsb; test al, al
    asm.jump("74", "printed")
    asm.emit("88c4")  # mov ah, al
    asm.port(_COM1 + 5)
    asm.label("busy")
    asm.emit("ec a820")  # in al, dx; test al, 20h
    asm.jump("74", "busy")
    asm.port(_COM1)
    asm.emit("88e0 ee")  # mov al, ah; out dx, al
    asm.jump("eb", "print")
    asm.label("printed")
    asm.emit("c3")


def _call_print(asm: _Assembler, text: str) -> None:
    asm.address("be", text)  # mov si, text
    asm.emit("e80000")  # call print
    here = len(asm.code)
    asm.code[here - 2 : here] = struct.pack("<h", asm._labels["print"] - here)


def boot_sector(message: str = "cumulet: boot sector", *, cooperative: bool = True) -> bytes:
    """A raw disk of 1 MiB whose boot sector prints ``message`` and halts."""
    asm = _Assembler()
    _start(asm)
    asm.jump("eb", "main")
    _print_routine(asm)
    asm.label("main")
    if cooperative:
        asm.port(_PM1_STATUS + 2)
        asm.emit("b80001 ef")  # mov ax, 100h; out dx, ax: let the power button be seen
    _call_print(asm, "message")
    asm.label("halt")
    if cooperative:
        asm.port(_PM1_STATUS)
        asm.emit("ed f6c401")  # in ax, dx; test ah, 1: power button
        asm.jump("74", "pci")
        asm.port(_PM1_CONTROL)
        asm.emit("b80020 ef")  # mov ax, 2000h; out dx, ax: soft off
        asm.label("pci")
        asm.port(_PCI_SELECT)
        asm.emit("6631c0 66ef")  # xor eax, eax; out dx, eax: the root bus
        asm.port(_PCI_DOWN)
        asm.emit("66ed 6685c0")  # in eax, dx; test eax, eax
        asm.jump("74", "sleep")
        asm.port(_PCI_EJECT)
        asm.emit("66ef")  # out dx, eax
        asm.label("sleep")
        asm.emit("f4")  # hlt: until the next timer tick
    else:
        asm.emit("fa f4")  # cli; hlt: for ever
    asm.jump("eb", "halt")
    asm.label("message")
    asm.code += message.encode("ascii") + b"\r\n\0"
    return asm.sector().ljust(DISK_BYTES, b"\0")


def speed_sector(rounds: int = 2_000_000) -> bytes:
    """Prints ``A``, works through ``rounds`` of a small loop (memory, arithmetic, a branch), prints ``B``, halts: what
    the host measures its speed by."""
    asm = _Assembler()
    _start(asm)
    asm.jump("eb", "main")
    _print_routine(asm)
    asm.label("main")
    _call_print(asm, "begin")
    asm.emit("66b9" + struct.pack("<I", rounds).hex())  # mov ecx, rounds
    asm.emit("bb0080")  # mov bx, 8000h
    asm.label("round")
    asm.emit("668b07 6601c8 6631d0 668907 66c1c803")  # eax = [bx]; += ecx; ^= edx; [bx] = eax; ror eax, 3
    asm.emit("6649")  # dec ecx
    asm.jump("75", "round")
    _call_print(asm, "end")
    asm.label("halt")
    asm.emit("fa f4")
    asm.jump("eb", "halt")
    asm.label("begin")
    asm.code += b"A\0"
    asm.label("end")
    asm.code += b"B\0"
    return asm.sector().ljust(DISK_BYTES, b"\0")


def boot_sector_qcow2(message: str = "cumulet: boot sector", *, cooperative: bool = True) -> bytes:
    """The same disk as a qcow2 (version 2) of 3.5 KiB."""
    return sector_in_qcow2(boot_sector(message, cooperative=cooperative)[:512], DISK_BYTES)


def sector_in_qcow2(sector: bytes, virtual_size: int) -> bytes:
    """A qcow2 with clusters of 512 bytes: header, refcounts (table, block), level 1, level 2, the sector."""
    cluster = 512
    l1_entries = -(-virtual_size // (cluster * (cluster // 8)))
    l1_clusters = -(-l1_entries * 8 // cluster)
    l2_at = 3 + l1_clusters
    header = struct.pack(
        ">4sIQIIQIIQQIIQ",
        b"QFI\xfb", 2, 0, 0, 9, virtual_size, 0, l1_entries, 3 * cluster, cluster, 1, 0, 0,
    )  # fmt: skip
    copied = 1 << 63
    refcounts = struct.pack(f">{l2_at + 2}H", *[1] * (l2_at + 2))
    parts = [
        header,
        struct.pack(">Q", 2 * cluster),
        refcounts,
        struct.pack(">Q", l2_at * cluster | copied).ljust(l1_clusters * cluster, b"\0"),
        struct.pack(">Q", (l2_at + 1) * cluster | copied),
        sector,
    ]
    return b"".join(part.ljust(-(-len(part) // cluster) * cluster, b"\0") for part in parts)
