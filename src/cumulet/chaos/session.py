"""One user's requests. No answer is an error here: a refusal, a fault of the cloud and silence are all told apart by
`Reply`, for only what was acknowledged may be asked for later."""

import http.client
import json
import urllib.parse
from dataclasses import dataclass
from typing import Any

from cumulet.cli.client import ApiError, CannotReach, Cloud

_SECONDS = 40.0


@dataclass(frozen=True)
class Reply:
    status: int  # 0: none came
    body: Any = None
    request_id: str = ""

    @property
    def acknowledged(self) -> bool:
        return 200 <= self.status < 300

    @property
    def refused(self) -> bool:
        """Nothing was done."""
        return 400 <= self.status < 500

    @property
    def message(self) -> str:
        return json.dumps(self.body)[:300] if self.body is not None else ""


class Session(Cloud):
    """Logs in by itself, also again when its token is no longer taken."""

    def __init__(self, url: str, user: str, project: str, password: str, ca: str | None = None) -> None:
        auth = {
            "auth_url": url + "/identity",
            "username": user,
            "password": password,
            "project_name": project,
            "cacert": ca,
        }
        super().__init__({"auth": auth}, timeout=_SECONDS)

    def ask(self, method: str, service: str, path: str, body: Any = None) -> Reply:
        try:
            reply = self._once(method, service, path, body)
            if reply.status == 401:
                self._token = None
                reply = self._once(method, service, path, body)
        except ApiError as error:  # of the login
            return Reply(error.status if error.status >= 500 else 0, error.message)
        except CannotReach:
            return Reply(0)
        return reply

    def _once(self, method: str, service: str, path: str, body: Any) -> Reply:
        url = urllib.parse.urlsplit(self.endpoint(service) + path)
        headers = {"X-Auth-Token": self._token or "", "Accept": "application/json", "User-Agent": "cumulet-chaos"}
        data = None
        if isinstance(body, bytes):
            data, headers["Content-Type"] = body, "application/octet-stream"
        elif body is not None:
            data, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
        connection = self._connection(url.scheme, url.netloc)
        try:
            connection.request(method, url.path + (f"?{url.query}" if url.query else ""), body=data, headers=headers)
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            return Reply(0)
        kind = answer.getheader("content-type") or ""
        decoded = json.loads(content) if content and "json" in kind else None
        return Reply(answer.status, decoded, answer.getheader("x-openstack-request-id") or "")

    def must(self, method: str, service: str, path: str, body: Any = None) -> Any:
        """Before and after the disturbances: anything but success is a defect of this run."""
        reply = self.ask(method, service, path, body)
        if not reply.acknowledged:
            raise ApiError(reply.status, reply.message or "no answer", method, path)
        return reply.body

    def close(self) -> None:
        """Its connections; the next request opens new ones."""
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()
