"""The emulator's own endpoint, ``/emulator``: what tests in any language do by URL. No token is asked for.

GET    /emulator                   what there is: URL, accounts, clock, hosts, faults
POST   /emulator/reset             all as it was after the start
POST   /emulator/settle            wait until nothing is under way (503 if something still is)
GET    /emulator/clock             POST {"advance": 7200} or {"frozen": true}
GET    /emulator/faults            POST {"fail": "boot"}, {"status": 503, "service": "compute"}, …; DELETE all of them
DELETE /emulator/faults/NUMBER
GET    /emulator/hosts             POST {"name": "host-3", "vcpus": 8}; PUT /emulator/hosts/NAME {"lost": true}
GET    /emulator/requests          method and path of the last thousand requests
GET    /emulator/clouds.yaml       for OS_CLIENT_CONFIG_FILE
GET    /emulator/openrc?user=demo  for a shell
"""

import asyncio
import functools
import shlex
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import msgspec

from cumulet.emulator import access
from cumulet.http.app import Receive, Scope, Send
from cumulet.kernel.clock import iso
from cumulet.kernel.errors import BadInput, CloudError, NotFound, Unavailable

if TYPE_CHECKING:
    from cumulet.emulator.cloud import Emulator

_MAX_BODY = 100_000
_encode = msgspec.json.Encoder().encode


class _Input(msgspec.Struct, forbid_unknown_fields=True):
    pass


class ClockChange(_Input):
    advance: float | None = None  # seconds
    frozen: bool | None = None


class FaultInput(_Input):
    """Exactly one of the first six says what it is."""

    fail: str | None = None
    delay: str | None = None
    hang: str | None = None
    status: int | None = None
    slow: float | None = None
    drop: bool = False
    times: int | None = 1
    host: str | None = None
    seconds: float = 0.0
    message: str | None = None
    code: str = "internal"
    service: str | None = None
    method: str | None = None
    path: str | None = None
    retry_after: int | None = None


class HostInput(_Input):
    name: str
    roles: list[str] = msgspec.field(default_factory=lambda: ["compute", "network", "storage"])
    vcpus: int = 32
    memory_mb: int = 131072
    local_gb: int = 2000
    volume_gb: int = 4000
    boot_seconds: float | None = None


class HostChange(_Input):
    lost: bool


class Control:
    """The ASGI application."""

    def __init__(self, cloud: "Emulator") -> None:
        self._cloud = cloud

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            if not message.get("more_body") or len(body) > _MAX_BODY:
                break
        query = scope.get("query_string", b"").decode("latin-1")
        work = functools.partial(self._answer, scope["method"], scope["path"], query, body)
        status, kind, content = await asyncio.to_thread(work)
        headers = [(b"content-type", kind.encode()), (b"content-length", b"%d" % len(content))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else content})

    def _answer(self, method: str, path: str, query: str, body: bytes) -> tuple[int, str, bytes]:
        try:
            found = self._act("GET" if method == "HEAD" else method, path.split("/")[2:], query, body)
        except (ValueError, msgspec.ValidationError, msgspec.DecodeError) as error:
            found, status = {"message": str(error)}, 400
        except CloudError as error:
            found, status = {"message": error.message}, error.status_override or error.status
        else:
            status = 204 if found is None else 201 if method == "POST" and path.endswith(("faults", "hosts")) else 200
        if found is None:
            return status, "application/json", b""
        if isinstance(found, str):
            return status, "text/plain; charset=utf-8", found.encode()
        return status, "application/json", _encode(found)

    def _act(self, method: str, path: list[str], query: str, body: bytes) -> Any:
        cloud = self._cloud
        match method, path:
            case "GET", [] | [""]:
                return self._overview()
            case "POST", ["reset"]:
                cloud.reset()
            case "POST", ["settle"]:
                if not cloud.settle():
                    raise Unavailable("Something is still under way.")
            case "GET", ["clock"]:
                return self._clock()
            case "POST", ["clock"]:
                return self._change_clock(msgspec.json.decode(body, type=ClockChange))
            case "GET", ["faults"]:
                return {"faults": self._faults()}
            case "POST", ["faults"]:
                return {"fault": self._add_fault(msgspec.json.decode(body, type=FaultInput))}
            case "DELETE", ["faults"]:
                cloud.faults.clear()
            case "DELETE", ["faults", number] if number.isdecimal():
                if not cloud.faults.remove(int(number)):
                    raise NotFound(f"There is no fault {number}.")
            case "GET", ["hosts"]:
                return {"hosts": self._hosts()}
            case "POST", ["hosts"]:
                return {"host": self._add_host(msgspec.json.decode(body, type=HostInput))}
            case "PUT", ["hosts", name]:
                self._change_host(name, msgspec.json.decode(body, type=HostChange))
                return {"hosts": self._hosts()}
            case "GET", ["requests"]:
                return {"requests": [{"method": m, "path": p} for m, p in cloud.requests]}
            case "GET", ["clouds.yaml"]:
                return access.clouds_yaml(cloud.url, cloud.accounts)
            case "GET", ["openrc"]:
                return self._openrc(query)
            case _:
                raise NotFound(f"There is no {method} {'/'.join(['/emulator', *path])}; docs/emulator.md has the list.")
        return None

    def _overview(self) -> dict[str, Any]:
        return {
            "url": self._cloud.url,
            "accounts": [vars(account) for account in self._cloud.accounts.values()],
            "clock": self._clock(),
            "hosts": self._hosts(),
            "faults": self._faults(),
        }

    # -- clock --------------------------------------------------------------------------------------------------------

    def _clock(self) -> dict[str, Any]:
        clock = self._cloud.clock
        ahead = round(clock.ahead_seconds, 3)
        return {"now": iso(clock.now(), micros=True), "frozen": clock.frozen, "ahead_seconds": ahead}

    def _change_clock(self, change: ClockChange) -> dict[str, Any]:
        clock = self._cloud.clock
        if change.frozen is not None:
            if change.frozen:
                clock.freeze()
            else:
                clock.resume()
        if change.advance is not None:
            clock.advance(change.advance)
        return self._clock()

    # -- faults -------------------------------------------------------------------------------------------------------

    def _faults(self) -> list[dict[str, Any]]:
        return [{"number": number, **told} for number, told in self._cloud.faults.list().items()]

    def _add_fault(self, given: FaultInput) -> dict[str, Any]:
        faults = self._cloud.faults
        what = [name for name in ("fail", "delay", "hang", "status", "slow") if getattr(given, name) is not None]
        what += ["drop"] if given.drop else []
        if len(what) != 1:
            raise BadInput("A fault is exactly one of fail, delay, hang, status, slow and drop.")
        message = {} if given.message is None else {"message": given.message}
        of_host = {"times": given.times, "host": given.host}
        which = {"times": given.times, "service": given.service, "method": given.method, "path": given.path}
        if given.host is not None and given.host not in self._cloud.hosts:
            raise BadInput(f"There is no host {given.host}.")
        if given.fail is not None:
            number = faults.fail(given.fail, code=given.code, **of_host, **message)  # type: ignore[arg-type]
        elif given.delay is not None:
            number = faults.delay(given.delay, given.seconds, **of_host)  # type: ignore[arg-type]
        elif given.hang is not None:
            number = faults.hang(given.hang, **of_host)  # type: ignore[arg-type]
        elif given.status is not None:
            number = faults.answer(
                given.status, seconds=given.seconds, retry_after=given.retry_after, **which, **message
            )
        elif given.slow is not None:
            number = faults.slow(given.slow, **which)
        else:
            number = faults.drop(**which)
        return {"number": number, **faults.list().get(number, {})}

    # -- hosts --------------------------------------------------------------------------------------------------------

    def _hosts(self) -> list[dict[str, Any]]:
        return [{"name": host.name, "lost": host.lost} for host in self._cloud.hosts.values()]

    def _add_host(self, given: HostInput) -> dict[str, Any]:
        more = {name: value for name, value in msgspec.structs.asdict(given).items() if value is not None}
        name, roles = more.pop("name"), tuple(more.pop("roles"))
        unknown = set(roles) - {"compute", "network", "storage"}
        if unknown or not roles:
            raise BadInput(f"Roles are compute, network and storage, not {sorted(unknown)}.")
        host = self._cloud.add_host(name, roles=roles, **more)
        self._cloud.wait(lambda: name in self._cloud.up_hosts())
        return {"name": host.name, "lost": host.lost}

    def _change_host(self, name: str, change: HostChange) -> None:
        host = self._cloud.hosts.get(name)
        if host is None:
            raise NotFound(f"There is no host {name}.")
        if change.lost:
            host.lose()
        else:
            host.start()

    # -- clients ------------------------------------------------------------------------------------------------------

    def _openrc(self, query: str) -> str:
        user = parse_qs(query).get("user", ["demo"])[0]
        account = self._cloud.accounts.get(user)
        if account is None:
            raise NotFound(f"There is no account {user}.")
        variables = access.environment(self._cloud.url, account)
        return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
