"""One request on its way through the application, and its body as it comes in."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from cumulet.http.faults import FaultRequest
from cumulet.http.router import Leaf, Router, segments_of
from cumulet.http.service import ServiceApi
from cumulet.http.stream import BodyStream
from cumulet.kernel.context import RequestContext
from cumulet.kernel.errors import CloudError, TooLarge

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
BODY_TIMEOUT_S = 60.0


class Mounted:
    """A service with its routers."""

    def __init__(self, api: ServiceApi) -> None:
        self.api = api
        self.router = Router()
        prefixes = ["", *api.version_aliases] if not api.version_prefix else [api.version_prefix, *api.version_aliases]
        self.versions = {tuple(segments_of(prefix)): prefix for prefix in prefixes if prefix}
        for route in api.root_routes:
            self.router.add(route, route.path)
        for prefix in prefixes:
            for route in api.routes:
                self.router.add(route, prefix + route.path)


class Request:
    """What is known of a request before its handler runs."""

    __slots__ = (
        "content_length",
        "ctx",
        "fault",
        "headers",
        "leaf",
        "method",
        "mounted",
        "path",
        "project",
        "query",
        "raw",
        "stream",
        "url_base",
        "url_host",
        "url_root",
        "values",
        "version",
    )

    content_length: int  # -1: unknown
    ctx: RequestContext | None  # None: not authenticated (yet)
    fault: FaultRequest
    headers: dict[str, str]
    method: str
    mounted: Mounted
    path: str
    query: str
    url_base: str
    url_host: str
    url_root: str

    def __init__(self) -> None:
        self.version: tuple[int, int] | None = None
        self.raw = b""
        self.stream: BodyStream | None = None
        self.leaf: Leaf | None = None
        self.values: list[str] = []
        self.project: str | None = None


class Answer:
    __slots__ = ("body", "headers", "status", "stream")

    def __init__(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes, stream: Any = None) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.stream = stream


class Disconnected(Exception):
    """The client closed the connection while sending its body."""


async def read_body(receive: Receive, announced: int, limit: int) -> bytes:
    if announced > limit:
        raise TooLarge(f"The request body is larger than {limit} bytes.")
    if announced == 0:
        return b""
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Disconnected
                chunk = message.get("body", b"")
                size += len(chunk)
                if size > limit:
                    raise TooLarge(f"The request body is larger than {limit} bytes.")
                chunks.append(chunk)
                if not message.get("more_body", False):
                    return b"".join(chunks)
    except TimeoutError:
        raise CloudError("The request body did not arrive in time.", status=408) from None


async def disconnected(receive: Receive) -> None:
    """Returns when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
