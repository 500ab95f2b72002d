"""The volume API: one table of routes, a file for each noun."""

from cumulet.http import CinderFaults, Microversions, ServiceApi
from cumulet.services.volume.api import (
    actions,
    attachments,
    backups,
    connections,
    group_types,
    info,
    qos,
    quotas,
    snapshots,
    transfers,
    types,
    volumes,
)
from cumulet.services.volume.policy import RULES
from cumulet.services.volume.public import VolumeService


def build_api(service: VolumeService) -> ServiceApi:
    return ServiceApi(
        name="volume",
        prefix="/volume",
        service=service,
        routes=[
            *volumes.ROUTES,
            *actions.ROUTES,
            *connections.ROUTES,
            *snapshots.ROUTES,
            *attachments.ROUTES,
            *types.ROUTES,
            *qos.ROUTES,
            *group_types.ROUTES,
            *backups.ROUTES,
            *transfers.ROUTES,
            *quotas.ROUTES,
            *info.ROUTES,
        ],
        root_routes=info.ROOT_ROUTES,
        faults=CinderFaults(),
        rules=RULES,
        version_prefix="/v3",
        project_in_path=True,
        microversions=Microversions("volume", info.MINIMUM, info.MAXIMUM, aliases=("block-storage", "volumev3")),
        request_id_headers=("x-openstack-request-id", "x-compute-request-id"),
        title="Volume service",
    )
