"""The compute API: one table of routes."""

from cumulet.http import ServiceApi
from cumulet.services.compute.api import (
    actions,
    aggregates,
    details,
    devices,
    extensions,
    flavors,
    groups,
    hosts,
    keypairs,
    legacy,
    moves,
    proxies,
    quotas,
    servers,
    versions,
)
from cumulet.services.compute.faults import ComputeFaults
from cumulet.services.compute.policy import RULES
from cumulet.services.compute.public import ComputeService
from cumulet.services.compute.versions import MICROVERSIONS

TABLES = (
    versions,
    servers,
    actions,
    moves,
    details,
    devices,
    flavors,
    keypairs,
    groups,
    quotas,
    hosts,
    aggregates,
    extensions,
    legacy,
    proxies,
)


def build_api(service: ComputeService) -> ServiceApi:
    return ServiceApi(
        name="compute",
        prefix="/compute",
        service=service,
        routes=[route for table in TABLES for route in table.ROUTES],
        root_routes=versions.ROOT_ROUTES,
        faults=ComputeFaults(),
        rules=RULES,
        version_prefix="/v2.1",
        version_aliases=("/v2",),
        project_in_path=True,
        microversions=MICROVERSIONS,
        request_id_headers=("x-openstack-request-id", "x-compute-request-id"),
        policy_first=False,
        title="Compute service",
    )
