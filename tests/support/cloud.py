"""A whole cloud in this process: control plane, fake hosts, a real HTTP port; and clients for it.

cloud.connect("demo")                   an openstacksdk connection
cloud.api("demo").get("compute", "/servers")   plain HTTP with a token, the quickest
cloud.openstack("demo", "server", "list")      the `openstack` command, parsed JSON
cloud.hosts["fake-1"].fake.faults.fail("CreateDisks")
"""

import contextlib
import io
import json
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from sqlalchemy import select

from cumulet.agent.fake import FakeHost
from cumulet.agent.runtime import Agent, AgentSettings
from cumulet.agent.runtime.store import AgentStore
from cumulet.app import bootstrap, prepare_database
from cumulet.bus import Bus, LocalBus, open_bus
from cumulet.compose import ControlPlane, build_control_plane
from cumulet.db import METADATA
from cumulet.server import HttpServer
from cumulet.services.identity.passwords import Passwords
from cumulet.settings import Settings
from tests.support.ports import free_ports

# name: (project, role). Everybody's password is "secret-" + name.
ACCOUNTS = {
    "admin": ("admin", "admin"),
    "demo": ("demo", "member"),
    "member": ("demo", "member"),
    "reader": ("demo", "reader"),
    "manager": ("demo", "manager"),
    "other": ("other", "member"),
}
_QUICK_HASHES = Passwords(memory_kib=64, time_cost=1)
_cli_lock = threading.Lock()


class Host:
    """A fake host of the cloud and its agent, which can be lost and come back."""

    def __init__(self, cloud: "Cloud", fake: FakeHost) -> None:
        self._cloud = cloud
        self.fake = fake
        self.agent: Agent | None = None

    @property
    def name(self) -> str:
        return self.fake.name

    def start(self) -> None:
        settings = AgentSettings(
            host=self.name,
            tunnel_ip="127.0.0.1",
            heartbeat_seconds=self._cloud.heartbeat_seconds,
            inventory_seconds=self._cloud.inventory_seconds,
            compare_seconds=self._cloud.compare_seconds,
        )
        path = self._cloud.directory / f"{self.name}.agent.db"
        self.agent = Agent(settings, self._cloud.bus, AgentStore(path), self.fake.drivers)
        self.agent.start()

    def lose(self) -> None:
        """The agent is gone, without a word; what runs on the host stays."""
        if self.agent is not None:
            self.agent.stop(0.2)
            self.agent = None

    def restart(self) -> None:
        self.lose()
        self.start()


@dataclass
class Answer:
    status: int
    headers: Any
    body: Any
    text: str

    def __getitem__(self, key: str) -> Any:
        return self.body[key]


class Api:
    """One user's requests: ``get("compute", "/servers")`` is ``GET <compute endpoint>/servers``. No status is an
    error here."""

    def __init__(self, cloud: "Cloud", user: str) -> None:
        self.cloud = cloud
        self.user = user
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.verify = str(cloud.tls) if cloud.tls else True
        self.token = ""
        self.project_id = ""
        self.user_id = ""
        self._endpoints: dict[str, str] = {}
        self._log_in()

    def _log_in(self) -> None:
        project = ACCOUNTS[self.user][0]
        who = {"name": self.user, "domain": {"id": "default"}, "password": "secret-" + self.user}
        auth = {
            "identity": {"methods": ["password"], "password": {"user": who}},
            "scope": {"project": {"name": project, "domain": {"id": "default"}}},
        }
        answer = self._session.post(f"{self.cloud.url}/identity/v3/auth/tokens", json={"auth": auth}, timeout=30)
        assert answer.status_code == 201, answer.text
        self.token = answer.headers["X-Subject-Token"]
        token = answer.json()["token"]
        self.project_id, self.user_id = token["project"]["id"], token["user"]["id"]
        for service in token["catalog"]:
            self._endpoints[service["type"]] = service["endpoints"][0]["url"]

    def endpoint(self, service: str) -> str:
        url = self._endpoints["block-storage" if service == "volume" else service]
        if service in ("identity", "image", "network"):
            url += {"identity": "/v3", "image": "/v2", "network": "/v2.0"}[service]
        return url

    def request(
        self, method: str, service: str, path: str, body: Any = None, *, version: str | None = None, **more: Any
    ) -> Answer:
        headers = {"X-Auth-Token": self.token, **more.pop("headers", {})}
        if version is not None:
            kind = {"volume": "volume", "block-storage": "volume"}.get(service, service)
            headers["OpenStack-API-Version"] = f"{kind} {version}"
        if body is not None:
            more["json"] = body
        answer = self._session.request(
            method, self.endpoint(service) + path, headers=headers, timeout=60, allow_redirects=False, **more
        )
        parsed = None
        if answer.content and "json" in answer.headers.get("content-type", ""):
            parsed = answer.json()
        return Answer(answer.status_code, answer.headers, parsed, answer.text)

    def get(self, service: str, path: str, **more: Any) -> Answer:
        return self.request("GET", service, path, **more)

    def post(self, service: str, path: str, body: Any = None, **more: Any) -> Answer:
        return self.request("POST", service, path, body, **more)

    def put(self, service: str, path: str, body: Any = None, **more: Any) -> Answer:
        return self.request("PUT", service, path, body, **more)

    def patch(self, service: str, path: str, body: Any = None, **more: Any) -> Answer:
        return self.request("PATCH", service, path, body, **more)

    def delete(self, service: str, path: str, **more: Any) -> Answer:
        return self.request("DELETE", service, path, **more)


class CommandFailed(AssertionError):
    def __init__(self, status: int, output: str, errors: str) -> None:
        super().__init__(f"exit {status}\n{output}\n{errors}")
        self.status, self.output, self.errors = status, output, errors


class Clients:
    """How to talk to a cloud at ``url``, whichever process it runs in."""

    url: str
    tls: Path | None = None  # whom to believe of HTTPS

    def __init__(self) -> None:
        self._apis: dict[str, Api] = {}
        self._connections: dict[str, Any] = {}

    def api(self, user: str = "demo") -> Api:
        if user not in self._apis:
            self._apis[user] = Api(self, user)  # type: ignore[arg-type]
        return self._apis[user]

    def auth(self, user: str) -> dict[str, str]:
        return {
            "auth_url": f"{self.url}/identity/v3",
            "username": user,
            "password": "secret-" + user,
            "project_name": ACCOUNTS[user][0],
            "user_domain_id": "default",
            "project_domain_id": "default",
        }

    def connect(self, user: str = "demo") -> Any:
        """An openstacksdk connection (kept for the life of the cloud)."""
        if user not in self._connections:
            import openstack

            self._connections[user] = openstack.connect(
                load_yaml_config=False,
                load_envvars=False,
                auth=self.auth(user),
                region_name="RegionOne",
                compute_default_microversion=None,
            )
        return self._connections[user]

    def environment(self, user: str) -> dict[str, str]:
        return {
            **{f"OS_{name.upper()}": value for name, value in self.auth(user).items()},
            "OS_IDENTITY_API_VERSION": "3",
            "OS_REGION_NAME": "RegionOne",
        }

    def openstack(self, user: str, *arguments: str, parse: bool | None = None) -> Any:
        """The ``openstack`` command, in this process (its start costs a second). ``parse``: read its output as JSON
        (default: for list, show, create and the like). Raises CommandFailed."""
        words = [str(argument) for argument in arguments]
        if parse is None:
            shows = ("list", "show", "create", "issue", "find", "import", "usage")
            parse = any(word in shows for word in words) and "-f" not in words and "--help" not in words
        options = [f"--os-{name.replace('_', '-')}={value}" for name, value in self.auth(user).items()]
        options += ["--os-identity-api-version=3", "--os-region-name=RegionOne"]
        with _cli_lock:
            from openstackclient import shell
            from openstackclient.common.clientmanager import ClientManager
            from osc_lib.clientmanager import ClientCache

            for kept in [kept for kind in ClientManager.__mro__ for kept in vars(kind).values()]:
                if isinstance(kept, ClientCache):  # kept on the class: another user's clients
                    kept._handle = None
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                try:
                    status = shell.OpenStackShell().run([*options, *words, *(["-f", "json"] if parse else [])])
                except SystemExit as exit_:
                    status = exit_.code or 0
        if status:
            raise CommandFailed(int(status), out.getvalue(), err.getvalue())
        return json.loads(out.getvalue()) if parse and out.getvalue().strip() else out.getvalue()

    def openstack_process(self, user: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """The same as a process of its own."""
        return subprocess.run(
            [str(Path(sys.executable).parent / "openstack"), *arguments],
            env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **self.environment(user)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


class Cloud(Clients):
    """``configure(settings)`` may change settings before anything is built."""

    def __init__(
        self,
        directory: Path,
        *,
        database_url: str | None = None,
        bus_url: str = "local",
        bus: Bus | None = None,
        hosts: int = 1,
        boot_seconds: float = 0.0,
        heartbeat_seconds: float = 1.0,
        inventory_seconds: float = 300.0,
        compare_seconds: float = 5.0,
        configure: Callable[[Settings], None] | None = None,
    ) -> None:
        super().__init__()
        self.directory = directory
        self.heartbeat_seconds = heartbeat_seconds
        self.inventory_seconds = inventory_seconds
        self.compare_seconds = compare_seconds
        self.settings = test_settings(directory, free_ports(1)[0])
        self.settings.database.url = database_url or f"sqlite:///{directory / 'cloud.db'}"
        self.settings.bus.url = bus_url
        if configure is not None:
            configure(self.settings)
        self.url = self.settings.public_url
        self.bus: Bus = bus or (LocalBus() if bus_url == "local" else open_bus(bus_url))
        self.control: ControlPlane = build_control_plane(
            self.settings, bus=self.bus, passwords=_QUICK_HASHES, name="test-conductor"
        )
        self.server = HttpServer(self.control.http, self.settings.api.bind, self.settings.api.port)
        self.hosts: dict[str, Host] = {}
        self._boot_seconds = boot_seconds
        self._first_hosts = hosts

    @property
    def db(self) -> Any:
        return self.control.db

    @property
    def host(self) -> Host:
        """The first host."""
        return next(iter(self.hosts.values()))

    def start(self) -> "Cloud":
        prepare_database(self.control)
        self.settings.admin_password_file.write_text("secret-admin\n")
        bootstrap(self.control)
        make_accounts(self.control)
        self.control.conductor.start()
        self.control.reconcilers.start()
        self.server.start()
        for number in range(1, self._first_hosts + 1):
            self.add_host(f"fake-{number}")
        self.wait(lambda: len(self.up_hosts()) == self._first_hosts, 30)
        self.wait(lambda: self._providers() >= self._first_hosts, 30)  # an inventory comes after the first heartbeat
        return self

    def _providers(self) -> int:
        rows = self.db.read(lambda tx: tx.rows(select(METADATA.tables["resource_providers"].c.uuid)))
        return len(list(rows))

    def up_hosts(self) -> list[str]:
        rows = self.db.read(lambda tx: self.control.hosts.list(tx))
        return [row.name for row in rows if row.up]

    def add_host(self, name: str, **more: Any) -> Host:
        """``more`` as FakeHost takes it (roles, vcpus, memory_mb, …)."""
        fake = FakeHost(name, **{"boot_seconds": self._boot_seconds, **more})
        host = self.hosts[name] = Host(self, fake)
        host.start()
        return host

    def restart_conductor(self) -> None:
        self.control.conductor.stop()
        self.control.conductor.start()

    def wait(self, holds: Callable[[], Any], seconds: float = 10.0) -> Any:
        """Until ``holds()`` is true; what it returned."""
        end = time.monotonic() + seconds
        while True:
            found = holds()
            if found:
                return found
            assert time.monotonic() < end, "did not become true in time"
            time.sleep(0.005)

    def stop(self) -> None:
        for connection in self._connections.values():
            connection.close()
        self.server.stop(3)
        for host in self.hosts.values():
            host.fake.faults.clear()
            host.lose()
        self.control.reconcilers.stop()
        self.control.conductor.stop()
        self.control.close()


def test_settings(directory: Path, port: int) -> Settings:
    settings = Settings()
    settings.paths.state_dir = str(directory)
    settings.paths.run_dir = str(directory / "run")
    settings.paths.log_dir = str(directory / "log")
    settings.api.port = port
    settings.database.durable = False
    settings.host.name = "fake-1"  # the store of images is this host's
    settings.compute.driver = "fake"
    settings.network.driver = "fake"
    settings.storage.driver = "fake"
    return settings


test_settings.__test__ = False  # type: ignore[attr-defined]


def make_accounts(control: ControlPlane) -> None:
    """The users of ACCOUNTS beside admin, each with its role in its project."""
    from cumulet.kernel.ids import new_hex
    from cumulet.services.identity import store
    from cumulet.services.identity.store import AssignmentRow, ProjectRow, UserRow

    hashed = {name: _QUICK_HASHES.hash("secret-" + name) for name in ACCOUNTS}

    def work(tx: Any) -> None:
        roles = {name: store.roles.one(tx, name=name, domain_id=None) for _, name in ACCOUNTS.values()}
        for name, (project_name, role) in ACCOUNTS.items():
            project = store.projects.one(tx, domain_id="default", name=project_name, is_domain=False)
            if project is None:
                project = store.projects.add(
                    tx, ProjectRow(new_hex(), project_name, "default", "default", False, "", True, [], {}, {})
                )
            if store.users.one(tx, domain_id="default", name=name) is None:
                user = store.users.add(
                    tx, UserRow(new_hex(), "default", name, True, project.id, hashed[name], None, 0, {}, {})
                )
                found = roles[role]
                assert found is not None
                store.add_assignment(tx, AssignmentRow("user", user.id, "project", project.id, found.id, False))

    control.db.write(work)


def unique(prefix: str) -> str:
    """A name that no other test uses."""
    return f"{prefix}-{secrets.token_hex(4)}"
