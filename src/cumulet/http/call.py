"""One request as a handler sees it, and what it may answer."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from cumulet.kernel.context import RequestContext
from cumulet.kernel.errors import BadInput, Forbidden

if TYPE_CHECKING:
    from cumulet.http.route import Route
    from cumulet.http.service import ServiceApi

Version = tuple[int, int]
_MAX_QUERY_FIELDS = 1000


class Query:
    """The query string: parameters may repeat; ``get`` answers the last value, as webob does."""

    __slots__ = ("_values", "raw")

    def __init__(self, raw: str) -> None:
        self.raw = raw
        self._values: dict[str, list[str]] = {}
        if raw:
            try:
                pairs = parse_qsl(raw, keep_blank_values=True, errors="strict", max_num_fields=_MAX_QUERY_FIELDS)
            except (ValueError, UnicodeDecodeError):
                raise BadInput("The query string is not valid.") from None
            for key, value in pairs:
                if "\0" in value or "\0" in key:
                    raise BadInput(f"The query parameter {key!r} holds a NUL character.")
                self._values.setdefault(key, []).append(value)

    def get(self, name: str, default: str | None = None) -> Any:
        found = self._values.get(name)
        return default if found is None else found[-1]

    def getlist(self, name: str) -> list[str]:
        return self._values.get(name, [])

    def items(self) -> Iterator[tuple[str, str]]:
        """Every pair, repeated parameters included."""
        return ((key, value) for key, values in self._values.items() for value in values)

    def keys(self) -> Iterable[str]:
        return self._values.keys()

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __bool__(self) -> bool:
        return bool(self._values)


class Reply:
    """An answer with its own status, headers or body stream. ``body``: a struct, dict or list (JSON), or bytes
    with ``media_type``. ``stream``: an iterable of bytes, pulled on a worker thread and closed at the end."""

    __slots__ = ("body", "headers", "media_type", "status", "stream")

    def __init__(
        self,
        body: Any = None,
        *,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
        stream: Iterable[bytes] | None = None,
        media_type: str | None = None,
    ) -> None:
        self.body = body
        self.status = status
        self.headers: dict[str, str] = dict(headers or {})
        self.stream = stream
        self.media_type = media_type


class Call:
    """``params``: path parameters. ``query``: the query as sent; ``args``: it decoded into ``Route.query``.
    ``body``: the decoded body (the value inside ``body_key`` or of the action); ``document``: the same as plain JSON
    values. ``raw``: the body's bytes.
    ``stream``: for ``stream="request"`` routes an iterator of chunks (and ``.read()``).
    ``version``: the negotiated microversion or None. ``url_root``: public URL of the service's prefix;
    ``url_base``: with version segment (and project id, when the request's path had one), for links."""

    __slots__ = (
        "action",
        "api",
        "args",
        "body",
        "ctx",
        "document",
        "headers",
        "method",
        "params",
        "path",
        "query",
        "raw",
        "request_id",
        "route",
        "service",
        "stream",
        "url_base",
        "url_host",
        "url_root",
        "version",
    )

    ctx: RequestContext
    service: Any
    params: dict[str, str]
    query: Query
    args: Any
    body: Any
    document: Any
    raw: bytes
    headers: Mapping[str, str]
    version: Version | None
    url_host: str
    url_root: str
    url_base: str
    method: str
    path: str
    request_id: str
    route: "Route"
    api: "ServiceApi"
    action: str | None
    stream: Any

    def allowed(self, rule: str, target: Mapping[str, Any] | None = None) -> bool:
        if target is None:
            target = {"project_id": self.ctx.project_id, "user_id": self.ctx.user_id}
        return self.api.engine.allows(rule, target, self.ctx.credentials())

    def authorize(self, rule: str, target: Mapping[str, Any] | None = None) -> None:
        """Raise `Forbidden` unless the rule allows it. Default target: the caller's own project and user."""
        if not self.allowed(rule, target):
            raise Forbidden(f"Policy doesn't allow {rule} to be performed.", type_name="PolicyNotAuthorized", rule=rule)
