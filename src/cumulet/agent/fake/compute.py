"""The fake hypervisor: servers are rows of the world that change state when told."""

from collections.abc import Callable, Mapping
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import msgspec

from cumulet.agent import contract as c
from cumulet.agent.driver import Facts, Found, FoundServer, Hooks, Progress
from cumulet.agent.errors import DriverError, not_found
from cumulet.agent.fake import wires
from cumulet.agent.fake.base import FakeDriver
from cumulet.agent.fake.bytes import check_image, write_upload
from cumulet.agent.fake.faults import Faults
from cumulet.agent.fake.moving import Moving, disks_of, forget_disks
from cumulet.agent.fake.world import Domain, State, World
from cumulet.kernel.ids import new_uuid

RUNNING, PAUSED, SHUTDOWN, CRASHED = 1, 3, 4, 6


class FakeCompute(FakeDriver):
    role = "compute"

    def __init__(
        self,
        world: World,
        faults: Faults,
        name: str = "fake-1",
        *,
        boot_seconds: float,
        vcpus: int,
        memory_mb: int,
        local_gb: int,
    ) -> None:
        super().__init__(world, faults)
        self.moving = Moving(world, faults, name, self._report, self._all_cached)
        self.boot_seconds = boot_seconds
        self.vcpus, self.memory_mb, self.local_gb = vcpus, memory_mb, local_gb
        self._hooks: Hooks | None = None

    def start(self, hooks: Hooks) -> None:
        self._hooks = hooks

    def stop(self) -> None:
        self.moving.close()

    def bodies(self) -> dict[type[c.Operation], Callable[[Any, Progress], c.Result | None]]:
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
            **self.moving.bodies(),
        }

    def answers(self) -> dict[type[c.Query], Callable[[Any], str | dict[str, Any]]]:
        return {
            c.ConsoleLog: self._console_log,
            c.DomainXml: self._xml,
            c.Diagnostics: self._diagnostics,
            c.ConsoleEndpoint: self._console_endpoint,
            c.MigrationProgress: self.moving.progress_of,
        }

    # -- disks and ports ----------------------------------------------------------------------

    def _cache_image(self, op: c.CacheImage, progress: Progress) -> c.CacheImageResult:
        return self._cached(op.image)

    def _cached(self, image: c.ImageSource) -> c.CacheImageResult:
        with self.world.look() as state:
            size = state.images.get(image.image_id)
        if size is not None:
            return c.CacheImageResult(hit=True, bytes=image.size, virtual_size_bytes=size)
        found = check_image(image)
        with self.world.change() as state:
            state.images[image.image_id] = found.virtual_size_bytes
        return found

    def _all_cached(self, *images: c.ImageSource | None) -> None:
        for image in images:
            if image is not None:
                self._cached(image)

    def _create_disks(self, op: c.CreateDisks, progress: Progress) -> None:
        spec = op.server
        self._all_cached(spec.image, spec.kernel, spec.ramdisk)
        with self.world.change() as state:
            if spec.image is not None and spec.root_gb and state.images[spec.image.image_id] > spec.root_gb << 30:
                raise DriverError("image-too-large", f"The image does not fit into {spec.root_gb} GiB.")
            before = state.disks.get(spec.server_id)
            state.disks[spec.server_id] = disks_of(spec, before.content if before is not None else new_uuid())

    def _delete_disks(self, op: c.DeleteDisks, progress: Progress) -> None:
        with self.world.change() as state:
            forget_disks(state, op.server_id)

    def _plug_ports(self, op: c.PlugPorts, progress: Progress) -> None:
        with self.world.change() as state:
            for port in op.ports:
                state.taps[port.id] = op.server_id
                wires.stand(state.wires, port)

    def _unplug_ports(self, op: c.UnplugPorts, progress: Progress) -> None:
        with self.world.change() as state:
            for port_id in op.port_ids:
                state.taps.pop(port_id, None)
                state.wires.pop(f"port/{port_id}", None)

    # -- domains ------------------------------------------------------------------------------

    def _define(self, op: c.DefineServer, progress: Progress) -> c.DefineServerResult:
        spec = op.server
        with self.world.change() as state:
            domain = state.domains.get(spec.server_id)
            if domain is None:
                domain = state.domains[spec.server_id] = Domain(
                    instance_name=spec.instance_name, spec=_without_secrets(spec)
                )
            domain.spec = _without_secrets(spec)
            domain.ports = {port.id: port.mac_address for port in spec.ports}
            domain.volumes = {volume.volume_id: volume for volume in spec.volumes}
            if spec.admin_password is not None:
                domain.passwords["root"] = spec.admin_password
            return c.DefineServerResult(xml=_domain_xml(domain))

    def _undefine(self, op: c.UndefineServer, progress: Progress) -> None:
        with self.world.change() as state:
            domain = state.domains.pop(op.server_id, None)
        if domain is not None and domain.power_state != SHUTDOWN:
            self._report(op.server_id, SHUTDOWN, "destroyed")

    def _power(self, op: c.PowerServer, progress: Progress) -> None:
        with self.world.look() as state:
            domain = _domain(state, op.server_id)
            now = domain.power_state
        if op.action in ("start", "resume", "hard_reboot") or (op.action == "soft_reboot" and now == RUNNING):
            if now not in (RUNNING, PAUSED) or op.action != "start":
                self._check_parts(op.server_id)
                self.faults.sleep(self.boot_seconds, progress)
                self._become(op.server_id, RUNNING, "booted")
            elif now == PAUSED and op.action == "start":
                self._become(op.server_id, RUNNING, "unpaused")
        elif op.action == "stop":
            self._become(op.server_id, SHUTDOWN, "shutdown")
        elif op.action == "suspend":
            if now in (RUNNING, PAUSED):
                self._become(op.server_id, SHUTDOWN, "saved")
        elif op.action == "pause" and now in (RUNNING, PAUSED):
            self._become(op.server_id, PAUSED, "paused")
        elif op.action == "unpause" and now in (RUNNING, PAUSED):
            self._become(op.server_id, RUNNING, "unpaused")
        else:
            raise DriverError("not-running", f"The server is not running: {op.action} is not possible.")

    def _check_parts(self, server_id: str) -> None:
        """A domain starts only if all it is made of is there."""
        with self.world.look() as state:
            domain = _domain(state, server_id)
            if domain.spec.image is not None and server_id not in state.disks:
                raise DriverError("no-disk", "The server's root disk is not there.")
            missing = [port for port in domain.ports if port not in state.taps]
        if missing:
            raise DriverError("no-tap", f"Ports are not plugged: {', '.join(missing)}.")

    def _become(self, server_id: str, power_state: int, reason: str) -> None:
        with self.world.change() as state:
            domain = _domain(state, server_id)
            if reason == "booted":
                domain.boots += 1
                resumed = domain.managed_save
                if not resumed:
                    domain.console += [f"fake kernel starts (boot {domain.boots})", f"{domain.spec.name} login:"]
                domain.managed_save = False
            domain.managed_save = reason == "saved" or (power_state == SHUTDOWN and domain.managed_save)
            changed = domain.power_state != power_state or reason == "booted"
            domain.power_state = power_state
        if changed:
            self._report(server_id, power_state, reason)

    def _report(self, server_id: str, power_state: int, reason: str) -> None:
        if self._hooks is not None:
            self._hooks.server_changed(server_id, power_state, reason)

    def crash(self, server_id: str, power_state: int = SHUTDOWN) -> None:
        """Tests: the guest does this by itself (4: it shut down; 6: it crashed)."""
        with self.world.change() as state:
            _domain(state, server_id).power_state = power_state
        self._report(server_id, power_state, "crashed" if power_state == CRASHED else "shutdown by the guest")

    # -- devices ------------------------------------------------------------------------------

    def _attach_volume(self, op: c.AttachVolume, progress: Progress) -> None:
        with self.world.change() as state:
            _domain(state, op.server_id).volumes[op.volume.volume_id] = op.volume

    def _detach_volume(self, op: c.DetachVolume, progress: Progress) -> None:
        with self.world.change() as state:
            domain = state.domains.get(op.server_id)
            if domain is not None:
                domain.volumes.pop(op.volume_id, None)

    def _resize_attached_volume(self, op: c.ResizeAttachedVolume, progress: Progress) -> None:
        with self.world.look() as state:
            if op.volume_id not in _domain(state, op.server_id).volumes:
                raise not_found(f"volume {op.volume_id} at this server")

    def _attach_port(self, op: c.AttachPort, progress: Progress) -> None:
        with self.world.change() as state:
            domain = _domain(state, op.server_id)
            state.taps[op.port.id] = op.server_id
            wires.stand(state.wires, op.port)
            domain.ports[op.port.id] = op.port.mac_address

    def _detach_port(self, op: c.DetachPort, progress: Progress) -> None:
        with self.world.change() as state:
            domain = state.domains.get(op.server_id)
            if domain is not None:
                domain.ports.pop(op.port_id, None)
            state.taps.pop(op.port_id, None)
            state.wires.pop(f"port/{op.port_id}", None)

    def _snapshot(self, op: c.SnapshotServer, progress: Progress) -> c.SnapshotServerResult:
        with self.world.look() as state:
            if op.server_id not in state.disks:
                raise DriverError("no-disk", "The server has no root disk here.")
            disks = state.disks[op.server_id]
        return write_upload(op.upload, f"disk {disks.content} of server {op.server_id}", disks.root_gb)

    def _set_admin_password(self, op: c.SetAdminPassword, progress: Progress) -> None:
        with self.world.change() as state:
            domain = _domain(state, op.server_id)
            if domain.power_state != RUNNING:
                raise DriverError("not-running", "The guest does not run.")
            domain.passwords[op.user] = op.password

    # -- queries ------------------------------------------------------------------------------

    def _console_log(self, query: c.ConsoleLog) -> str:
        with self.world.look() as state:
            domain = state.domains.get(query.server_id)
            if domain is None:
                raise not_found(f"console log of server {query.server_id}")
            lines = domain.console
        if query.length is not None and query.length >= 0:
            lines = lines[-query.length :] if query.length else []
        return "".join(line + "\n" for line in lines)

    def _xml(self, query: c.DomainXml) -> str:
        with self.world.look() as state:
            return _domain_xml(_domain(state, query.server_id))

    def _diagnostics(self, query: c.Diagnostics) -> dict[str, Any]:
        with self.world.look() as state:
            domain = _running(state, query.server_id)
            return {
                "state": "running" if domain.power_state == RUNNING else "paused",
                "driver": "libvirt",
                "hypervisor": "qemu",
                "hypervisor_os": "linux",
                "uptime": 1,
                "config_drive": domain.spec.config_drive,
                "num_cpus": domain.spec.vcpus,
                "num_nics": len(domain.ports),
                "num_disks": 1 + len(domain.volumes),
                "memory_details": {"maximum": domain.spec.memory_mb, "used": domain.spec.memory_mb},
                "cpu_details": [{"id": n, "time": 0, "utilisation": None} for n in range(domain.spec.vcpus)],
                "nic_details": [],
                "disk_details": [],
            }

    def _console_endpoint(self, query: c.ConsoleEndpoint) -> dict[str, Any]:
        with self.world.look() as state:
            _running(state, query.server_id)
            return {"host": "127.0.0.1", "port": 5900 + list(state.domains).index(query.server_id)}

    # -- the host -----------------------------------------------------------------------------

    def inventory(self) -> Found:
        with self.world.look() as state:
            servers = [FoundServer(server_id, domain.power_state) for server_id, domain in state.domains.items()]
            servers += [FoundServer(one, SHUTDOWN, c.DISKS_ONLY) for one in state.disks if one not in state.domains]
            return Found(servers=servers, ports=list(state.taps))

    def remove_absent(self, absent: c.Absent) -> None:
        with self.world.change() as state:
            for server_id in absent.servers:
                state.domains.pop(server_id, None)
                state.doors.pop(server_id, None)
                forget_disks(state, server_id)
            for port_id in absent.ports:
                state.taps.pop(port_id, None)
                state.wires.pop(f"port/{port_id}", None)

    def audit(self, documents: Mapping[str, Mapping[str, Any]]) -> c.Audited:
        with self.world.look() as state:
            things = [
                c.Thing(kind="domain", id=one, owner=one, state=str(domain.power_state))
                for one, domain in state.domains.items()
            ]
            things += [c.Thing(kind="disk", id=one, owner=one) for one in state.disks]
            things += [c.Thing(kind="disk-aside", id=one, owner=one) for one in state.aside]
            things += [c.Thing(kind="tap", id=port, owner=server) for port, server in state.taps.items()]
            things += [c.Thing(kind="quarantine", id=key) for key in state.quarantine if key.startswith("disk/")]
            return c.Audited(kinds=["domain", "disk", "disk-aside", "tap"], things=things)

    def mend(self, item: c.MendItem) -> str | None:
        with self.world.change() as state:
            if item.kind == "domain":
                state.domains.pop(item.id, None)
                return "the domain is removed, its disks stay"
            if item.kind == "tap":
                state.taps.pop(item.id, None)
                return "the tap is removed"
            if item.kind == "disk":
                if item.id in state.disks:
                    state.quarantine[f"disk/{item.id}"] = msgspec.to_builtins(state.disks.pop(item.id))
                return f"the disks are moved aside: disk/{item.id}"
            if item.kind == "disk-aside":
                if item.id in state.aside:
                    state.quarantine[f"disk/{item.id}"] = msgspec.to_builtins(state.aside.pop(item.id))
                return f"the disks from before the resize are moved aside: disk/{item.id}"
        return None

    def facts(self) -> Facts:
        with self.world.look() as state:
            running = [domain for domain in state.domains.values() if domain.power_state == RUNNING]
            used_mb = 512 + sum(domain.spec.memory_mb for domain in running)
            used_gb = sum(disks.root_gb + disks.ephemeral_gb for disks in state.disks.values())
        return Facts(
            virt_type="fake",
            speed_factor=1.0,
            resources={
                "vcpus": self.vcpus,
                "memory_mb": self.memory_mb,
                "local_gb": self.local_gb,
                "memory_mb_used": used_mb,
                "local_gb_used": used_gb,
                "hypervisor_type": "fake",
                "hypervisor_version": 1000,
                "cpu_info": {"arch": "x86_64", "model": "fake", "vendor": "fake", "features": [], "topology": {}},
                "running_vms": len(running),
            },
        )


def _domain(state: State, server_id: str) -> Domain:
    domain = state.domains.get(server_id)
    if domain is None:
        raise not_found(f"domain of server {server_id}")
    return domain


def _running(state: State, server_id: str) -> Domain:
    domain = _domain(state, server_id)
    if domain.power_state not in (RUNNING, PAUSED):
        raise DriverError("not-running", "The server is not running.")
    return domain


def _without_secrets(spec: c.ServerSpec) -> c.ServerSpec:
    return msgspec.structs.replace(spec, admin_password=None, secure={})


def _domain_xml(domain: Domain) -> str:
    spec = domain.spec
    nics = "".join(
        f"<interface type='ethernet'><mac address={quoteattr(mac)}/><target dev='tap{port_id[:11]}'/></interface>"
        for port_id, mac in domain.ports.items()
    )
    disks = "".join(f"<disk type='network'><serial>{volume_id[:20]}</serial></disk>" for volume_id in domain.volumes)
    return (
        f"<domain type='fake'><name>{escape(spec.instance_name)}</name><uuid>{spec.server_id}</uuid>"
        f"<memory unit='MiB'>{spec.memory_mb}</memory><vcpu>{spec.vcpus}</vcpu>"
        f"<devices>{disks}{nics}</devices></domain>"
    )
