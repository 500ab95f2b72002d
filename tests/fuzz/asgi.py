"""Requests into the ASGI application without a socket: thousands a minute, one at a time, so that a run is the same
every time."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from cumulet.http import HttpApp


@dataclass
class Sent:
    """A request, and what came back."""

    method: str
    target: str  # path and query, percent-encoded
    headers: dict[str, str]
    body: bytes
    status: int = 0
    answer_headers: dict[str, str] = field(default_factory=dict)
    answer: bytes = b""

    @property
    def content_type(self) -> str:
        return self.answer_headers.get("content-type", "")

    @property
    def request_id(self) -> str:
        return self.answer_headers.get("x-openstack-request-id", "")

    def json(self) -> Any:
        return json.loads(self.answer)

    def __str__(self) -> str:
        headers = {name: value for name, value in self.headers.items() if name != "x-auth-token"}
        sent = f"{self.method} {self.target[:500]} {headers} {self.body[:1000]!r}"
        return f"{sent}\n    -> {self.status} {self.answer_headers} {self.answer[:500]!r}"


class InProcess:
    def __init__(self, app: HttpApp) -> None:
        self._app = app
        self._loop = asyncio.new_event_loop()

    def send(self, method: str, target: str, headers: Mapping[str, str], body: bytes = b"") -> Sent:
        sent = Sent(method, target, dict(headers), body)
        self._loop.run_until_complete(asyncio.wait_for(self._exchange(sent), 60))
        return sent

    async def _exchange(self, sent: Sent) -> None:
        path, _, query = sent.target.partition("?")
        headers = [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in sent.headers.items()]
        headers.append((b"host", b"cloud.test"))
        if sent.body or sent.method in ("POST", "PUT", "PATCH"):
            headers.append((b"content-length", str(len(sent.body)).encode()))
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": sent.method,
            "scheme": "http",
            "path": unquote(path),
            "raw_path": path.encode("ascii"),
            "query_string": query.encode("ascii"),
            "headers": headers,
            "client": ("127.0.0.1", 1),
            "server": ("cloud.test", 80),
        }
        incoming = [{"type": "http.request", "body": sent.body, "more_body": False}]
        chunks: list[bytes] = []

        async def receive() -> Any:
            if incoming:
                return incoming.pop()
            await asyncio.sleep(3600)  # the client stays
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                sent.status = message["status"]
                sent.answer_headers = {name.decode(): value.decode("latin-1") for name, value in message["headers"]}
            else:
                chunks.append(message.get("body", b""))

        await self._app(scope, receive, send)
        sent.answer = b"".join(chunks)

    def close(self) -> None:
        self._loop.close()
