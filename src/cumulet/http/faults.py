"""How errors look on the wire, per family of OpenStack services.

A service's ``faults.py`` takes one of these classes and overrides what differs (statuses of some errors, mostly).
Nothing here decides *whether* something is an error; it shapes a `CloudError`, an unrouted path, a refused token.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html import escape
from http import HTTPStatus
from typing import Any

from cumulet.http.call import Reply
from cumulet.kernel.errors import CloudError, NotFound, QuotaExceeded, UnsupportedMedia, WrongState


@dataclass(slots=True)
class FaultRequest:
    """What a fault may need to know about the request."""

    method: str
    path: str
    request_id: str
    headers: Mapping[str, str] = field(default_factory=dict)
    version: tuple[int, int] | None = None
    version_range: tuple[str, str] | None = None
    url_root: str = ""

    @property
    def wants_html(self) -> bool:
        accept = self.headers.get("accept", "")
        return "json" not in accept and "html" in accept


def phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


UNAUTHENTICATED = "The request you have made requires authentication."
UNEXPECTED = (
    "An unexpected error prevented the server from fulfilling your request. Its request id finds it in the log."
)


class Faults:
    """Base: nova's form of a refused token, override ``body`` for the rest."""

    request_id_on_401 = True

    def status(self, error: CloudError) -> int:
        return error.status_override or error.status

    def body(self, status: int, error: CloudError, request: FaultRequest) -> Any:
        raise NotImplementedError

    def reply(self, error: CloudError, request: FaultRequest) -> Reply:
        status = self.status(error)
        return Reply(self.body(status, error, request), status=status, headers=dict(error.headers))

    def unauthorized(self, error: CloudError, request: FaultRequest, auth_url: str) -> Reply:
        """What the token middleware in front of most services answers."""
        body = {"error": {"code": 401, "title": "Unauthorized", "message": UNAUTHENTICATED}}
        return Reply(body, status=401, headers={"www-authenticate": f'Keystone uri="{auth_url}"'})

    def unrouted(self, request: FaultRequest) -> Reply:
        return self.reply(NotFound("The resource could not be found."), request)

    def wrong_method(self, allowed: Iterable[str], request: FaultRequest) -> Reply:
        error = CloudError("The method is not allowed for this resource.", status=405)
        reply = self.reply(error, request)
        reply.headers["allow"] = ", ".join(sorted(allowed))
        return reply

    def unsupported_media(self, content_type: str, accepted: tuple[str, ...]) -> CloudError:
        return UnsupportedMedia(f"Unsupported Content-Type {content_type!r}; use {', '.join(accepted)}.")

    def unexpected(self, request: FaultRequest) -> Reply:
        return self.reply(CloudError(UNEXPECTED, status=500), request)


class NovaFaults(Faults):
    """``{"itemNotFound": {"code": 404, "message": "…"}}``."""

    names: Mapping[int, str] = {
        400: "badRequest",
        401: "unauthorized",
        403: "forbidden",
        404: "itemNotFound",
        405: "badMethod",
        409: "conflictingRequest",
        413: "overLimit",
        415: "badMediaType",
        429: "overLimit",
        501: "notImplemented",
        503: "serviceUnavailable",
    }
    default_name = "computeFault"

    def body(self, status: int, error: CloudError, request: FaultRequest) -> Any:
        inner: dict[str, Any] = {"code": status, "message": error.message}
        if status in (413, 429):
            inner["retryAfter"] = error.headers.get("retry-after", "0")
        return {self.names.get(status, self.default_name): inner}

    def reply(self, error: CloudError, request: FaultRequest) -> Reply:
        reply = super().reply(error, request)
        if reply.status in (413, 429):
            reply.headers.setdefault("retry-after", "0")
        return reply

    def unrouted(self, request: FaultRequest) -> Reply:
        body = {"message": "The resource could not be found.", "code": "404 Not Found", "title": "Not Found"}
        return Reply(body, status=404)

    def wrong_method(self, allowed: Iterable[str], request: FaultRequest) -> Reply:
        return self.unrouted(request)


class CinderFaults(NovaFaults):
    """Nova's form; an object in the wrong state is a bad request, a full quota is 413."""

    def status(self, error: CloudError) -> int:
        if error.status_override is None:
            if isinstance(error, WrongState):
                return 400
            if isinstance(error, QuotaExceeded):
                return 413
        return super().status(error)


class KeystoneFaults(Faults):
    """``{"error": {"code": 404, "message": "…", "title": "Not Found"}}``."""

    def body(self, status: int, error: CloudError, request: FaultRequest) -> Any:
        inner = {"code": status, "message": error.message, "title": phrase(status)}
        identity = error.details.get("identity")
        if identity is not None:
            inner["identity"] = identity
        return {"error": inner}

    def unauthorized(self, error: CloudError, request: FaultRequest, auth_url: str) -> Reply:
        reply = self.reply(error, request)
        reply.headers["www-authenticate"] = f'Keystone uri="{auth_url}"'
        return reply

    def unrouted(self, request: FaultRequest) -> Reply:
        page = (
            "<!doctype html>\n<html lang=en>\n<title>404 Not Found</title>\n<h1>Not Found</h1>\n"
            f"<p>There is nothing at {escape(request.path)}.</p>\n"
        )
        return Reply(page.encode(), status=404, media_type="text/html; charset=utf-8")

    def wrong_method(self, allowed: Iterable[str], request: FaultRequest) -> Reply:
        body = {"message": "The method is not allowed for the requested URL."}
        return Reply(body, status=405, headers={"allow": ", ".join(sorted(allowed))})

    def unsupported_media(self, content_type: str, accepted: tuple[str, ...]) -> CloudError:
        return CloudError(f"Content-Type {content_type!r} was sent; use {', '.join(accepted)}.", status=400)


class NeutronFaults(Faults):
    """``{"NeutronError": {"type": "NetworkNotFound", "message": "…", "detail": ""}}``."""

    types: Mapping[int, str] = {404: "HTTPNotFound", 405: "HTTPMethodNotAllowed", 415: "HTTPUnsupportedMediaType"}

    def status(self, error: CloudError) -> int:
        if isinstance(error, QuotaExceeded) and error.status_override is None:
            return 409
        return super().status(error)

    def body(self, status: int, error: CloudError, request: FaultRequest) -> Any:
        name = error.type_name
        if status == 500:
            name = "HTTPInternalServerError"
        return {"NeutronError": {"type": name, "message": error.message, "detail": error.details.get("detail", "")}}

    def unrouted(self, request: FaultRequest) -> Reply:
        error = NotFound("The resource could not be found.", type_name="HTTPNotFound")
        return self.reply(error, request)

    def wrong_method(self, allowed: Iterable[str], request: FaultRequest) -> Reply:
        error = CloudError("The method is not allowed.", status=405, type_name="HTTPMethodNotAllowed")
        reply = self.reply(error, request)
        reply.headers["allow"] = ", ".join(sorted(allowed))
        return reply


class GlanceFaults(Faults):
    """``{"message": "…", "code": "404 Not Found", "title": "Not Found"}``, HTML for browsers."""

    request_id_on_401 = False

    def status(self, error: CloudError) -> int:
        if isinstance(error, QuotaExceeded) and error.status_override is None:
            return 413
        return super().status(error)

    def body(self, status: int, error: CloudError, request: FaultRequest) -> Any:
        return {"message": error.message, "code": f"{status} {phrase(status)}", "title": phrase(status)}

    def reply(self, error: CloudError, request: FaultRequest) -> Reply:
        status = self.status(error)
        headers = dict(error.headers)
        if not request.wants_html:
            return Reply(self.body(status, error, request), status=status, headers=headers)
        title = f"{status} {phrase(status)}"
        page = (
            f"<html>\n <head>\n  <title>{title}</title>\n </head>\n <body>\n  <h1>{title}</h1>\n"
            f"  {escape(error.message)}<br /><br />\n </body>\n</html>"
        )
        return Reply(page.encode(), status=status, headers=headers, media_type="text/html; charset=UTF-8")

    def unauthorized(self, error: CloudError, request: FaultRequest, auth_url: str) -> Reply:
        reply = self.reply(CloudError(UNAUTHENTICATED, status=401), request)
        reply.headers["www-authenticate"] = f'Keystone uri="{auth_url}"'
        return reply


class PlacementFaults(Faults):
    """``{"errors": [{"status", "title", "detail", "code" (1.23 and later), "request_id"}]}``."""

    def body(self, status: int, error: CloudError, request: FaultRequest) -> Any:
        inner: dict[str, Any] = {"status": status, "title": phrase(status), "detail": error.message}
        if request.version is not None and request.version >= (1, 23):
            inner["code"] = error.details.get("code", "placement.undefined_code")
        inner["request_id"] = request.request_id
        if status == 406 and request.version_range is not None:
            inner["min_version"], inner["max_version"] = request.version_range
        return {"errors": [inner]}
