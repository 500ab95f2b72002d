"""A cloud that is only an identity service, behind a real HTTP server."""

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openstack
import pytest

from cumulet.db import Database
from cumulet.http import HttpApp
from cumulet.kernel.ids import new_hex
from cumulet.server import HttpServer
from cumulet.services.identity.api import build_api
from cumulet.services.identity.passwords import Passwords
from cumulet.services.identity.public import IdentityService


class Identity:
    def __init__(self, database_url: str) -> None:
        self.db = Database(database_url, durable=False)
        self.db.create_all()
        self.service = self.another_process()
        self.api = build_api(self.service)
        self.http = HttpApp([self.api], authenticate=self.service.authenticate)
        self.server = HttpServer(self.http, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.server.port}/identity/v3"
        self.boot = self.service.bootstrap(
            admin_password="admin-pw", demo_password="demo-pw", public_url=f"http://127.0.0.1:{self.server.port}"
        )
        self.server.start()
        self.client = httpx.Client(base_url=self.url, timeout=30)

    def another_process(self) -> IdentityService:
        """The same cloud, with nothing remembered."""
        return IdentityService(self.db, passwords=Passwords(memory_kib=64, time_cost=1))

    def stop(self) -> None:
        self.client.close()
        self.server.stop()
        self.db.close()

    # -- asking -----------------------------------------------------------------------------------------------

    def auth(self, user: str, password: str, scope: Any = None, **more: Any) -> dict[str, Any]:
        body: dict[str, Any] = {
            "identity": {
                "methods": ["password"],
                "password": {"user": {"name": user, "domain": {"id": "default"}, "password": password}},
            }
        }
        if scope is not None:
            body["scope"] = scope
        return {"auth": {**body, **more}}

    def token(self, user: str = "admin", password: str = "admin-pw", scope: Any = None) -> str:
        reply = self.client.post("/auth/tokens", json=self.auth(user, password, scope))
        assert reply.status_code == 201, reply.text
        return reply.headers["x-subject-token"]

    def ask(self, method: str, path: str, token: str | None = None, **more: Any) -> httpx.Response:
        headers = dict(more.pop("headers", {}))
        if token is not None:
            headers["X-Auth-Token"] = token
        return self.client.request(method, path, headers=headers, **more)

    def make(self, token: str, noun: str, **values: Any) -> dict[str, Any]:
        values.setdefault("name", f"{noun}-{new_hex()[:8]}")
        reply = self.ask("POST", f"/{noun}s", token, json={noun: values})
        assert reply.status_code == 201, reply.text
        return reply.json()[noun]


@pytest.fixture(scope="session")
def identity(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Identity]:
    if request.config.getoption("--database") == "postgres":
        url = request.getfixturevalue("postgres").new_database()
    else:
        url = f"sqlite:///{tmp_path_factory.mktemp('identity')}/identity.db"
    started = Identity(url)
    yield started
    started.stop()


@pytest.fixture(scope="session")
def admin(identity: Identity) -> str:
    return identity.token()


@pytest.fixture
def sdk(identity: Identity) -> Callable[..., Any]:
    def connect(user: str = "admin", password: str = "admin-pw", **more: Any) -> Any:
        scope = more or {"project_name": "admin" if user == "admin" else "demo", "project_domain_id": "default"}
        return openstack.connect(
            auth_url=identity.url, username=user, password=password, user_domain_id="default", **scope
        )

    return connect
