"""The placement API: one table of routes, versions 1.0 to 1.39."""

from cumulet.http import ServiceApi
from cumulet.http.faults import PlacementFaults
from cumulet.http.microversion import Microversions
from cumulet.services.placement.api import allocations, candidates, catalogue, inventories, providers
from cumulet.services.placement.policy import RULES
from cumulet.services.placement.public import PlacementService


def build_api(service: PlacementService) -> ServiceApi:
    return ServiceApi(
        name="placement",
        prefix="/placement",
        service=service,
        routes=[*providers.ROUTES, *inventories.ROUTES, *allocations.ROUTES, *candidates.ROUTES, *catalogue.ROUTES],
        root_routes=catalogue.ROOT_ROUTES,
        faults=PlacementFaults(),
        rules=RULES,
        microversions=Microversions("placement", (1, 0), (1, 39)),
        title="Placement service",
    )
