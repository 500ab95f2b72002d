"""What the compute driver says of its host: processors, memory, disk, hypervisor. Cheap enough for every heartbeat."""

import os
import platform
from pathlib import Path
from typing import Any


def resources(directory: Path) -> dict[str, Any]:
    """Fields of ``HostResources`` that the kernel knows. Memory from /proc/meminfo: libvirt counts one NUMA node."""
    memory = _meminfo()
    disk = os.statvfs(directory)
    return {
        "vcpus": os.cpu_count() or 1,
        "memory_mb": memory["MemTotal"] // 1024,
        "memory_mb_used": (memory["MemTotal"] - memory["MemAvailable"]) // 1024,
        "local_gb": disk.f_blocks * disk.f_frsize >> 30,
        "local_gb_used": (disk.f_blocks - disk.f_bavail) * disk.f_frsize >> 30,
    }


def _meminfo() -> dict[str, int]:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return {name: int(rest.split()[0]) for name, rest in (line.split(":", 1) for line in lines)}


def cpu_info() -> dict[str, Any]:
    """In the form that ``os-hypervisors`` shows."""
    processors = [p for p in Path("/proc/cpuinfo").read_text().split("\n\n") if p.strip()]
    first = dict(_field(line) for line in processors[0].splitlines() if ":" in line)
    sockets = {dict(_field(line) for line in p.splitlines() if ":" in line).get("physical id", "0") for p in processors}
    cores, siblings = int(first.get("cpu cores", "1")), int(first.get("siblings", "1"))
    return {
        "arch": platform.machine(),
        "model": first.get("model name", ""),
        "vendor": {"GenuineIntel": "Intel", "AuthenticAMD": "AMD"}.get(first.get("vendor_id", ""), ""),
        "features": first.get("flags", first.get("Features", "")).split(),
        "topology": {"cells": 1, "sockets": len(sockets), "cores": cores, "threads": max(1, siblings // cores)},
    }


def _field(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip(), value.strip()
