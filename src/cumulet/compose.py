"""The composition root: every object of a process is built here, by explicit calls, and nowhere else.

`build_control_plane` makes what the roles ``api`` and ``conductor`` share; `build_agent` makes a host's agent. Nothing
is started here: `cumulet.app` does.
"""

import socket
from dataclasses import dataclass
from pathlib import Path

from cumulet.agent.driver import Driver
from cumulet.agent.runtime import Agent, AgentSettings
from cumulet.agent.runtime.store import AgentStore
from cumulet.bus import Bus, open_bus
from cumulet.conductor import Conductor, Desired, HostRegistry
from cumulet.db import Database
from cumulet.http import HttpApp, PolicyOverrides, ServiceApi
from cumulet.kernel.clock import Clock, SystemClock
from cumulet.saga import SagaEngine
from cumulet.services.compute.public import ComputeService
from cumulet.services.compute.scheduler import Scheduler
from cumulet.services.identity.passwords import Passwords
from cumulet.services.identity.public import IdentityService
from cumulet.services.image.public import ImageService
from cumulet.services.network.public import NetworkService
from cumulet.services.placement.public import PlacementService
from cumulet.settings import Settings


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
    compute: ComputeService
    apis: list[ServiceApi]
    http: HttpApp

    def close(self) -> None:
        self.bus.close()
        self.db.close()


def build_control_plane(
    settings: Settings,
    *,
    bus: Bus | None = None,
    clock: Clock | None = None,
    passwords: Passwords | None = None,
    name: str | None = None,
) -> ControlPlane:
    clock = clock or SystemClock()
    name = name or f"{socket.gethostname()}:conductor"
    db = Database(settings.database_url, clock=clock, durable=settings.database.durable)
    bus = bus or open_bus(settings.bus.url)
    sagas = SagaEngine(
        db,
        bus,
        name=name,
        threads=settings.conductor.threads,
        lease_seconds=settings.conductor.lease_seconds,
        max_waiting=settings.conductor.max_sagas,
    )
    hosts = HostRegistry(db, timeout_seconds=settings.conductor.host_timeout_seconds)
    desired = Desired(bus)
    conductor = Conductor(db, bus, sagas, hosts, desired)

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
    hosts.on_change(placement.sync_host)
    zone = settings.host.availability_zone
    network = NetworkService(
        db, hosts=hosts, desired=desired, settings=settings.network, quota=settings.quota, availability_zone=zone
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
        volumes=None,
        identity=identity,
        ask=conductor.ask,
        quotas={
            "instances": settings.quota.instances,
            "cores": settings.quota.cores,
            "ram": settings.quota.ram_mb,
        },
        default_zone=zone,
    )
    conductor.on_server_report(compute.on_server_report)
    conductor.on_inventory(compute.on_inventory)

    from cumulet.services.compute.api import build_api as compute_api
    from cumulet.services.identity.api import build_api as identity_api
    from cumulet.services.image.api import build_api as image_api

    apis = [identity_api(identity), image_api(image), compute_api(compute)]
    policy = PolicyOverrides(Path(settings.identity.policy_file)) if settings.identity.policy_file else None
    http = HttpApp(
        apis,
        authenticate=identity.authenticate,
        policy=policy,
        public_url=settings.api.public_url,
        threads=settings.api.workers,
    )
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
        compute=compute,
        apis=apis,
        http=http,
    )


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
    )
    store = AgentStore(settings.state_dir / "agent" / f"{settings.host_name}.db")
    return Agent(
        agent_settings,
        bus or open_bus(settings.bus.url),
        store,
        build_drivers(settings) if drivers is None else drivers,
        clock,
    )


def build_drivers(settings: Settings) -> list[Driver]:
    if settings.compute.driver == "fake":
        from cumulet.agent.fake import FakeHost

        host = FakeHost(
            settings.host_name,
            path=settings.state_dir / "agent" / f"{settings.host_name}.world.json",
            roles=tuple(settings.host.roles),
            bridge_mappings=settings.network.bridge_mappings,
        )
        return host.drivers
    raise NotImplementedError
