"""Placement alone behind the HTTP layer, in process, on both databases."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from cumulet.db import METADATA, Database
from cumulet.http import HttpApp
from cumulet.kernel.context import RequestContext
from cumulet.kernel.errors import Unauthorized
from cumulet.services.placement.api import build_api
from cumulet.services.placement.public import PlacementService

ROLES = {"admin": {"admin", "reader"}, "service": {"service"}, "reader": {"reader"}}


def authenticate(token: str, request_id: str) -> RequestContext:
    if token not in ROLES:
        raise Unauthorized("no")
    return RequestContext(
        request_id=request_id, user_id="user-1", project_id="project-1", roles=frozenset(ROLES[token])
    )


class Client:
    def __init__(self, app: HttpApp) -> None:
        self.app = app

    def __call__(
        self, method: str, path: str, body: Any = None, *, version: str = "1.39", user: str = "admin", expect: int = 0
    ) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app)  # type: ignore[arg-type]
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                headers = {"X-Auth-Token": user, "OpenStack-API-Version": f"placement {version}"}
                return await client.request(method, "/placement" + path, json=body, headers=headers)

        answer = asyncio.run(send())
        if expect:
            assert answer.status_code == expect, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer

    def get(self, path: str, version: str = "1.39", **options: Any) -> Any:
        return self("GET", path, version=version, expect=200, **options).json()


@pytest.fixture(scope="session")
def postgres_database(request: pytest.FixtureRequest) -> Iterator[Database]:
    """One for all tests: making the tables takes a second."""
    made = Database(request.getfixturevalue("postgres").new_database())
    made.create_all()
    yield made
    made.close()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    if request.param == "postgres":
        shared: Database = request.getfixturevalue("postgres_database")
        names = ", ".join(f'"{table.name}"' for table in METADATA.sorted_tables)
        shared.write(lambda tx: tx.run(text(f"TRUNCATE {names}")))
        yield shared
        return
    made = Database(f"sqlite:///{tmp_path / 'p.db'}", durable=False)
    made.create_all()
    yield made
    made.close()


@pytest.fixture
def placement(db: Database) -> PlacementService:
    return PlacementService(db)


@pytest.fixture
def api(placement: PlacementService) -> Iterator[Client]:
    app = HttpApp([build_api(placement)], authenticate=authenticate)
    yield Client(app)
    app.close()
