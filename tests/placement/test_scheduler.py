"""Each filter removes what it is for and says why; weights; what a refusal tells."""

from typing import Any

import msgspec
import pytest

from cumulet.agent.contract import Heartbeat, HostResources
from cumulet.conductor import HostRegistry, HostRow
from cumulet.db import Database
from cumulet.kernel.errors import NoValidHost
from cumulet.kernel.ids import new_uuid
from cumulet.services.compute import catalogue
from cumulet.services.compute.scheduler import RULES, Candidate, Scheduler, SchedulerRequest, choose, matches, objection
from cumulet.services.placement.public import PlacementService
from cumulet.services.placement.store import InventoryRow


def host(name: str = "h1", **changes: Any) -> HostRow:
    values: dict[str, Any] = {
        "name": name, "uuid": name, "number": 1, "roles": ["compute"], "version": "1", "ip": "1", "tunnel_ip": None,
        "speed_factor": 1.0, "mechanism": "linuxbridge", "virt_type": "kvm", "bridge_mappings": {},
        "resources": HostResources(vcpus=4, memory_mb=1000, local_gb=10), "warnings": [], "started": 0, "seen_at": 0,
        "beats": 1, "disabled_roles": {}, "disabled_at": None, "forced_down": False, "inventory_at": 0,
        "created_at": 0, "updated_at": 0, "up": True,
    }  # fmt: skip
    return HostRow(**{**values, **changes})


def candidate(name: str = "h1", *, memory: int = 1000, used: int = 0, **changes: Any) -> Candidate:
    own = {key: changes.pop(key) for key in ("zone", "traits", "aggregates") if key in changes}
    inventories = {
        "VCPU": InventoryRow(name, "VCPU", 4, 0, 1, 4, 1, 16.0, 0),
        "MEMORY_MB": InventoryRow(name, "MEMORY_MB", memory, 0, 1, memory, 1, 1.0, 0),
    }
    return Candidate(
        host=host(name, **changes),
        inventories=inventories,
        used={"MEMORY_MB": used},
        **{"zone": "nova", **own},
    )


OTHER_ARCH = HostResources(vcpus=4, memory_mb=1000, local_gb=10, cpu_info={"arch": "aarch64"})
CASES: list[tuple[str, Candidate, SchedulerRequest]] = [
    ("requested host", candidate(), SchedulerRequest(host="h2")),
    ("requested host", candidate(), SchedulerRequest(hypervisor_hostname="h2")),
    ("host not tried before", candidate(), SchedulerRequest(excluded={"h1"})),
    ("host role", candidate(roles=["network"]), SchedulerRequest()),
    ("host up", candidate(up=False), SchedulerRequest()),
    ("host up", candidate(forced_down=True), SchedulerRequest()),
    ("host enabled", candidate(disabled_roles={"compute": "fan"}), SchedulerRequest()),
    ("availability zone", candidate(), SchedulerRequest(availability_zone="east")),
    ("architecture", candidate(resources=OTHER_ARCH), SchedulerRequest(image_properties={"architecture": "x86_64"})),
    ("hypervisor type", candidate(), SchedulerRequest(image_properties={"img_hv_type": "hyperv"})),
    ("traits", candidate(), SchedulerRequest(extra_specs={"trait:HW_CPU_X86_AVX": "required"})),
    ("traits", candidate(traits={"A"}), SchedulerRequest(image_properties={"trait:A": "forbidden"})),
    (
        "aggregate extra specs",
        candidate(),
        SchedulerRequest(extra_specs={"aggregate_instance_extra_specs:ssd": "true"}),
    ),
    ("aggregate projects", candidate(aggregates=[{"filter_tenant_id": "p1,p2"}]), SchedulerRequest(project_id="p3")),
    ("server group", candidate(), SchedulerRequest(group_policy="affinity", group_hosts=["h2"])),
    ("server group", candidate(), SchedulerRequest(group_policy="anti-affinity", group_hosts=["h1"])),
    ("scheduler hints", candidate(), SchedulerRequest(same_hosts=["h2"])),
    ("scheduler hints", candidate(), SchedulerRequest(different_hosts=["h1"])),
    ("resources", candidate(used=950), SchedulerRequest(resources={"MEMORY_MB": 100})),
    ("resources", candidate(), SchedulerRequest(resources={"DISK_GB": 1})),
    ("resources", candidate(), SchedulerRequest(resources={"VCPU": 5})),  # never more than the host really has
]
FITTING: list[tuple[Candidate, SchedulerRequest]] = [
    (candidate(), SchedulerRequest(host="h1", resources={"VCPU": 4, "MEMORY_MB": 1000, "DISK_GB": 0})),
    (candidate(zone="east"), SchedulerRequest(availability_zone="east")),
    (candidate(), SchedulerRequest(image_properties={"hw_architecture": "x86_64", "img_hv_type": "qemu"})),
    (candidate(traits={"A"}), SchedulerRequest(extra_specs={"trait:A": "required"})),
    (
        candidate(aggregates=[{"ssd": "true, maybe"}]),
        SchedulerRequest(extra_specs={"aggregate_instance_extra_specs:ssd": "true"}),
    ),
    (candidate(aggregates=[{"filter_tenant_id": "p1"}]), SchedulerRequest(project_id="p1")),
    (candidate(), SchedulerRequest(group_policy="affinity")),
    (candidate(), SchedulerRequest(group_policy="anti-affinity", group_hosts=["h1"], max_server_per_host=2)),
    (candidate(), SchedulerRequest(same_hosts=["h1"], different_hosts=["h2"])),
    (candidate(disabled_roles={"storage": None}), SchedulerRequest()),
    (candidate(up=False, used=999), SchedulerRequest(host="h1", force=True, resources={"MEMORY_MB": 100})),
]


@pytest.mark.parametrize("rule, one, request_", CASES)
def test_a_rule_objects(rule: str, one: Candidate, request_: SchedulerRequest) -> None:
    why = objection(one, request_)
    assert why is not None
    assert why[1] == rule
    assert why[2]


@pytest.mark.parametrize("one, request_", FITTING)
def test_no_rule_objects(one: Candidate, request_: SchedulerRequest) -> None:
    assert objection(one, request_) is None


def test_every_rule_is_tested() -> None:
    assert {name for name, _ in RULES} == {rule for rule, _, _ in CASES}


def test_a_refusal_counts_for_all_and_names_for_administrators() -> None:
    request = SchedulerRequest(resources={"MEMORY_MB": 100}, availability_zone="nova")
    hosts = [candidate("h1", used=950), candidate("h2", up=False), candidate("h3", up=False)]
    with pytest.raises(NoValidHost) as raised:
        choose(hosts, request)
    error = raised.value
    assert error.message == "No valid host was found. Hosts removed by each rule: host up: 2, resources: 1."
    assert error.details["reasons"] == {"resources": 1, "host up": 2}
    assert error.details["hosts"]["h1"] == "MEMORY_MB: 100 wanted, 50 of 1000 free"
    assert error.details["nearest"]["host"] == "h1"
    assert not any(name in error.message for name in ("h1", "h2", "h3"))
    with pytest.raises(NoValidHost, match="There are no hosts"):
        choose([], request)


def test_the_emptier_host_is_taken_and_each_choice_counts() -> None:
    request = SchedulerRequest(resources={"MEMORY_MB": 400})
    hosts = [candidate("h1", used=100), candidate("h2")]
    assert [h.name for h in choose(hosts, request, 4)] == ["h2", "h1", "h2", "h1"]
    with pytest.raises(NoValidHost, match="1 of 2 could be placed"):
        choose([candidate("h1", used=500)], request, 2)


def test_groups_hold_within_one_request() -> None:
    apart = SchedulerRequest(group_policy="anti-affinity")
    assert {h.name for h in choose([candidate("h1"), candidate("h2")], apart, 2)} == {"h1", "h2"}
    with pytest.raises(NoValidHost):
        choose([candidate("h1"), candidate("h2")], apart, 3)
    together = SchedulerRequest(group_policy="affinity", resources={"MEMORY_MB": 100})
    assert len({h.name for h in choose([candidate("h1"), candidate("h2")], together, 3)}) == 1
    soft = msgspec.structs.replace(together, group_policy="soft-anti-affinity")
    assert len({h.name for h in choose([candidate("h1"), candidate("h2", used=500)], soft, 2)}) == 2
    assert len(choose([candidate("h1")], soft, 2)) == 2


@pytest.mark.parametrize(
    "requirement, value, result",
    [
        ("ssd", "ssd", True), ("ssd", "hdd", False), ("<or> a <or> b", "b", True), ("<in> 12", "9123", True),
        ("<all-in> a b", "ab", True), (">= 5", "6", True), (">= 5", "4", False), (">= 5", "x", False),
        ("== 1", "1.0", True), ("!= 1", "2", True), ("= 3", "3", True), ("s== x", "x", True), ("s!= x", "x", False),
        ("s< b", "a", True), ("", "", True), ("two words", "two words", True),
    ],
)  # fmt: skip
def test_the_language_of_extra_specs(requirement: str, value: str, result: bool) -> None:
    assert matches(requirement, value) is result


def test_select_and_place_over_the_database(db: Database, placement: PlacementService) -> None:
    hosts = HostRegistry(db)
    hosts.on_change(placement.sync_host)
    scheduler = Scheduler(hosts, placement, default_zone="nova")
    for name in ("h1", "h2"):
        beat = Heartbeat(
            host=name, started=1, roles=["compute"], version="1", tunnel_ip=None, ip="1", speed_factor=1,
            mechanism="openvswitch", virt_type="fake", bridge_mappings={},
            resources=HostResources(vcpus=2, memory_mb=2048, local_gb=10),
        )  # fmt: skip
        db.write(lambda tx, beat=beat: hosts.beat(tx, beat))
    db.write(lambda tx: catalogue.insert_aggregate(tx, "a", {"availability_zone": "east"}))
    (aggregate,) = db.read(catalogue.aggregates)
    db.write(lambda tx: catalogue.add_aggregate_host(tx, aggregate.id, "h2"))
    request = SchedulerRequest(resources={"VCPU": 1, "MEMORY_MB": 1000, "DISK_GB": 1}, availability_zone="east")
    assert [h.name for h in db.read(lambda tx: scheduler.select(tx, request))] == ["h2"]
    consumers = [new_uuid(), new_uuid()]
    chosen = db.write(lambda tx: scheduler.place(tx, request, consumers, "u"))
    assert [h.name for h in chosen] == ["h2", "h2"]
    used = db.read(lambda tx: placement.usages(tx, chosen[0].uuid))
    assert used == {"VCPU": 2, "MEMORY_MB": 2000, "DISK_GB": 2}
    with pytest.raises(NoValidHost) as raised:
        db.write(lambda tx: scheduler.place(tx, request, [new_uuid()], "u"))
    assert raised.value.details["reasons"] == {"availability zone": 1, "resources": 1}
