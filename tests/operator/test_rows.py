"""Drift among the control plane's rows, planted by hand: each kind is found, named, repaired, and then gone.

Every comparison of `audit.rows` has a plant here; one without is an error (`test_every_comparison_is_tried`).
"""

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
from click.testing import CliRunner
from sqlalchemy import delete, insert, select, text, update

from cumulet.cli import status as status_cli
from cumulet.conductor.tables import DESIRED_DOCS, HOSTS
from cumulet.kernel.ids import new_uuid
from cumulet.saga.tables import SAGA_OWNERS, SAGAS
from cumulet.services.compute import migrations
from cumulet.services.compute import tables as ct
from cumulet.services.network import tables as nt
from cumulet.services.operator.audit.rows import CHILDREN
from cumulet.services.placement import tables as pt
from cumulet.services.volume import tables as vt
from tests.compute.helpers import Nova


class Stage:
    """A cloud with one of everything: a server with a port, a floating IP and a volume."""

    def __init__(self, cloud: Any) -> None:
        self.cloud = cloud
        self.nova = Nova(cloud)
        self.api = cloud.api("demo")
        self.admin = cloud.api("admin")
        network = self.network = self._network("inside", "10.8.0.0/24")
        outside = self.admin.post(
            "network",
            "/networks",
            {"network": {"name": "outside", "router:external": True, "provider:network_type": "flat",
                         "provider:physical_network": "public"}},
        )["network"]["id"]  # fmt: skip
        pool = {"network_id": outside, "cidr": "172.30.0.0/24", "ip_version": 4, "enable_dhcp": False}
        self.subnet_outside = self.admin.post("network", "/subnets", {"subnet": pool})["subnet"]["id"]
        subnet = self.api.get("network", f"/subnets?network_id={network}")["subnets"][0]["id"]
        router = {"name": "r", "external_gateway_info": {"network_id": outside}}
        self.router = self.api.post("network", "/routers", {"router": router})["router"]["id"]
        added = self.api.put("network", f"/routers/{self.router}/add_router_interface", {"subnet_id": subnet})
        assert added.status == 200, added.text
        self.server = self.nova.boot(networks=[{"uuid": network}])
        self.port = self.api.get("network", f"/ports?device_id={self.server}")["ports"][0]["id"]
        floating = {"floating_network_id": outside, "port_id": self.port}
        made = self.api.post("network", "/floatingips", {"floatingip": floating})
        assert made.status == 201, made.text
        self.floating_ip = made["floatingip"]["id"]
        self.volume = self.api.post("volume", "/volumes", {"volume": {"size": 1, "name": "v"}})["volume"]["id"]
        cloud.wait(lambda: self.shown("available"))
        self.attach()

    def _network(self, name: str, cidr: str) -> str:
        made: str = self.api.post("network", "/networks", {"network": {"name": name}})["network"]["id"]
        assert self.api.post(
            "network", "/subnets", {"subnet": {"network_id": made, "cidr": cidr, "ip_version": 4}}
        ).status == 201  # fmt: skip
        return made

    def shown(self, status: str) -> bool:
        return bool(self.api.get("volume", f"/volumes/{self.volume}")["volume"]["status"] == status)

    def attach(self) -> None:
        body = {"volumeAttachment": {"volumeId": self.volume}}
        assert self.nova.post(f"/servers/{self.server}/os-volume_attachments", body).status == 200
        self.cloud.wait(lambda: self.shown("in-use"))
        self.settle()

    @property
    def attachment(self) -> str:
        found = self.one(select(vt.ATTACHMENTS.c.id).where(vt.ATTACHMENTS.c.volume_id == self.volume))
        return str(found[0])

    @property
    def host(self) -> str:
        return str(self.one(select(ct.SERVERS.c.host).where(ct.SERVERS.c.id == self.server))[0])

    @property
    def other_host(self) -> str:
        return next(name for name in self.cloud.hosts if name != self.host)

    @property
    def operator(self) -> Any:
        return self.cloud.control.operator

    def sound(self, *, fix: bool = False) -> None:
        """Nothing is under way, and nothing wrong. ``fix``: or repaired, if another test failed half-way."""
        self.settle()
        self.cloud.wait(lambda: [one for one in self.audit(fix=fix) if one["severity"] != "info"] == [])

    def settle(self) -> None:
        busy = select(SAGAS.c.id).where(SAGAS.c.status.in_(("queued", "running", "unwinding")))
        self.cloud.wait(lambda: not list(self.rows(busy)))

    def rows(self, statement: Any) -> Any:
        return self.cloud.db.read(lambda tx: tx.rows(statement))

    def one(self, statement: Any) -> Any:
        (found,) = self.rows(statement)
        return found

    def run(self, *statements: Any) -> None:
        def work(tx: Any) -> None:
            for statement in statements:
                assert tx.run(statement) >= 1, str(statement)

        self.cloud.db.write(work)

    def audit(self, **body: Any) -> list[dict[str, Any]]:
        answer = requests.post(
            f"{self.cloud.url}/operator/v1/audit",
            headers={"X-Auth-Token": self.admin.token},
            json={"audit": body},
            timeout=30,
        )
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()["findings"]
        return found


@pytest.fixture(scope="module")
def stage(cloud_backends: Callable[[], dict[str, Any]]) -> Iterator[Stage]:
    from tests.conftest import _directory
    from tests.support.cloud import Cloud

    directory = _directory()
    cloud = Cloud(directory, hosts=2, **cloud_backends()).start()
    cloud.control.reconcilers.stop()  # they repair some of it by themselves
    yield Stage(cloud)
    cloud.stop()
    shutil.rmtree(directory, ignore_errors=True)


NOBODY = "11111111-2222-3333-4444-555555555555"
Plant = Callable[[Stage], str]  # plants it; the object's id
PLANTS: dict[str, Plant] = {}
CHECKS: dict[str, Callable[[Stage], None]] = {}  # that the repair left it right


def plant(code: str, after: Callable[[Stage], None] = lambda stage: None) -> Callable[[Plant], Plant]:
    def note(make: Plant) -> Plant:
        PLANTS[code], CHECKS[code] = make, after
        return make

    return note


def allocated(stage: Stage) -> None:
    rows = stage.rows(
        select(pt.ALLOCATIONS.c.resource_class, HOSTS.c.name)
        .join(HOSTS, HOSTS.c.uuid == pt.ALLOCATIONS.c.provider_uuid)
        .where(pt.ALLOCATIONS.c.consumer_uuid == stage.server)
    )
    assert {tuple(row) for row in rows} == {(name, stage.host) for name in ("VCPU", "MEMORY_MB", "DISK_GB")}


@plant("allocation-without-server")
def _(stage: Stage) -> str:
    consumer = {"uuid": NOBODY, "project_id": "p", "user_id": "u", "consumer_type": "INSTANCE", "generation": 1,
                "updated_at": 1}  # fmt: skip
    uuid = stage.one(select(HOSTS.c.uuid).where(HOSTS.c.name == "fake-1"))[0]
    held = {"consumer_uuid": NOBODY, "provider_uuid": uuid, "resource_class": "VCPU", "used": 2, "updated_at": 1}
    stage.run(insert(pt.CONSUMERS).values(consumer), insert(pt.ALLOCATIONS).values(held))
    return NOBODY


@plant("server-without-allocation", allocated)
def _(stage: Stage) -> str:
    stage.run(
        delete(pt.ALLOCATIONS).where(pt.ALLOCATIONS.c.consumer_uuid == stage.server),
        delete(pt.CONSUMERS).where(pt.CONSUMERS.c.uuid == stage.server),
    )
    return stage.server


@plant("allocation-elsewhere", allocated)
def _(stage: Stage) -> str:
    uuid = stage.one(select(HOSTS.c.uuid).where(HOSTS.c.name == stage.other_host))[0]
    held = pt.ALLOCATIONS.c.consumer_uuid == stage.server
    stage.run(update(pt.ALLOCATIONS).where(held).values(provider_uuid=uuid))
    return stage.server


def attachment_row(stage: Stage, **values: Any) -> str:
    row = {"id": new_uuid(), "volume_id": stage.volume, "project_id": stage.api.project_id, "server_id": stage.server,
           "status": "attached", "generation": 1, "host": stage.host, "created_at": 1, **values}  # fmt: skip
    stage.run(insert(vt.ATTACHMENTS).values(row))
    return str(row["id"])


def still_in_use(stage: Stage) -> None:
    assert stage.shown("in-use")


@plant("allocation-of-ended-move")
def _(stage: Stage) -> str:
    migration = new_uuid()
    control, name = stage.cloud.control, stage.other_host

    def work(tx: Any) -> None:
        [provider] = [host.uuid for host in control.hosts.list(tx) if host.name == name]
        control.placement.claim(tx, migration, provider, {"VCPU": 1}, NOBODY, NOBODY, consumer_type="MIGRATION")

    stage.cloud.db.write(work)
    return migration


@plant("move-stuck")
def _(stage: Stage) -> str:
    compute = stage.cloud.control.compute

    def work(tx: Any) -> str:
        moved: str = migrations.begin(tx, compute.row(tx, stage.server), "migration", None, (None, None), None)
        return moved

    return str(stage.cloud.db.write(work))


@plant("attachment-without-volume", still_in_use)
def _(stage: Stage) -> str:
    return attachment_row(stage, volume_id=NOBODY)


@plant("attachment-without-server", still_in_use)
def _(stage: Stage) -> str:
    gone = stage.nova.boot()
    assert stage.nova.delete(f"/servers/{gone}").status == 204
    stage.nova.gone(gone)
    stage.settle()
    return attachment_row(stage, server_id=gone)


@plant("attachment-unknown-to-server", still_in_use)
def _(stage: Stage) -> str:
    return attachment_row(stage)


@plant("disk-without-attachment")
def _(stage: Stage) -> str:
    row = {"id": new_uuid(), "server_id": stage.server, "volume_id": NOBODY, "attachment_id": NOBODY,
           "delete_on_termination": False, "created_at": 1}  # fmt: skip
    stage.run(insert(ct.BLOCK_DEVICES).values(row))
    return str(row["id"])


def new_port(stage: Stage) -> str:
    made: str = stage.api.post("network", "/ports", {"port": {"network_id": stage.network}})["port"]["id"]
    return made


@plant("port-without-server")
def _(stage: Stage) -> str:
    port = new_port(stage)
    owned = {"device_id": NOBODY, "device_owner": "compute:nova", "made_for_server": True}
    stage.run(update(nt.PORTS).where(nt.PORTS.c.id == port).values(owned))
    return port


def bound_right(stage: Stage) -> None:
    assert stage.one(select(nt.PORTS.c.host).where(nt.PORTS.c.id == stage.port))[0] == stage.host


@plant("port-on-unknown-host", bound_right)
def _(stage: Stage) -> str:
    stage.run(update(nt.PORTS).where(nt.PORTS.c.id == stage.port).values(host="burnt"))
    return stage.port


@plant("port-bound-elsewhere", bound_right)
def _(stage: Stage) -> str:
    stage.run(update(nt.PORTS).where(nt.PORTS.c.id == stage.port).values(host=stage.other_host))
    return stage.port


@plant("interface-without-port")
def _(stage: Stage) -> str:
    stage.run(insert(ct.INTERFACES).values(port_id=NOBODY, server_id=stage.server, position=99))
    return NOBODY


@plant("port-unknown-to-server")
def _(stage: Stage) -> str:
    port = new_port(stage)
    owned = {"device_id": stage.server, "device_owner": "compute:nova", "made_for_server": True, "host": stage.host}
    stage.run(update(nt.PORTS).where(nt.PORTS.c.id == port).values(owned))
    return port


def reassociate(stage: Stage) -> None:
    row = stage.one(select(nt.FLOATING_IPS.c.port_id).where(nt.FLOATING_IPS.c.id == stage.floating_ip))
    assert row[0] is None
    body = {"floatingip": {"port_id": stage.port}}
    assert stage.api.put("network", f"/floatingips/{stage.floating_ip}", body).status == 200


@plant("floating-ip-astray", reassociate)
def _(stage: Stage) -> str:
    this = nt.FLOATING_IPS.c.id == stage.floating_ip
    stage.run(update(nt.FLOATING_IPS).where(this).values(fixed_ip_address="10.8.0.250"))
    return stage.floating_ip


def may_stop_and_start(stage: Stage) -> None:
    assert stage.nova.act(stage.server, "os-stop").status == 202
    stage.nova.wait(stage.server, "SHUTOFF")
    assert stage.nova.act(stage.server, "os-start").status == 202
    stage.nova.wait(stage.server, "ACTIVE")
    stage.settle()


@plant("resize-without-way-back", may_stop_and_start)
def _(stage: Stage) -> str:
    stage.run(update(ct.SERVERS).where(ct.SERVERS.c.id == stage.server).values(goal="resized"))
    return stage.server


@plant("owner-without-saga", may_stop_and_start)
def _(stage: Stage) -> str:
    this = (SAGA_OWNERS.c.object_kind == "server") & (SAGA_OWNERS.c.object_id == stage.server)
    stage.run(update(SAGA_OWNERS).where(this).values(saga_id=NOBODY))
    assert stage.nova.act(stage.server, "os-stop").status == 409
    return f"server:{stage.server}"


@plant("successor-without-saga")
def _(stage: Stage) -> str:
    this = (SAGA_OWNERS.c.object_kind == "server") & (SAGA_OWNERS.c.object_id == stage.server)
    stage.run(update(SAGA_OWNERS).where(this).values(next_saga_id=NOBODY))
    return f"server:{stage.server}"


def saga_row(stage: Stage, **values: Any) -> str:
    """A saga that no conductor here knows: it stays as it is."""
    row = {"id": new_uuid(), "kind": "server.of_another_release", "version": 9, "object_kind": "server",
           "object_id": NOBODY, "owns": False, "request_id": "req-x", "params": {}, "status": "running", "position": 0,
           "phase": "waiting", "attempt": 1, "step_started_at": 1, "patience": 0, "epoch": 1,
           "cancel_requested": False, "cancelled": False, "created_at": 1, "updated_at": 1,
           "wake_at": 1 << 60, **values}  # fmt: skip
    stage.run(insert(SAGAS).values(row))
    return str(row["id"])


def cancelled(stage: Stage) -> None:
    this = SAGAS.c.kind == "server.of_another_release"
    assert all(row[0] for row in stage.rows(select(SAGAS.c.cancel_requested).where(this)))
    stage.run(delete(SAGAS).where(this))


@plant("child-without-parent", cancelled)
def _(stage: Stage) -> str:
    return saga_row(stage, parent_id=NOBODY)


@plant("saga-without-slot", cancelled)
def _(stage: Stage) -> str:
    return saga_row(stage, owns=True)


def plain(stage: Stage) -> None:
    shown = stage.nova.get(f"/servers/{stage.server}")["server"]
    assert (shown["status"], shown["OS-EXT-STS:task_state"]) == ("ACTIVE", None)


@plant("server-stuck", plain)
def _(stage: Stage) -> str:
    stuck = {"task_state": "rebooting", "status": "REBOOT"}
    stage.run(update(ct.SERVERS).where(ct.SERVERS.c.id == stage.server).values(stuck))
    return stage.server


@plant("volume-stuck", still_in_use)
def _(stage: Stage) -> str:
    stage.run(update(vt.VOLUMES).where(vt.VOLUMES.c.id == stage.volume).values(busy="extending", status="extending"))
    return stage.volume


def copy_row(stage: Stage, table: Any, status: str, **more: Any) -> str:
    row = {"id": new_uuid(), "volume_id": stage.volume, "project_id": "p", "size_gb": 1, "status": status,
           "metadata": {}, "created_at": 1, **more}  # fmt: skip
    stage.run(insert(table).values(row))
    return str(row["id"])


def copies_are(status: str, table: Any) -> Callable[[Stage], None]:
    def look(stage: Stage) -> None:
        [row] = stage.rows(select(table.c.status).where(table.c.deleted_at.is_(None)))
        assert row[0] == status
        stage.run(delete(table))

    return look


@plant("snapshot-stuck", copies_are("error", vt.SNAPSHOTS))
def _(stage: Stage) -> str:
    return copy_row(stage, vt.SNAPSHOTS, "creating")


@plant("backup-stuck", copies_are("available", vt.BACKUPS))
def _(stage: Stage) -> str:
    more = {"data_id": new_uuid(), "object_count": 0, "described": {}, "data_timestamp": 1}
    return copy_row(stage, vt.BACKUPS, "restoring", **more)


@plant("snapshot-without-volume")
def _(stage: Stage) -> str:
    row = {"id": new_uuid(), "volume_id": NOBODY, "project_id": "p", "size_gb": 1, "status": "available",
           "metadata": {}, "created_at": 1}  # fmt: skip
    stage.run(insert(vt.SNAPSHOTS).values(row))
    return str(row["id"])


@plant("report-from-elsewhere")
def _(stage: Stage) -> str:
    row = {"server_id": stage.server, "host": stage.other_host, "power_state": 1, "reason": "", "sequence": 1,
           "reported_at": 1}  # fmt: skip
    stage.run(insert(ct.VMMS).values(row))
    return f"{stage.server}@{stage.other_host}"


@plant("provider-of-another-life", lambda stage: stage.audit(fix=True) and None)
def _(stage: Stage) -> str:
    """A host lost its row and came back with a new id; placement still has the old one."""
    stage.cloud.add_host("fake-9")
    stage.cloud.wait(lambda: stage.rows(select(pt.PROVIDERS.c.uuid).where(pt.PROVIDERS.c.name == "fake-9")))
    old = str(stage.one(select(pt.PROVIDERS.c.uuid).where(pt.PROVIDERS.c.name == "fake-9"))[0])
    stage.run(update(HOSTS).where(HOSTS.c.name == "fake-9").values(uuid=new_uuid()))
    return old


def has_inventory(stage: Stage) -> None:
    uuid = stage.one(select(HOSTS.c.uuid).where(HOSTS.c.name == "fake-8"))[0]
    kinds = {row[0] for row in stage.rows(select(pt.INVENTORIES.c.resource_class).where(
        pt.INVENTORIES.c.provider_uuid == uuid
    ))}  # fmt: skip
    assert kinds == {"VCPU", "MEMORY_MB", "DISK_GB"}


@plant("host-without-provider", has_inventory)
def _(stage: Stage) -> str:
    stage.cloud.add_host("fake-8")
    stage.cloud.wait(lambda: stage.rows(select(pt.PROVIDERS.c.uuid).where(pt.PROVIDERS.c.name == "fake-8")))
    uuid = stage.one(select(HOSTS.c.uuid).where(HOSTS.c.name == "fake-8"))[0]
    stage.run(
        delete(pt.INVENTORIES).where(pt.INVENTORIES.c.provider_uuid == uuid),
        delete(pt.PROVIDERS).where(pt.PROVIDERS.c.uuid == uuid),
    )
    return "fake-8"


def served(stage: Stage) -> None:
    stage.cloud.wait(
        lambda: stage.rows(select(nt.DHCP_HOSTS.c.host).where(nt.DHCP_HOSTS.c.network_id == stage.network))
    )


@plant("service-on-unknown-host", served)
def _(stage: Stage) -> str:
    this = nt.DHCP_HOSTS.c.network_id == stage.network
    stage.run(update(nt.DHCP_HOSTS).where(this).values(host="burnt"))
    return f"{stage.network}@burnt"


@plant("document-index")
def _(stage: Stage) -> str:
    this = (DESIRED_DOCS.c.kind == "port") & (DESIRED_DOCS.c.object_id == stage.port)
    stage.run(update(DESIRED_DOCS).where(this).values(absent=True, generation=DESIRED_DOCS.c.generation + 1))
    return stage.port


@plant("row-without-parent")
def _(stage: Stage) -> str:
    stage.run(insert(ct.SERVER_TAGS).values(server_id=NOBODY, tag="left"))
    return f"{NOBODY}/left"


@pytest.mark.parametrize("code", sorted(PLANTS))
def test_planted_drift_is_found_named_and_repaired(stage: Stage, code: str) -> None:
    stage.sound(fix=True)
    object_id = PLANTS[code](stage)
    (found,) = [f for f in stage.audit() if f["code"] == code and f["object_id"] == object_id]
    assert found["repairable"]
    assert found["repaired"] is None  # nothing is done unasked
    assert [f["code"] for f in stage.audit() if f["code"] == code] == [code]
    (repaired,) = [f for f in stage.audit(fix=True, only=[found["id"]]) if f["id"] == found["id"]]
    assert repaired["repair_error"] is None
    assert repaired["repaired"]
    stage.cloud.wait(lambda: [f for f in stage.audit() if f["code"] == code] == [])
    CHECKS[code](stage)
    stage.sound()


def test_what_only_people_can_repair(stage: Stage) -> None:
    this = ct.SERVERS.c.id == stage.server
    host = stage.host
    stage.run(update(ct.SERVERS).where(this).values(host="burnt"))
    stage.run(update(vt.VOLUMES).where(vt.VOLUMES.c.id == stage.volume).values(host="burnt"))
    codes = {f["code"]: f for f in stage.audit(fix=True, only=["server-on-unknown-host", "volume-on-unknown-host"])}
    for code in ("server-on-unknown-host", "volume-on-unknown-host"):
        assert not codes[code]["repairable"]
        assert codes[code]["repaired"] is None
        assert "bring the host back" in codes[code]["cure"]
    stage.run(update(ct.SERVERS).where(this).values(host=host))
    stage.run(update(vt.VOLUMES).where(vt.VOLUMES.c.id == stage.volume).values(host="fake-1"))


def test_every_comparison_is_tried(stage: Stage) -> None:
    checks = [check for check in stage.operator.checks if not check.standing]
    rows = {check.name for check in checks if check.find.__qualname__.startswith("Rows.")}
    people = {"server-on-unknown-host", "volume-on-unknown-host"}
    assert rows == set(PLANTS) | people


@pytest.mark.parametrize("number", range(len(CHILDREN)), ids=[f"{c.table.name}-{n}" for n, c in enumerate(CHILDREN)])
def test_children_of_nobody_are_seen_in_every_table(stage: Stage, number: int) -> None:
    child = CHILDREN[number]
    values: dict[str, Any] = {}
    for column in child.table.columns:
        if not column.nullable or column.primary_key:
            kind = column.type.python_type if not hasattr(column.type, "impl_instance") else str
            text_ = NOBODY[: getattr(column.type, "length", None) or 64]
            values[column.name] = {int: 7_000_001, float: 1.5, bool: False}.get(kind, text_)
    if "actor_kind" in values:
        values.update(actor_kind="user", target_kind="project", role_id=_a_role(stage))
    if child.table.name == "identity_application_credentials":
        values["user_id"] = stage.api.user_id
    stage.run(insert(child.table).values(values))
    key = "/".join(str(values[column.name]) for column in child.key)
    found = [f for f in stage.audit() if f["code"] == "row-without-parent" and f["object_kind"] == child.table.name]
    assert [f["object_id"] for f in found] == [key]
    ids = [f["id"] for f in found]
    again = stage.audit(fix=True, only=ids)
    assert [f["repaired"] for f in again if f["id"] in ids] == ["the row is removed"]
    where = [column == values[column.name] for column in child.key]
    assert list(stage.rows(select(*child.key).where(*where))) == []


def _a_role(stage: Stage) -> str:
    return str(stage.rows(text("SELECT id FROM identity_roles"))[0][0])


def test_a_repair_that_cannot_be_done_is_told_and_the_others_go_on(stage: Stage) -> None:
    """The host has no room for what its server should have claimed."""
    uuid = stage.one(select(HOSTS.c.uuid).where(HOSTS.c.name == stage.host))[0]
    mine = (pt.INVENTORIES.c.provider_uuid == uuid) & (pt.INVENTORIES.c.resource_class == "MEMORY_MB")
    total = stage.one(select(pt.INVENTORIES.c.total).where(mine))[0]
    PLANTS["server-without-allocation"](stage)
    PLANTS["row-without-parent"](stage)
    stage.run(update(pt.INVENTORIES).where(mine).values(total=1, reserved=0))
    found = {f["code"]: f for f in stage.audit(fix=True)}
    assert "Unable to allocate" in found["server-without-allocation"]["repair_error"]
    assert found["row-without-parent"]["repaired"] == "the row is removed"
    stage.run(update(pt.INVENTORIES).where(mine).values(total=total))
    assert stage.audit(fix=True)[0]["repaired"] == "it is claimed"
    allocated(stage)


def test_what_users_keep_in_placement_is_theirs(stage: Stage) -> None:
    """A consumer that no server is, and that does not say it is one, is none of our business; nor is their provider."""
    consumer = {"uuid": new_uuid(), "project_id": "p", "user_id": "u", "generation": 1, "updated_at": 1}
    provider = {"uuid": new_uuid(), "name": "a rack", "generation": 0, "root_uuid": new_uuid(), "created_at": 1,
                "updated_at": 1}  # fmt: skip
    held = {"consumer_uuid": consumer["uuid"], "provider_uuid": provider["uuid"], "resource_class": "CUSTOM_X",
            "used": 1, "updated_at": 1}  # fmt: skip
    stage.run(
        insert(pt.CONSUMERS).values(consumer), insert(pt.PROVIDERS).values(provider),
        insert(pt.ALLOCATIONS).values(held),
    )  # fmt: skip
    assert stage.audit() == []


def test_the_command_names_and_repairs(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_cli, "cloud_settings", lambda name: {"auth": stage.cloud.auth("admin")})
    monkeypatch.setattr(status_cli.process, "running", lambda run_dir, role: 1)
    monkeypatch.setattr(status_cli, "diagnose", lambda settings: iter(()))
    sound = CliRunner().invoke(status_cli.doctor, [])
    assert (sound.exit_code, sound.output) == (
        0,
        f"nothing is wrong ({len(stage.operator.checks)} checks of the cloud)\n",
    )
    PLANTS["port-bound-elsewhere"](stage)
    PLANTS["row-without-parent"](stage)
    sick = CliRunner().invoke(status_cli.doctor, [])
    assert sick.exit_code == 1
    assert f"error    port {stage.port} is bound to '{stage.other_host}'" in sick.output
    assert "[port-bound-elsewhere]\n         cure: cumulet doctor --fix\n" in sick.output
    healed = CliRunner().invoke(status_cli.doctor, ["--fix", "--only", "row-without-parent"])
    assert "repaired: the row is removed" in healed.output
    assert healed.exit_code == 1
    healed = CliRunner().invoke(status_cli.doctor, ["--fix"])
    assert f"repaired: it is bound to {stage.host}" in healed.output
    assert healed.exit_code == 0
    stage.cloud.wait(lambda: stage.audit() == [])
    assert '"findings": []' in CliRunner().invoke(status_cli.doctor, ["--json"]).output


def test_what_an_audit_finds_is_a_condition_until_it_is_over(stage: Stage) -> None:
    def conditions() -> list[tuple[str, str]]:
        url = f"{stage.cloud.url}/operator/v1/conditions"
        found = requests.get(url, headers={"X-Auth-Token": stage.admin.token}, timeout=10).json()["conditions"]
        return [(one["code"], one["object_id"]) for one in found]

    left = PLANTS["row-without-parent"](stage)
    assert stage.operator.audit_now() == "1 found"
    assert conditions() == [("row-without-parent", left)]
    stage.operator.reconcile_conditions()  # the standing checks do not end what is not theirs
    assert conditions() == [("row-without-parent", left)]
    stage.audit(fix=True)
    assert conditions() == []
    assert stage.operator.audit_now() == "nothing is wrong"


def test_who_may_look_and_repair(stage: Stage) -> None:
    checks = requests.get(
        f"{stage.cloud.url}/operator/v1/checks", headers={"X-Auth-Token": stage.admin.token}, timeout=10
    ).json()["checks"]
    assert len(checks) == len(stage.operator.checks)
    assert all(check["looks_at"] for check in checks)
    for user in ("demo", "reader", "manager"):
        headers = {"X-Auth-Token": stage.cloud.api(user).token}
        assert requests.get(f"{stage.cloud.url}/operator/v1/checks", headers=headers, timeout=10).status_code == 403
        body = {"audit": {"fix": True}}
        answer = requests.post(f"{stage.cloud.url}/operator/v1/audit", headers=headers, json=body, timeout=10)
        assert answer.status_code == 403
