"""The composition root: every object of a process is built here, by explicit calls, and nowhere else.

`build_control_plane` makes what the roles ``api`` and ``conductor`` share; `build_agent` makes a host's agent. Nothing
is started here: `cumulet.app` does.
"""

import ipaddress
import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cumulet.agent.contract import PasswordPosted, RenewCertificate
from cumulet.agent.driver import Driver
from cumulet.agent.runtime import Agent, AgentSettings
from cumulet.agent.runtime.store import AgentStore
from cumulet.bus import Bus, open_bus, speaker
from cumulet.conductor import Conductor, Desired, HostRegistry
from cumulet.db import Database
from cumulet.http import HttpApp, PolicyOverrides, ServiceApi
from cumulet.kernel.clock import Clock, SystemClock
from cumulet.kernel.trace import Tracer
from cumulet.reconcile import Reconcilers, SignalReconciler
from cumulet.saga import SagaEngine
from cumulet.services.compute import store as compute_store
from cumulet.services.compute.api import build_api as compute_api
from cumulet.services.compute.public import ComputeService
from cumulet.services.compute.scheduler import Scheduler
from cumulet.services.compute.workflows.live import LiveSettings
from cumulet.services.hosts.joining import Joining
from cumulet.services.hosts.public import HostsService
from cumulet.services.identity.api import build_api as identity_api
from cumulet.services.identity.passwords import Passwords
from cumulet.services.identity.public import IdentityService
from cumulet.services.image.api import build_api as image_api
from cumulet.services.image.public import ImageService
from cumulet.services.image.reconcilers.files import reconcile_files
from cumulet.services.network.api import build_api as network_api
from cumulet.services.network.public import NetworkService
from cumulet.services.network.reconcilers import reconcile_documents, reconcile_ports, reconcile_scheduling
from cumulet.services.operator import traces
from cumulet.services.operator.api import build_api as operator_api
from cumulet.services.operator.audit.health import Health
from cumulet.services.operator.audit.host import HostAudit
from cumulet.services.operator.audit.rows import Rows
from cumulet.services.operator.public import OperatorService
from cumulet.services.operator.vitals import Vitals
from cumulet.services.placement.api import build_api as placement_api
from cumulet.services.placement.public import PlacementService
from cumulet.services.volume.api import build_api as volume_api
from cumulet.services.volume.public import VolumeService, VolumeSettings
from cumulet.settings import Paths, Settings, SettingsError

if TYPE_CHECKING:
    from cumulet.agent.network.driver import NetworkDriver
    from cumulet.bus.accounts import BrokerAccounts

# what probing QEMU and KVM taught (10 s and more): kept over `cumulet destroy`, gone with its --purge
_COMPUTE_CACHE = Path("/var/cache/cumulet/compute")


@dataclass
class ControlPlane:
    """Everything that serves the APIs and drives the hosts, wired up. ``name`` is this process's, over restarts."""

    settings: Settings
    name: str
    clock: Clock
    db: Database
    bus: Bus
    sagas: SagaEngine
    hosts: HostRegistry
    desired: Desired
    conductor: Conductor
    identity: IdentityService
    image: ImageService
    placement: PlacementService
    network: NetworkService
    volume: VolumeService
    compute: ComputeService
    operator: OperatorService
    reconcilers: Reconcilers
    apis: list[ServiceApi]
    http: HttpApp

    def close(self) -> None:
        self.bus.close()
        self.operator.tracer.close()
        self.db.close()


def build_control_plane(
    settings: Settings,
    *,
    bus: Bus | None = None,
    clock: Clock | None = None,
    passwords: Passwords | None = None,
    name: str | None = None,
    role: str = "all",
) -> ControlPlane:
    clock = clock or SystemClock()
    name = name or f"{settings.host_name}:conductor"
    db = Database(settings.database_url, clock=clock, durable=settings.database.durable)
    bus = bus or open_bus(settings.bus.url, settings.tls)
    tracer = Tracer(
        f"{role}@{settings.host_name}[{os.getpid()}]", lambda process, notes: traces.write(db, process, notes)
    )
    bus.name, bus.observer = tracer.process, lambda delivery: traces.observe(tracer, delivery)
    sagas = SagaEngine(
        db,
        bus,
        name=name,
        threads=settings.conductor.threads,
        lease_seconds=settings.conductor.lease_seconds,
        max_waiting=settings.conductor.max_sagas,
        tracer=tracer,
    )
    hosts = HostRegistry(db, timeout_seconds=settings.conductor.host_timeout_seconds)
    desired = Desired(bus)
    conductor = Conductor(db, bus, sagas, hosts, desired, threads=settings.conductor.threads * 2)

    identity = IdentityService(
        db,
        token_ttl_s=int(settings.identity.token_hours * 3600),
        passwords=passwords,
        region=settings.api.region,
    )
    image = ImageService(
        db=db,
        clock=clock,
        root=settings.image_dir,
        public_url=f"{settings.public_url}/image",
        store_host=settings.host_name,
    )
    placement = PlacementService(
        db,
        cpu_allocation_ratio=settings.compute.cpu_allocation_ratio,
        ram_allocation_ratio=settings.compute.ram_allocation_ratio,
        disk_allocation_ratio=settings.compute.disk_allocation_ratio,
        reserved_memory_mb=settings.compute.reserved_memory_mb,
    )
    zone = settings.host.availability_zone
    network = NetworkService(
        db, hosts=hosts, desired=desired, settings=settings.network, quota=settings.quota, availability_zone=zone
    )
    volume_quotas = {
        "volumes": settings.quota.volumes,
        "gigabytes": settings.quota.gigabytes,
        "snapshots": settings.quota.snapshots,
    }
    volume = VolumeService(
        db=db,
        clock=clock,
        sagas=sagas,
        hosts=hosts,
        image=image,
        settings=VolumeSettings(availability_zone=zone, quotas=volume_quotas),
    )
    compute = ComputeService(
        db=db,
        clock=clock,
        sagas=sagas,
        hosts=hosts,
        desired=desired,
        images=image,
        placement=placement,
        scheduler=Scheduler(hosts, placement, default_zone=zone),
        network=network,
        volumes=volume,
        identity=identity,
        ask=conductor.ask,
        quotas={
            "instances": settings.quota.instances,
            "cores": settings.quota.cores,
            "ram": settings.quota.ram_mb,
        },
        default_zone=zone,
        resize_to_same_host=settings.compute.allow_resize_to_same_host,
        live=LiveSettings(
            seconds_per_gb=settings.compute.live_migration_seconds_per_gb,
            on_timeout=settings.compute.live_migration_on_timeout,
        ),
    )
    hosts.on_change(placement.sync_host)
    conductor.on_server_report(compute.on_server_report)
    conductor.on_message(PasswordPosted, lambda m: compute.password_posted(m, speaker()))
    conductor.on_inventory(compute.on_inventory)
    conductor.on_inventory(volume.on_inventory)
    network.server_wired = compute.ports_changed
    volume.grown = compute.volume_grown
    volume.server_uses = compute.uses_attachment
    volume.listeners.append(compute.volume_changed)
    reconcilers = Reconcilers(db, bus, name=name)
    conductor.on_message(SignalReconciler, reconcilers.on_signal)
    reconcilers.register("identity.keys", identity.maintain, period_seconds=3600)
    reconcilers.register("image.files", lambda: reconcile_files(image), period_seconds=600)
    reconcilers.register("network.scheduling", lambda: reconcile_scheduling(network), period_seconds=30)
    compute.parts.moved = lambda: reconcilers.signal("compute.drains")
    reconcilers.register("compute.drains", compute.go_on_draining, period_seconds=30)
    reconcilers.register("compute.evacuated", compute.clear_after_moves, period_seconds=30)
    hosts.vouched_for = lambda: reconcilers.signal("compute.evacuated")
    compute.parts.unreached = lambda: reconcilers.signal("compute.volumes")
    reconcilers.register("compute.volumes", compute.reconnect_volumes, period_seconds=30)
    conductor.on_hosts_changed(hosts.vouched_for)
    conductor.on_hosts_changed(compute.parts.unreached)
    if (seconds := settings.compute.resize_confirm_seconds) > 0:
        reconcilers.register(
            "compute.resizes", lambda: compute.confirm_old_resizes(seconds), period_seconds=min(seconds, 60)
        )
    volume.moved = lambda: reconcilers.signal("volume.drains")
    reconcilers.register("volume.drains", volume.go_on_draining, period_seconds=30)
    reconcilers.register("volume.deletes", volume.delete_again, period_seconds=60)
    reconcilers.register("network.documents", lambda: reconcile_documents(network), period_seconds=300)
    reconcilers.register("network.ports", lambda: reconcile_ports(network, compute_store.living), period_seconds=300)
    hosts.on_change(lambda tx, host: tx.after_commit(lambda: reconcilers.signal("network.scheduling")))
    reconcilers.register("conductor.absent_documents", lambda: _purge(db, desired), period_seconds=3600)
    health = Health(hosts=hosts, desired=desired, reconcilers=reconcilers, max_waiting=settings.conductor.max_sagas)
    rows = Rows(
        db,
        compute=compute,
        network=network,
        volume=volume,
        placement=placement,
        hosts=hosts,
        reconcile_documents=lambda: reconcile_documents(network),
        reconcile_scheduling=lambda: reconcile_scheduling(network),
    )
    on_hosts = HostAudit(db, sagas, hosts, conductor.ask, compute=compute, volume=volume)
    vitals = Vitals(tracer=tracer, bus=bus, sagas=sagas, clock=clock.now)
    joining = Joining(db, clock, settings, broker_accounts(settings))
    hosts.admits = joining.admits
    conductor.on_message(RenewCertificate, joining.renew)

    def may_go_elsewhere() -> None:
        reconcilers.signal("network.scheduling")
        reconcilers.signal("compute.drains")
        reconcilers.signal("volume.drains")

    machines = HostsService(
        db=db,
        hosts=hosts,
        desired=desired,
        joining=joining,
        tenants=[compute, volume, network],
        moved=may_go_elsewhere,
        why={"server": compute.why_left, "volume": volume.why_left},
    )
    reconcilers.register("hosts.accounts", joining.reconcile_accounts, period_seconds=600)
    operator = OperatorService(
        db=db,
        sagas=sagas,
        hosts=hosts,
        desired=desired,
        find_server=compute_store.server,
        history_of_server=compute.history,
        ask=conductor.ask,
        reconcilers=reconcilers.status,
        bus_kind="local" if settings.bus.url.startswith("local") else "rabbitmq",
        vitals=vitals,
        machines=machines,
        checks=[*health.checks(), *rows.checks(), *on_hosts.checks()],
    )
    reconcilers.register("operator.conditions", operator.reconcile_conditions, period_seconds=20)
    reconcilers.register("operator.audit", operator.audit_now, period_seconds=3600, first_seconds=300)
    conductor.on_hosts_changed(lambda: reconcilers.signal("operator.conditions"))
    reconcilers.register("operator.traces", operator.prune_traces, period_seconds=600)
    apis = [
        identity_api(identity),
        image_api(image),
        placement_api(placement),
        compute_api(compute),
        network_api(network),
        volume_api(volume),
        operator_api(operator),
    ]
    policy = PolicyOverrides(Path(settings.identity.policy_file)) if settings.identity.policy_file else None
    http = HttpApp(
        apis,
        authenticate=identity.authenticate,
        policy=policy,
        public_url=settings.api.public_url,
        threads=settings.api.workers,
        tracer=tracer,
    )
    vitals.http = http
    return ControlPlane(
        settings=settings,
        name=name,
        clock=clock,
        db=db,
        bus=bus,
        sagas=sagas,
        hosts=hosts,
        desired=desired,
        conductor=conductor,
        identity=identity,
        image=image,
        placement=placement,
        network=network,
        volume=volume,
        compute=compute,
        operator=operator,
        reconcilers=reconcilers,
        apis=apis,
        http=http,
    )


def broker_accounts(settings: Settings) -> "BrokerAccounts | None":
    """What makes hosts' accounts at the broker, if this control plane may."""
    if settings.bus.management_url is None or settings.bus.url.startswith("local"):
        return None
    from cumulet.bus.accounts import BrokerAccounts
    from cumulet.bus.amqp import AmqpBus, Broker  # kombu is imported only where there is a broker

    prefix, vhost = AmqpBus.prefix_of(settings.bus.url), Broker(settings.bus.url, settings.tls).vhost
    return BrokerAccounts(settings.bus.management_url, vhost, prefix, settings.tls)


def _purge(db: Database, desired: Desired) -> str:
    return f"{db.write(desired.purge)} forgotten"


def build_agent(
    settings: Settings,
    *,
    bus: Bus | None = None,
    clock: Clock | None = None,
    drivers: list[Driver] | None = None,
) -> Agent:
    """The agent of this host with the drivers that its settings name, or those given."""
    agent_settings = AgentSettings(
        host=settings.host_name,
        ip=settings.host.ip,
        tunnel_ip=settings.host.tunnel_ip,
        bridge_mappings=settings.network.bridge_mappings,
        heartbeat_seconds=settings.host.heartbeat_seconds,
        inventory_seconds=settings.host.inventory_seconds,
        compare_seconds=settings.host.compare_seconds,
        identity=host_identity(settings),
    )
    store = AgentStore(settings.state_dir / "agent" / f"{settings.host_name}.db")
    return Agent(
        agent_settings,
        bus or open_bus(settings.bus.url, settings.tls),
        store,
        build_drivers(settings) if drivers is None else drivers,
        clock,
    )


def check_host_roles(settings: Settings) -> None:
    unknown = set(settings.host.roles) - {"compute", "network", "storage"}
    if unknown:
        raise SettingsError(f"host.roles: there is no role {', '.join(sorted(unknown))}")


def build_drivers(settings: Settings) -> list[Driver]:
    """The drivers of this host, in the order in which they start: what servers stand on comes first."""
    check_host_roles(settings)
    roles = settings.host.roles
    if settings.compute.driver == "fake":
        from cumulet.agent.fake import FakeHost

        return FakeHost(
            settings.host_name,
            path=settings.state_dir / "agent" / f"{settings.host_name}.world.db",
            roles=tuple(roles),
            boot_seconds=settings.compute.fake_boot_seconds,
            bridge_mappings=settings.network.bridge_mappings,
        ).drivers
    drivers: list[Driver] = []
    if "storage" in roles:
        drivers.append(_storage_driver(settings))
    if "network" in roles or "compute" in roles:
        network = _network_driver(settings)
        drivers.append(network)
        if "compute" in roles:
            from cumulet.agent.compute.driver import ComputeConfig, ComputeDriver

            config = ComputeConfig(
                state=settings.state_dir / "compute",
                run=settings.run_dir / "compute",
                cache=_COMPUTE_CACHE if settings.paths.state_dir == Paths().state_dir else None,
                host=settings.host_name,
                door=(settings.host.ip, settings.compute.door_port),
                virt_type=settings.compute.virt_type,
                libvirt_uri=settings.compute.libvirt_uri,
                tls=host_identity(settings),
                trust=image_trust(settings),
            )
            drivers.append(ComputeDriver(config, network.ports))
    return drivers


def host_identity(settings: Settings) -> Path | None:
    """The folder with this host's certificate, if it joined (`cumulet join` lays it out as QEMU wants it)."""
    certificate = settings.tls.certificate
    if certificate is None or not Path(certificate).with_name("ca-cert.pem").exists():
        return None
    return Path(certificate).parent


def image_trust(settings: Settings) -> ssl.SSLContext | None:
    """Of the image service: whom the system believes, and the cloud's own authority."""
    if settings.tls.ca is None:
        return None
    context = ssl.create_default_context()
    context.load_verify_locations(settings.tls.ca)
    return context


def _storage_driver(settings: Settings) -> Driver:
    from cumulet.agent.compute.libvirtd import qemu_group
    from cumulet.agent.image.cache import ImageCache
    from cumulet.agent.volume.driver import build

    alone = settings.host.ip.startswith("127.")  # nobody else could reach a TCP export
    return build(
        settings.storage.driver,
        root=settings.volume_dir,
        run_dir=settings.run_dir / "volume",
        cache=ImageCache(settings.volume_dir / "images", image_trust(settings)),
        listen=None if alone else f"{settings.host.ip}:10809",
        group=qemu_group(),
        tls=host_identity(settings),
    )


def _network_driver(settings: Settings) -> "NetworkDriver":
    from cumulet.agent.network.config import NetworkConfig
    from cumulet.agent.network.driver import NetworkDriver

    config = NetworkConfig(
        state_dir=settings.state_dir / "network",
        run_dir=settings.run_dir / "network",
        tunnel_ip=settings.host.tunnel_ip or settings.host.ip,
        mechanism=settings.network.mechanism,
        bridge_mappings=settings.network.bridge_mappings,
        dns_servers=settings.network.dns_servers,
        tunnel_nic=settings.network.tunnel_nic,
    )
    return NetworkDriver(config, role="network" if "network" in settings.host.roles else "")


def prepare_host(settings: Settings, drivers: list[Driver]) -> None:
    """The embedded cloud's external network: the bridge of its range on this host. What is wrong with it, the network
    driver tells with every heartbeat."""
    cidr = settings.network.external_cidr
    if cidr is None or "network" not in settings.host.roles or settings.network.driver == "fake":
        return
    network = ipaddress.ip_network(cidr)
    gateway = f"{network.network_address + 1}/{network.prefixlen}"
    for driver in drivers:
        ensure = getattr(driver, "ensure_external_bridge", None)
        if ensure is not None:
            ensure(next(iter(settings.network.bridge_mappings.values())), [gateway])
