"""Drift on hosts, planted by hand into the fakes' worlds: found, named, left alone; repaired by an operator's word."""

import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import select, update

from cumulet.agent.contract import AuditHost, MendItem
from cumulet.agent.errors import DriverError
from cumulet.agent.fake.world import Disks, Domain, Volume, World
from cumulet.saga.tables import SAGAS
from cumulet.services.compute import tables as ct
from cumulet.services.operator.audit.host import CODES, PLUMBING
from cumulet.services.volume import tables as vt
from tests.operator.test_operator import ask
from tests.operator.test_rows import NOBODY, Stage


class Hosts(Stage):
    """The stage of the rows' tests, and what its hosts have of it."""

    @property
    def world(self) -> World:
        """Of the host that the server is on."""
        found: World = self.cloud.hosts[self.host].fake.world
        return found

    @property
    def net(self) -> World:
        """Of a host that serves the network's DHCP."""
        return next(
            host.fake.world
            for host in self.cloud.hosts.values()
            if f"network/{self.network}" in host.fake.world.state.wires
        )

    @property
    def storage(self) -> World:
        return next(h.fake.world for h in self.cloud.hosts.values() if self.volume in h.fake.world.state.volumes)


def auditor(stage: Hosts) -> Any:
    return next(check.prepare for check in stage.operator.checks if check.prepare is not None).__self__


@pytest.fixture(scope="module")
def stage(cloud_backends: Callable[[], dict[str, Any]]) -> Iterator[Hosts]:
    from tests.conftest import _directory
    from tests.support.cloud import Cloud

    directory = _directory()
    cloud = Cloud(directory, hosts=2, compare_seconds=600.0, **cloud_backends()).start()
    cloud.control.reconcilers.stop()
    made = Hosts(cloud)
    auditor(made).second_look_seconds = 0.05
    yield made
    cloud.stop()
    shutil.rmtree(directory, ignore_errors=True)


Plant = Callable[[Hosts], str]
PLANTS: dict[str, tuple[Plant, Callable[[Hosts], None]]] = {}


def plant(code: str, after: Callable[[Hosts], None] = lambda stage: None) -> Callable[[Plant], Plant]:
    def note(make: Plant) -> Plant:
        PLANTS[code] = (make, after)
        return make

    return note


# -- servers --------------------------------------------------------------------------------------------------------


def spec_like(stage: Hosts) -> Any:
    return stage.world.state.domains[stage.server].spec


@plant("domain-without-row")
def _(stage: Hosts) -> str:
    with stage.world.change() as state:
        state.domains[NOBODY] = Domain(instance_name="stranger", spec=spec_like(stage), power_state=1)
    return NOBODY


@plant("domain-of-gone-server")
def _(stage: Hosts) -> str:
    gone = stage.nova.boot()
    assert stage.nova.delete(f"/servers/{gone}").status == 204
    stage.nova.gone(gone)
    stage.settle()
    with stage.world.change() as state:
        state.domains[gone] = Domain(instance_name="ghost", spec=spec_like(stage), power_state=1)
    return gone


def runs(stage: Hosts) -> None:
    stage.nova.wait(stage.server, "ACTIVE")
    stage.settle()
    assert stage.world.state.domains[stage.server].power_state == 1
    assert stage.port in stage.world.state.taps


@plant("server-without-domain", runs)
def _(stage: Hosts) -> str:
    with stage.world.change() as state:
        state.domains.pop(stage.server)
    return stage.server


def aside(kind: str) -> Callable[[Hosts], None]:
    def check(stage: Hosts) -> None:
        kept = [f for f in stage.audit() if f["code"] == "quarantined" and f["object_id"] == f"{kind}/{NOBODY}"]
        assert [f["severity"] for f in kept] == ["info"]
        assert not kept[0]["repairable"]
        for host in stage.cloud.hosts.values():
            with host.fake.world.change() as state:
                state.quarantine.pop(f"{kind}/{NOBODY}", None)

    return check


@plant("disk-without-server", aside("disk"))
def _(stage: Hosts) -> str:
    with stage.world.change() as state:
        state.disks[NOBODY] = Disks(root_gb=1, image_id=None)
    return NOBODY


@plant("disk-kept-for-no-resize", aside("disk"))
def _(stage: Hosts) -> str:
    with stage.world.change() as state:
        state.aside[NOBODY] = Disks(root_gb=1, image_id=None)
    return NOBODY


@plant("tap-without-port")
def _(stage: Hosts) -> str:
    with stage.world.change() as state:
        state.taps[NOBODY] = "who knows"
    return NOBODY


@plant("port-without-tap", runs)
def _(stage: Hosts) -> str:
    with stage.world.change() as state:
        state.taps.pop(stage.port)
    return stage.port


# -- volumes --------------------------------------------------------------------------------------------------------


@plant("volume-without-row", aside("volume"))
def _(stage: Hosts) -> str:
    with stage.storage.change() as state:
        state.volumes[NOBODY] = Volume(size_gb=1)
    return NOBODY


def exported(stage: Hosts) -> None:
    assert list(stage.storage.state.volumes[stage.volume].exports) == [stage.attachment]


@plant("export-without-attachment", exported)
def _(stage: Hosts) -> str:
    with stage.storage.change() as state:
        state.volumes[stage.volume].exports[NOBODY] = 1
    return f"{stage.volume}/{NOBODY}"


@plant("attachment-without-export", exported)
def _(stage: Hosts) -> str:
    with stage.storage.change() as state:
        state.volumes[stage.volume].exports.pop(stage.attachment)
    return stage.attachment


@plant("backup-without-row", aside("backup"))
def _(stage: Hosts) -> str:
    with stage.storage.change() as state:
        state.backups[NOBODY] = 1
    return NOBODY


# -- networks -------------------------------------------------------------------------------------------------------


def as_documents_say(stage: Hosts) -> None:
    for host in stage.cloud.hosts.values():
        assert host.agent.audit().drift == []


@plant("namespace-missing", as_documents_say)
def _(stage: Hosts) -> str:
    with stage.net.change() as state:
        state.wires[f"network/{stage.network}"].pop(f"namespace/qdhcp-{stage.network}")
    return f"qdhcp-{stage.network}"


@plant("namespace-unknown", as_documents_say)
def _(stage: Hosts) -> str:
    with stage.world.change() as state:
        state.wires["router/x"] = {f"namespace/qrouter-{NOBODY}": {}}
    return f"qrouter-{NOBODY}"


@plant("dnsmasq-missing", as_documents_say)
def _(stage: Hosts) -> str:
    with stage.net.change() as state:
        state.wires[f"network/{stage.network}"].pop(f"dnsmasq/{stage.network}")
    return stage.network


@plant("dnsmasq-unknown", as_documents_say)
def _(stage: Hosts) -> str:
    with stage.net.change() as state:
        state.wires["network/x"] = {f"dnsmasq/{NOBODY}": {}}
    return NOBODY


@plant("dhcp-host-missing", as_documents_say)
def _(stage: Hosts) -> str:
    with stage.net.change() as state:
        state.wires[f"network/{stage.network}"].pop(f"dhcp-host/{stage.network}/{stage.port}")
    return f"{stage.network}/{stage.port}"


@plant("dhcp-host-different", as_documents_say)
def _(stage: Hosts) -> str:
    key = f"dhcp-host/{stage.network}/{stage.port}"
    with stage.net.change() as state:
        wire = state.wires[f"network/{stage.network}"][key]
        state.wires[f"network/{stage.network}"][key] = {**wire, "mac": "fa:16:3e:de:ad:00"}
    return f"{stage.network}/{stage.port}"


@plant("dhcp-host-unknown", as_documents_say)
def _(stage: Hosts) -> str:
    with stage.net.change() as state:
        state.wires["network/x"] = {f"dhcp-host/{stage.network}/{NOBODY}": {"mac": "fa:16:3e:00:00:99"}}
    return f"{stage.network}/{NOBODY}"


@plant("lease-expired", as_documents_say)
def _(stage: Hosts) -> str:
    with stage.net.change() as state:
        state.leases[f"{stage.network}/fa:16:3e:00:00:98"] = {"address": "10.8.0.77", "expires": time.time() - 60}
    return f"{stage.network}/fa:16:3e:00:00:98"


@plant("chain-missing", as_documents_say)
def _(stage: Hosts) -> str:
    with stage.world.change() as state:
        state.wires[f"port/{stage.port}"].pop(f"chain/{stage.port}")
    return stage.port


@plant("chain-different", as_documents_say)
def _(stage: Hosts) -> str:
    with stage.world.change() as state:
        wire = state.wires[f"port/{stage.port}"][f"chain/{stage.port}"]
        state.wires[f"port/{stage.port}"][f"chain/{stage.port}"] = {**wire, "rules": 0}
    return stage.port


@plant("chain-unknown", as_documents_say)
def _(stage: Hosts) -> str:
    with stage.world.change() as state:
        state.wires["port/x"] = {f"chain/{NOBODY}": {}}
    return NOBODY


@plant("forwarding-missing", as_documents_say)
def _(stage: Hosts) -> str:
    with stage.world.change() as state:
        state.wires[f"port/{stage.port}"].pop(f"forwarding/{stage.port}")
    return stage.port


@plant("forwarding-different", as_documents_say)
def _(stage: Hosts) -> str:
    with stage.world.change() as state:
        wire = state.wires[f"port/{stage.port}"][f"forwarding/{stage.port}"]
        state.wires[f"port/{stage.port}"][f"forwarding/{stage.port}"] = {**wire, "peers": ["192.0.2.66"]}
    return stage.port


@plant("forwarding-unknown", as_documents_say)
def _(stage: Hosts) -> str:
    with stage.world.change() as state:
        state.wires["port/x"] = {f"forwarding/{NOBODY}": {"peers": ["192.0.2.66"]}}
    return NOBODY


def serious(findings: list[dict[str, Any]]) -> list[str]:
    return [f["code"] for f in findings if f["severity"] != "info"]


@pytest.mark.parametrize("code", sorted(PLANTS))
def test_planted_drift_is_found_named_and_repaired(stage: Hosts, code: str) -> None:
    stage.settle()
    assert serious(stage.audit()) == []
    make, after = PLANTS[code]
    object_id = make(stage)
    (found,) = [f for f in stage.audit() if f["code"] == code]
    assert (found["object_id"], found["repairable"], found["repaired"]) == (object_id, True, None)
    assert found["host"] in stage.cloud.hosts
    (repaired,) = [f for f in stage.audit(fix=True, only=[found["id"]]) if f["id"] == found["id"]]
    assert (repaired["repair_error"], bool(repaired["repaired"])) == (None, True)
    stage.settle()
    stage.cloud.wait(lambda: serious(stage.audit()) == [], 20)
    after(stage)


def test_every_kind_is_tried() -> None:
    people = {code for code, (_, _, repaired_by) in CODES.items() if repaired_by is None}
    people.add("stopped-server-without-domain")  # has a test of its own
    plumbing = {code for code in PLANTS if code.rsplit("-", 1)[0] in PLUMBING}
    assert set(PLANTS) == (set(CODES) - people) | plumbing
    tried = {code.rsplit("-", 1)[0] for code in plumbing}
    assert tried == {"namespace", "dnsmasq", "dhcp-host", "lease", "chain", "forwarding"}


def test_a_row_that_names_no_known_host_leaves_what_hosts_have(stage: Hosts) -> None:
    """The guest that runs and the only copy of a volume are not leftovers because a row is wrong."""
    host, world, storage = stage.host, stage.world, stage.storage
    storing = next(name for name, one in stage.cloud.hosts.items() if one.fake.world is storage)
    stage.run(update(ct.SERVERS).where(ct.SERVERS.c.id == stage.server).values(host="burnt"))
    stage.run(update(vt.VOLUMES).where(vt.VOLUMES.c.id == stage.volume).values(host="burnt"))
    try:
        found = stage.audit(fix=True)
        assert {"server-on-unknown-host", "volume-on-unknown-host"} <= {f["code"] for f in found}
        assert {"domain-of-gone-server", "disk-without-server", "volume-without-row"}.isdisjoint(
            f["code"] for f in found
        )
        assert world.state.domains[stage.server].power_state == 1
        assert stage.server in world.state.disks
        assert stage.volume in storage.state.volumes
    finally:
        stage.run(update(ct.SERVERS).where(ct.SERVERS.c.id == stage.server).values(host=host))
        stage.run(update(vt.VOLUMES).where(vt.VOLUMES.c.id == stage.volume).values(host=storing))
    stage.settle()
    stage.cloud.wait(lambda: serious(stage.audit(fix=True)) == [], 20)


def test_nothing_unknown_is_touched_unasked(stage: Hosts) -> None:
    """The host's own comparisons with the control plane leave it, too: inventory and documents."""
    kinds = ("domain-without-row", "disk-without-server", "tap-without-port", "volume-without-row", "chain-unknown")
    planted = {code: PLANTS[code][0](stage) for code in kinds}
    for host in stage.cloud.hosts.values():
        host.agent._inventory_at = 0.0
        host.agent.heartbeat_now()
        host.agent.documents.look_again(())
    time.sleep(1.0)
    assert {f["code"] for f in stage.audit()} == set(planted)
    assert NOBODY in stage.world.state.domains
    repaired = [f["repaired"] for f in stage.audit(fix=True)]
    assert all(repaired)
    assert serious(stage.audit()) == []
    aside("disk")(stage)
    aside("volume")(stage)


def test_what_only_people_can_repair(stage: Hosts) -> None:
    storage = stage.storage
    with storage.change() as state:
        lost = state.volumes.pop(stage.volume)
    with stage.world.change() as state:
        disk = state.disks.pop(stage.server)
    findings = {f["code"]: f for f in stage.audit(fix=True)}
    assert set(findings) >= {"volume-data-missing", "server-without-disk"}
    for code in ("volume-data-missing", "server-without-disk"):
        assert (findings[code]["severity"], findings[code]["repairable"]) == ("error", False)
    assert "rebuild" in findings["server-without-disk"]["cure"]
    with storage.change() as state:
        state.volumes[stage.volume] = lost
    with stage.world.change() as state:
        state.disks[stage.server] = disk
    assert serious(stage.audit()) == []


def test_a_stopped_server_is_defined_again_and_stays_off(stage: Hosts) -> None:
    assert stage.nova.act(stage.server, "os-stop").status == 202
    stage.nova.wait(stage.server, "SHUTOFF")
    stage.settle()
    with stage.world.change() as state:
        state.domains.pop(stage.server)
    (found,) = [f for f in stage.audit(fix=True) if f["code"] == "stopped-server-without-domain"]
    assert (found["severity"], found["repaired"]) == ("warning", "it is defined again, and stays off")
    assert serious(stage.audit()) == []
    assert stage.world.state.domains[stage.server].power_state == 4
    assert stage.nova.act(stage.server, "os-start").status == 202
    stage.nova.wait(stage.server, "ACTIVE")
    stage.settle()
    assert serious(stage.audit()) == []


def test_a_server_that_never_was_uses_no_volume(stage: Hosts) -> None:
    """Its making was undone, and its delete failed: the volume is its own until that is tried again."""
    faults = stage.cloud.hosts[stage.host].fake.faults
    go_on = faults.hang("CreateDisks")
    device = {
        "boot_index": 0, "uuid": stage.nova.image, "source_type": "image", "destination_type": "volume",
        "volume_size": 1, "delete_on_termination": True,
    }  # fmt: skip
    server = stage.nova.as_user("admin").boot(
        wait=None, imageRef="", block_device_mapping_v2=[device], availability_zone=f"nova:{stage.host}"
    )
    stage.cloud.wait(lambda: faults.hung)
    control = stage.cloud.control

    def is_the_delete(op: Any) -> bool:
        owner = control.db.read(lambda tx: control.sagas.owner(tx, "server", server))
        return op.server_id == server and owner.kind == "server.delete"

    faults.fail("UndefineServer", times=None, only_if=is_the_delete, owner=server)
    assert stage.nova.as_user("admin").delete(f"/servers/{server}").status == 204
    go_on.set()
    shown = stage.nova.as_user("admin").wait(server, "ERROR")
    faults.remove(server)
    assert shown["os-extended-volumes:volumes_attached"]
    stage.settle()
    assert serious(stage.audit()) == []
    assert stage.nova.as_user("admin").delete(f"/servers/{server}").status == 204
    stage.nova.as_user("admin").gone(server)
    stage.settle()
    assert serious(stage.audit()) == []


def test_a_host_that_does_not_answer_is_told(stage: Hosts) -> None:
    faults = stage.cloud.hosts["fake-2"].agent._queries
    real = faults[AuditHost]

    def broken(query: Any) -> Any:
        raise DriverError("hypervisor-away", "libvirt does not answer")

    faults[AuditHost] = broken
    (found,) = [f for f in stage.audit() if f["code"] == "host-not-audited"]
    assert (found["host"], found["severity"]) == ("fake-2", "warning")
    assert "libvirt does not answer" in found["message"]
    faults[AuditHost] = real
    assert serious(stage.audit()) == []


def test_nothing_follows_from_what_a_driver_does_not_list(stage: Hosts) -> None:
    agents = [host.agent for host in stage.cloud.hosts.values()]
    real = [agent._drivers for agent in agents]
    for agent in agents:
        agent._drivers = []
    assert serious(stage.audit()) == []
    for agent, drivers in zip(agents, real, strict=True):
        agent._drivers = drivers


def test_what_a_saga_is_at_is_no_drift(stage: Hosts) -> None:
    """A create that hangs in the middle has disks and taps and no domain, and is nobody's business."""
    hanging = [host.fake.faults.hang("DefineServer") for host in stage.cloud.hosts.values()]
    server = stage.nova.boot(networks=[{"uuid": stage.network}], wait=None)
    any_hangs = [host.fake.faults.hanging for host in stage.cloud.hosts.values()]
    stage.cloud.wait(lambda: any(one.acquire(blocking=False) for one in any_hangs))
    assert serious(stage.audit()) == []
    for one in hanging:
        one.set()
    for host in stage.cloud.hosts.values():
        host.fake.faults.clear()
    stage.nova.wait(server, "ACTIVE")
    stage.nova.remove(server)
    stage.settle()
    assert serious(stage.audit()) == []


def test_what_is_attached_by_word_alone_is_no_drift(stage: Hosts) -> None:
    """os-attach exports nothing: who calls it asks for a connection by itself, or has none."""
    api = stage.cloud.api("admin")
    volume = api.post("volume", "/volumes", {"volume": {"size": 1}})["volume"]["id"]
    stage.cloud.wait(lambda: api.get("volume", f"/volumes/{volume}")["volume"]["status"] == "available")
    body = {"os-attach": {"instance_uuid": NOBODY, "mountpoint": "/dev/vdb"}}
    assert api.post("volume", f"/volumes/{volume}/action", body).status == 202
    assert api.get("volume", f"/volumes/{volume}")["volume"]["status"] == "in-use"
    found = [one for one in stage.audit() if one["code"] == "attachment-without-export"]
    assert found == []
    assert api.post("volume", f"/volumes/{volume}/action", {"os-detach": {}}).status == 202
    assert api.delete("volume", f"/volumes/{volume}").status == 202
    stage.settle()


def test_a_repair_is_a_saga_with_a_story(stage: Hosts) -> None:
    PLANTS["tap-without-port"][0](stage)
    stage.audit(fix=True)
    mends = select(SAGAS.c.request_id, SAGAS.c.status).where(SAGAS.c.kind == "host.mend")
    newest = stage.rows(mends.order_by(SAGAS.c.created_at.desc()))[0]
    assert newest[1] == "finished"
    story = ask(stage.cloud, "admin", f"/explain/requests/{newest[0]}").json()
    texts = [row["text"] for row in story["rows"]]
    assert any(text.startswith("MendHost done") for text in texts), texts


def test_a_newer_document_wins_over_a_late_word(stage: Hosts) -> None:
    """A conductor that was asleep names a port absent which the host was since told to have."""
    agent = stage.cloud.hosts[stage.host].agent
    late = MendItem(kind="tap", id=stage.port, problem="unknown", generation=1)
    with pytest.raises(DriverError, match="newer document of port"):
        agent._mend_one(late)
    assert stage.port in stage.world.state.taps


def test_a_document_that_fails_is_told(stage: Hosts) -> None:
    PLANTS["chain-missing"][0](stage)
    stage.cloud.hosts[stage.host].fake.faults.fail("port", times=1, code="nft", message="nft says no")
    (found,) = [f for f in stage.audit(fix=True) if f["code"] == "chain-missing"]
    assert "nft says no" in found["repair_error"]
    stage.cloud.wait(lambda: serious(stage.audit(fix=True)) == [], 20)  # it is tried again by itself, too


def test_hosts_are_asked_once_for_all_checks(stage: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    audit = auditor(stage)
    real = audit.ask

    def counted(host: str, query: Any, timeout: float | None) -> Any:
        asked.append(host)
        return real(host, query, timeout)

    monkeypatch.setattr(audit, "ask", counted)
    assert serious(stage.audit()) == []
    assert sorted(asked) == sorted(stage.cloud.hosts)


def test_servers_of_hosts_that_are_down_are_not_judged(stage: Hosts) -> None:
    from cumulet.conductor.tables import HOSTS

    down = update(HOSTS).where(HOSTS.c.name == stage.host).values(forced_down=True)
    stage.run(down)
    assert [f["code"] for f in stage.audit()] == ["host-forced-down"]
    stage.run(down.values(forced_down=False))
