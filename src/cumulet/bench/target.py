"""The cloud under measurement: who we are there, where its services are, what we made and how it goes away again.

Owns: a project of its own with raised quotas when the credentials are an administrator's, else the given project with
the quotas it has; one image, flavor, network, subnet and security group that the cases share. Every name begins with
the run's prefix, and nothing else is ever deleted.
Fails: `BenchError` with the reason when the cloud cannot be measured at all.
"""

import os
import secrets
import ssl
import time
from collections.abc import Callable, Iterator
from typing import Any

from cumulet.bench.wire import Answer, Connection, Flood, Origin, Prepared, WireError, flood, prepare

PREFIX = "cumulet-bench-"
IMAGE_BYTES = 4096
_ALIASES = {"block-storage": ("block-storage", "volumev3", "volume"), "network": ("network",)}
_SUFFIX = {"network": "/v2.0", "image": "/v2", "operator": "/v1"}
_RAISED = {  # -1: as many as the case needs
    "compute": ("/os-quota-sets/{project}", "quota_set", ("instances", "cores", "ram", "server_groups")),
    "network": (
        "/quotas/{project}",
        "quota",
        ("network", "subnet", "port", "security_group", "security_group_rule", "router"),
    ),
    "block-storage": ("/os-quota-sets/{project}", "quota_set", ("volumes", "gigabytes", "snapshots")),
}


class BenchError(Exception):
    """Why the cloud cannot be measured."""


class Refused(BenchError):
    """The cloud's answer to a request that had to succeed."""

    def __init__(self, answer: Answer, what: str) -> None:
        super().__init__(f"{what}: HTTP {answer.status} {answer.body[:300].decode(errors='replace')}")
        self.status = answer.status


class Session:
    """One user in one project: a token, a catalog, a kept connection to each service."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.auth: dict[str, Any] = dict(settings.get("auth") or {})
        for needed in ("auth_url", "username", "password", "project_name"):
            if not self.auth.get(needed):
                raise BenchError(f"the cloud's entry has no {needed}: bench logs in by password, in a project")
        self.region = settings.get("region_name")
        self.interface = settings.get("interface", "public").removesuffix("URL")
        self._context: ssl.SSLContext | None = None
        if self.auth["auth_url"].startswith("https"):
            self._context = ssl.create_default_context(cafile=settings.get("cacert") or self.auth.get("cacert"))
            if settings.get("verify") is False:
                self._context.check_hostname = False
                self._context.verify_mode = ssl.CERT_NONE
        self.token = self.user_id = self.project_id = ""
        self._catalog: list[dict[str, Any]] = []
        self._endpoints: dict[str, str] = {}
        self._connections: dict[Origin, Connection] = {}

    # -- who we are --------------------------------------------------------------------------------------

    def login_request(self) -> Prepared:
        auth = self.auth
        domain = {"name": auth.get("user_domain_name", "Default")}
        user = {"name": auth["username"], "password": auth["password"], "domain": domain}
        scope = {"name": auth["project_name"], "domain": {"name": auth.get("project_domain_name", "Default")}}
        body = {"identity": {"methods": ["password"], "password": {"user": user}}, "scope": {"project": scope}}
        return self.prepare("POST", "identity", "/auth/tokens", {"auth": body}, anonymous=True)

    def log_in(self) -> None:
        answer = self.send(self.login_request())
        if answer.status != 201:
            raise Refused(answer, f"logging in as {self.auth['username']}")
        token = answer.json["token"]
        self.token = answer.header("x-subject-token") or ""
        self._catalog = token.get("catalog", [])
        self.user_id, self.project_id = token["user"]["id"], token["project"]["id"]

    def endpoint(self, service: str) -> str:
        found = self._endpoints.get(service)
        if found is None:
            found = self._endpoints[service] = self._find_endpoint(service)
        return found

    def _find_endpoint(self, service: str) -> str:
        if service == "identity":
            return str(self.auth["auth_url"]).rstrip("/").removesuffix("/v3") + "/v3"
        for kind in _ALIASES.get(service, (service,)):
            for entry in self._catalog:
                for point in entry["endpoints"] if entry["type"] == kind else ():
                    if point["interface"] == self.interface and self.region in (None, point.get("region")):
                        url: str = point["url"].rstrip("/")
                        suffix = _SUFFIX.get(service, "")
                        return url if url.endswith(suffix) else url + suffix
        raise BenchError(f"the cloud's catalog has no {service} service")

    def has(self, service: str) -> bool:
        try:
            self.endpoint(service)
        except BenchError:
            return False
        return True

    # -- requests ----------------------------------------------------------------------------------------

    def prepare(
        self,
        method: str,
        service: str,
        path: str,
        body: Any = None,
        *,
        headers: dict[str, str] | None = None,
        length: int | None = None,
        anonymous: bool = False,
    ) -> Prepared:
        url = self.endpoint(service) + path
        origin = Origin.of(url)
        target = url[url.index("/", len(origin.scheme) + 3) :]
        own = {} if anonymous else {"X-Auth-Token": self.token}
        return prepare(origin, method, target, {**own, **(headers or {})}, body, length)

    def connection(self, origin: Origin) -> Connection:
        found = self._connections.get(origin)
        if found is None:
            found = self._connections[origin] = self.connect(origin)
        return found

    def connect(self, origin: Origin) -> Connection:
        return Connection(origin, context=self._context)

    def send(self, request: Prepared) -> Answer:
        return self.connection(request.origin).exchange(request)

    def ask(self, method: str, service: str, path: str, body: Any = None, **more: Any) -> Answer:
        """A request whose answer may be anything."""
        return self.send(self.prepare(method, service, path, body, **more))

    def do(self, method: str, service: str, path: str, body: Any = None, **more: Any) -> Any:
        """A request that must succeed; its decoded answer."""
        answer = self.ask(method, service, path, body, **more)
        if answer.status >= 300:
            raise Refused(answer, f"{method} {path}")
        return answer.json if answer.body else None

    def flood(self, requests: Callable[[], Prepared | None], origin: Origin, **more: Any) -> Flood:
        return flood(lambda: self.connect(origin), requests, **more)

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()


class Target:
    """``admin``: the session of the credentials given; ``user``: the one that is measured (the same when the
    credentials may not make a project)."""

    def __init__(self, settings: dict[str, Any], *, say: Callable[[str], None] = lambda text: None) -> None:
        self.settings = settings
        self.say = say
        self.prefix = PREFIX + secrets.token_hex(4)
        self.admin = Session(settings)
        self.user = self.admin
        self.own_project = False
        self.image = self.flavor = self.network = self.subnet = self.group = ""
        self._room: dict[str, float] = {}

    def log_in(self) -> None:
        self.admin.log_in()
        try:
            self._make_project()
        except Refused as refusal:
            if refusal.status not in (401, 403):
                raise
            self.say("these credentials may not make a project: cases that its quotas do not allow are skipped")
            self._room = dict(self._look_for_room())

    def _make_project(self) -> None:
        admin, name = self.admin, self.prefix
        project = admin.do("POST", "identity", "/projects", {"project": {"name": name}})["project"]
        password = secrets.token_urlsafe(12)
        user = {"name": name, "password": password, "domain_id": project["domain_id"]}
        user_id = admin.do("POST", "identity", "/users", {"user": user})["user"]["id"]
        roles = {role["name"]: role["id"] for role in admin.do("GET", "identity", "/roles")["roles"]}
        role = roles.get("member") or roles.get("_member_") or roles.get("Member")
        if role is None:
            raise BenchError("the cloud has no role member")
        admin.do("PUT", "identity", f"/projects/{project['id']}/users/{user_id}/roles/{role}")
        self.own_project = True
        for service, (path, key, names) in _RAISED.items():
            if admin.has(service):
                body = {key: dict.fromkeys(names, -1)}
                answer = admin.ask("PUT", service, path.format(project=project["id"]), body)
                if answer.status >= 300:
                    self.say(f"{service} did not raise the quotas (HTTP {answer.status}); cases may fail")
        domain = admin.do("GET", "identity", f"/domains/{project['domain_id']}")["domain"]["name"]
        auth = {"username": name, "password": password, "project_name": name}
        auth |= {"user_domain_name": domain, "project_domain_name": domain}
        self.user = Session({**self.settings, "auth": {**self.admin.auth, **auth}})
        self.user.log_in()

    def _look_for_room(self) -> Iterator[tuple[str, float]]:
        def left(limit: float, used: float) -> float:
            return float("inf") if limit < 0 else max(0, limit - used)

        user, project = self.user, self.user.project_id
        absolute = user.do("GET", "compute", "/limits")["limits"]["absolute"]
        yield (
            "servers",
            min(
                left(absolute["maxTotalInstances"], absolute["totalInstancesUsed"]),
                left(absolute["maxTotalCores"], absolute["totalCoresUsed"]),
            ),
        )
        answer = user.ask("GET", "network", f"/quotas/{project}/details.json")
        details = answer.json["quota"] if answer.status == 200 else {}
        for kind in ("network", "subnet", "port", "security_group_rule"):
            found = details.get(kind, {"limit": 10, "used": 0})
            yield f"{kind}s", left(found["limit"], found["used"])
        if user.has("block-storage"):
            absolute = user.do("GET", "block-storage", "/limits")["limits"]["absolute"]
            yield "volumes", left(absolute["maxTotalVolumes"], absolute["totalVolumesUsed"])

    def lacks(self, **needs: int) -> str | None:
        """Why this project has no room for so many, or None."""
        for kind, count in needs.items():
            room = self._room.get(kind, float("inf"))
            if room < count:
                return f"the project's quota leaves {room:.0f} {kind}, {count} are needed (give an administrator's)"
        return None

    # -- what the cases share ------------------------------------------------------------------------------

    def prepare(self) -> None:
        self.image = self.new_image("tiny", os.urandom(IMAGE_BYTES))
        self.flavor = self._find_flavor()
        network = {"network": {"name": self.name("net")}}
        self.network = self.user.do("POST", "network", "/networks", network)["network"]["id"]
        self.subnet = self.new_subnet(self.network, "10.96.0.0/16")
        group = {"security_group": {"name": self.name("group")}}
        self.group = self.user.do("POST", "network", "/security-groups", group)["security_group"]["id"]

    def name(self, what: str) -> str:
        return f"{self.prefix}-{what}"

    def new_image(self, what: str, data: bytes) -> str:
        body = {"name": self.name(what), "disk_format": "raw", "container_format": "bare"}
        image: str = self.user.do("POST", "image", "/images", body)["id"]
        kind = {"Content-Type": "application/octet-stream"}
        self.user.do("PUT", "image", f"/images/{image}/file", data, headers=kind)
        return image

    def new_subnet(self, network: str, cidr: str) -> str:
        subnet = {"network_id": network, "name": self.name("subnet"), "ip_version": 4, "cidr": cidr}
        made: str = self.user.do("POST", "network", "/subnets", {"subnet": subnet})["subnet"]["id"]
        return made

    def _find_flavor(self) -> str:
        if self.own_project:
            flavor = {"name": self.name("flavor"), "vcpus": 1, "ram": 64, "disk": 1}
            made: str = self.admin.do("POST", "compute", "/flavors", {"flavor": flavor})["flavor"]["id"]
            return made
        found = self.user.do("GET", "compute", "/flavors/detail")["flavors"]
        if not found:
            raise BenchError("the cloud has no flavor")
        smallest: str = min(found, key=lambda one: (not one["disk"], one["ram"], one["vcpus"], one["disk"]))["id"]
        return smallest

    def wait(self, what: str, holds: Callable[[], Any], *, seconds: float = 120, step: float = 0.005) -> Any:
        end = time.monotonic() + seconds
        while not (found := holds()):
            if time.monotonic() > end:
                raise BenchError(f"{what}: not within {seconds:.0f} s")
            time.sleep(step)
        return found

    def wait_for_room(self, seconds: float = 60) -> None:
        """Until a host of a cloud that has just started takes servers: it answers before its hosts have reported."""
        path = "/allocation_candidates?resources=VCPU:1,MEMORY_MB:64&limit=1"
        version = {"OpenStack-API-Version": "placement 1.36"}

        def room() -> Any:
            return self.admin.do("GET", "placement", path, headers=version)["allocation_requests"]

        self.wait("a host that takes servers", room, seconds=seconds)

    # -- the operator's view, where the cloud is ours -------------------------------------------------------

    def process(self, *, memory: bool = True) -> dict[str, Any] | None:
        """What the answering process says of itself."""
        if not self.admin.has("operator"):
            return None
        answer = self.admin.ask("GET", "operator", f"/process?memory={int(memory)}")
        return answer.json if answer.status == 200 else None

    def process_now(self, memory: bool) -> dict[str, Any]:
        return self.process(memory=memory) or {}

    def status(self) -> dict[str, Any]:
        answer = self.admin.ask("GET", "operator", "/status") if self.admin.has("operator") else None
        return answer.json if answer is not None and answer.status == 200 else {}

    # -- away with it ----------------------------------------------------------------------------------------

    def clean(self) -> list[str]:
        """Remove what this run made; what could not be."""
        left = sweep(self.user, self.prefix)
        if self.own_project:
            left += _remove_accounts(self.admin, self.prefix)
        return left

    def close(self) -> None:
        self.user.close()
        self.admin.close()


def clean_leftovers(settings: dict[str, Any], say: Callable[[str], None]) -> list[str]:
    """Remove what runs that were killed left behind: everything with the prefix. What could not be."""
    admin = Session(settings)
    admin.log_in()
    left = sweep(admin, PREFIX)
    answer = admin.ask("GET", "identity", "/projects")
    if answer.status != 200:
        return left
    for project in answer.json["projects"]:
        name = project["name"]
        if not name.startswith(PREFIX):
            continue
        say(f"removing what {name} left")
        users = admin.do("GET", "identity", f"/users?name={name}")["users"]
        if users:
            password = secrets.token_urlsafe(12)
            admin.do("PATCH", "identity", f"/users/{users[0]['id']}", {"user": {"password": password}})
            domain = admin.do("GET", "identity", f"/domains/{project['domain_id']}")["domain"]["name"]
            auth = {"username": name, "password": password, "project_name": name}
            auth |= {"user_domain_name": domain, "project_domain_name": domain}
            user = Session({**settings, "auth": {**admin.auth, **auth}})
            try:
                user.log_in()
                left += sweep(user, name)
            except Refused:
                left.append(f"project {name}: its user may not log in")
            finally:
                user.close()
        left += _remove_accounts(admin, name)
    admin.close()
    return left


_KINDS = [  # in the order in which nothing is in use any more; (service, list, key, one, waits until gone)
    ("compute", "/servers?limit=1000", "servers", "/servers/{id}", True),
    ("block-storage", "/volumes?limit=1000", "volumes", "/volumes/{id}", True),
    ("image", "/images?limit=1000", "images", "/images/{id}", False),
    ("network", "/ports?fields=id&fields=name&limit=1000", "ports", "/ports/{id}", False),
    ("network", "/networks?fields=id&fields=name&limit=1000", "networks", "/networks/{id}", False),
    ("network", "/security-groups?fields=id&fields=name", "security_groups", "/security-groups/{id}", False),
]


def sweep(user: Session, prefix: str, *, kinds: tuple[str, ...] = (), seconds: float = 300) -> list[str]:
    """Delete all of the session's project whose name begins with the prefix, page by page. ``kinds``: only these
    (by their key in lists)."""
    left: list[str] = []
    for service, path, key, one, waits in _KINDS:
        if not user.has(service) or (kinds and key not in kinds):
            continue
        left += _sweep_kind(user, prefix, service, path, key, one, waits, time.monotonic() + seconds)
    return left


def _sweep_kind(
    user: Session, prefix: str, service: str, path: str, key: str, one: str, waits: bool, end: float
) -> list[str]:
    if service == "network":
        path += f"&project_id={user.project_id}"  # an administrator is shown everybody's
    if service == "image":
        path += f"&owner={user.project_id}"
    asked: set[str] = set()
    refused: dict[str, int] = {}
    while True:
        answer = user.ask("GET", service, path)
        if answer.status != 200:
            return [f"{key}: HTTP {answer.status}"]
        found = [item["id"] for item in answer.json[key] if (item.get("name") or "").startswith(prefix)]
        if not found:
            return []
        fresh = iter([item for item in found if item not in asked or item in refused])
        refused.clear()

        def delete(fresh: Iterator[str] = fresh) -> Prepared | None:
            item = next(fresh, None)
            if item is None:
                return None
            asked.add(item)
            return user.prepare("DELETE", service, one.format(id=item))

        done = user.flood(delete, user.prepare("GET", service, path).origin, connections=4)
        trouble = sum(count for status, count in done.statuses.items() if status >= 400 and status != 404)
        if trouble:
            refused.update(dict.fromkeys(found, 0))
        if time.monotonic() > end:
            return [f"{len(found)} {key}"]
        time.sleep(0.05 if waits or trouble else 0)


def _remove_accounts(admin: Session, name: str) -> list[str]:
    left = []
    flavors = admin.do("GET", "compute", "/flavors?is_public=None&limit=1000")["flavors"]
    found = [("compute", f"/flavors/{one['id']}") for one in flavors if one["name"].startswith(name)]
    for kind in ("users", "projects"):
        listed = admin.do("GET", "identity", f"/{kind}?name={name}")[kind]
        found += [("identity", f"/{kind}/{one['id']}") for one in listed if one["name"] == name]
    # Neutron makes a default group for each project, which goes only when the project's own user does not need it
    for project in [path.rpartition("/")[2] for _, path in found if path.startswith("/projects/")]:
        groups = admin.ask("GET", "network", f"/security-groups?project_id={project}&fields=id&fields=name")
        items = groups.json.get("security_groups", []) if groups.status == 200 else []
        found = [("network", f"/security-groups/{group['id']}") for group in items] + found
        for service in _RAISED:
            if service in ("network",):
                admin.ask("DELETE", service, f"/quotas/{project}")
            elif admin.has(service):
                admin.ask("DELETE", service, f"/os-quota-sets/{project}")
    for service, path in found:
        try:
            answer = admin.ask("DELETE", service, path)
        except WireError as error:
            left.append(f"{path}: {error}")
            continue
        if answer.status >= 300 and answer.status != 404:
            left.append(f"{path}: HTTP {answer.status}")
    return left
