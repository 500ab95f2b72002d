"""One emulated cloud: control plane, fake hosts and an HTTP port, in this process.

Owns the life of all parts: each can be stopped and started by itself (hosts, conductor), all can be put back to how
they were after the start (`reset`), and time can be moved (`clock`). Everything is in memory, or with ``file`` in a
SQLite file and a directory beside it, and there when it is started again.
Refuses: a file that another emulator has open (BlockingIOError); a reset on another database than SQLite.
Fails: with TimeoutError when hosts do not come up.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import bindparam, func, select, update

from cumulet.agent.contract import AskOutcome
from cumulet.agent.fake import FakeHost
from cumulet.agent.runtime import AgentSettings
from cumulet.agent.runtime.store import dump_sqlite, load_sqlite
from cumulet.app import prepare_database
from cumulet.bus import Bus, LocalBus, RemoteFault, open_bus
from cumulet.compose import ControlPlane, build_control_plane
from cumulet.conductor.tables import HOSTS
from cumulet.db import METADATA, Database, Tx
from cumulet.emulator import access, seed
from cumulet.emulator.access import ACCOUNTS, Account
from cumulet.emulator.clock import EmulatorClock
from cumulet.emulator.control import Control
from cumulet.emulator.faults import CloudFaults
from cumulet.emulator.gateway import EmulatorProtocol, Gateway
from cumulet.emulator.host import EmulatedHost, HostState
from cumulet.kernel import structs
from cumulet.kernel.clock import SECOND, Clock
from cumulet.kernel.errors import Unavailable
from cumulet.saga.journal import ACTIVE
from cumulet.saga.tables import SAGAS
from cumulet.server import HttpServer
from cumulet.services.identity.passwords import Passwords
from cumulet.settings import Settings

# Argon2 at a cost that protects nobody: everybody knows these passwords.
QUICK_HASHES = Passwords(memory_kib=64, time_cost=1)
_SEEN = update(HOSTS).where(HOSTS.c.name == bindparam("host")).values(seen_at=bindparam("at"))
# Seconds of the operations that users wait for, as on a small cloud with spinning guests and files for volumes.
REALISTIC = {
    "CacheImage": 1.5, "CreateDisks": 0.8, "PlugPorts": 0.4, "PowerServer": 2.5, "UndefineServer": 1.0,
    "SnapshotServer": 8.0, "AttachVolume": 1.2, "DetachVolume": 1.5, "AttachPort": 0.8, "DetachPort": 0.8,
    "CreateVolume": 1.5, "DeleteVolume": 1.0, "ExtendVolume": 1.0, "CreateVolumeSnapshot": 1.0,
    "DeleteVolumeSnapshot": 0.8, "UploadVolume": 6.0, "RevertVolume": 2.0, "BackupVolume": 6.0, "RestoreBackup": 6.0,
    "DeleteBackup": 1.0, "FetchImages": 1.5, "FetchDisks": 6.0, "ResizeDisks": 1.0,
}  # fmt: skip
_MIGRATION_S = 8.0  # a live one, which can be stopped meanwhile
_PROVIDERS = select(func.count()).select_from(METADATA.tables["resource_providers"])
_SAGA_UNDER_WAY = select(SAGAS.c.id).where(SAGAS.c.status.in_(ACTIVE)).limit(1)
_PREFIX = "cumulet-emulator-"
_PATIENCE_SECONDS = 30.0  # of who waits for what is under way: a machine of a CI may be slow
_STEP_S, _FINE_S = 5.0, 600.0  # how time is let through work that takes time; progress is due at least once a minute


class Snapshot(msgspec.Struct):
    """Everything that a reset puts back."""

    database: bytes
    hosts: dict[str, HostState]
    images: dict[str, bytes]


class Emulator:
    """``hosts``: how many. ``boot_seconds``: how long a server takes to start, on ``clock``; ``realistic``: everything
    takes what it does on an ordinary cloud, by the same clock, else states follow at once. ``accounts``: who may log
    in.
    ``seed``: flavors, an image and networks. ``file``: where the cloud is kept. ``port`` 0: any free one.
    ``configure(settings)`` may change settings before anything is built."""

    def __init__(
        self,
        *,
        hosts: int = 2,
        boot_seconds: float = 0.0,
        realistic: bool = False,
        port: int = 0,
        bind: str = "127.0.0.1",
        file: Path | None = None,
        accounts: Iterable[Account] = ACCOUNTS,
        seed: bool = True,
        clock: Clock | None = None,
        directory: Path | None = None,
        database_url: str | None = None,
        bus: Bus | None = None,
        bus_url: str = "local",
        host_prefix: str = "host",
        name: str = "emulator",
        heartbeat_seconds: float = 5.0,
        inventory_seconds: float = 300.0,
        compare_seconds: float = 5.0,
        configure: Callable[[Settings], None] | None = None,
    ) -> None:
        self.accounts = {account.name: account for account in accounts}
        self._clock = clock or EmulatorClock()
        self._file = file
        self._seeded = seed
        self._on_disk = file is not None or directory is not None
        self.directory = directory or _directory(file, self)
        self.heartbeat_seconds = heartbeat_seconds
        self.inventory_seconds = inventory_seconds
        self.compare_seconds = compare_seconds
        self._boot_seconds = boot_seconds
        self._pace = REALISTIC if realistic else {}
        self._host_prefix, self._first_hosts = host_prefix, hosts
        self.hosts: dict[str, EmulatedHost] = {}
        self.faults = CloudFaults(lambda: self.hosts.values())
        self._gateway = Gateway(self.faults)
        self.server = HttpServer(self._gateway, bind, port, protocol=EmulatorProtocol)
        self.settings = emulator_settings(self.directory, bind, self.server.port, f"{host_prefix}-1")
        self.settings.database.url = database_url or ("sqlite://" if file is None else f"sqlite:///{file}")
        self.settings.bus.url = bus_url
        if configure is not None:
            configure(self.settings)
        self.url = self.settings.public_url
        self.bus: Bus = bus or (LocalBus() if bus_url == "local" else open_bus(bus_url))
        self.control: ControlPlane = build_control_plane(
            self.settings, bus=self.bus, clock=self._clock, passwords=QUICK_HASHES, name=name
        )
        self._gateway.http, self._gateway.control = self.control.http, Control(self)
        self._snapshot: Snapshot | None = None
        self._life = threading.RLock()
        self._connections: dict[str, Any] = {}
        if isinstance(self._clock, EmulatorClock):
            self._clock.move = self._move

    @property
    def db(self) -> Database:
        return self.control.db

    @property
    def clock(self) -> EmulatorClock:
        assert isinstance(self._clock, EmulatorClock), "this cloud was given a clock of its own"
        return self._clock

    @property
    def host(self) -> EmulatedHost:
        """The first host."""
        return next(iter(self.hosts.values()))

    # -- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> "Emulator":
        """Returns when the cloud answers, its hosts are up and all is quiet."""
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def _start(self) -> None:
        structs.prepare()
        known = self.control.identity
        prepare_database(self.control)
        new = known.find_user("admin") is None
        known.bootstrap(admin_password=self._admin().password, public_url=self.url)
        if new:
            seed.add_accounts(self.control, self.accounts.values())
            if self._seeded:
                seed.add_resources(self.control, self.accounts.values())
        self.start_conductor()
        names = self._known_hosts() or [f"{self._host_prefix}-{n}" for n in range(1, self._first_hosts + 1)]
        for name in names:
            self.add_host(name)
        self.wait(lambda: set(self.up_hosts()) >= set(names) and self._providers() >= len(names))
        if self._seeded and not self.db.is_postgres:
            self._remember(new)
        self.server.start()

    def _admin(self) -> Account:
        return next(account for account in self.accounts.values() if account.role == "admin")

    def _known_hosts(self) -> list[str]:
        return [row.name for row in self.db.read(lambda tx: self.control.hosts.list(tx))]

    def _providers(self) -> int:
        """An inventory comes after the first heartbeat."""
        return int(self.db.read(lambda tx: tx.scalar(_PROVIDERS)))

    def stop(self) -> None:
        with self._life:
            for connection in self._connections.values():
                connection.close()
            self._connections.clear()
            self.faults.clear()
            self.server.stop(3)
            self._halt(0.2)
            self.control.close()
            self._remove()

    def _remove(self) -> None:
        if self._finalizer is not None:
            self._finalizer()

    _finalizer: "weakref.finalize[Any, Any] | None" = None

    def __enter__(self) -> "Emulator":
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _halt(self, seconds: float) -> None:
        """No host and no conductor runs; what they did not finish stands in the database."""
        for host in self.hosts.values():
            host.fake.faults.clear()
            host.lose(seconds)
        self.stop_conductor()

    def stop_conductor(self) -> None:
        """The API goes on answering, and nothing that it promises is done."""
        self.control.reconcilers.stop()
        self.control.conductor.stop()

    def kill_conductor(self) -> None:
        """It is gone as if killed: no transaction under way is committed, nothing more is sent."""
        self.control.sagas.abandon()
        self.stop_conductor()

    def start_conductor(self) -> None:
        """After `kill_conductor`: a new one, which knows what stands in the rows and nothing else."""
        self.control.conductor.start()
        self.control.reconcilers.start()

    def restart_conductor(self) -> None:
        self.stop_conductor()
        self.start_conductor()

    # -- hosts --------------------------------------------------------------------------------------------------------

    def up_hosts(self) -> list[str]:
        rows = self.db.read(lambda tx: self.control.hosts.list(tx))
        return [row.name for row in rows if row.up]

    def add_host(self, name: str, *, fake: FakeHost | None = None, **more: Any) -> EmulatedHost:
        """One host more: ``fake``, or a new one with ``more`` as FakeHost takes it (roles, vcpus, memory_mb, …)."""
        if name in self.hosts:
            raise ValueError(f"there is a host {name}")
        path = self.directory / f"{name}.world.db" if self._file is not None else None
        more = {"boot_seconds": self._boot_seconds, "clock": self._clock, "path": path, **more}
        settings = AgentSettings(
            host=name,
            tunnel_ip="127.0.0.1",
            heartbeat_seconds=self.heartbeat_seconds,
            inventory_seconds=self.inventory_seconds,
            compare_seconds=self.compare_seconds,
        )
        kept = self.directory / f"{name}.agent.db" if self._on_disk else None
        fake = fake or FakeHost(name, **more)
        fake.faults.pace = dict(self._pace)
        fake.compute.moving.seconds = _MIGRATION_S if self._pace else 0.0
        host = self.hosts[name] = EmulatedHost(self.bus, fake, settings, self._clock, kept)
        self.faults.put_all_on(host.fake)
        host.start()
        return host

    # -- waiting ------------------------------------------------------------------------------------------------------

    def wait(self, holds: Callable[[], Any], seconds: float = _PATIENCE_SECONDS) -> Any:
        """Until ``holds()`` is true; what it returned."""
        end = time.monotonic() + seconds
        while True:
            found = holds()
            if found:
                return found
            if time.monotonic() > end:
                raise TimeoutError(f"did not become true in {seconds:g} seconds")
            time.sleep(0.005)

    def settle(self, seconds: float = _PATIENCE_SECONDS) -> bool:
        """Wait until nothing is under way but what waits for the clock, hangs, or waits for a lost host; True if so
        in time."""
        end = time.monotonic() + seconds
        while not self._calm():
            if time.monotonic() > end:
                return False
            time.sleep(0.001)
        return True

    def _calm(self) -> bool:
        """Quiet twice, and nothing said in between: what one hands to another may be seen with neither of them."""
        sent = self.bus.traffic.sent
        if not self._quiet():
            return False
        asked = 0 if isinstance(self.bus, LocalBus) else self._hear_all()
        return self._quiet() and self.bus.traffic.sent == sent + asked

    def _hear_all(self) -> int:
        """What was sent to the hosts through a broker has arrived once a later question is answered; how many."""
        living = [host.name for host in self.hosts.values() if host.agent is not None]
        for name in living:
            with contextlib.suppress(Unavailable, RemoteFault):
                self.bus.call(f"agent.{name}", AskOutcome(op_id="none"), timeout=1.0)
        return len(living)

    def _quiet(self) -> bool:
        if isinstance(self._clock, EmulatorClock) and self._clock.overdue():
            return False
        busy = self.bus.busy()
        for host in list(self.hosts.values()):
            busy -= host.fake.faults.asleep + host.fake.faults.hung
            agent = host.agent
            if agent is not None:
                works, tells = agent.busy()
                busy += works
                if tells:
                    return False
        return busy <= 0 and self.control.sagas.idle() and not self.control.reconcilers.busy()

    # -- time ---------------------------------------------------------------------------------------------------------

    def _move(self, seconds: float) -> None:
        """In steps while something is under way: what goes on for minutes says now and then that it lives, and is to be
        heard before time runs on; and one deadline may begin where another ends."""
        with self._life:
            gone = 0.0
            while gone < seconds:
                self.settle(2.0)
                step = seconds - gone
                if self.db.read(lambda tx: tx.scalar(_SAGA_UNDER_WAY)) is not None:
                    step = min(step, _STEP_S if gone < _FINE_S else max(_STEP_S, seconds / 100))
                self._jump(step)
                gone += step
            self.settle(2.0)

    def _jump(self, seconds: float) -> None:
        """With the hosts that live: they would have been heard of all the time. In the transaction nobody else writes,
        so that no heartbeat of before is taken for one of after."""
        living = [host.name for host in self.hosts.values() if host.agent is not None]
        moved = False

        def work(tx: Tx) -> None:
            nonlocal moved
            for name in living:
                tx.run(_SEEN, {"host": name, "at": tx.now + int(seconds * SECOND)})
            if not moved:
                moved = True
                self.control.hosts.heard(living, tx.now + int(seconds * SECOND))
                self.clock.jump(seconds)

        self.db.write(work)

    # -- putting back -------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """All as it was after the start: rows, hosts, images, time; no faults. URL, ids and passwords stay, and so
        do tokens of before."""
        if self._snapshot is None:
            raise RuntimeError("only a seeded cloud on SQLite can be put back")
        with self._life:
            self._gateway.shut(10)
            try:
                self.faults.clear()
                self._halt(5)  # a heartbeat that is still on its way would be of a host, or of a time, that is not
                self._put_back(self._snapshot)
                self.start_conductor()
                for host in self.hosts.values():
                    host.start()
            finally:
                self._gateway.open()

    def _remember(self, new: bool) -> None:
        kept = self.directory / "seed.bin"
        if new or not kept.exists():
            if not self.settle():
                raise TimeoutError("the new cloud does not come to rest")
            images = {p.name: p.read_bytes() for p in self.control.image.files.root.joinpath("images").iterdir()}
            hosts = {name: host.state() for name, host in self.hosts.items()}
            self._snapshot = Snapshot(self.db.alone(dump_sqlite), hosts, images)
            if self._file is not None:
                kept.write_bytes(msgspec.msgpack.encode(self._snapshot))
        else:
            self._snapshot = msgspec.msgpack.decode(kept.read_bytes(), type=Snapshot)

    def _put_back(self, snapshot: Snapshot) -> None:
        control = self.control
        control.operator.tracer.flush()
        self.db.alone(lambda connection: load_sqlite(connection, snapshot.database))
        self.clock.reset()
        for name in set(self.hosts) - set(snapshot.hosts):
            del self.hosts[name]
        for name, state in snapshot.hosts.items():
            self.hosts[name].put_back(state)
        self._put_back_images(snapshot.images)
        control.sagas.forget()
        control.identity.forget()
        control.db.write(lambda tx: [tx.run(_SEEN, {"host": name, "at": tx.now}) for name in snapshot.hosts])
        self._gateway.requests.clear()

    def _put_back_images(self, images: Mapping[str, bytes]) -> None:
        root = self.control.image.files.root
        for place in ("images", "staging", "partial"):
            for path in root.joinpath(place).iterdir():
                if place != "images" or path.name not in images:
                    path.unlink()
        for name, content in images.items():
            path = root / "images" / name
            if not path.exists() or path.stat().st_size != len(content):
                path.write_bytes(content)

    # -- clients ------------------------------------------------------------------------------------------------------

    @property
    def requests(self) -> list[tuple[str, str]]:
        """Method and path of the last thousand requests, the newest last."""
        return list(self._gateway.requests)

    def environment(self, user: str = "demo") -> dict[str, str]:
        """The ``OS_…`` variables that every OpenStack client reads."""
        return access.environment(self.url, self.accounts[user])

    def clouds_yaml(self, path: Path) -> Path:
        """Write a clouds.yaml with an entry for each account (``emulator`` is demo's); the path."""
        access.write_private(path, access.clouds_yaml(self.url, self.accounts))
        return path

    def connect(self, user: str = "demo") -> Any:
        """An openstacksdk connection, kept for the life of the cloud."""
        if user not in self._connections:
            self._connections[user] = access.connect(self.url, self.accounts[user])
        return self._connections[user]


def emulator_settings(directory: Path, bind: str, port: int, image_host: str) -> Settings:
    """``image_host``: the host that sees the store of images as its own files."""
    settings = Settings()
    settings.paths.state_dir = str(directory)
    settings.paths.run_dir = str(directory / "run")
    settings.paths.log_dir = str(directory / "log")
    settings.api.bind, settings.api.port = bind, port
    if bind in ("0.0.0.0", "::"):
        settings.api.public_url = f"http://127.0.0.1:{port}"
    settings.database.durable = False
    settings.host.name = image_host
    settings.compute.driver = "fake"
    settings.network.driver = "fake"
    settings.storage.driver = "fake"
    return settings


def _directory(file: Path | None, owner: Any) -> Path:
    """For images and what else must be a file: beside ``file``, or in memory until the owner is gone."""
    if file is not None:
        beside = file.with_name(file.name + ".d")
        beside.mkdir(parents=True, exist_ok=True)
        owner._finalizer = weakref.finalize(owner, os.close, _lock(beside))
        return beside
    memory = Path("/dev/shm")
    parent = memory if memory.is_dir() else Path(tempfile.gettempdir())
    _sweep(parent)
    made = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    lock = _lock(made)
    owner._finalizer = weakref.finalize(owner, _remove, made, lock)
    return made


def _lock(directory: Path) -> int:
    """Held as long as the directory is in use. BlockingIOError: by another process."""
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise
    return lock


def _remove(directory: Path, lock: int) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    os.close(lock)


def _sweep(parent: Path) -> None:
    """What emulators that were killed left: nobody has it locked. One without a lock is being made."""
    for left in parent.glob(f"{_PREFIX}*/lock"):
        with contextlib.suppress(OSError):  # in use, someone else's, or swept by another
            _remove(left.parent, _lock(left.parent))
