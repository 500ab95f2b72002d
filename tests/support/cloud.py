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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from cumulet.compose import ControlPlane
from cumulet.emulator import Account, Emulator
from cumulet.emulator.cloud import emulator_settings
from cumulet.emulator.seed import add_accounts
from cumulet.kernel.clock import SystemClock
from cumulet.settings import Settings

# name: (project, role). Everybody's password is "secret-" + name.
ACCOUNTS = {
    "admin": ("admin", "admin"),
    "demo": ("demo", "member"),
    "member": ("demo", "member"),
    "reader": ("demo", "reader"),
    "manager": ("demo", "manager"),
    "other": ("other", "member"),
}
_ACCOUNTS = [Account(name, project, role, "secret-" + name) for name, (project, role) in ACCOUNTS.items()]
_cli_lock = threading.Lock()


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

    def __init__(self, cloud: "Clients", user: str) -> None:
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
        credentials = self.cloud.auth(self.user)
        project = credentials["project_name"]
        who = {"name": self.user, "domain": {"id": "default"}, "password": credentials["password"]}
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
            self._apis[user] = Api(self, user)
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


class Cloud(Clients, Emulator):
    """``configure(settings)`` may change settings before anything is built."""

    def __init__(
        self, directory: Path, *, hosts: int = 1, database_url: str | None = None, bus_url: str = "local", **more: Any
    ) -> None:
        Clients.__init__(self)
        Emulator.__init__(
            self,
            directory=directory,
            hosts=hosts,
            database_url=database_url or f"sqlite:///{directory / 'cloud.db'}",
            bus_url=bus_url,
            accounts=_ACCOUNTS,
            seed=False,
            host_prefix="fake",
            name="test-conductor",
            **{"clock": SystemClock(), "heartbeat_seconds": 1.0, **more},
        )


def test_settings(directory: Path, port: int) -> Settings:
    return emulator_settings(directory, "127.0.0.1", port, "fake-1")


test_settings.__test__ = False  # type: ignore[attr-defined]


def make_accounts(control: ControlPlane) -> None:
    """The users of ACCOUNTS beside admin, each with its role in its project."""
    add_accounts(control, _ACCOUNTS)


def unique(prefix: str) -> str:
    """A name that no other test uses."""
    return f"{prefix}-{secrets.token_hex(4)}"
