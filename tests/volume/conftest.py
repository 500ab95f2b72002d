"""Helpers over the session's cloud."""

import time
from typing import Any

import pytest

from tests.support.cloud import unique
from tests.support.patience import SECONDS


class Volumes:
    """One user's volumes; what it makes goes at the end of the test."""

    def __init__(self, cloud: Any, user: str) -> None:
        self.cloud = cloud
        self.api = cloud.api(user)
        self.made: list[str] = []

    def call(self, method: str, path: str, body: Any = None, *, version: str = "3.71", **more: Any) -> Any:
        return self.api.request(method, "volume", path, body, version=version, **more)

    def ok(self, method: str, path: str, body: Any = None, **more: Any) -> Any:
        answer = self.call(method, path, body, **more)
        assert answer.status < 300, answer.text
        return answer.body

    def create(self, wait: str | None = "available", **columns: Any) -> str:
        body = {"size": 1, "name": unique("volume"), **columns}
        volume_id = self.ok("POST", "/volumes", {"volume": body})["volume"]["id"]
        self.made.append(volume_id)
        if wait is not None:
            self.until(f"/volumes/{volume_id}", "volume", wait)
        return volume_id

    def show(self, volume_id: str, **more: Any) -> dict[str, Any]:
        return self.ok("GET", f"/volumes/{volume_id}", **more)["volume"]

    def action(self, volume_id: str, name: str, argument: Any = None, **more: Any) -> Any:
        return self.call("POST", f"/volumes/{volume_id}/action", {name: argument or {}}, **more)

    def until(self, path: str, key: str, *statuses: str) -> dict[str, Any]:
        end = time.monotonic() + SECONDS
        while True:
            found = self.ok("GET", path)[key]
            if found["status"] in statuses:
                return found
            assert time.monotonic() < end, found
            time.sleep(0.01)

    def gone(self, path: str) -> None:
        end = time.monotonic() + SECONDS
        while self.call("GET", path).status != 404:
            assert time.monotonic() < end, self.call("GET", path).text
            time.sleep(0.01)

    def snapshot(self, volume_id: str, **columns: Any) -> str:
        body = {"volume_id": volume_id, **columns}
        made = self.ok("POST", "/snapshots", {"snapshot": body})["snapshot"]["id"]
        self.until(f"/snapshots/{made}", "snapshot", "available")
        return made

    @staticmethod
    def _moved(admin: Any, path: str) -> None:
        """What is on its way to another host is not deleted."""
        end = time.monotonic() + SECONDS
        while (shown := admin.get("volume", path)).status == 200:
            if shown["volume"].get("migration_status") not in ("starting", "migrating", "completing"):
                return
            assert time.monotonic() < end
            time.sleep(0.01)

    def clean(self) -> None:
        admin = self.cloud.api("admin")
        for volume_id in self.made:
            path = f"/volumes/{volume_id}"
            self._moved(admin, path)
            if admin.get("volume", path).status == 404:
                continue
            body = {"os-reset_status": {"status": "available", "attach_status": "detached"}}
            admin.post("volume", path + "/action", body)
            assert admin.delete("volume", path + "?cascade=true&force=true", version="3.71").status in (202, 404)
        for volume_id in self.made:
            end = time.monotonic() + SECONDS
            while admin.get("volume", f"/volumes/{volume_id}").status != 404:
                assert time.monotonic() < end
                time.sleep(0.01)


@pytest.fixture
def volumes(cloud):
    made = Volumes(cloud, "demo")
    yield made
    made.clean()


@pytest.fixture
def admin(cloud):
    made = Volumes(cloud, "admin")
    yield made
    made.clean()


@pytest.fixture
def other(cloud):
    made = Volumes(cloud, "other")
    yield made
    made.clean()
