"""A server's root disk as one flat image, true to one moment, while the guest goes on.

A running domain is copied by libvirt's push backup (point in time, no pause); any other by ``qemu-img convert``. The
copy is made beside the disk and handed in when whole; done again after a kill, it starts anew.
"""

import time
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, tostring

import libvirt

from cumulet.agent.compute.devices import el
from cumulet.agent.compute.hotplug import description
from cumulet.agent.compute.hypervisor import Hypervisor
from cumulet.agent.compute.instances import Instances, run_tool, virtual_size
from cumulet.agent.contract import SnapshotServer, SnapshotServerResult
from cumulet.agent.driver import Progress
from cumulet.agent.errors import DriverError
from cumulet.agent.volume.handin import hand_in, hashes

_POLL_SECONDS = 0.1
_CONVERT_SECONDS = 3600


class Snapshots:
    def __init__(self, hypervisor: Hypervisor, instances: Instances) -> None:
        self._hv, self._instances = hypervisor, instances

    def take(self, operation: SnapshotServer, progress: Progress) -> SnapshotServerResult:
        form = "raw" if operation.upload.disk_format in ("raw", "ami") else operation.upload.disk_format
        if form not in ("raw", "qcow2"):
            raise DriverError("unsupported", f"a snapshot is qcow2 or raw, not {form}")
        disk = self._instances.folder(operation.server_id) / "disk"
        if not disk.exists():
            raise DriverError("no-disk", "The server has no root disk of its own here.")
        part = disk.with_name("snapshot.part")
        part.unlink(missing_ok=True)
        try:
            if not self._push(operation.server_id, disk, part, form, progress):
                run_tool(["qemu-img", "convert", "-O", form, "-f", "qcow2", str(disk), str(part)], _CONVERT_SECONDS)
            progress()
            md5, sha512 = hashes(part, progress)
            size = part.stat().st_size
            virtual = size if form == "raw" else virtual_size(part)
            hand_in(part, operation.upload, progress, self._instances.cache.trust)
        finally:
            part.unlink(missing_ok=True)
        return SnapshotServerResult(size=size, sha512=sha512, md5=md5, virtual_size_bytes=virtual)

    def _push(self, server_id: str, disk: Path, part: Path, form: str, progress: Progress) -> bool:
        """Copy the disk out of the running domain; False if it does not run."""

        def begin(connection: Any) -> bool:
            domain = self._hv.domain(connection, server_id)
            if not domain.isActive():
                return False
            if domain.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE:
                domain.abortJob()  # ours, from before a kill: operations of one server come one at a time
                time.sleep(0.5)
            domain.backupBegin(_backup_xml(description(domain, 0), disk, part, form), None, 0)
            return True

        def look(connection: Any) -> dict[str, Any]:
            domain = self._hv.domain(connection, server_id)
            if not domain.isActive():
                raise DriverError("not-running", "The server went off while its disk was copied.")
            now = domain.jobStats()
            if now.get("type", libvirt.VIR_DOMAIN_JOB_NONE) != libvirt.VIR_DOMAIN_JOB_NONE:
                return {"running": True, **now}
            return {"running": False, **domain.jobStats(libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED)}

        if not self._hv.call("snapshot", begin, 60):
            return False
        while (seen := self._hv.call("snapshot", look))["running"]:
            total = seen.get("disk_total", 0)
            progress(min(0.9, seen.get("disk_processed", 0) / total) if total else None)
            time.sleep(_POLL_SECONDS)
        if not seen.get("success", 1) or seen.get("type") == libvirt.VIR_DOMAIN_JOB_FAILED:
            raise DriverError("hypervisor", f"the disk could not be copied: {seen.get('errmsg', 'the copy failed')}")
        return True


def _backup_xml(domain: Element, disk: Path, part: Path, form: str) -> str:
    backup = Element("domainbackup", mode="push")
    disks = el(backup, "disks")
    for device in domain.iterfind("./devices/disk"):
        target, source = device.find("target"), device.find("source")
        if target is None or device.get("device") == "cdrom":
            continue
        ours = source is not None and source.get("file") == str(disk)
        entry = el(disks, "disk", name=target.get("dev"), backup="yes" if ours else "no", type="file" if ours else None)
        if ours:
            el(entry, "driver", type=form)
            el(entry, "target", file=part)
    return tostring(backup, encoding="unicode")
