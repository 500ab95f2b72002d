"""GET /allocation_candidates: parsing of its groups, and both forms of its answer."""

import re
from typing import Any

from cumulet.http import Call, Reply, Route
from cumulet.kernel.errors import BadInput
from cumulet.kernel.ids import is_uuid
from cumulet.services.placement import candidates, names, query
from cumulet.services.placement.api import common
from cumulet.services.placement.api.common import body, since
from cumulet.services.placement.candidates import Candidate, Group, Request, World

_GROUPED = ("resources", "required", "member_of", "in_tree")
_NUMBER = re.compile(r"(resources|required|member_of|in_tree)([1-9][0-9]*)\Z")
_WORD = re.compile(r"(resources|required|member_of|in_tree)([a-zA-Z0-9_-]{1,64})\Z")


def _bad(message: str, code: str = common.BAD_VALUE) -> BadInput:
    return BadInput(f"Invalid query string parameters: {message}", code=code)


def _group_keys(call: Call) -> dict[str, dict[str, list[str]]]:
    """suffix -> parameter -> values; refuses what this version does not know."""
    plain = {"resources"}
    for minor, name in (
        (16, "limit"), (17, "required"), (21, "member_of"), (25, "group_policy"), (31, "in_tree"),
        (35, "root_required"), (36, "same_subtree"),
    ):  # fmt: skip
        if since(call, minor):
            plain.add(name)
    pattern = _WORD if since(call, 33) else _NUMBER if since(call, 25) else None
    found: dict[str, dict[str, list[str]]] = {}
    for key in call.query:
        if key in plain:
            if key in _GROUPED:
                found.setdefault("", {})[key] = call.query.getlist(key)
            continue
        match = pattern.match(key) if pattern is not None else None
        if match is None or match.group(1) not in plain:
            raise _bad(f"{key!r} is not known in this version.")
        found.setdefault(match.group(2), {})[match.group(1)] = call.query.getlist(key)
    return found


def _once(values: list[str], name: str) -> str:
    if len(values) > 1:
        raise _bad(f"{name} is given more than once.", common.DUPLICATE)
    return values[0]


def _group(call: Call, suffix: str, parts: dict[str, list[str]], subtree: bool) -> Group:
    label = suffix and f"{suffix}"
    if "resources" not in parts and not (suffix and subtree):
        missing = f"resources{label}"
        raise _bad(f"{missing} is missing for what else is asked of its group.", common.MISSING)
    resources = query.resources(_once(parts["resources"], "resources")) if "resources" in parts else {}
    required = parts.get("required", [])
    if len(required) > 1 and not since(call, 39):
        raise _bad(f"required{label} is given more than once.", common.DUPLICATE)
    members = parts.get("member_of", [])
    if len(members) > 1 and not since(call, 24):
        raise _bad(f"member_of{label} is given more than once.", common.DUPLICATE)
    in_tree = _once(parts["in_tree"], "in_tree") if "in_tree" in parts else None
    if in_tree is not None and not is_uuid(in_tree):
        raise _bad(f"Expected 'in_tree' parameter to be a uuid, not {in_tree!r}.")
    return Group(
        suffix=suffix,
        resources=resources,
        required=query.traits(required, forbid=since(call, 22), any_of=since(call, 39)),
        member_of=query.member_of(members, forbid=since(call, 32)),
        in_tree=in_tree,
    )


def _limit(call: Call) -> int | None:
    text = common.one(call, "limit")
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= common.MAX_INT:
        raise _bad(f"limit is not a positive number: {text!r}.")
    return int(text)


def parse(call: Call) -> Request:
    grouped = _group_keys(call)
    subtrees = [set(text.split(",")) for text in call.query.getlist("same_subtree")]
    in_subtrees = set().union(*subtrees)
    groups = [_group(call, suffix, parts, suffix in in_subtrees) for suffix, parts in sorted(grouped.items())]
    if not groups or (not since(call, 25) and not grouped.get("", {}).get("resources")):
        raise _bad("'resources' is a required property.", common.MISSING)
    if not any(group.resources for group in groups):
        raise _bad("all groups are without resources.", common.MISSING)
    known = {group.suffix for group in groups}
    for subtree in subtrees:
        if "" in subtree or not subtree <= known:
            raise _bad("same_subtree names groups that are not there.")
    policy = common.one(call, "group_policy")
    if policy is not None and policy not in ("none", "isolate"):
        raise _bad(f"group_policy must be none or isolate, not {policy!r}.")
    if policy is None and sum(1 for group in groups if group.suffix and group.resources) > 1:
        raise _bad("group_policy is required when more than one numbered group is given.", common.MISSING)
    root_values = call.query.getlist("root_required")
    if len(root_values) > 1:
        raise _bad("root_required is given more than once.", common.DUPLICATE)
    root_required = query.traits(root_values, forbid=True, any_of=False)
    return Request(
        groups=groups,
        isolate=policy == "isolate",
        subtrees=subtrees,
        root_required=root_required,
        limit=_limit(call),
        nested=since(call, 29),
    )


def listing(call: Call) -> Reply:
    request = parse(call)

    def work(tx: Any) -> World:
        names.check_classes(tx, {name for group in request.groups for name in group.resources})
        wanted = request.root_required.all_names()
        for group in request.groups:
            wanted |= group.required.all_names()
        names.check_traits(tx, wanted)
        return candidates.read_world(tx)

    world = call.service.db.read(work)
    found = candidates.find(world, request)
    result = {
        "allocation_requests": [_request_view(call, one) for one in found],
        "provider_summaries": {
            uuid: _summary(call, world, request, uuid) for uuid in candidates.summarised(world, found, request)
        },
    }
    return body(call, result)


def _request_view(call: Call, one: Candidate) -> dict[str, Any]:
    if not since(call, 12):
        parts = [{"resource_provider": {"uuid": uuid}, "resources": part} for uuid, part in one.allocations.items()]
        return {"allocations": parts}
    view: dict[str, Any] = {"allocations": {uuid: {"resources": part} for uuid, part in one.allocations.items()}}
    if since(call, 34):
        view["mappings"] = one.mappings
    return view


def _summary(call: Call, world: World, request: Request, uuid: str) -> dict[str, Any]:
    asked = {name for group in request.groups for name in group.resources}
    used = world.used.get(uuid, {})
    view: dict[str, Any] = {
        "resources": {
            name: {"capacity": row.capacity, "used": used.get(name, 0)}
            for name, row in world.inventories.get(uuid, {}).items()
            if since(call, 27) or name in asked
        }
    }
    if since(call, 17):
        view["traits"] = sorted(world.traits.get(uuid, set()))
    if since(call, 29):
        row = world.providers[uuid]
        view["parent_provider_uuid"], view["root_provider_uuid"] = row.parent_uuid, row.root_uuid
    return view


ROUTES = [
    Route(
        method="GET", path="/allocation_candidates", handler=listing, policy="placement:allocation_candidates:list",
        min_version="1.10",
    ),
]  # fmt: skip
