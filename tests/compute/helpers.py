"""Nova for tests: a cloud with compute in it, an image and flavors, and the few calls that every test makes."""

from typing import Any

from tests.support.cloud import Answer, unique
from tests.support.patience import SECONDS

LATEST = "2.96"


class Nova:
    """Calls as a user. ``nova.post("/servers", {...})`` speaks the newest version unless told another."""

    def __init__(self, cloud: Any, user: str = "demo") -> None:
        self.cloud = cloud
        self.user = user
        self._image: str | None = None
        self._flavor: str | None = None

    def as_user(self, user: str) -> "Nova":
        other = Nova(self.cloud, user)
        other._image, other._flavor = self.image, self.flavor
        return other

    def call(self, method: str, path: str, body: Any = None, *, version: str | None = LATEST, **more: Any) -> Answer:
        answer: Answer = self.cloud.api(self.user).request(method, "compute", path, body, version=version, **more)
        return answer

    def get(self, path: str, **more: Any) -> Answer:
        return self.call("GET", path, **more)

    def post(self, path: str, body: Any = None, **more: Any) -> Answer:
        return self.call("POST", path, body, **more)

    def put(self, path: str, body: Any = None, **more: Any) -> Answer:
        return self.call("PUT", path, body, **more)

    def delete(self, path: str, **more: Any) -> Answer:
        return self.call("DELETE", path, **more)

    @property
    def image(self) -> str:
        if self._image is None:
            api = self.cloud.api("admin")
            made = api.post(
                "image",
                "/images",
                {"name": unique("cirros"), "disk_format": "raw", "container_format": "bare", "visibility": "public"},
            )
            assert made.status == 201, made.text
            image_id = made["id"]
            sent = api.request(
                "PUT",
                "image",
                f"/images/{image_id}/file",
                data=b"\0" * 1024,
                headers={"content-type": "application/octet-stream"},
            )
            assert sent.status == 204, sent.text
            self._image = image_id
        return self._image

    @property
    def flavor(self) -> str:
        if self._flavor is None:
            self._flavor = self.new_flavor()
        return self._flavor

    def new_flavor(self, **more: Any) -> str:
        body = {"name": unique("m1"), "ram": 64, "vcpus": 1, "disk": 1, **more}
        made = self.cloud.api("admin").post("compute", "/flavors", {"flavor": body}, version=LATEST)
        assert made.status == 200, made.text
        flavor_id: str = made["flavor"]["id"]
        return flavor_id

    def server_body(self, **more: Any) -> dict[str, Any]:
        body = {
            "name": unique("server"),
            "imageRef": self.image,
            "flavorRef": self.flavor,
            "networks": "none",
            **more,
        }
        return {key: value for key, value in body.items() if value is not None}

    def boot(self, *, wait: str | None = "ACTIVE", version: str | None = LATEST, **more: Any) -> str:
        made = self.post("/servers", {"server": self.server_body(**more)}, version=version)
        assert made.status == 202, made.text
        server_id: str = made["server"]["id"]
        if wait is not None:
            self.wait(server_id, wait)
        return server_id

    def show(self, server_id: str, **more: Any) -> dict[str, Any]:
        found = self.get(f"/servers/{server_id}", **more)
        assert found.status == 200, found.text
        server: dict[str, Any] = found["server"]
        return server

    def wait(self, server_id: str, status: str, seconds: float = SECONDS) -> dict[str, Any]:
        def look() -> Any:
            server = self.show(server_id)
            if server["status"] == "ERROR" and status != "ERROR":
                raise AssertionError(server.get("fault"))
            return server if server["status"] == status and server["OS-EXT-STS:task_state"] is None else None

        found: dict[str, Any] = self.cloud.wait(look, seconds)
        return found

    def gone(self, server_id: str, seconds: float = SECONDS) -> None:
        self.cloud.wait(lambda: self.get(f"/servers/{server_id}").status == 404, seconds)

    def remove(self, server_id: str) -> None:
        answer = self.delete(f"/servers/{server_id}")
        assert answer.status == 204, answer.text
        self.gone(server_id)

    def act(self, server_id: str, action: str, argument: Any = None, **more: Any) -> Answer:
        return self.post(f"/servers/{server_id}/action", {action: argument}, **more)
