"""The compute driver of a host: libvirt and QEMU behind the operations, queries and reports of the agent's contract.

Puts the parts together and holds no knowledge of its own: images (`agent.image.cache`), files (`instances`), XML
(`domain`), the connection (`hypervisor`), power (`power`), devices (`hotplug`), copies (`snapshot`), moves to and from
other hosts and resizes (`moving`). It adopts what runs: at start and after each break it lists every domain of ours and
reports it. Domains that are not ours are left alone.
"""

import logging
import shutil
import ssl
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import libvirt
import msgspec

from cumulet.agent import contract as c
from cumulet.agent.compute import host, kvm
from cumulet.agent.compute.domain import MARK, HostProfile, build_domain
from cumulet.agent.compute.hotplug import Hotplug
from cumulet.agent.compute.hypervisor import Event, Hypervisor, ensure_event_loop
from cumulet.agent.compute.instances import Instances
from cumulet.agent.compute.libvirtd import PrivateLibvirtd, kvm_for_root_only
from cumulet.agent.compute.moving.door import Identity
from cumulet.agent.compute.moving.marks import Incoming
from cumulet.agent.compute.moving.moves import Moves
from cumulet.agent.compute.moving.receive import Sockets
from cumulet.agent.compute.ports import PortPlugger
from cumulet.agent.compute.power import Power, unless_off
from cumulet.agent.compute.queries import Queries
from cumulet.agent.compute.snapshot import Snapshots
from cumulet.agent.compute.states import RUNNING, SHUTDOWN, power_state
from cumulet.agent.driver import Driver, Facts, Found, FoundServer, Hooks, OperationBody, Progress, QueryBody
from cumulet.agent.errors import DriverError, not_found
from cumulet.agent.image.cache import ImageCache

LOG = logging.getLogger(__name__)
_HOUSEKEEPING_SECONDS = 60.0
_SYSTEM_SOCKETS = ("/run/libvirt/virtqemud-sock", "/run/libvirt/libvirt-sock")
_SLOW_LIBVIRT = {
    "code": "libvirt-slow",
    "message": "libvirt probes QEMU anew at every call (seconds each): QEMU's own user cannot open /dev/kvm",
    "cure": "chgrp kvm /dev/kvm && chmod 660 /dev/kvm, then restart libvirtd",
}
_QEMU_PKI = Path("/etc/pki/qemu")  # where the system's libvirtd has its QEMU look
_PLAIN = {
    "code": "moves-in-the-clear",
    "message": "servers move to and from other hosts without encryption, and hosts are believed their names",
    "cure": "cumulet host token on a control node, then cumulet join here",
}
_AGENT_MISSING = {
    libvirt.VIR_ERR_AGENT_UNRESPONSIVE,
    libvirt.VIR_ERR_AGENT_UNSYNCED,
    libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
    libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED,
}


class ComputeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """``state`` holds images, servers' files and the private libvirtd; ``run`` its sockets (a short path); ``cache``
    (default: in ``state``) what takes long to find out again and outlives ``cumulet destroy``."""

    state: Path
    run: Path
    cache: Path | None = None
    host: str = ""  # its name, as in its certificate
    door: tuple[str, int] = ("127.0.0.1", 0)  # address and port for other hosts whose servers come here, or go there
    virt_type: str = "auto"  # auto, kvm or qemu
    libvirt_uri: str | None = None  # None: the system's libvirtd if it answers, else a private one
    console_listen: str = "127.0.0.1"
    spice: bool = False
    emulator: str | None = None
    tls: Path | None = None  # the folder of this host's certificate, for what passes between hosts
    trust: ssl.SSLContext | None = None  # whom to believe that the image service is the image service
    image_cache_seconds: float = 86400.0  # how long an image stays that no server stands on
    detach_seconds: float = 40.0


def private_libvirtd(config: ComputeConfig, *, use_kvm: bool = False) -> PrivateLibvirtd:
    """The private daemon of these settings, whether or not it runs (``cumulet destroy`` stops it)."""
    learned = config.cache / "libvirt" if config.cache is not None else None
    return PrivateLibvirtd(
        config.state / "libvirt", config.run / "libvirt", use_kvm=use_kvm, cache=learned, tls=config.tls
    )


class ComputeDriver(Driver):
    role = "compute"

    def __init__(self, config: ComputeConfig, plugger: PortPlugger) -> None:
        self.config, self._plugger = config, plugger
        self.cache = ImageCache(config.state / "images", config.trust)
        self.instances = Instances(config.state / "servers", config.run / "serial", self.cache)
        self._hooks: Hooks | None = None
        self._stopping = threading.Event()
        self._housekeeper: threading.Thread | None = None
        self._verdict = kvm.Verdict("qemu", 1.0)
        self._warnings: list[dict[str, str]] = []
        self._hypervisor_version = 0
        self._cpu_info: dict[str, Any] = {}
        self._running_vms = 0
        self._uri = config.libvirt_uri or ""
        self._profile = HostProfile(virt_type="qemu")
        self.hypervisor: Hypervisor | None = None
        self._sockets = Sockets(Path(), Path())
        self.moves = Moves(
            self.instances,
            Identity(config.host, config.tls),
            config.door,
            hypervisor=lambda: self._hv,
            sockets=lambda: self._sockets,
            xml=self._xml,
            tell=self._look_and_tell,
            running=self._running,
        )

    # -- life ---------------------------------------------------------------------------------------------------

    def start(self, hooks: Hooks) -> None:
        self._hooks = hooks
        ensure_event_loop()
        self.config.state.mkdir(parents=True, exist_ok=True)
        self.config.run.mkdir(parents=True, exist_ok=True)
        for path in (self.config.state, self.config.run):
            path.chmod(0o755)
        self.cache.start()
        self.instances.start()
        emulator = self.config.emulator or shutil.which("qemu-system-x86_64") or "/usr/bin/qemu-system-x86_64"
        self._verdict = kvm.decide(
            self.config.virt_type, emulator, (self.config.cache or self.config.state) / "kvm.json"
        )
        self._profile = HostProfile(
            virt_type=self._verdict.virt_type,
            emulator=emulator,
            console_listen=self.config.console_listen,
            spice=self.config.spice,
        )
        self._warnings = self._verdict.warnings()
        if self.config.tls is None and not self.config.door[0].startswith("127."):
            self._warnings.append(_PLAIN)
        for warning in self._warnings:
            LOG.warning("%s", warning["message"])
        uri, prepare = self._find_libvirtd()
        self.hypervisor = Hypervisor(uri, on_event=self._event, on_connected=self._report_all, prepare=prepare)
        self.hypervisor.start()
        self._hypervisor_version = self.hypervisor.call("version", lambda connection: connection.getVersion())
        self._cpu_info = host.cpu_info()
        self.moves.look_after_arrivals()
        self._housekeeper = threading.Thread(target=self._keep_house, name="compute-housekeeping", daemon=True)
        self._housekeeper.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._housekeeper is not None:
            self._housekeeper.join(timeout=10)
        self.moves.stop()
        if self.hypervisor is not None:
            self.hypervisor.stop()

    def _find_libvirtd(self) -> tuple[str, Callable[[], None]]:
        """The URI, and what to do before connecting: a private daemon is started whenever it does not run."""
        self._sockets = Sockets(Path("/run/libvirt/moves"), _system_socket(self.config.libvirt_uri))
        if self.config.libvirt_uri is not None:
            return self.config.libvirt_uri, _nothing
        private = private_libvirtd(self.config, use_kvm=self._verdict.virt_type == "kvm")
        if not private.running() and _system_answers():
            if kvm_for_root_only():
                self._warnings.append(_SLOW_LIBVIRT)
            if self.config.tls is not None and _QEMU_PKI.resolve() != self.config.tls.resolve():
                self._warnings.append(_no_identity(self.config.tls))
            return "qemu:///system", _nothing
        self._warnings += private.warnings()
        self._sockets = Sockets(private.run / "moves", private.socket)
        return private.uri, private.start

    @property
    def _hv(self) -> Hypervisor:
        if self.hypervisor is None:
            raise DriverError("hypervisor", "the compute driver has not started")
        return self.hypervisor

    # -- what it offers -----------------------------------------------------------------------------------------

    def operations(self) -> dict[type[c.Operation], OperationBody]:
        return {
            c.CacheImage: self._cache_image,
            c.CreateDisks: self._create_disks,
            c.DeleteDisks: self._delete_disks,
            c.PlugPorts: self._plug_ports,
            c.UnplugPorts: self._unplug_ports,
            c.DefineServer: self._define,
            c.UndefineServer: self._undefine,
            c.PowerServer: self._power,
            c.AttachVolume: self._attach_volume,
            c.DetachVolume: self._detach_volume,
            c.ResizeAttachedVolume: self._resize_attached_volume,
            c.AttachPort: self._attach_port,
            c.DetachPort: self._detach_port,
            c.SnapshotServer: self._snapshot,
            c.SetAdminPassword: self._set_admin_password,
            **self.moves.operations(),
        }

    def queries(self) -> dict[type[c.Query], QueryBody]:
        return {
            c.ConsoleLog: lambda query: Queries(self._hv, self.instances).console_log(query),
            c.DomainXml: lambda query: Queries(self._hv, self.instances).xml(query),
            c.Diagnostics: lambda query: Queries(self._hv, self.instances).diagnostics(query),
            c.ConsoleEndpoint: lambda query: Queries(self._hv, self.instances).console_endpoint(query),
            **self.moves.queries(),
        }

    def inventory(self) -> Found:
        servers = self._hv.call("list", self._list)
        known = {server.server_id for server in servers}
        servers += [FoundServer(one, SHUTDOWN, c.DISKS_ONLY) for one in self.instances.ids() if one not in known]
        moving = [server.server_id for server in servers if self._hidden(server)]
        servers = [server for server in servers if server.server_id not in moving]
        return Found(servers=servers, ports=self._plugger.plugged(), moving=moving)

    def facts(self) -> Facts:
        return Facts(
            virt_type=self._verdict.virt_type,
            speed_factor=self._verdict.speed_factor,
            warnings=self._warnings,
            resources={
                **host.resources(self.config.state),
                "hypervisor_type": "QEMU",
                "hypervisor_version": self._hypervisor_version,
                "cpu_info": self._cpu_info,
                "running_vms": self._running_vms,
            },
        )

    def audit(self, documents: Mapping[str, Mapping[str, Any]]) -> c.Audited:
        servers = self._hv.call("list", self._list)
        things = [c.Thing(kind="domain", id=s.server_id, owner=s.server_id, state=str(s.power_state)) for s in servers]
        things += [c.Thing(kind="disk", id=i, owner=i, state=self.moves.marks.state(i)) for i in self.instances.ids()]
        kept = [one for one in self.instances.ids() if self.instances.resized_from(one).exists()]
        things += [c.Thing(kind="disk-aside", id=one, owner=one) for one in kept]
        things += [c.Thing(kind="tap", id=one) for one in self._plugger.plugged()]
        things += [c.Thing(kind="quarantine", id=f"disk/{one}") for one in self.instances.set_aside()]
        drift = self._hv.call("compare", self._astray)
        return c.Audited(kinds=["domain", "disk", "disk-aside", "tap"], things=things, drift=drift)

    def _astray(self, connection: Any) -> list[c.Drift]:
        """Of domains of ours: what libvirt forgets when the guest ends, and disks whose files are gone."""
        found = []
        for domain in connection.listAllDomains():
            if not self._is_ours(domain):
                continue
            server_id = domain.UUIDString()
            if not domain.isPersistent() and self.moves.marks.state(server_id) != "arriving":
                message = f"the domain of server {server_id} is defined no more: it ends with its guest"
                found.append(c.Drift(kind="definition", id=server_id, problem="missing", message=message))
            for path in self.instances.missing_files(domain.XMLDesc()):
                message = f"a disk of server {server_id} needs {path}, which is not there"
                drift = c.Drift(kind="server-file", id=f"{server_id}/{path.name}", problem="missing", message=message)
                found.append(drift)
        return found

    def _define_again(self, server_id: str) -> None:
        def define(connection: Any) -> None:
            domain = self._hv.domain(connection, server_id)
            if not domain.isPersistent():
                connection.defineXML(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_INACTIVE))

        self._hv.call("define", define, 60)

    def mend(self, item: c.MendItem) -> str | None:
        if item.kind == "domain":
            self._remove_domain(item.id)
            return "the domain is removed, its disks stay"
        if item.kind == "definition":
            self._define_again(item.id)
            return "the domain is defined as it runs"
        if item.kind == "tap":
            self._plugger.unplug(item.id)
            return "the tap is removed"
        if item.kind == "disk-aside":
            return f"the disks from before the resize are moved aside: {self.instances.put_aside_resized(item.id)}"
        if item.kind == "disk":
            if any(server.server_id == item.id for server in self._hv.call("list", self._list)):
                raise DriverError("busy", f"There is a domain of server {item.id}: that first.")
            return f"the disks are moved aside: {self.instances.put_aside(item.id)}"
        return None

    def remove_absent(self, absent: c.Absent) -> None:
        for server_id in absent.servers:
            self._remove_domain(server_id)
            self.instances.delete(server_id)
        for port_id in absent.ports:
            self._plugger.unplug(port_id)

    # -- disks and ports ----------------------------------------------------------------------------------------

    def _cache_image(self, op: c.CacheImage, progress: Progress) -> c.CacheImageResult:
        found = self.cache.get(op.image, progress)
        return c.CacheImageResult(hit=found.hit, bytes=found.bytes, virtual_size_bytes=found.virtual_size_bytes)

    def _create_disks(self, op: c.CreateDisks, progress: Progress) -> None:
        self.instances.create(op.server, progress)

    def _delete_disks(self, op: c.DeleteDisks, progress: Progress) -> None:
        self.instances.delete(op.server_id)
        self.moves.open_or_close_door()

    def _plug_ports(self, op: c.PlugPorts, progress: Progress) -> None:
        for port in op.ports:
            self._plugger.plug(port)
            progress()

    def _unplug_ports(self, op: c.UnplugPorts, progress: Progress) -> None:
        for port_id in op.port_ids:
            self._plugger.unplug(port_id)
            progress()

    # -- domains --------------------------------------------------------------------------------------------------

    def _define(self, op: c.DefineServer, progress: Progress) -> c.DefineServerResult:
        spec = op.server
        self.instances.folder(spec.server_id).mkdir(exist_ok=True)
        xml = self._xml(spec)
        self._hv.call("define", lambda connection: connection.defineXML(xml), 60)
        self.moves.marks.drop(Incoming, spec.server_id)  # its disks were fetched: it is this host's
        return c.DefineServerResult(xml=xml)

    def _undefine(self, op: c.UndefineServer, progress: Progress) -> None:
        self._remove_domain(op.server_id)

    def _remove_domain(self, server_id: str) -> None:
        def remove(connection: Any) -> None:
            try:
                domain = self._hv.domain(connection, server_id)
            except DriverError as error:
                if error.code == "not-found":
                    return
                raise
            if domain.isActive():
                unless_off(domain, domain.destroy)
            if not domain.isPersistent():
                return
            domain.undefineFlags(
                libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
                | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
                | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
                | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
            )

        self._hv.call("undefine", remove, 60)

    def _power(self, op: c.PowerServer, progress: Progress) -> None:
        Power(self._hv).apply(op, progress)

    def _xml(self, spec: c.ServerSpec) -> str:
        return build_domain(spec, self._profile, self.instances.files(spec.server_id))

    # -- devices ----------------------------------------------------------------------------------------------------

    def _hotplug(self) -> Hotplug:
        return Hotplug(self._hv, self.config.detach_seconds * self._verdict.speed_factor**0.5)

    def _attach_volume(self, op: c.AttachVolume, progress: Progress) -> None:
        self._hotplug().attach_volume(op.server_id, op.volume)

    def _detach_volume(self, op: c.DetachVolume, progress: Progress) -> None:
        self._hotplug().detach_volume(op.server_id, op.volume_id, progress)

    def _resize_attached_volume(self, op: c.ResizeAttachedVolume, progress: Progress) -> None:
        self._hotplug().grow_volume(op.server_id, op.volume_id, op.size_gb << 30)

    def _attach_port(self, op: c.AttachPort, progress: Progress) -> None:
        self._plugger.plug(op.port)
        progress()
        self._hotplug().attach_port(op.server_id, op.port)

    def _detach_port(self, op: c.DetachPort, progress: Progress) -> None:
        self._hotplug().detach_port(op.server_id, op.port_id, op.mac_address, progress)
        self._plugger.unplug(op.port_id)

    def _snapshot(self, op: c.SnapshotServer, progress: Progress) -> c.SnapshotServerResult:
        return Snapshots(self._hv, self.instances).take(op, progress)

    def _set_admin_password(self, op: c.SetAdminPassword, progress: Progress) -> None:
        def set_password(connection: Any) -> None:
            domain = self._hv.domain(connection, op.server_id)
            if not domain.isActive():
                raise DriverError("not-running", "The guest does not run.")
            try:
                domain.setUserPassword(op.user, op.password, 0)
            except libvirt.libvirtError as error:
                if error.get_error_code() in _AGENT_MISSING:
                    raise DriverError("no-agent", "No guest agent answers in the server.") from error
                raise

        self._hv.call("set the password", set_password)

    # -- reports ----------------------------------------------------------------------------------------------------

    def _list(self, connection: Any) -> list[FoundServer]:
        found = []
        for domain in connection.listAllDomains():
            if self._is_ours(domain):
                found.append(FoundServer(domain.UUIDString(), *power_state(domain)))
        self._running_vms = connection.numOfDomains()
        return found

    def _is_ours(self, domain: Any) -> bool:
        try:
            domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, MARK)
        except libvirt.libvirtError as error:
            if error.get_error_code() in (libvirt.VIR_ERR_NO_DOMAIN_METADATA, libvirt.VIR_ERR_NO_DOMAIN):
                return False
            raise
        return True

    def _running(self) -> set[str]:
        return {one.server_id for one in self._hv.call("list", self._list) if one.power_state == RUNNING}

    def _report_all(self) -> None:
        for server in self._hv.call("list", self._list):
            self._tell(server)

    def _event(self, event: Event) -> None:
        self.moves.happened(event)
        self._look_and_tell(event.uuid)

    def _look_and_tell(self, server_id: str) -> None:
        """What the domain is now, not what an event said: events may be old."""

        def look(connection: Any) -> FoundServer | None:
            self._running_vms = connection.numOfDomains()
            domain = self._hv.domain(connection, server_id)
            return FoundServer(server_id, *power_state(domain)) if self._is_ours(domain) else None

        try:
            found = self._hv.call("look", look)
        except DriverError as error:
            if error.code != not_found("").code:
                raise
            # undefined: if it was ours, its folder is still there
            found = FoundServer(server_id, SHUTDOWN, "undefined") if server_id in self.instances.ids() else None
        if found is not None:
            self._tell(found)

    def _hidden(self, server: FoundServer) -> bool:
        return self.moves.marks.hidden(server.server_id, runs=server.power_state == RUNNING)

    def _tell(self, server: FoundServer) -> None:
        if self._hooks is not None and not self._hidden(server):
            self._hooks.server_changed(server.server_id, server.power_state, server.reason)

    def _keep_house(self) -> None:
        while not self._stopping.wait(_HOUSEKEEPING_SECONDS):
            self.moves.look_after_arrivals()
            try:
                self.instances.trim_console_logs()
                for path in self.cache.prune(
                    self.instances.bases_in_use(), older_than_seconds=self.config.image_cache_seconds
                ):
                    LOG.info("removed %s from the image cache: unused", path.name)
            except OSError:
                LOG.exception("housekeeping failed; it will be tried again")

    # -- cumulet destroy --------------------------------------------------------------------------------------------

    def cleanup_all(self) -> None:
        """Every domain of ours with its files, the image cache, and the private libvirtd; others' domains stay."""
        ensure_event_loop()
        private = private_libvirtd(self.config)
        guests = any((private.run / "qemu").glob("*.pid"))
        uri, prepare = self.config.libvirt_uri, _nothing
        if uri is None and (guests or private.running()):
            # if it was killed and left guests behind, only it can end them in good order
            uri, prepare = private.uri, private.start
        elif uri is None and _system_answers():
            uri = "qemu:///system"
        if uri is not None:
            self.hypervisor = Hypervisor(uri, prepare=prepare)
            self.hypervisor.start()
            try:
                for server in self._hv.call("list", self._list):
                    self._remove_domain(server.server_id)
            finally:
                self.hypervisor.stop()
        private.stop()
        private.remove_mount_point()
        for path in (self.config.state, self.config.run):
            shutil.rmtree(path, ignore_errors=True)


def _nothing() -> None:
    """To prepare, where the daemon is not ours."""


def _no_identity(tls: Path) -> dict[str, str]:
    return {
        "code": "qemu-without-certificate",
        "message": f"guests may not reach volumes: {_QEMU_PKI} is not this host's certificate",
        "cure": f"ln -sfn {tls} {_QEMU_PKI}, or nbd_tls_x509_cert_dir in /etc/libvirt/qemu.conf",
    }


def _system_socket(uri: str | None) -> Path:
    """libvirtd's own, of a daemon that is not ours."""
    named = parse_qs(urlsplit(uri or "").query).get("socket")
    there = [path for path in map(Path, _SYSTEM_SOCKETS) if path.exists()]
    return Path(named[0]) if named else next(iter(there), Path(_SYSTEM_SOCKETS[-1]))


def _system_answers() -> bool:
    if not any(Path(socket).exists() for socket in _SYSTEM_SOCKETS):
        return False
    try:
        libvirt.open("qemu:///system").close()
    except libvirt.libvirtError as error:
        LOG.info("the system's libvirtd does not answer: %s", error)
        return False
    return True
