"""The identity API, keystone's v3."""

from cumulet.http import ServiceApi
from cumulet.services.identity.api import (
    application_credentials,
    catalog,
    credentials,
    discovery,
    limits,
    policies,
    projects,
    role_assignments,
    roles,
    tokens,
    trusts,
    users,
)
from cumulet.services.identity.faults import FAULTS
from cumulet.services.identity.policy import RULES
from cumulet.services.identity.public import IdentityService


def build_api(service: IdentityService) -> ServiceApi:
    return ServiceApi(
        name="identity",
        prefix="/identity",
        version_prefix="/v3",
        service=service,
        routes=[
            *tokens.ROUTES,
            *projects.ROUTES,
            *users.ROUTES,
            *roles.ROUTES,
            *role_assignments.ROUTES,
            *catalog.ROUTES,
            *credentials.ROUTES,
            *application_credentials.ROUTES,
            *limits.ROUTES,
            *trusts.ROUTES,
            *policies.ROUTES,
        ],
        root_routes=discovery.ROOT_ROUTES,
        faults=FAULTS,
        rules=RULES,
        extra_headers=(("vary", "X-Auth-Token"),),
        head_as_get=True,
        strip_trailing_slash=True,
        title="Identity (keystone v3)",
    )
