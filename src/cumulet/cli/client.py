"""A small OpenStack client for the command line: standard library only, so that commands start in milliseconds.

Owns: reading clouds.yaml (and ``OS_*``), one token, requests with clear errors. It speaks plain OpenStack APIs and so
works against any cloud. Refuses nothing the server takes. Fails: with ``ApiError`` (the server's status and message)
or ``CannotReach``.
"""

import http.client
import json
import os
import ssl
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

CLOUDS = Path("~/.config/openstack/clouds.yaml")


class ApiError(Exception):
    def __init__(self, status: int, message: str, method: str, url: str) -> None:
        super().__init__(f"{message} (HTTP {status} from {method} {url})")
        self.status = status
        self.message = message


class CannotReach(Exception):
    """Nothing answers at the cloud's address."""


def cloud_settings(name: str | None) -> dict[str, Any]:
    """The ``auth`` block and region of a cloud: by name from clouds.yaml, or from ``OS_*``. KeyError if none."""
    name = name or os.environ.get("OS_CLOUD")
    if name is None and "OS_AUTH_URL" in os.environ:
        keys = ("auth_url", "username", "password", "project_name", "user_domain_name", "project_domain_name")
        return {"auth": {k: os.environ[f"OS_{k.upper()}"] for k in keys if f"OS_{k.upper()}" in os.environ}}
    import yaml

    for path in (Path("clouds.yaml"), CLOUDS.expanduser(), Path("/etc/openstack/clouds.yaml")):
        if path.is_file():
            clouds = (yaml.safe_load(path.read_text()) or {}).get("clouds") or {}
            wanted = name or "cumulet"
            if wanted in clouds:
                return dict(clouds[wanted])
    raise KeyError(name or "cumulet")


class Cloud:
    """One authenticated session. Service types are those of the catalog: compute, network, image, block-storage, …"""

    ALIASES: ClassVar[dict[str, tuple[str, ...]]] = {"block-storage": ("block-storage", "volumev3", "volume")}

    def __init__(self, settings: dict[str, Any], *, timeout: float = 60) -> None:
        self.auth = settings["auth"]
        self.region = settings.get("region_name")
        self.timeout = timeout
        self._token: str | None = None
        self._catalog: list[dict[str, Any]] = []
        self.project_id: str | None = None
        self.user_id: str | None = None
        self._connections: dict[tuple[str, str], http.client.HTTPConnection] = {}

    @classmethod
    def named(cls, name: str | None) -> "Cloud":
        return cls(cloud_settings(name))

    # -- authentication ----------------------------------------------------------------------------------

    def authenticate(self) -> None:
        auth = self.auth
        user = {
            "name": auth["username"],
            "password": auth["password"],
            "domain": {"name": auth.get("user_domain_name", "Default")},
        }
        scope = {
            "project": {
                "name": auth["project_name"],
                "domain": {"name": auth.get("project_domain_name", "Default")},
            }
        }
        body = {"auth": {"identity": {"methods": ["password"], "password": {"user": user}}, "scope": scope}}
        _, headers, payload = self._send("POST", self._identity() + "/v3/auth/tokens", body, {})
        token = json.loads(payload)["token"]
        self._token = headers["x-subject-token"]
        self._catalog = token.get("catalog", [])
        self.project_id = token["project"]["id"]
        self.user_id = token["user"]["id"]

    def _identity(self) -> str:
        return self.auth["auth_url"].rstrip("/").removesuffix("/v3")

    def endpoint(self, service: str) -> str:
        if self._token is None:
            self.authenticate()
        if service == "identity":
            return self._identity() + "/v3"
        for kind in self.ALIASES.get(service, (service,)):
            for entry in self._catalog:
                if entry["type"] == kind:
                    for endpoint in entry["endpoints"]:
                        if endpoint["interface"] == "public" and self.region in (None, endpoint["region"]):
                            url: str = endpoint["url"].rstrip("/")
                            if service == "network" and not url.endswith("/v2.0"):
                                url += "/v2.0"
                            if service == "image" and not url.endswith("/v2"):
                                url += "/v2"
                            return url
        raise CannotReach(f"the cloud's catalog has no {service} service")

    # -- requests -----------------------------------------------------------------------------------------

    def request(
        self,
        method: str,
        service: str,
        path: str,
        body: Any = None,
        *,
        headers: dict[str, str] | None = None,
        version: str | None = None,
    ) -> Any:
        """The decoded answer (None when there is none). ``body`` is JSON data, or a file object sent as it is."""
        url = self.endpoint(service) + path
        extra = {"X-Auth-Token": self._token or "", **(headers or {})}
        if version:
            extra["OpenStack-API-Version"] = f"{'volume' if service == 'block-storage' else service} {version}"
        _, _, payload = self._send(method, url, body, extra)
        return json.loads(payload) if payload else None

    def get(self, service: str, path: str, **kw: Any) -> Any:
        return self.request("GET", service, path, **kw)

    def post(self, service: str, path: str, body: Any = None, **kw: Any) -> Any:
        return self.request("POST", service, path, body, **kw)

    def put(self, service: str, path: str, body: Any = None, **kw: Any) -> Any:
        return self.request("PUT", service, path, body, **kw)

    def delete(self, service: str, path: str, **kw: Any) -> Any:
        return self.request("DELETE", service, path, **kw)

    def find(self, service: str, collection: str, name: str, key: str | None = None, **query: str) -> Any | None:
        """The one object of a list with this name (or id), or None. ``collection``: "networks", "servers", …"""
        query = {**query, "name": name}
        if service == "compute":  # nova matches names as patterns
            query["name"] = f"^{name}$"
        found = self.get(service, f"/{collection}?{urllib.parse.urlencode(query)}")[key or collection.split("/")[0]]
        exact = [item for item in found if item.get("name") == name]
        if not exact and len(name) >= 32:
            try:
                body = self.get(service, f"/{collection.split('/')[0]}/{name}")
                return next(iter(body.values())) if len(body) == 1 else body
            except ApiError as error:
                if error.status not in (400, 404):
                    raise
        return exact[0] if exact else None

    def _send(self, method: str, url: str, body: Any, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        parts = urllib.parse.urlsplit(url)
        data: bytes | BinaryIO | None
        if body is None or hasattr(body, "read"):
            data = body
        else:
            data = json.dumps(body).encode()
            headers = {"Content-Type": "application/json", **headers}
        headers = {"Accept": "application/json", "User-Agent": "cumulet-cli", **headers}
        for attempt in (1, 2):
            connection = self._connection(parts.scheme, parts.netloc)
            try:
                target = parts.path + (f"?{parts.query}" if parts.query else "")
                connection.request(method, target, body=data, headers=headers)
                answer = connection.getresponse()
                payload = answer.read()
                break
            except (ConnectionError, http.client.HTTPException, OSError) as error:
                connection.close()
                del self._connections[(parts.scheme, parts.netloc)]
                reused = isinstance(error, http.client.RemoteDisconnected) and method in ("GET", "HEAD")
                if attempt == 2 or not reused:
                    raise CannotReach(f"no answer from {parts.scheme}://{parts.netloc}: {error}") from error
        if answer.status >= 400:
            raise ApiError(answer.status, _message(payload, answer.reason), method, parts.path)
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, payload

    def _connection(self, scheme: str, netloc: str) -> http.client.HTTPConnection:
        key = (scheme, netloc)
        if key not in self._connections:
            if scheme == "https":
                context = ssl.create_default_context(cafile=self.auth.get("cacert"))
                self._connections[key] = http.client.HTTPSConnection(netloc, timeout=self.timeout, context=context)
            else:
                self._connections[key] = http.client.HTTPConnection(netloc, timeout=self.timeout)
        return self._connections[key]


def _message(payload: bytes, fallback: str) -> str:
    """The text of any service's fault body."""
    try:
        body = json.loads(payload)
    except ValueError:
        return fallback
    for text in _texts(body):
        return text
    return fallback


def _texts(body: Any) -> Iterator[str]:
    if isinstance(body, dict):
        for key in ("message", "detail", "faultstring"):
            if isinstance(body.get(key), str) and body[key]:
                yield body[key]
        for value in body.values():
            if isinstance(value, dict | list):
                yield from _texts(value)
    elif isinstance(body, list):
        for value in body:
            yield from _texts(value)


def wait_for(what: str, check: Any, *, seconds: float, pause: float = 0.25) -> Any:
    """Poll until ``check()`` is true; its value. TimeoutError names what was waited for."""
    end = time.monotonic() + seconds
    while True:
        value = check()
        if value:
            return value
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(pause)
