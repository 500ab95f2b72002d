"""The network API: one table of routes, made from the nouns."""

from typing import Any

from cumulet.http import Call, Route, ServiceApi
from cumulet.kernel.errors import NotFound
from cumulet.services.network import extensions, policy
from cumulet.services.network.api import operators
from cumulet.services.network.api.crud import Crud
from cumulet.services.network.api.groups import GroupCrud
from cumulet.services.network.api.routers import PoolActions, RouterActions
from cumulet.services.network.api.tags import Tags
from cumulet.services.network.faults import NetworkFaults
from cumulet.services.network.public import NetworkService


def build_api(service: NetworkService) -> ServiceApi:
    networks, subnets, pools = Crud(service.networks), Crud(service.subnets), Crud(service.subnetpools)
    ports, routers, floating = Crud(service.ports), Crud(service.routers), Crud(service.floating_ips)
    groups, rules = GroupCrud(service.groups), Crud(service.rules)
    tagged = (networks, subnets, pools, ports, routers, floating, groups)
    routes = [
        *[route for crud in tagged for route in crud.routes()],
        *rules.routes(update=False),
        *[route for crud in tagged for route in Tags(crud).routes()],
        *RouterActions(routers).routes(),
        *PoolActions(pools).routes(),
        *operators.routes(),
        Route(method="GET", path="/extensions", handler=list_extensions, summary="List extensions"),
        Route(method="GET", path="/extensions/{alias}", handler=show_extension, summary="Show an extension"),
        Route(
            method="GET",
            path="/service-providers",
            handler=service_providers,
            policy="get_service_provider",
            summary="List service providers",
        ),
        Route(method="GET", path="/", handler=resources, summary="List of resources"),
    ]
    return ServiceApi(
        name="network",
        prefix="/network",
        version_prefix="/v2.0",
        service=service,
        routes=[*routes, *(_underscored(route) for route in routes if "security-group" in route.path)],
        root_routes=[Route(method="GET", path="/", handler=versions, auth=False, summary="List versions")],
        faults=NetworkFaults(),
        rules=policy.RULES,
        policy_factories=policy.FACTORIES,
        strip_json_suffix=True,
        title="Network",
    )


def _underscored(route: Route) -> Route:
    """/security_groups answers as /security-groups."""
    import dataclasses

    path = route.path.replace("security-group-rules", "security_group_rules")
    return dataclasses.replace(route, path=path.replace("security-groups", "security_groups"))


def versions(call: Call) -> Any:
    link = {"rel": "self", "href": f"{call.url_root}/v2.0/"}
    return {"versions": [{"id": "v2.0", "status": "CURRENT", "links": [link]}]}


def resources(call: Call) -> Any:
    return {
        "resources": [
            {"name": name, "collection": f"{name}s", "links": [{"rel": "self", "href": f"{call.url_base}/{name}s"}]}
            for name in ("network", "subnet", "subnetpool", "port")
        ]
    }


def list_extensions(call: Call) -> Any:
    return {"extensions": extensions.views()}


def show_extension(call: Call) -> Any:
    for view in extensions.views():
        if view["alias"] == call.params["alias"]:
            return {"extension": view}
    raise NotFound(f"Extension {call.params['alias']} is not offered.", type_name="HTTPNotFound")


def service_providers(call: Call) -> Any:
    return {"service_providers": []}
