"""Errors of the network API: upstream's type names and statuses, and the shape of the body.

A client decides by ``NeutronError.type`` and the status; the message is for people.
"""

from typing import Any

from cumulet.http.faults import FaultRequest, NeutronFaults
from cumulet.kernel.errors import BadInput, CloudError, Conflict, Forbidden, NotFound, QuotaExceeded

_NAMES = {
    "BadInput": "HTTPBadRequest",
    "NotFound": "HTTPNotFound",
    "MethodNotAllowed": "HTTPMethodNotAllowed",
    "Forbidden": "PolicyNotAuthorized",
    "StaleRevision": "RevisionNumberConstraintFailed",
    "QuotaExceeded": "OverQuota",
    "NotSupported": "HTTPNotImplemented",
    "UnsupportedMedia": "HTTPUnsupportedMediaType",
    "TooLarge": "HTTPRequestEntityTooLarge",
    "Unavailable": "HTTPServiceUnavailable",
}


class NetworkFaults(NeutronFaults):
    """Errors of other layers get the type names that this API gives them."""

    def body(self, status: int, error: CloudError, request: FaultRequest) -> Any:
        error.type_name = _NAMES.get(error.type_name, error.type_name)
        return super().body(status, error, request)


def bad(message: str, type_name: str = "HTTPBadRequest") -> BadInput:
    return BadInput(message, type_name=type_name)


def invalid(message: str) -> BadInput:
    """The input is well formed and makes no sense here."""
    return BadInput(message, type_name="InvalidInput")


def missing(type_name: str, what: str, id: str) -> NotFound:
    """``missing("NetworkNotFound", "Network", id)``."""
    return NotFound(f"{what} {id} could not be found.", type_name=type_name)


def conflict(type_name: str, message: str, **details: Any) -> Conflict:
    return Conflict(message, type_name=type_name, **details)


def forbidden(rule: str) -> Forbidden:
    return Forbidden(f"Policy rule {rule} does not allow this.", type_name="PolicyNotAuthorized")


def over_quota(resources: list[str]) -> QuotaExceeded:
    return QuotaExceeded(
        f"Quota exceeded for resources: {resources}.", type_name="OverQuota", status=409, resources=resources
    )
