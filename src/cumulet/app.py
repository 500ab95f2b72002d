"""The processes: start what a role needs, say when it works, stop it gracefully on SIGTERM or SIGINT.

Roles: ``api`` (HTTP), ``conductor`` (sagas, reconcilers, hosts' messages), ``agent`` (one host), ``all``.
The API answers before the agent looks at its host, which may take long; why an agent does not start stands in
``<run_dir>/agent.problem``. A role that works, its agent included, has written ``<run_dir>/<role>.ready``; it goes with
the process, but for a kill: whether the process lives is told by the lock on ``<role>.pid``.
"""

import ctypes
import gc
import logging
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import text

from cumulet import logs
from cumulet.agent.runtime import Agent, AgentKeeper
from cumulet.bus import Bus, open_bus
from cumulet.compose import (
    ControlPlane,
    build_agent,
    build_control_plane,
    build_drivers,
    check_host_roles,
    prepare_host,
)
from cumulet.db import Database, Tx, migrate
from cumulet.kernel import structs
from cumulet.server import HttpServer
from cumulet.services.operator.vitals import Pulse
from cumulet.settings import Settings

_log = logging.getLogger(__name__)
_LOCK, _UNLOCK = text("SELECT pg_advisory_lock(20261123)"), text("SELECT pg_advisory_unlock(20261123)")
_VERSION_TABLE = text("CREATE TABLE IF NOT EXISTS alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
_STAMP = text("INSERT INTO alembic_version (version_num) VALUES (:head)")
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # malloc.h
_LARGE = 1 << 20  # bytes
ROLES = ("all", "api", "conductor", "agent")

__all__ = ["ROLES", "Process", "bootstrap", "build_agent", "build_control_plane", "prepare_database", "serve"]


class Process:
    """What one role runs, in the order in which it starts; it stops in reverse."""

    def __init__(self, role: str, settings: Settings, *, control: ControlPlane | None = None) -> None:
        if role not in ROLES:
            raise ValueError(f"no role {role!r}; there are {', '.join(ROLES)}")
        check_host_roles(settings)
        self.role = role
        self.settings = settings
        self.bus: Bus = control.bus if control is not None else open_bus(settings.bus.url, settings.tls)
        self.control = control
        if control is None and role != "agent":
            self.control = build_control_plane(settings, bus=self.bus, role=role)
        self.server: HttpServer | None = None
        self._stops: dict[str, Callable[[], None]] = {}  # of what was started

    def start(self, works: Callable[[], None] = lambda: None) -> None:
        """Returns when the API answers; ``works`` is called when all of the role works. Raises what made it
        impossible; `stop` then ends what was started."""
        structs.prepare()
        settings, control = self.settings, self.control
        if control is not None:
            self._stops["control plane"] = control.close
            if self.role in ("all", "api"):  # bound before anything else: a port in use is the first thing to know
                self.server = HttpServer(
                    control.http,
                    settings.api.bind,
                    settings.api.port,
                    certificate=settings.api.certificate,
                    key=settings.api.key,
                )
                self._stops["server"] = self.server.stop
            prepare_database(control)
            if self.role != "conductor":  # the administrator's password is none of its business
                bootstrap(control)
            if not settings.bus.url.startswith("local"):  # there are others, who can only tell how they are
                pulse = Pulse(control.db, control.operator.vitals)
                self._stops["pulse"] = pulse.stop
                pulse.start()
            if self.role in ("all", "conductor"):
                self._stops["conductor"] = control.conductor.stop
                control.conductor.start()
                self._stops["reconcilers"] = control.reconcilers.stop
                control.reconcilers.start()
        else:
            self._stops["control plane"] = self.bus.close
        if self.server is not None:
            self.server.start()
            _log.info("the API answers on %s", settings.public_url)
        if self.role in ("all", "agent"):
            keeper = AgentKeeper(self._build_agent, settings.run_dir / "agent.problem", works)
            self._stops["agent"] = keeper.stop
            keeper.start()
        else:
            works()

    def stop(self) -> None:
        """First no more requests, then no more operations, then no more sagas."""
        for name in ("pulse", "server", "agent", "reconcilers", "conductor", "control plane"):
            stop = self._stops.pop(name, None)
            if stop is not None:
                try:
                    stop()
                except Exception:  # noqa: BLE001 - the others are stopped all the same
                    _log.exception("the %s did not stop in order", name)

    def _build_agent(self) -> Agent:
        drivers = build_drivers(self.settings)
        prepare_host(self.settings, drivers)
        return build_agent(self.settings, bus=self.bus, drivers=drivers)


def prepare_database(control: ControlPlane) -> None:
    """Bring the schema up to date, and what services keep in it from the first start. Processes that start together
    take turns."""
    db = control.db
    with _turn(db):
        if migrate.current(db) is None:  # new: made at once from the tables, which the migrations are proved equal to
            db.create_all()
            db.write(_stamp)
        else:
            migrate.upgrade(db)
        control.image.start()
        control.volume.start()


def _stamp(tx: Tx) -> None:
    tx.run(_VERSION_TABLE)
    tx.run(_STAMP, {"head": migrate.HEAD})


@contextmanager
def _turn(db: Database) -> Iterator[None]:
    if not db.is_postgres:
        yield
        return
    with db.engine.connect() as connection:
        connection.execute(_LOCK)
        try:
            yield
        finally:
            connection.execute(_UNLOCK)


def bootstrap(control: ControlPlane) -> None:
    """The first domain, roles, administrator and catalog; harmless when they are there. The administrator's password
    is read from its file, or made up and written there (0600) when there is neither."""
    settings = control.settings
    path = settings.admin_password_file
    if not path.exists():
        if control.identity.find_user("admin") is not None:
            return
        _write_secret(path, secrets.token_urlsafe(18))
    control.identity.bootstrap(admin_password=path.read_text().strip(), public_url=settings.public_url)


def _write_secret(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600, exist_ok=True)
    path.write_text(text + "\n")


def _keep_little() -> None:
    """glibc gives each thread an arena of its own to allocate from and keeps what is freed there: dozens of threads
    would hold tens of megabytes of nothing. And a large block that was freed once (the 19 MiB of a hash of a password)
    makes it take later ones of that size from an arena, too, where they stay. Elsewhere there is nothing to set."""
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_ARENA_MAX, 2)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE)
    except (OSError, AttributeError):
        _log.debug("this C library has nothing to set")


def serve(role: str, settings: Settings) -> None:
    """Run a role until it is told to stop. The caller holds the role's lock."""
    _keep_little()
    sys.setswitchinterval(0.001)  # most work here is short: a request need not wait 5 ms for a saga to pause
    logs.configure(settings.log_dir / f"{role}.json.log")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    ready = settings.run_dir / f"{role}.ready"
    ready.unlink(missing_ok=True)
    process = Process(role, settings)

    def works() -> None:
        ready.parent.mkdir(parents=True, exist_ok=True)
        ready.write_text(settings.public_url + "\n")
        _log.info("role %s works", role)

    try:
        process.start(works)
        gc.freeze()  # what a start made stays: no later collection looks through it
        gc.set_threshold(50_000, 20, 100)  # a list of a thousand servers is no reason to look through everything
        gc.enable()
        while not stop.wait(1.0):
            if process.server is not None and not process.server.alive():
                raise RuntimeError("the HTTP server ended unexpectedly")
    finally:
        ready.unlink(missing_ok=True)
        _log.info("role %s stops", role)
        process.stop()
