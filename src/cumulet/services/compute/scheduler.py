"""The scheduler: which host takes a server, or why none does.

A filter is a pure function of one host and the request that answers None (it may) or the reason it may not. Filters
run in the order of ``RULES``; the first that objects counts the host out, so "no valid host" can say how many hosts
each rule removed, and name the host that came nearest. Weighers then order what is left. Nothing here writes: the
caller claims the chosen hosts (`PlacementService.claim`), in the same transaction or in a short one after it.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import msgspec

from cumulet.conductor import HostRegistry, HostRow
from cumulet.db import Tx
from cumulet.kernel.errors import NoValidHost
from cumulet.services.compute import catalogue
from cumulet.services.placement.public import PlacementService
from cumulet.services.placement.stock import Shelf, free_share
from cumulet.services.placement.store import InventoryRow

ARCHITECTURES = {"x86_64", "amd64", "x64"}  # names of the one that hosts have today; HostRow.resources.cpu_info may say


class SchedulerRequest(msgspec.Struct, kw_only=True):
    """What one server, or each of several alike, needs. Host names where the API had server ids or group ids: the
    caller resolves them."""

    resources: dict[str, int] = {}  # VCPU, MEMORY_MB, DISK_GB
    role: str = "compute"
    availability_zone: str | None = None
    host: str | None = None  # forced
    hypervisor_hostname: str | None = None  # forced
    force: bool = False  # zone:host of old: the forced host is taken without asking the filters
    excluded: Collection[str] = ()
    image_properties: dict[str, Any] = {}
    extra_specs: dict[str, str] = {}
    project_id: str | None = None
    group_policy: str | None = None  # affinity, anti-affinity, soft-affinity, soft-anti-affinity
    group_hosts: Sequence[str] = ()  # of the members, repeated if several are on one
    max_server_per_host: int = 1
    same_hosts: Sequence[str] = ()  # hint same_host: hosts of those servers
    different_hosts: Sequence[str] = ()


class Candidate(msgspec.Struct, kw_only=True):
    """A host as the filters see it."""

    host: HostRow
    zone: str
    inventories: Mapping[str, InventoryRow]
    used: dict[str, int]  # shared: changed by giving the candidate another one
    free: float | None = None  # share of what there is that is left, see placement.stock
    traits: Collection[str] = ()
    aggregates: Sequence[Mapping[str, str]] = ()  # their metadata


Rule = Callable[[Candidate, SchedulerRequest], str | None]


def wanted_host(candidate: Candidate, request: SchedulerRequest) -> str | None:
    if request.host is not None and candidate.host.name != request.host:
        return f"host {request.host} was asked for"
    if request.hypervisor_hostname is not None and candidate.host.name != request.hypervisor_hostname:
        return f"hypervisor {request.hypervisor_hostname} was asked for"
    return None


def not_excluded(candidate: Candidate, request: SchedulerRequest) -> str | None:
    return "it was tried before" if candidate.host.name in request.excluded else None


def has_role(candidate: Candidate, request: SchedulerRequest) -> str | None:
    return None if request.role in candidate.host.roles else f"it is no {request.role} host"


def is_up(candidate: Candidate, request: SchedulerRequest) -> str | None:
    if candidate.host.forced_down:
        return "it was forced down"
    return None if candidate.host.up else "it does not report"


def is_enabled(candidate: Candidate, request: SchedulerRequest) -> str | None:
    reasons = candidate.host.disabled_roles
    if request.role not in reasons:
        return None
    return f"it is disabled: {reasons[request.role]}" if reasons[request.role] else "it is disabled"


def in_zone(candidate: Candidate, request: SchedulerRequest) -> str | None:
    if request.availability_zone in (None, candidate.zone):
        return None
    return f"it is in zone {candidate.zone}, not {request.availability_zone}"


def right_architecture(candidate: Candidate, request: SchedulerRequest) -> str | None:
    properties = request.image_properties
    wanted = properties.get("hw_architecture") or properties.get("architecture")
    if not wanted:
        return None
    has = str(candidate.host.resources.cpu_info.get("arch", "x86_64"))
    if wanted == has or (wanted in ARCHITECTURES and has in ARCHITECTURES):
        return None
    return f"its architecture is {has}, the image's {wanted}"


def right_hypervisor(candidate: Candidate, request: SchedulerRequest) -> str | None:
    wanted = request.image_properties.get("img_hv_type") or request.image_properties.get("hypervisor_type")
    if not wanted:
        return None
    has = {candidate.host.virt_type.lower(), candidate.host.resources.hypervisor_type.lower()}
    if "kvm" in has or "qemu" in has:
        has |= {"kvm", "qemu"}
    return None if wanted.lower() in has else f"its hypervisor is {candidate.host.virt_type}, the image's {wanted}"


def right_traits(candidate: Candidate, request: SchedulerRequest) -> str | None:
    for source in (request.extra_specs, request.image_properties):
        for key, value in source.items():
            if not key.startswith("trait:"):
                continue
            trait = key.partition(":")[2]
            if value == "required" and trait not in candidate.traits:
                return f"it lacks trait {trait}"
            if value == "forbidden" and trait in candidate.traits:
                return f"it has trait {trait}"
    return None


def in_matching_aggregate(candidate: Candidate, request: SchedulerRequest) -> str | None:
    """Extra specs ``aggregate_instance_extra_specs:key`` = value must hold in the host's aggregates; unscoped keys only
    count if some aggregate of the host speaks of them."""
    prefix = "aggregate_instance_extra_specs:"
    for key, value in request.extra_specs.items():
        if not key.startswith(prefix):
            continue
        name = key[len(prefix) :]
        values = [part.strip() for a in candidate.aggregates if name in a for part in a[name].split(",")]
        if not any(matches(value, one) for one in values):
            return f"no aggregate of it has {name} = {value}"
    return None


def for_project(candidate: Candidate, request: SchedulerRequest) -> str | None:
    """Aggregates with ``filter_tenant_id`` take only those projects."""
    allowed: set[str] = set()
    for metadata in candidate.aggregates:
        for key, value in metadata.items():
            if key.startswith("filter_tenant_id"):
                allowed |= {part.strip() for part in value.split(",")}
    return None if not allowed or request.project_id in allowed else "its aggregate is for other projects"


def right_group(candidate: Candidate, request: SchedulerRequest) -> str | None:
    name = candidate.host.name
    if request.group_policy == "affinity":
        return None if not request.group_hosts or name in request.group_hosts else "the server group is elsewhere"
    if request.group_policy == "anti-affinity" and list(request.group_hosts).count(name) >= request.max_server_per_host:
        return "a member of the server group is there"
    return None


def right_hints(candidate: Candidate, request: SchedulerRequest) -> str | None:
    if request.same_hosts and candidate.host.name not in request.same_hosts:
        return "the servers of hint same_host are elsewhere"
    if candidate.host.name in request.different_hosts:
        return "a server of hint different_host is there"
    return None


def has_resources(candidate: Candidate, request: SchedulerRequest) -> str | None:
    missing = []
    for name, amount in request.resources.items():
        if amount <= 0:
            continue
        inventory = candidate.inventories.get(name)
        reason = f"{name}: it has none" if inventory is None else inventory.why_not(amount, candidate.used.get(name, 0))
        if reason is not None:
            missing.append(reason)
    return "; ".join(missing) or None


RULES: tuple[tuple[str, Rule], ...] = (
    ("requested host", wanted_host),
    ("host not tried before", not_excluded),
    ("host role", has_role),
    ("host up", is_up),
    ("host enabled", is_enabled),
    ("availability zone", in_zone),
    ("architecture", right_architecture),
    ("hypervisor type", right_hypervisor),
    ("traits", right_traits),
    ("aggregate extra specs", in_matching_aggregate),
    ("aggregate projects", for_project),
    ("server group", right_group),
    ("scheduler hints", right_hints),
    ("resources", has_resources),
)
_FORCED_RULES = ("requested host", "host role")


def matches(requirement: str, value: str) -> bool:
    """The little language of extra specs: ``<in>``, ``<or>``, ``>=``, ``s==`` …; else equality."""
    words = requirement.split()
    if not words:
        return value == requirement
    operator, rest = words[0], words[1:]
    if operator == "<or>":
        return value in [word for word in rest if word != "<or>"]
    if operator == "<in>":
        return bool(rest) and rest[0] in value
    if operator == "<all-in>":
        return all(word in value for word in rest)
    text: dict[str, Callable[[str, str], bool]] = {
        "s==": lambda a, b: a == b,
        "s!=": lambda a, b: a != b,
        "s<": lambda a, b: a < b,
        "s<=": lambda a, b: a <= b,
        "s>": lambda a, b: a > b,
        "s>=": lambda a, b: a >= b,
    }
    number: dict[str, Callable[[float, float], bool]] = {
        "=": lambda a, b: a >= b,
        "==": lambda a, b: a == b,
        "!=": lambda a, b: a != b,
        ">=": lambda a, b: a >= b,
        "<=": lambda a, b: a <= b,
    }
    if not rest:
        return value == requirement
    if operator in text:
        return text[operator](value, rest[0])
    if operator in number:
        try:
            return number[operator](float(value), float(rest[0]))
        except ValueError:
            return False
    return value == requirement


def objection(candidate: Candidate, request: SchedulerRequest) -> tuple[int, str, str] | None:
    """The first rule that objects: (its place, its name, the reason)."""
    for place, (name, rule) in enumerate(RULES):
        if request.force and name not in _FORCED_RULES:
            continue
        reason = rule(candidate, request)
        if reason is not None:
            return place, name, reason
    return None


def weight(candidate: Candidate, request: SchedulerRequest) -> tuple[float, float, str]:
    """Bigger is better: soft group wishes, then free memory and processors as a share of what there is."""
    members = list(request.group_hosts).count(candidate.host.name)
    group = {"soft-affinity": members, "soft-anti-affinity": -members}.get(request.group_policy or "", 0)
    if candidate.free is None:
        candidate.free = free_share(candidate.inventories, candidate.used)
    return float(group), candidate.free, candidate.host.name


def choose(candidates: Sequence[Candidate], request: SchedulerRequest, count: int = 1) -> list[HostRow]:
    """A host for each of ``count`` servers, each choice counting for those after it. Raises NoValidHost."""
    chosen: list[HostRow] = []
    request = msgspec.structs.replace(request, group_hosts=list(request.group_hosts))
    for _ in range(count):
        ranked = sorted(candidates, key=lambda candidate: weight(candidate, request), reverse=True)
        best = next((candidate for candidate in ranked if objection(candidate, request) is None), None)
        if best is None:
            objections = [(candidate, objection(candidate, request)) for candidate in candidates]
            raise refusal([(c.host.name, why) for c, why in objections if why is not None], len(chosen), count)
        chosen.append(best.host)
        best.used = {**best.used, **{n: best.used.get(n, 0) + amount for n, amount in request.resources.items()}}
        best.free = free_share(best.inventories, best.used)
        assert isinstance(request.group_hosts, list)
        request.group_hosts.append(best.host.name)
    return chosen


def refusal(objections: Sequence[tuple[str, tuple[int, str, str]]], placed: int, count: int) -> NoValidHost:
    """Counts per rule for everyone; per host, and the nearest miss, for administrators."""
    reasons = dict(Counter(name for _, (_, name, _) in objections))
    hosts = {host: reason for host, (_, _, reason) in objections}
    if not objections:
        message = "No valid host was found. There are no hosts."
    else:
        parts = ", ".join(f"{name}: {number}" for name, number in sorted(reasons.items(), key=lambda item: -item[1]))
        message = f"No valid host was found. Hosts removed by each rule: {parts}."
    if placed:
        message += f" {placed} of {count} could be placed."
    nearest = max(objections, key=lambda item: item[1][0], default=None)
    details: dict[str, Any] = {"reasons": reasons, "hosts": hosts}
    if nearest is not None:
        details["nearest"] = {"host": nearest[0], "rule": nearest[1][1], "reason": nearest[1][2]}
    return NoValidHost(message, **details)


def names_traits(request: SchedulerRequest) -> bool:
    return any(key.startswith("trait:") for source in (request.extra_specs, request.image_properties) for key in source)


class Scheduler:
    def __init__(self, hosts: HostRegistry, placement: PlacementService, *, default_zone: str = "nova") -> None:
        self._hosts = hosts
        self._placement = placement
        self._default_zone = default_zone

    def candidates(self, tx: Tx, hosts: Sequence[HostRow] | None = None, *, traits: bool = True) -> list[Candidate]:
        """All hosts with what they have left."""
        stock = self._placement.stock(tx)
        nothing = Shelf({}, {}, 0.0)
        has_traits = self._placement.traits(tx) if traits else {}
        aggregates = catalogue.aggregates_of_hosts(tx)
        found = []
        for host in self._hosts.snapshot(tx) if hosts is None else hosts:
            mine, shelf = aggregates.get(host.name, []), stock.get(host.uuid, nothing)
            candidate = Candidate(
                host=host,
                zone=catalogue.zone_of(mine) or self._default_zone,
                inventories=shelf.inventories,
                used=shelf.used,
                free=shelf.free,
                traits=has_traits.get(host.uuid, ()),
                aggregates=mine,
            )
            found.append(candidate)
        return found

    def select(self, tx: Tx, request: SchedulerRequest, count: int = 1) -> list[HostRow]:
        """A host for each of ``count`` servers (a host may be named several times). Raises NoValidHost."""
        return choose(self.candidates(tx, traits=names_traits(request)), request, count)

    def hold(self, tx: Tx) -> Sequence[HostRow]:
        """Lock what all hosts have, until the end of the transaction; the hosts."""
        hosts = self._hosts.snapshot(tx)
        for host in sorted(hosts, key=lambda host: host.uuid):
            tx.lock("resource_provider", host.uuid)
        return hosts

    def place(
        self,
        tx: Tx,
        request: SchedulerRequest,
        consumers: Sequence[str],
        user_id: str,
        hosts: Sequence[HostRow] | None = None,
    ) -> list[HostRow]:
        """Select and claim in this (writing) transaction: a host for each consumer, which had nothing so far. The
        providers are locked first, so what was selected is still there when it is claimed. ``hosts``: those that the
        caller holds."""
        hosts = self.hold(tx) if hosts is None else hosts
        chosen = choose(self.candidates(tx, hosts, traits=names_traits(request)), request, len(consumers))
        places = {consumer: host.uuid for consumer, host in zip(consumers, chosen, strict=True)}
        self._placement.claim_new(
            tx, places, request.resources, request.project_id or "", user_id, checked=not request.force
        )
        return chosen
