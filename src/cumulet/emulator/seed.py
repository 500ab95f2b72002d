"""What an emulated cloud begins with, as DevStack's does: accounts, flavors, an image, networks.

It is written through the services' own functions, in a few transactions and before anything runs: over HTTP the same
would take longer than all the rest of the start.
"""

from collections.abc import Iterable
from typing import Any

import msgspec

from cumulet.agent.contract import Upload
from cumulet.agent.fake.bytes import write_upload
from cumulet.compose import ControlPlane
from cumulet.db import Tx
from cumulet.emulator.access import Account
from cumulet.kernel.context import RequestContext, system_context
from cumulet.kernel.ids import new_hex, new_uuid
from cumulet.services.compute import catalogue
from cumulet.services.identity import store
from cumulet.services.identity.store import AssignmentRow, ProjectRow, UserRow
from cumulet.services.network import intake
from cumulet.services.network.work import Work

# id, name, vCPUs, MiB, GiB of root disk
FLAVORS = (
    ("1", "m1.tiny", 1, 512, 1),
    ("2", "m1.small", 1, 2048, 20),
    ("3", "m1.medium", 2, 4096, 40),
    ("4", "m1.large", 4, 8192, 80),
    ("5", "m1.xlarge", 8, 16384, 160),
    ("42", "m1.nano", 1, 128, 1),
    ("84", "m1.micro", 1, 192, 1),
)
IMAGE = "cirros"
PUBLIC_RANGE, PRIVATE_RANGE = "172.24.4.0/24", "10.0.0.0/26"


def add_accounts(control: ControlPlane, accounts: Iterable[Account]) -> None:
    """What is missing of these users and their projects, each with its role."""
    hashed = {account.password: "" for account in accounts}
    for password in hashed:
        hashed[password] = control.identity.passwords.hash(password)

    def work(tx: Tx) -> None:
        for account in accounts:
            role = store.roles.one(tx, name=account.role, domain_id=None)
            if role is None:
                raise ValueError(f"no role {account.role!r} for {account.name}")
            project = store.projects.one(tx, domain_id="default", name=account.project, is_domain=False)
            if project is None:
                project = store.projects.add(
                    tx, ProjectRow(new_hex(), account.project, "default", "default", False, "", True, [], {}, {})
                )
            if store.users.one(tx, domain_id="default", name=account.name) is None:
                user = store.users.add(
                    tx,
                    UserRow(
                        new_hex(), "default", account.name, True, project.id, hashed[account.password], None, 0, {}, {}
                    ),
                )
                store.add_assignment(tx, AssignmentRow("user", user.id, "project", project.id, role.id, False))

    control.db.write(work)


def add_resources(control: ControlPlane, accounts: Iterable[Account]) -> None:
    """Flavors, an image, the public network, and a private one with its router for each ordinary member's project."""
    members = [account.project for account in accounts if account.role == "member"]
    image_id = new_uuid()
    upload = Upload(image_id=image_id, disk_format="qcow2", path=str(control.image.files.path(image_id)))
    written = write_upload(upload, IMAGE, 1)

    def work(tx: Tx) -> None:
        for flavor_id, name, vcpus, memory_mb, root_gb in FLAVORS:
            catalogue.insert_flavor(
                tx,
                {
                    "id": flavor_id, "name": name, "description": None, "vcpus": vcpus, "memory_mb": memory_mb,
                    "root_gb": root_gb, "ephemeral_gb": 0, "swap_mb": 0, "rxtx_factor": 1.0, "is_public": True,
                    "extra_specs": {}, "created_at": tx.now,
                },
            )  # fmt: skip
        ids = {name: _project_id(tx, name) for name in ("admin", *members)}
        context = _context(ids["admin"])
        control.image.create_snapshot_image(
            tx, context, IMAGE, {"os_type": "linux", "hw_rng_model": "virtio"}, visibility="public", image_id=image_id
        )
        control.image.activate(tx, image_id, written)
        public = _network(
            control, tx, context, name="public",
            **{"router:external": True, "provider:network_type": "flat", "provider:physical_network": "public"},
        )  # fmt: skip
        pool = {"start": "172.24.4.10", "end": "172.24.4.254"}
        _subnet(
            control, tx, context, network_id=public, name="public-subnet", cidr=PUBLIC_RANGE,
            gateway_ip="172.24.4.1", enable_dhcp=False, allocation_pools=[pool],
        )  # fmt: skip
        for name in dict.fromkeys(members):
            _private_network(control, tx, _context(ids[name]), public)

    control.db.write(work)


def _project_id(tx: Tx, name: str) -> str:
    found = store.projects.one(tx, domain_id="default", name=name, is_domain=False)
    assert found is not None
    return found.id


def _context(project_id: str) -> RequestContext:
    return msgspec.structs.replace(system_context("emulator"), project_id=project_id)


def _make(control: ControlPlane, tx: Tx, context: RequestContext, noun: Any, values: dict[str, Any]) -> Any:
    work = Work(control.network, tx, context, sees_all=True)
    (row,) = noun.create(work, [intake.for_create(noun.resource, values, context, lambda: True)])
    work.flush()
    return row


def _network(control: ControlPlane, tx: Tx, context: RequestContext, **values: Any) -> str:
    network_id: str = _make(control, tx, context, control.network.networks, values).id
    return network_id


def _subnet(control: ControlPlane, tx: Tx, context: RequestContext, **values: Any) -> str:
    subnet_id: str = _make(control, tx, context, control.network.subnets, {"ip_version": 4, **values}).id
    return subnet_id


def _private_network(control: ControlPlane, tx: Tx, context: RequestContext, public_id: str) -> None:
    network_id = _network(control, tx, context, name="private")
    subnet_id = _subnet(control, tx, context, network_id=network_id, name="private-subnet", cidr=PRIVATE_RANGE)
    values = {"name": "router1", "external_gateway_info": {"network_id": public_id}}
    router = _make(control, tx, context, control.network.routers, values)
    work = Work(control.network, tx, context, sees_all=True)
    control.network.routers.add_interface(work, router, {"subnet_id": subnet_id})
    work.flush()
