"""The image service alone behind the HTTP layer, with tokens that are the caller's name, project and roles."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cumulet.db import Database
from cumulet.http import HttpApp
from cumulet.kernel.clock import SystemClock
from cumulet.kernel.context import RequestContext
from cumulet.kernel.errors import Unauthorized
from cumulet.services.image.api import build_api
from cumulet.services.image.public import ImageService, ImageSettings

ADMIN = "admin/p-admin/admin,member,reader"
ALICE = "alice/p-alice/member,reader"
BOB = "bob/p-bob/member,reader"
READER = "ray/p-alice/reader"


def authenticate(token: str, request_id: str) -> RequestContext:
    parts = token.split("/")
    if len(parts) != 3:
        raise Unauthorized("no such token")
    return RequestContext(
        request_id=request_id, user_id=parts[0], project_id=parts[1], roles=frozenset(parts[2].split(","))
    )


class Client:
    """Synchronous requests into the ASGI application, in one event loop."""

    def __init__(self, app: HttpApp) -> None:
        self.loop = asyncio.new_event_loop()
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://cloud")

    def __call__(self, method: str, path: str, *, token: str | None = ALICE, headers: Any = None, **more: Any) -> Any:
        sent = dict(headers or {})
        if token is not None:
            sent["X-Auth-Token"] = token
        return self.loop.run_until_complete(self.http.request(method, "/image" + path, headers=sent, **more))

    def patch(self, image_id: str, changes: Any, *, token: str = ALICE, draft: str = "2.1") -> Any:
        media = f"application/openstack-images-v{draft}-json-patch"
        import json

        return self(
            "PATCH", f"/v2/images/{image_id}", token=token, headers={"Content-Type": media}, content=json.dumps(changes)
        )

    def image(self, *, token: str = ALICE, **columns: Any) -> dict[str, Any]:
        body = {"name": "one", "disk_format": "raw", "container_format": "bare", **columns}
        made = self("POST", "/v2/images", token=token, json=body)
        assert made.status_code == 201, made.text
        return made.json()

    def upload(
        self, image_id: str, data: bytes, *, token: str = ALICE, headers: Any = None, place: str = "file"
    ) -> Any:
        sent = {"Content-Type": "application/octet-stream", **(headers or {})}
        return self("PUT", f"/v2/images/{image_id}/{place}", token=token, headers=sent, content=data)

    def show(self, image_id: str, *, token: str = ALICE) -> dict[str, Any]:
        found = self("GET", f"/v2/images/{image_id}", token=token)
        assert found.status_code == 200, found.text
        return found.json()

    def close(self) -> None:
        self.loop.run_until_complete(self.http.aclose())
        self.loop.close()


@pytest.fixture
def settings() -> ImageSettings:
    return ImageSettings()


@pytest.fixture
def service(tmp_path: Path, settings: ImageSettings) -> Iterator[ImageService]:
    db = Database("sqlite://")
    db.create_all()
    made = ImageService(
        db=db, clock=SystemClock(), root=tmp_path, public_url="http://cloud/image", store_host="here", settings=settings
    )
    made.start()
    yield made
    db.close()


@pytest.fixture
def api(service: ImageService) -> Iterator[Client]:
    app = HttpApp([build_api(service)], authenticate=authenticate)
    client = Client(app)
    yield client
    client.close()
    app.close()
