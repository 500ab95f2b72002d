"""Agents, what they serve, availability zones, quotas, use of addresses."""

from collections.abc import Callable, Sequence
from typing import Any

from cumulet.db import Tx
from cumulet.http import Call, Reply, Route
from cumulet.services.network import availability, query
from cumulet.services.network.agents import DHCP, L3
from cumulet.services.network.attributes import boolean, integer, text, to_boolean, uuid
from cumulet.services.network.faults import bad, missing
from cumulet.services.network.work import Work

_BODY = dict[str, Any]
_AGENT_FILTERS = ("id", "agent_type", "binary", "host", "topic", "admin_state_up", "alive", "availability_zone")
_CONTROLS = {"fields", "limit", "marker", "page_reverse", "sort_key", "sort_dir"}


def in_memory(call: Call, views: list[dict[str, Any]], filters: Sequence[str]) -> list[dict[str, Any]]:
    """Filter, sort and cut a small list."""
    for name in call.query:
        if name in _CONTROLS:
            continue
        if name not in filters:
            raise bad(f"{[name]} is invalid attribute for filtering")
        wanted = set(call.query.getlist(name))
        views = [v for v in views if _matches(v.get(name), wanted)]
    keys, directions = call.query.getlist("sort_key"), call.query.getlist("sort_dir")
    for at, key in reversed(list(enumerate(keys))):
        if views and key not in views[0]:
            raise bad(f"{[key]} is invalid attribute for sort_keys")
        down = at < len(directions) and directions[at] == "desc"
        views = sorted(views, key=lambda view: str(view[key]), reverse=down)
    fields = query.fields_of(call)
    return [{k: v for k, v in view.items() if k in fields} for view in views] if fields else views


def _matches(value: Any, wanted: set[str]) -> bool:
    if isinstance(value, bool):
        return value in {to_boolean(text) for text in wanted}
    return str(value).lower() in {text.lower() for text in wanted} or (value is None and "" in wanted)


def unit(call: Call, tx: Tx) -> Work:
    return Work(call.service, tx, call.ctx, sees_all=True)


# -- agents ---------------------------------------------------------------------------------------------------------


def list_agents(call: Call) -> Any:
    views = call.service.db.read(call.service.agents.views) if call.allowed("get_agent", {}) else []
    return {"agents": in_memory(call, views, _AGENT_FILTERS)}


def _sees_agent(call: Call) -> None:
    if not call.allowed("get_agent", {}):
        raise missing("AgentNotFound", "Agent", call.params["id"])


def show_agent(call: Call) -> Any:
    _sees_agent(call)
    return {"agent": call.service.db.read(lambda tx: call.service.agents.get(tx, call.params["id"]))}


def update_agent(call: Call) -> Any:
    _sees_agent(call)
    call.authorize("update_agent", {})
    inner = call.body.get("agent")
    if not isinstance(inner, dict):
        raise bad("The body must hold an agent.")
    unknown = set(inner) - {"admin_state_up", "description"}
    if unknown:
        raise bad(f"Cannot update read-only attribute {sorted(unknown)[0]}")
    changes: dict[str, Any] = {}
    if "admin_state_up" in inner:
        changes["admin_state_up"] = boolean("admin_state_up", inner["admin_state_up"])
    if "description" in inner:
        changes["description"] = text(255, null=True)("description", inner["description"])
    return {"agent": call.service.db.write(lambda tx: call.service.agents.set(tx, call.params["id"], changes))}


def _scheduled(call: Call, method: str, *arguments: str) -> None:
    def work(tx: Tx) -> None:
        one = unit(call, tx)
        getattr(call.service.agents, method)(one, *arguments)
        one.flush()

    call.service.db.write(work)


def dhcp_networks(call: Call) -> Any:
    def work(tx: Tx) -> Any:
        ids = call.service.agents.networks_on(tx, call.params["agent_id"])
        return call.service.networks.views(tx, list(call.service.networks.many(tx, ids).values()))

    return {"networks": call.service.db.read(work)}


def add_dhcp_network(call: Call) -> Any:
    _scheduled(call, "add_network", call.params["agent_id"], uuid("network_id", call.body.get("network_id")))
    return Reply(None, status=201)


def remove_dhcp_network(call: Call) -> None:
    _scheduled(call, "remove_network", call.params["agent_id"], call.params["network_id"])


def l3_routers(call: Call) -> Any:
    def work(tx: Tx) -> Any:
        ids = call.service.agents.routers_on(tx, call.params["agent_id"])
        return call.service.routers.views(tx, list(call.service.routers.many(tx, ids).values()))

    return {"routers": call.service.db.read(work)}


def add_l3_router(call: Call) -> Any:
    _scheduled(call, "add_router", call.params["agent_id"], uuid("router_id", call.body.get("router_id")))
    return Reply(None, status=201)


def remove_l3_router(call: Call) -> None:
    _scheduled(call, "remove_router", call.params["agent_id"], call.params["router_id"])


def agents_of_network(call: Call) -> Any:
    def work(tx: Tx) -> Any:
        network = call.service.networks.get(tx, call.params["id"])
        return call.service.agents.on_hosts(tx, call.service.ports.dhcp_hosts(tx, network.id), DHCP)

    return {"agents": in_memory(call, call.service.db.read(work), _AGENT_FILTERS)}


def agents_of_router(call: Call) -> Any:
    def work(tx: Tx) -> Any:
        router = call.service.routers.get(tx, call.params["id"])
        host = call.service.agents.router_host(tx, router.id)
        return call.service.agents.on_hosts(tx, [host] if host else [], L3)

    views = in_memory(call, call.service.db.read(work), _AGENT_FILTERS)
    return {"agents": [{**view, "ha_state": None} for view in views]}


def list_zones(call: Call) -> Any:
    views = call.service.db.read(call.service.agents.zones)
    return {"availability_zones": in_memory(call, views, ("name", "resource", "state"))}


# -- quotas ------------------------------------------------------------------------------------------------------------


def _may_see(call: Call, project_id: str) -> None:
    call.authorize("get_quota", {"project_id": project_id, "tenant_id": project_id})


def list_quotas(call: Call) -> Any:
    call.authorize("get_quota", {"project_id": "", "tenant_id": ""})
    return {"quotas": call.service.db.read(call.service.quotas.all)}


def quota_project(call: Call) -> Any:
    return {"tenant": {"tenant_id": call.ctx.project_id, "project_id": call.ctx.project_id}}


def show_quota(call: Call) -> Any:
    project = call.params["id"]
    _may_see(call, project)
    return {"quota": call.service.db.read(lambda tx: call.service.quotas.limits(tx, project))}


def default_quota(call: Call) -> Any:
    _may_see(call, call.params["id"])
    return {"quota": call.service.quotas.defaults()}


def quota_details(call: Call) -> Any:
    project = call.params["id"]
    _may_see(call, project)
    return {"quota": call.service.db.read(lambda tx: call.service.quotas.details(tx, project))}


def update_quota(call: Call) -> Any:
    inner = call.body.get("quota")
    if not isinstance(inner, dict):
        raise bad("The body must hold a quota.")
    known = call.service.quotas.defaults()
    checked: dict[str, int] = {}
    force, check = True, False
    for name, value in inner.items():
        if name in ("force", "check_limit"):
            wanted = boolean(name, value)
            force, check = (wanted, check) if name == "force" else (force, wanted)
        elif name in ("tenant_id", "project_id"):
            continue
        elif name not in known:
            raise bad(f"Unrecognized attribute(s) {name!r}")
        else:
            checked[name] = integer(-1, 2**31 - 1)(name, value)
    project = call.params["id"]
    work: Callable[[Tx], Any] = lambda tx: call.service.quotas.set(tx, project, checked, force=not check)  # noqa: E731
    return {"quota": call.service.db.write(work)}


def delete_quota(call: Call) -> None:
    call.service.db.write(lambda tx: call.service.quotas.reset(tx, call.params["id"]))


# -- use of addresses ------------------------------------------------------------------------------


def ip_availabilities(call: Call) -> Any:
    views: list[dict[str, Any]] = []
    if call.allowed("get_network_ip_availability", {}):
        version = call.query.get("ip_version")
        views = call.service.db.read(lambda tx: availability.views(tx, call.service, version))
    filters = ("network_id", "network_name", "tenant_id", "project_id")
    for name in call.query:
        if name not in _CONTROLS and name not in (*filters, "ip_version"):
            raise bad(f"{[name]} is invalid attribute for filtering")
    for name in filters:
        wanted = call.query.getlist(name)
        if wanted:
            views = [view for view in views if view[name] in wanted]
    return {"network_ip_availabilities": views}


def ip_availability(call: Call) -> Any:
    views = call.service.db.read(lambda tx: availability.views(tx, call.service, None, call.params["id"]))
    if not views or not call.allowed("get_network_ip_availability", {}):
        raise missing("NetworkNotFound", "Network", call.params["id"])
    return {"network_ip_availability": views[0]}


def routes() -> list[Route]:
    agent = "/agents/{agent_id}"
    return [
        Route(method="GET", path="/agents", handler=list_agents, summary="List network agents"),
        Route(method="GET", path="/agents/{id}", handler=show_agent, summary="Show an agent"),
        Route(
            method="PUT",
            path="/agents/{id}",
            handler=update_agent,
            body=_BODY,
            summary="Change an agent",
        ),
        Route(
            method="GET",
            path=f"{agent}/dhcp-networks",
            handler=dhcp_networks,
            policy="get_dhcp-networks",
            summary="Networks that an agent serves",
        ),
        Route(
            method="POST",
            path=f"{agent}/dhcp-networks",
            handler=add_dhcp_network,
            policy="create_dhcp-network",
            body=_BODY,
            success=201,
            summary="Let an agent serve a network",
        ),
        Route(
            method="DELETE",
            path=f"{agent}/dhcp-networks/{{network_id}}",
            handler=remove_dhcp_network,
            policy="delete_dhcp-network",
            success=204,
            summary="Let an agent not serve a network",
        ),
        Route(
            method="GET",
            path=f"{agent}/l3-routers",
            handler=l3_routers,
            policy="get_l3-routers",
            summary="Routers that an agent runs",
        ),
        Route(
            method="POST",
            path=f"{agent}/l3-routers",
            handler=add_l3_router,
            policy="create_l3-router",
            body=_BODY,
            success=201,
            summary="Let an agent run a router",
        ),
        Route(
            method="DELETE",
            path=f"{agent}/l3-routers/{{router_id}}",
            handler=remove_l3_router,
            policy="delete_l3-router",
            success=204,
            summary="Let an agent not run a router",
        ),
        Route(
            method="GET",
            path="/networks/{id}/dhcp-agents",
            handler=agents_of_network,
            policy="get_dhcp-agents",
            summary="Agents that serve a network",
        ),
        Route(
            method="GET",
            path="/routers/{id}/l3-agents",
            handler=agents_of_router,
            policy="get_l3-agents",
            summary="Agents that run a router",
        ),
        Route(
            method="GET",
            path="/availability_zones",
            handler=list_zones,
            policy="get_availability_zone",
            summary="List availability zones",
        ),
        Route(method="GET", path="/quotas", handler=list_quotas, summary="List quotas that are not the default"),
        Route(method="GET", path="/quotas/tenant", handler=quota_project, summary="The caller's project"),
        Route(method="GET", path="/quotas/project", handler=quota_project, summary="The caller's project"),
        Route(method="GET", path="/quotas/{id}", handler=show_quota, summary="Show quotas of a project"),
        Route(method="GET", path="/quotas/{id}/default", handler=default_quota, summary="Show default quotas"),
        Route(method="GET", path="/quotas/{id}/details", handler=quota_details, summary="Show quotas and their use"),
        Route(
            method="PUT",
            path="/quotas/{id}",
            handler=update_quota,
            policy="update_quota",
            body=_BODY,
            summary="Change quotas of a project",
        ),
        Route(
            method="DELETE",
            path="/quotas/{id}",
            handler=delete_quota,
            policy="delete_quota",
            success=204,
            summary="Back to default quotas",
        ),
        Route(
            method="GET",
            path="/network-ip-availabilities",
            handler=ip_availabilities,
            summary="Use of addresses by network",
        ),
        Route(
            method="GET",
            path="/network-ip-availabilities/{id}",
            handler=ip_availability,
            summary="Use of addresses of a network",
        ),
    ]
