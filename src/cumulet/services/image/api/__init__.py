"""The image API: one table of routes."""

from cumulet.http import ServiceApi
from cumulet.http.faults import GlanceFaults
from cumulet.services.image.api import data, images, info, members, metadefs
from cumulet.services.image.policy import RULES
from cumulet.services.image.public import ImageService


def build_api(service: ImageService) -> ServiceApi:
    return ServiceApi(
        name="image",
        prefix="/image",
        service=service,
        routes=[*images.ROUTES, *data.ROUTES, *members.ROUTES, *info.ROUTES, *metadefs.ROUTES],
        root_routes=[*info.ROOT_ROUTES, *data.SIGNED_ROUTES],
        faults=GlanceFaults(),
        rules=RULES,
        version_prefix="/v2",
        title="Image service",
    )
