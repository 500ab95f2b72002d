"""The closed family of errors that the domain raises.

Each says what the caller should do; the HTTP layer gives it the shape and, where services differ, the status of
the service it leaves through (`services/<name>/faults.py`). ``details`` is data for people and programs: which
host, which rule, how much was missing. Anything else that escapes a handler is a defect and becomes a 500.
"""

from typing import Any, ClassVar


class CloudError(Exception):
    """``message`` is safe to show to the caller; ``type_name`` is the class name some services put in the body
    (neutron's ``NeutronError.type``), by default this class's name."""

    status: ClassVar[int] = 500

    def __init__(
        self,
        message: str,
        *,
        type_name: str | None = None,
        status: int | None = None,
        headers: dict[str, str] | None = None,
        **details: Any,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.type_name = type_name or type(self).__name__
        self.status_override = status
        self.headers = headers or {}
        self.details = details


class BadInput(CloudError):
    """Fix the request."""

    status = 400


class Unauthorized(CloudError):
    """Authenticate."""

    status = 401


class Forbidden(CloudError):
    """The caller's roles do not allow this."""

    status = 403


class NotFound(CloudError):
    """Not there, or not visible to the caller."""

    status = 404


class MethodNotAllowed(CloudError):
    status = 405


class NotAcceptable(CloudError):
    """No such microversion."""

    status = 406


class Conflict(CloudError):
    """Exists already, is in use, or another operation owns it: look, then try again."""

    status = 409


class WrongState(Conflict):
    """The object's state does not allow this (409; cinder's faults make it 400)."""


class Gone(CloudError):
    status = 410


class StaleRevision(CloudError):
    """If-Match did not match."""

    status = 412


class TooLarge(CloudError):
    status = 413


class UnsupportedMedia(CloudError):
    status = 415


class QuotaExceeded(CloudError):
    """The project's quota does not allow this (nova 403, cinder and glance 413, neutron 409)."""

    status = 403


class NotSupported(CloudError):
    """Known, and not offered by this deployment."""

    status = 501


class Unavailable(CloudError):
    """Try again later: overload, no broker, no host."""

    status = 503


class NoValidHost(CloudError):
    """No host can take it. ``details["reasons"]``: rule -> number of hosts it removed; ``details["hosts"]``:
    host -> reason, for admins only."""

    status = 400
