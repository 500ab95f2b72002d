"""What network tests share: requests in few words, and networks that are cleaned up."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.cloud import Answer, Cloud, unique


class Net:
    """One user's network requests. ``create("port", network_id=…)`` is the body's inner part of the answer."""

    def __init__(self, cloud: Cloud, user: str) -> None:
        self.api = cloud.api(user)

    @staticmethod
    def path(kind: str) -> str:
        return "/" + {"security_group": "security-groups", "security_group_rule": "security-group-rules"}.get(
            kind, kind + "s"
        )

    def post(self, kind: str, **values: Any) -> Answer:
        return self.api.post("network", self.path(kind), {kind: values})

    def create(self, kind: str, **values: Any) -> Any:
        answer = self.post(kind, **values)
        assert answer.status == 201, answer.text
        return answer[kind]

    def put(self, kind: str, id: str, **values: Any) -> Answer:
        return self.api.put("network", f"{self.path(kind)}/{id}", {kind: values})

    def update(self, kind: str, id: str, **values: Any) -> Any:
        answer = self.put(kind, id, **values)
        assert answer.status == 200, answer.text
        return answer[kind]

    def get(self, kind: str, id: str) -> Any:
        answer = self.api.get("network", f"{self.path(kind)}/{id}")
        assert answer.status == 200, answer.text
        return answer[kind]

    def list(self, kind: str, query: str = "") -> list[Any]:
        answer = self.api.get("network", f"{self.path(kind)}?{query}")
        assert answer.status == 200, answer.text
        found: list[Any] = answer[kind + "s"]
        return found

    def delete(self, kind: str, id: str) -> Answer:
        return self.api.delete("network", f"{self.path(kind)}/{id}")


def error(answer: Answer) -> tuple[int, str]:
    return answer.status, answer["NeutronError"]["type"] if answer.body else ""


@pytest.fixture
def demo(cloud: Cloud) -> Net:
    return Net(cloud, "demo")


@pytest.fixture
def admin(cloud: Cloud) -> Net:
    return Net(cloud, "admin")


@pytest.fixture
def other(cloud: Cloud) -> Net:
    return Net(cloud, "other")


@pytest.fixture
def reader(cloud: Cloud) -> Net:
    return Net(cloud, "reader")


@pytest.fixture
def make(cloud: Cloud) -> Iterator[Callable[..., Any]]:
    """``make(user, kind, **values)``: an object that goes after the test with all that hangs on it."""
    made: list[tuple[str, Any]] = []

    def create(user: str, kind: str, **values: Any) -> Any:
        if kind != "subnet" and kind != "security_group_rule":
            values.setdefault("name", unique(kind)) if kind not in ("floatingip",) else None
        found = Net(cloud, user).create(kind, **values)
        made.append((kind, found))
        return found

    yield create
    admin = Net(cloud, "admin")
    order = ["floatingip", "router", "port", "subnet", "network", "security_group", "subnetpool"]
    for kind in order:
        for made_kind, found in made:
            if made_kind != kind:
                continue
            if kind == "router":
                for port in admin.list("port", f"device_id={found['id']}&device_owner=network:router_interface"):
                    admin.api.put("network", f"/routers/{found['id']}/remove_router_interface", {"port_id": port["id"]})
            if kind == "network":
                for port in admin.list("port", f"network_id={found['id']}"):
                    admin.delete("port", port["id"])
            admin.delete(kind, found["id"])


@pytest.fixture
def lan(make: Callable[..., Any]) -> tuple[Any, Any]:
    """A network of demo's with a subnet 10.30.0.0/24."""
    network = make("demo", "network")
    return network, make("demo", "subnet", network_id=network["id"], ip_version=4, cidr="10.30.0.0/24")


@pytest.fixture
def outside(make: Callable[..., Any]) -> tuple[Any, Any]:
    """An external network with the range 198.51.100.0/24."""
    network = make("admin", "network", **{"router:external": True})
    subnet = make("admin", "subnet", network_id=network["id"], ip_version=4, cidr="198.51.100.0/24", enable_dhcp=False)
    return network, subnet
