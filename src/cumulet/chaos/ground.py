"""What the clients of a run stand on: an image, flavors, an outer network, projects with users and a network each.

All of it is made by an administrator's plain requests before the disturbances and removed after them.
"""

import os
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cumulet.chaos.field import Habits
from cumulet.chaos.session import Session
from cumulet.cli.client import ApiError

OUTER = "172.30.0.0/20"
_IMAGE_BYTES = 4096


@dataclass
class Tenant:
    """One project, shared by the clients that are in it."""

    project: str
    project_id: str
    password: str
    users: list[str] = field(default_factory=list)
    network: str = ""
    router: str = ""


@dataclass
class Ground:
    url: str
    admin: Session
    operator: Callable[[], Session]  # another session of an administrator, for another thread
    habits: Habits = field(default_factory=Habits)
    images: list[str] = field(default_factory=list)
    flavors: list[str] = field(default_factory=list)
    outer: str = ""
    tenants: list[Tenant] = field(default_factory=list)
    fencing: threading.Lock = field(default_factory=threading.Lock)  # one host at a time
    _made: list[tuple[str, str]] = field(default_factory=list)  # service, path; removed from the end

    def session(self, tenant: Tenant, user: str) -> Session:
        return Session(self.url, user, tenant.project, tenant.password, self.habits.ca)

    def make(self, clients: int) -> None:
        for data in self.habits.images or (os.urandom(_IMAGE_BYTES),):
            form = "qcow2" if self.habits.images else "raw"
            image = {"name": "chaos", "disk_format": form, "container_format": "bare", "visibility": "public"}
            self.images.append(self._post("image", "/images", image)["id"])
            self.admin.must("PUT", "image", f"/images/{self.images[-1]}/file", data)
        for memory in self.habits.memory_mb:
            flavor = {"name": f"chaos-{memory}", "vcpus": 1, "ram": memory, "disk": 1}
            self.flavors.append(self._post("compute", "/flavors", {"flavor": flavor})["flavor"]["id"])
        self.outer = self.habits.outer or self._outer()
        # who may move servers between hosts, besides all that members may
        manager = next(
            r["id"] for r in self.admin.must("GET", "identity", "/roles")["roles"] if r["name"] == "manager"
        )  # fmt: skip
        for number in range((clients + 1) // 2):
            self._tenant(number, manager, min(2, clients - 2 * number))

    def _outer(self) -> str:
        outer = {
            "name": "chaos-outer",
            "router:external": True,
            "provider:network_type": "flat",
            "provider:physical_network": "public",
        }
        outer_id: str = self._post("network", "/networks", {"network": outer})["network"]["id"]
        subnet = {"network_id": outer_id, "ip_version": 4, "cidr": OUTER, "enable_dhcp": False}
        self._post("network", "/subnets", {"subnet": subnet})
        return outer_id

    def _tenant(self, number: int, role: str, users: int) -> None:
        name = f"chaos-{number}"
        project = self._post("identity", "/projects", {"project": {"name": name}})["project"]["id"]
        tenant = Tenant(name, project, secrets.token_urlsafe(12))
        for place in range(users):
            user = {"name": f"{name}-{place}", "password": tenant.password}
            made = self._post("identity", "/users", {"user": user})["user"]["id"]
            self.admin.must("PUT", "identity", f"/projects/{project}/users/{made}/roles/{role}")
            tenant.users.append(user["name"])
        first = self.session(tenant, tenant.users[0])
        network = {"network": {"name": name}}
        tenant.network = first.must("POST", "network", "/networks", network)["network"]["id"]
        subnet = {"network_id": tenant.network, "ip_version": 4, "cidr": "10.40.0.0/20"}
        subnet_id = first.must("POST", "network", "/subnets", {"subnet": subnet})["subnet"]["id"]
        router = {"router": {"name": name, "external_gateway_info": {"network_id": self.outer}}}
        tenant.router = first.must("POST", "network", "/routers", router)["router"]["id"]
        first.must("PUT", "network", f"/routers/{tenant.router}/add_router_interface", {"subnet_id": subnet_id})
        first.close()
        self._made += [("network", f"/networks/{tenant.network}"), ("network", f"/routers/{tenant.router}")]
        self.tenants.append(tenant)

    def _post(self, service: str, path: str, body: Any) -> Any:
        made = self.admin.must("POST", service, path, body)
        one = made if service == "image" else next(iter(made.values()))
        self._made.append((service, f"{path}/{one['id']}"))
        return made

    def remove(self) -> list[str]:
        """All of it; what could not be removed, and why."""
        left = []
        for tenant in self.tenants:
            ports = self.admin.must("GET", "network", f"/ports?device_id={tenant.router}")["ports"]
            for port in ports:
                if port["device_owner"] == "network:router_interface":
                    path = f"/routers/{tenant.router}/remove_router_interface"
                    self.admin.ask("PUT", "network", path, {"port_id": port["id"]})
            groups = self.admin.must("GET", "network", f"/security-groups?project_id={tenant.project_id}")
            self._made += [("network", f"/security-groups/{group['id']}") for group in groups["security_groups"]]
        while self._made:
            service, path = self._made.pop()
            try:
                self.admin.must("DELETE", service, path)
            except ApiError as error:
                left.append(f"{path}: {error}")
        return left
