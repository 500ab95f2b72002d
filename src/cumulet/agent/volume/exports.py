"""Which volumes are reachable, for which attachment: recorded on disk first, then served by the storage daemon.

An attachment's export carries the attachment's generation in its name. A newer generation replaces the older export at
the daemon (its client is cut off), an older one is refused: a host that was fenced cannot come back. After the daemon
died, `restore` serves everything recorded again.
"""

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import msgspec

from cumulet.agent.contract import DiskConnection, Drift
from cumulet.agent.errors import DriverError
from cumulet.agent.volume.daemon import StorageDaemon
from cumulet.agent.volume.files import FileVolumes
from cumulet.agent.volume.qmp import Qmp

_log = logging.getLogger(__name__)


class ExportRecord(msgspec.Struct, frozen=True):
    volume_id: str
    attachment_id: str
    generation: int
    host: str
    served: bool = True  # False: taken back; the generation is remembered as long as the volume lives

    @property
    def name(self) -> str:
        return f"{self.attachment_id}.{self.generation}"


def _short(letter: str, text: str) -> str:
    """Names in the daemon hold 31 characters."""
    return letter + text.replace("-", "")[:30]


def node_name(volume_id: str) -> str:
    return _short("v", volume_id)


class Exports:
    def __init__(self, records: Path, volumes: FileVolumes, daemon: StorageDaemon, advertise: str | None) -> None:
        """``advertise``: host:port that other hosts connect to when the daemon listens on TCP."""
        self._records = records
        self._volumes = volumes
        self._daemon = daemon
        self._advertise = advertise

    def start(self) -> None:
        self._records.mkdir(parents=True, exist_ok=True)
        if self.all():
            self.restore()
        else:
            self._end_outdated()

    def _end_outdated(self) -> None:
        """One that serves nobody: the next shows the certificate that this host has now."""
        if self._daemon.outdated() and not self.all():
            self._daemon.stop()

    def all(self) -> list[ExportRecord]:
        return [record for record in self._recorded() if record.served]

    def _recorded(self) -> list[ExportRecord]:
        paths = sorted(self._records.glob("*.json"))
        return [msgspec.json.decode(path.read_bytes(), type=ExportRecord) for path in paths]

    def of(self, volume_id: str) -> list[ExportRecord]:
        return [record for record in self.all() if record.volume_id == volume_id]

    def is_open(self, volume_id: str) -> bool:
        """True if the daemon has the volume open."""
        if not self._daemon.running():
            return False
        with self._daemon.qmp() as qmp:
            return node_name(volume_id) in _nodes(qmp)

    def add(self, record: ExportRecord) -> DiskConnection:
        with self._volumes.lock(record.volume_id):
            self._volumes.existing(record.volume_id)
            path = self._path(record.attachment_id)
            old = msgspec.json.decode(path.read_bytes(), type=ExportRecord) if path.exists() else None
            if old is not None and old.generation > record.generation:
                raise DriverError(
                    "fenced",
                    f"attachment {record.attachment_id} was fenced: generation {old.generation} is exported already",
                )
            self._end_outdated()
            if self._daemon.ensure():
                self.restore(skip=record.attachment_id)
            with self._daemon.qmp() as qmp:
                if old is not None and old != record:
                    _remove_export(qmp, old)
                self._write(path, record)
                self._admit(qmp)
                self._serve(qmp, record)
            return self.connection(record)

    def connection(self, record: ExportRecord) -> DiskConnection:
        name = quote(record.name)
        if self._advertise is not None:
            uri = f"nbd://{self._advertise}/{name}"
            return DiskConnection(driver="nbd", format="raw", uri=uri, tls=self._daemon.speaks_tls())
        else:
            uri = f"nbd+unix:///{name}?socket={self._daemon.socket}"
        return DiskConnection(driver="nbd", format="raw", uri=uri)

    def remove(self, volume_id: str, attachment_id: str) -> None:
        with self._volumes.lock(volume_id):
            path = self._path(attachment_id)
            record = msgspec.json.decode(path.read_bytes(), type=ExportRecord) if path.exists() else None
            if record is None or not record.served:
                return
            if self._daemon.running():
                with self._daemon.qmp() as qmp:
                    self._admit(qmp, without=record.attachment_id)
                    _remove_export(qmp, record)
                    if not [one for one in self.of(record.volume_id) if one.attachment_id != attachment_id]:
                        _close_node(qmp, record.volume_id)
            self._write(path, msgspec.structs.replace(record, served=False))

    def forget(self, volume_id: str) -> None:
        """The volume is gone: its generations need no memory."""
        for record in self._recorded():
            if record.volume_id == volume_id:
                self._path(record.attachment_id).unlink(missing_ok=True)

    def restore(self, skip: str | None = None) -> None:
        """Serve everything that is recorded; what is served already stays untouched."""
        self._daemon.ensure()
        with self._daemon.qmp() as qmp:
            self._admit(qmp)
            for record in self.all():
                if record.attachment_id != skip and self._volumes.path(record.volume_id).exists():
                    self._serve(qmp, record)

    def astray(self) -> Iterator[Drift]:
        """What is recorded and the daemon does not serve, and what it serves of which there is no record."""
        records = {_export_id(record): record for record in self.all()}
        served: dict[str, str] = {}
        if self._daemon.running():
            with self._daemon.qmp() as qmp:
                served = {one["id"]: one["node-name"] for one in qmp.execute("query-block-exports")}
        for name in sorted(records.keys() - served.keys()):
            message = f"the storage daemon does not serve volume {records[name].volume_id} for {records[name].name}"
            yield Drift(kind="export", id=records[name].name, problem="missing", message=message)
        for name in sorted(served.keys() - records.keys()):
            message = f"the storage daemon serves {served[name]} as {name}, of which there is no record"
            yield Drift(kind="export", id=name, problem="unknown", message=message)

    def cut_off(self, name: str) -> None:
        """End an export of the daemon's that nobody recorded, and its node if that serves no other."""
        if not self._daemon.running():
            return
        with self._daemon.qmp() as qmp:
            nodes = {one["id"]: one["node-name"] for one in qmp.execute("query-block-exports")}
            if name in nodes and name not in map(_export_id, self.all()):
                _end_export(qmp, name)
                if list(nodes.values()).count(nodes[name]) == 1:
                    qmp.execute("blockdev-del", **{"node-name": nodes[name]})

    def tend(self) -> None:
        """A daemon that died while it served comes back: the guests' disks wait for it."""
        if not self._daemon.running() and self.all():
            _log.warning("the storage daemon has died: it is started again")
            self.restore()

    def resize(self, volume_id: str, size: int) -> None:
        """Grow an open volume. The daemon lets nobody grow what it exports, and an export's size is fixed when it is
        made, so the exports go and come back: a client that connects again (``reconnect-delay``) sees the new size."""
        with self._volumes.lock(volume_id), self._daemon.qmp() as qmp:
            records = self.of(volume_id)
            if self._volumes.size(volume_id) >= size:
                return
            try:
                for record in records:
                    _remove_export(qmp, record)
                qmp.execute("block_resize", **{"node-name": node_name(volume_id)}, size=size)
            finally:
                for record in records:
                    self._serve(qmp, record)

    def snapshot(self, volume_id: str, command: str, name: str) -> None:
        """``blockdev-snapshot-internal-sync`` or ``blockdev-snapshot-delete-internal-sync`` of an open volume."""
        with self._daemon.qmp() as qmp:
            qmp.execute(command, device=node_name(volume_id), name=name)

    def _admit(self, qmp: Qmp, *, without: str | None = None) -> None:
        """Whoever has an export here may connect, by its certificate: a host that was fenced or removed may not."""
        self._daemon.admit(qmp, [record.host for record in self.all() if record.attachment_id != without])

    def _serve(self, qmp: Qmp, record: ExportRecord) -> None:
        node = node_name(record.volume_id)
        if node not in _nodes(qmp):
            file = {"driver": "file", "filename": str(self._volumes.path(record.volume_id))}
            qmp.execute("blockdev-add", driver="qcow2", **{"node-name": node}, discard="unmap", file=file)
        if _export_id(record) not in _export_ids(qmp):
            qmp.execute(
                "block-export-add",
                type="nbd",
                id=_export_id(record),
                name=record.name,
                writable=True,
                **{"node-name": node},
            )

    def _path(self, attachment_id: str) -> Path:
        return self._records / f"{attachment_id}.json"

    def _write(self, path: Path, record: ExportRecord) -> None:
        part = path.with_suffix(".part")
        with open(part, "wb") as out:
            out.write(msgspec.json.encode(record))
            out.flush()
            os.fsync(out.fileno())
        os.replace(part, path)


def _export_id(record: ExportRecord) -> str:
    return f"{_short('e', record.attachment_id)}.{record.generation}"


def _nodes(qmp: Qmp) -> set[str]:
    return {node["node-name"] for node in qmp.execute("query-named-block-nodes", flat=True)}


def _export_ids(qmp: Qmp) -> set[str]:
    return {export["id"] for export in qmp.execute("query-block-exports")}


def _remove_export(qmp: Qmp, record: ExportRecord) -> None:
    _end_export(qmp, _export_id(record))


def _end_export(qmp: Qmp, name: str) -> None:
    if name not in _export_ids(qmp):
        return
    qmp.execute("block-export-del", id=name, mode="hard")
    # The export goes when its last client has been cut off: a moment later.
    end = time.monotonic() + 10
    while name in _export_ids(qmp):
        if time.monotonic() > end:
            raise DriverError("timeout", f"export {name} does not end")
        time.sleep(0.005)


def _close_node(qmp: Qmp, volume_id: str) -> None:
    if node_name(volume_id) in _nodes(qmp):
        qmp.execute("blockdev-del", **{"node-name": node_name(volume_id)})
