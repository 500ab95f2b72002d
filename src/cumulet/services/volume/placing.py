"""Which storage host takes a volume: the one of its source, else the one with the most room left; and which may it move
to."""

from collections.abc import Callable
from typing import Any

from cumulet.db import Tx
from cumulet.kernel.errors import NoValidHost
from cumulet.services.volume import store
from cumulet.services.volume.store import TypeRow, VolumeRow

BACKEND = "file"
PROTOCOL = "nbd"
VENDOR = "Open Source"
FROZEN = "frozen"  # why a host is disabled, when it also deletes nothing


def backend_name(host: str) -> str:
    """As cinder names a pool: host@backend#pool."""
    return f"{host}@{BACKEND}#{BACKEND}"


def host_of(backend: str) -> str:
    return backend.partition("@")[0].partition("#")[0]


def named(backend: str) -> str | None:
    """The host that is meant by ``host@backend#pool``, by ``host@backend`` or by its name alone; None: by no name of
    ours."""
    host, _, rest = backend.partition("@")
    return host if rest in ("", BACKEND, f"{BACKEND}#{BACKEND}") else None


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


def _lacks(host: Any, volume: VolumeRow, kind: TypeRow | None) -> str | None:
    """Why a host cannot take a volume; None if it can."""
    if not host.up:
        return "down"
    if "storage" in host.disabled_roles:
        return "disabled"
    if kind is not None and not _fits(kind.extra_specs, capabilities(host)):
        return "not what the volume type asks for"
    if host.resources.volume_free_gb < volume.size_gb:
        return "too little room"
    return None


def _kind(tx: Tx, volume: VolumeRow) -> TypeRow | None:
    return store.TYPES.find(tx, volume.volume_type_id) if volume.volume_type_id is not None else None


def refuses(tx: Tx, hosts: Any, volume: VolumeRow, host_name: str) -> str | None:
    """Why a volume cannot move to this host; None if it can."""
    if host_name in store.copies_of(tx, volume.id):
        return "it still has an old copy, which goes when the host next compares itself with the cloud"
    for host in storage_hosts(tx, hosts):
        if host.name == host_name:
            return _lacks(host, volume, _kind(tx, volume))
    return "it is no storage host"


def choose(tx: Tx, hosts: Any, volume: VolumeRow, backup_id: str | None = None) -> str:
    """Where a new volume goes. Raises NoValidHost with how many hosts each rule removed."""
    source = _home_of_source(tx, volume, backup_id)
    return _best(tx, hosts, volume, lambda host: source is None or host == source, "not the host of the source")


def choose_other(tx: Tx, hosts: Any, volume: VolumeRow) -> str:
    """Where a volume can move. Raises NoValidHost."""
    taken = {volume.host, *store.copies_of(tx, volume.id)}
    return _best(tx, hosts, volume, lambda host: host not in taken, "where it is already")


def _best(tx: Tx, hosts: Any, volume: VolumeRow, allowed: Callable[[str], bool], otherwise: str) -> str:
    promised = {host: size for host, (size, _) in store.placed(tx).items()}
    reasons: dict[str, int] = {}
    best: tuple[float, str] | None = None
    kind = _kind(tx, volume)
    for host in storage_hosts(tx, hosts):
        why = _lacks(host, volume, kind) if allowed(host.name) else otherwise
        if why is not None:
            reasons[why] = reasons.get(why, 0) + 1
            continue
        room = host.resources.volume_total_gb - promised.get(host.name, 0)
        if best is None or room > best[0]:
            best = (room, host.name)
    if best is not None and not hosts.keep(tx, best[1]):
        best, reasons["removed"] = None, 1
    if best is None:
        raise NoValidHost("No valid backend was found. No weighed backends available", reasons=reasons)
    return best[1]


def _home_of_source(tx: Tx, volume: VolumeRow, backup_id: str | None) -> str | None:
    if backup_id is not None:
        backup = store.BACKUPS.find(tx, backup_id, change=False)
        return backup.host if backup is not None else None
    source_id = volume.source_volid
    if volume.snapshot_id is not None:
        snapshot = store.SNAPSHOTS.find(tx, volume.snapshot_id, change=False)
        source_id = snapshot.volume_id if snapshot is not None else None
    if source_id is None:
        return None
    source = store.VOLUMES.find(tx, source_id, change=False)
    return source.host if source is not None else None
