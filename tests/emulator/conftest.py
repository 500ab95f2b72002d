"""``emulated`` is the session's emulator, put back, with plain HTTP clients for its accounts."""

from typing import Any

import pytest

from cumulet.emulator import Emulator, access
from tests.support.cloud import Clients


class Emulated(Clients):
    def __init__(self, emulator: Emulator) -> None:
        super().__init__()
        self.emulator = emulator
        self.url = emulator.url

    def auth(self, user: str) -> dict[str, str]:
        return access.auth(self.url, self.emulator.accounts[user])

    # -- what most tests do --------------------------------------------------------------------------------------

    def server_body(self, name: str = "one", **more: Any) -> dict[str, Any]:
        api = self.api()
        image = api.get("image", "/images?name=cirros")["images"][0]["id"]
        network = api.get("network", "/networks?name=private")["networks"][0]["id"]
        return {"name": name, "flavorRef": "1", "imageRef": image, "networks": [{"uuid": network}], **more}

    def boot(self, name: str = "one", *, settle: bool = True, **more: Any) -> str:
        made = self.api().post("compute", "/servers", {"server": self.server_body(name, **more)})
        assert made.status == 202, made.text
        if settle:
            assert self.emulator.settle()
        server_id: str = made["server"]["id"]
        return server_id

    def server(self, server_id: str, user: str = "demo") -> dict[str, Any]:
        shown: dict[str, Any] = self.api(user).get("compute", f"/servers/{server_id}")["server"]
        return shown

    def status(self, server_id: str) -> str:
        return str(self.server(server_id)["status"])

    def control(self, method: str, path: str = "", body: Any = None) -> Any:
        """The answer of /emulator, as `requests` has it."""
        import requests

        session = requests.Session()
        session.trust_env = False
        return session.request(method, f"{self.url}/emulator{path}", json=body, timeout=30)


@pytest.fixture(scope="session")
def clients(openstack_emulator: Emulator) -> Emulated:
    return Emulated(openstack_emulator)


@pytest.fixture
def emulated(openstack_cloud: Emulator, clients: Emulated) -> Emulated:
    return clients
