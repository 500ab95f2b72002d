"""Which storage host takes a volume: the one of its source, else the one with the most room left."""

from typing import Any

from cumulet.db import Tx
from cumulet.kernel.errors import NoValidHost
from cumulet.services.volume import store
from cumulet.services.volume.store import VolumeRow

BACKEND = "file"
PROTOCOL = "nbd"
VENDOR = "Open Source"
FROZEN = "frozen"  # why a host is disabled, when it also deletes nothing


def backend_name(host: str) -> str:
    """As cinder names a pool: host@backend#pool."""
    return f"{host}@{BACKEND}#{BACKEND}"


def host_of(backend: str) -> str:
    return backend.partition("@")[0].partition("#")[0]


def storage_hosts(tx: Tx, hosts: Any) -> list[Any]:
    return list(hosts.list(tx, "storage"))


def frozen(tx: Tx, hosts: Any, host_name: str | None) -> bool:
    return any(
        host.name == host_name and host.disabled_roles.get("storage") == FROZEN for host in storage_hosts(tx, hosts)
    )


def capabilities(host: Any) -> dict[str, Any]:
    """What a host's pool offers; types choose by it (extra specs without a scope, or of ``capabilities:``)."""
    return {
        "volume_backend_name": BACKEND,
        "vendor_name": VENDOR,
        "driver_version": "1.0",
        "storage_protocol": PROTOCOL,
        "thin_provisioning_support": True,
        "thick_provisioning_support": False,
        "QoS_support": False,
        "multiattach": True,
        "online_extend_support": True,
    }


def _fits(specs: dict[str, str], offered: dict[str, Any]) -> bool:
    for key, wanted in specs.items():
        scope, _, name = key.rpartition(":")
        if scope not in ("", "capabilities"):
            continue
        if name not in offered:
            return False
        have = str(offered[name]).lower()
        text = wanted.strip().lower()
        if text.startswith("<is>"):
            good = have == text.removeprefix("<is>").strip()
        elif text.startswith("<in>"):
            good = text.removeprefix("<in>").strip() in have
        elif text.startswith("s=="):
            good = have == text.removeprefix("s==").strip()
        else:
            good = have == text
        if not good:
            return False
    return True


def choose(tx: Tx, hosts: Any, volume: VolumeRow, backup_id: str | None = None) -> str:
    """Raises NoValidHost with how many hosts each rule removed."""
    source = _home_of_source(tx, volume, backup_id)
    promised = {host: size for host, (size, _) in store.placed(tx).items()}
    reasons: dict[str, int] = {}
    best: tuple[float, str] | None = None
    kind = store.TYPES.find(tx, volume.volume_type_id) if volume.volume_type_id is not None else None
    for host in storage_hosts(tx, hosts):
        why = None
        if not host.up:
            why = "down"
        elif "storage" in host.disabled_roles:
            why = "disabled"
        elif kind is not None and not _fits(kind.extra_specs, capabilities(host)):
            why = "not what the volume type asks for"
        elif source is not None and host.name != source:
            why = "not the host of the source"
        elif host.resources.volume_free_gb < volume.size_gb:
            why = "too little room"
        if why is not None:
            reasons[why] = reasons.get(why, 0) + 1
            continue
        room = host.resources.volume_total_gb - promised.get(host.name, 0)
        if best is None or room > best[0]:
            best = (room, host.name)
    if best is None:
        raise NoValidHost("No valid backend was found. No weighed backends available", reasons=reasons)
    return best[1]


def _home_of_source(tx: Tx, volume: VolumeRow, backup_id: str | None) -> str | None:
    if backup_id is not None:
        backup = store.BACKUPS.find(tx, backup_id)
        return backup.host if backup is not None else None
    source_id = volume.source_volid
    if volume.snapshot_id is not None:
        snapshot = store.SNAPSHOTS.find(tx, volume.snapshot_id)
        source_id = snapshot.volume_id if snapshot is not None else None
    if source_id is None:
        return None
    source = store.VOLUMES.find(tx, source_id)
    return source.host if source is not None else None
