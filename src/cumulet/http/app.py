"""The ASGI application: limits, request ids, authentication, versions, dispatch, faults.

Owns: thread pools (handlers; slow ones; streams, so that long work never starves quick requests) and the order in which
a request is judged: size, token, project in the path, version, route, media type, body, policy, handler.
Fails: any `CloudError` takes the service's shape; any other exception is logged with its request id and becomes the
service's 500 without its text.
"""

import asyncio
import logging
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
from sqlalchemy.exc import DataError, IntegrityError, OperationalError

from cumulet import logs
from cumulet.http.access import permits
from cumulet.http.body import check_media_type, decode_body, decode_query, one_action, parse_json
from cumulet.http.call import Call, Query, Reply
from cumulet.http.faults import FaultRequest
from cumulet.http.policy import PolicyError, PolicyOverrides
from cumulet.http.request import BODY_TIMEOUT_S, Answer, Disconnected, Mounted, Request, disconnected, read_body
from cumulet.http.router import Leaf, Operation, decoded_segments, segments_of
from cumulet.http.service import ServiceApi
from cumulet.http.stream import BodyStream
from cumulet.kernel.context import RequestContext
from cumulet.kernel.errors import BadInput, CloudError, Conflict, NotFound, Unauthorized, Unavailable
from cumulet.kernel.ids import new_request_id
from cumulet.kernel.trace import Tracer, Transactions, transactions

log = logging.getLogger("cumulet.http")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Authenticate = Callable[[str, str], RequestContext]

MAX_HEADER_BYTES = 32_768
MAX_PATH_BYTES = 16_384
MAX_QUEUED = 512
_REQUEST_ID = re.compile(r"req-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z")
_encode = msgspec.json.Encoder().encode
_JSON = b"application/json"
_SAFE = frozenset(("GET", "HEAD", "OPTIONS"))


class ApiTraffic:
    """Requests served by this process since it started, and its last failures (time, status, method, path, request
    id)."""

    __slots__ = ("errors", "requests")

    def __init__(self) -> None:
        self.requests = 0
        self.errors: deque[tuple[int, int, str, str, str]] = deque(maxlen=20)


class HttpApp:
    """``authenticate(token, request_id)`` answers the caller's context or raises `Unauthorized`. ``mounts``: other
    ASGI applications by path prefix (``/metrics``). ``public_url``: scheme, host and port for links; by default what
    the client asked for."""

    def __init__(
        self,
        apis: Sequence[ServiceApi],
        *,
        authenticate: Authenticate,
        policy: PolicyOverrides | None = None,
        mounts: Mapping[str, AsgiApp] | None = None,
        public_url: str | None = None,
        threads: int = 8,
        stream_threads: int = 16,
        slow_threads: int = 8,
        tracer: Tracer | None = None,
        on_startup: Sequence[Callable[[], object]] = (),
        on_shutdown: Sequence[Callable[[], object]] = (),
    ) -> None:
        self.apis = {api.name: api for api in apis}
        self._mounted = {api.prefix.strip("/"): Mounted(api) for api in apis}
        self._authenticate = authenticate
        self._policy = policy
        self._policy_checked = 0.0
        self._mounts = {prefix.strip("/"): app for prefix, app in (mounts or {}).items()}
        self._public_url = public_url.rstrip("/") if public_url else None
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="http")
        self._streams = ThreadPoolExecutor(stream_threads, thread_name_prefix="http-stream")
        self._slow = ThreadPoolExecutor(slow_threads, thread_name_prefix="http-slow")
        self._in_flight = 0
        self._tracer = tracer or Tracer()
        self.traffic = ApiTraffic()
        self._on_startup, self._on_shutdown = list(on_startup), list(on_shutdown)
        if policy is not None:
            for api in apis:
                api.load_policy(policy.for_service(api.name))

    # -- ASGI --------------------------------------------------------------------------------------------

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        raw_path: bytes = scope.get("raw_path") or scope["path"].encode()
        prefix = raw_path[1:].partition(b"/")[0].decode("latin-1")
        mount = self._mounts.get(prefix)
        if mount is not None:
            await mount(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        mounted = self._mounted.get(prefix)
        if mounted is None:
            await self._elsewhere(prefix, scope, send)
            return
        await self._serve(mounted, raw_path, scope, receive, send)

    async def _serve(self, mounted: Mounted, raw_path: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        api = mounted.api
        request = self._open(mounted, raw_path, scope)
        answer: Answer
        stream_mode = "no"
        try:
            self._limits(raw_path, scope)
            self._find(request, raw_path)
            operation = self._peek(request)
            if operation is not None:
                stream_mode = operation.route.stream
                if stream_mode == "request":
                    request.stream = BodyStream(asyncio.get_running_loop(), receive, BODY_TIMEOUT_S)
                elif request.method not in ("GET", "HEAD", "DELETE") or request.content_length:
                    request.raw = await read_body(receive, request.content_length, operation.route.max_body_bytes)
            if self._in_flight >= MAX_QUEUED:
                raise Unavailable("The server is busy. Try again later.", headers={"retry-after": "1"})
            self._in_flight += 1
            self.traffic.requests += 1
            try:
                pool = self._pool
                if stream_mode != "no":
                    pool = self._streams
                elif operation is not None and operation.route.slow:
                    pool = self._slow
                answer = await asyncio.get_running_loop().run_in_executor(pool, self._logged, request)
            finally:
                self._in_flight -= 1
        except CloudError as error:
            answer = self._finish(request, api.faults.reply(error, request.fault), None)
        except Disconnected:
            return
        await self._send(request, answer, receive, send)

    async def _send(self, request: Request, answer: Answer, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
        if answer.stream is None:
            body = b"" if request.method == "HEAD" else answer.body
            await send({"type": "http.response.body", "body": body})
            return
        loop = asyncio.get_running_loop()
        iterator = iter(answer.stream)
        gone = asyncio.ensure_future(disconnected(receive))  # the server says nothing when we send to nobody
        try:
            if request.method != "HEAD":
                while (chunk := await loop.run_in_executor(self._streams, _next, iterator)) is not None:
                    if gone.done():
                        return
                    if chunk:
                        await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            gone.cancel()
            close = getattr(answer.stream, "close", None)
            if close is not None:
                await loop.run_in_executor(self._streams, close)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    for hook in self._on_startup:
                        hook()
                except Exception as error:
                    log.exception("start failed")
                    await send({"type": "lifespan.startup.failed", "message": str(error)})
                    raise
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                for hook in self._on_shutdown:
                    hook()
                self.close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    def close(self) -> None:
        self._pool.shutdown(wait=True)
        self._slow.shutdown(wait=False, cancel_futures=True)
        self._streams.shutdown(wait=False, cancel_futures=True)

    async def _elsewhere(self, prefix: str, scope: Scope, send: Send) -> None:
        """Paths of no service: what is here, health, OpenAPI documents."""
        body: dict[str, Any]
        status, body = 404, {"message": "There is no such service here.", "services": sorted(self._mounted)}
        path = scope["path"]
        if path == "/":
            status, body = 200, {"services": {name: api.prefix for name, api in self.apis.items()}}
        elif path in ("/healthcheck", "/healthz"):
            status, body = 200, {"status": "OK"}
        elif prefix == "openapi":
            name = path.removeprefix("/openapi/").removesuffix(".json")
            if name in self.apis:
                from cumulet.http.openapi import document

                status, body = 200, document(self.apis[name])
        content = _encode(body)
        headers = [(b"content-type", _JSON), (b"content-length", b"%d" % len(content))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else content})

    @property
    def in_flight(self) -> int:
        return self._in_flight

    def waiting(self) -> int:
        """Requests that wait for a thread."""
        return sum(pool._work_queue.qsize() for pool in (self._pool, self._slow, self._streams))

    def refusal(self, scope: Scope, error: CloudError) -> Answer:
        """What the service asked for answers when something before it refuses the request (the emulator's faults)."""
        raw_path: bytes = scope.get("raw_path") or scope["path"].encode()
        mounted = self._mounted.get(raw_path[1:].partition(b"/")[0].decode("latin-1"))
        if mounted is None:
            content = _encode({"message": error.message})
            headers = [(b"content-type", _JSON), (b"content-length", b"%d" % len(content))]
            return Answer(error.status_override or error.status, headers, content, None)
        request = self._open(mounted, raw_path, scope)
        return self._finish(request, mounted.api.faults.reply(error, request.fault), None)

    # -- on the event loop: cheap, no I/O ---------------------------------------------------------------------

    def _open(self, mounted: Mounted, raw_path: bytes, scope: Scope) -> Request:
        request = Request()
        request.mounted = mounted
        request.method = scope["method"]
        headers: dict[str, str] = {}
        request.headers = headers
        for name, value in scope["headers"]:
            key = name.decode("latin-1")
            text = value.decode("latin-1")
            headers[key] = f"{headers[key]}, {text}" if key in headers else text
        host = self._public_url
        if host is None:
            host = f"{scope.get('scheme', 'http')}://{headers.get('host') or 'localhost'}"
        api = mounted.api
        request.url_host = host
        request.url_root = request.url_base = host + api.prefix
        request.ctx = None
        request.path = scope["path"]
        request.query = scope.get("query_string", b"").decode("latin-1")
        request.content_length = 0
        request.fault = FaultRequest(
            method=request.method,
            path=request.path,
            request_id=new_request_id(),
            headers=headers,
            version_range=api.microversions.range if api.microversions else None,
            url_root=request.url_root,
        )
        return request

    def _limits(self, raw_path: bytes, scope: Scope) -> None:
        if len(raw_path) + len(scope.get("query_string", b"")) > MAX_PATH_BYTES:
            raise CloudError("The URL is too long.", status=414)
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
            raise CloudError("The request headers are too large.", status=431)

    def _find(self, request: Request, raw_path: bytes) -> None:
        mounted, api = request.mounted, request.mounted.api
        length = request.headers.get("content-length")
        if length is not None:
            if not length.isdecimal() or not length.isascii() or len(length) > 18:
                raise BadInput("The header Content-Length is not a number.")
            request.content_length = int(length)
        elif "transfer-encoding" in request.headers:
            request.content_length = -1
        segments = list(decoded_segments(raw_path))[1:]
        if segments == [""] or (api.strip_trailing_slash and segments and segments[-1] == ""):
            segments.pop()
        if api.strip_json_suffix and segments and segments[-1].endswith(".json"):
            segments[-1] = segments[-1].removesuffix(".json")
        count = 0
        for version, prefix in mounted.versions.items():
            if tuple(segments[: len(version)]) == version:
                count = len(version)
                request.url_base = request.url_root + prefix
                break
        if api.project_in_path and len(segments) > count + 1 and count == len(segments_of(api.version_prefix)):
            project = segments[count]
            if api.project_regex.match(project):
                request.project = project
                request.url_base += "/" + project
                del segments[count]
        found = mounted.router.find(segments)
        if found is not None:
            request.leaf, request.values = found

    def _peek(self, request: Request) -> Operation | None:
        """The operation, before the version is known: enough for limits and streaming."""
        if request.leaf is None:
            return None
        found = self._operations(request, request.leaf)
        if found:
            return found[-1]
        if request.leaf.actions and request.method == "POST":
            return max(
                (operation for several in request.leaf.actions.values() for operation in several),
                key=lambda operation: operation.route.max_body_bytes,
            )
        return None

    def _operations(self, request: Request, leaf: Leaf) -> list[Operation] | None:
        found = leaf.methods.get(request.method)
        if found is None and request.method == "HEAD" and request.mounted.api.head_as_get:
            found = leaf.methods.get("GET")
        return found

    # -- on a worker thread --------------------------------------------------------------------------------

    def _logged(self, request: Request) -> Answer:
        with logs.request(request.fault.request_id):
            if request.method in _SAFE:
                answer = self._work(request)
                if answer.status >= 500:
                    self._remember(request, answer, None, [])
                return answer
            began = time.time_ns() // 1000
            with transactions() as collected:
                answer = self._work(request)
            self._remember(request, answer, began, collected)
            return answer

    def _remember(self, request: Request, answer: Answer, began: int | None, collected: Transactions) -> None:
        """For `cumulet explain request` and `cumulet top`: what changed something, and what failed by our fault. Of
        what anonymous callers ask only the latter: anyone could fill the record."""
        request_id, now = request.fault.request_id, time.time_ns() // 1000
        if answer.status >= 500:
            self.traffic.errors.append((now, answer.status, request.method, request.path, request_id))
        elif request.ctx is None or request.ctx.user_id is None:
            return
        ctx = request.ctx
        self._tracer.note(
            request_id, "request", began or now, ended_at=now, method=request.method,
            path=request.path, status=answer.status, user_id=ctx.user_id if ctx else None,
            user=ctx.user_name if ctx else None, project_id=ctx.project_id if ctx else None,
            global_request_id=ctx.global_request_id if ctx else None, transactions=collected,
        )  # fmt: skip

    def _work(self, request: Request) -> Answer:
        api = request.mounted.api
        faults = api.faults
        operation: Operation | None = None
        try:
            self._refresh_policy()
            ctx = request.ctx = self._context(request)
            if api.microversions is not None:
                request.version = request.fault.version = api.microversions.negotiate(request.headers)
            if request.project is not None and ctx.project_id != request.project:
                raise BadInput(
                    f"Malformed request URL: URL's project_id '{request.project}' doesn't match Context's "
                    f"project_id '{ctx.project_id}'"
                )
            leaf = request.leaf
            if leaf is None:
                return self._finish(request, faults.unrouted(request.fault), None)
            call = Call()
            call.action = None
            operation, document = self._choose(request, leaf, call)
            if operation is None:
                allowed = leaf.allowed()
                if api.head_as_get and "GET" in allowed:
                    allowed.add("HEAD")
                return self._finish(request, faults.wrong_method(allowed, request.fault), None)
            result = self._call(request, operation, document, ctx, call)
            reply = result if isinstance(result, Reply) else Reply(result)
            return self._finish(request, reply, operation)
        except Unauthorized as error:
            if operation is None:
                reply = faults.unauthorized(error, request.fault, f"{request.url_host}/identity")
            else:
                reply = faults.reply(error, request.fault)
                reply.headers.setdefault("www-authenticate", f'Keystone uri="{request.url_host}/identity"')
            return self._finish(request, reply, None, with_request_id=faults.request_id_on_401)
        except CloudError as error:
            if faults.status(error) >= 500:
                log.warning("%s %s %s: %s", request.fault.request_id, request.method, request.path, error)
            return self._finish(request, faults.reply(error, request.fault), None)
        except Disconnected:
            return self._finish(request, faults.reply(BadInput("The client went away."), request.fault), None)
        except Exception as unexpected:
            log.exception("%s %s %s failed", request.fault.request_id, request.method, request.path)
            known = _database_fault(unexpected)
            reply = faults.unexpected(request.fault) if known is None else faults.reply(known, request.fault)
            return self._finish(request, reply, None)

    def _context(self, request: Request) -> RequestContext:
        """The caller. Anonymous only where the route says so."""
        operation = self._peek(request)
        asked = request.headers.get("x-openstack-request-id", "")
        global_id = asked if _REQUEST_ID.match(asked) else None
        request_id = request.fault.request_id
        if operation is not None and not operation.route.auth:
            return RequestContext(request_id=request_id, global_request_id=global_id)
        token = request.headers.get("x-auth-token")
        if not token:
            raise Unauthorized("The request you have made requires authentication.")
        ctx = self._authenticate(token, request_id)
        if ctx.access_rules is not None and not permits(ctx, request.mounted.api, request.method, request.path):
            raise Unauthorized("The application credential's access rules do not allow this request.")
        if global_id is not None:
            ctx = msgspec.structs.replace(ctx, global_request_id=global_id)
        return ctx

    def _choose(self, request: Request, leaf: Leaf, call: Call) -> tuple[Operation | None, Any]:
        """The operation for this method, action and version; with the parsed body where it had to be parsed."""
        document: Any = msgspec.UNSET
        found = self._operations(request, leaf)
        if found is None:
            if not leaf.actions or request.method != "POST":
                return None, document
            peek = self._peek(request)
            assert peek is not None
            error = check_media_type(peek, request.headers.get("content-type"), request.mounted.api.faults)
            if error is not None:
                raise error
            call.action, document = one_action(parse_json(request.raw))
            found = leaf.actions.get(call.action)
            if found is None:
                raise BadInput(f"There is no such action: {call.action}")
        for operation in found:
            if operation.serves(request.version):
                return operation, document
        raise NotFound("The API version asked for does not offer this method.")

    def _call(self, request: Request, operation: Operation, document: Any, ctx: RequestContext, call: Call) -> Any:
        api, route = request.mounted.api, operation.route
        call.api, call.route, call.ctx, call.service = api, route, ctx, api.service
        call.method, call.path, call.headers, call.raw = request.method, request.path, request.headers, request.raw
        call.request_id, call.version, call.stream = request.fault.request_id, request.version, request.stream
        call.url_host, call.url_root, call.url_base = request.url_host, request.url_root, request.url_base
        call.params = dict(zip(operation.names, request.values, strict=True))
        call.query = Query(request.query)
        call.body = call.document = call.args = None
        if route.policy is not None and api.policy_first:
            call.authorize(route.policy)
        if request.method in ("POST", "PUT", "PATCH") and (request.raw or route.body is not None):
            error = check_media_type(operation, request.headers.get("content-type"), api.faults)
            if error is not None:
                raise error
        if route.query is not None:
            call.args = decode_query(operation, call.query)
        if route.body is not None:
            if document is msgspec.UNSET:
                if request.raw:
                    document = parse_json(request.raw)
                elif route.body_required:
                    raise BadInput("The request needs a body.")
            if document is not msgspec.UNSET:
                call.body, call.document = decode_body(operation, document, request.version)
        elif document is not msgspec.UNSET:
            call.body = call.document = document
        if route.policy is not None and not api.policy_first:
            call.authorize(route.policy)
        return route.handler(call)

    def _finish(
        self, request: Request, reply: Reply, operation: Operation | None, *, with_request_id: bool = True
    ) -> Answer:
        api = request.mounted.api
        status = reply.status if reply.status is not None else (operation.route.success if operation else 200)
        headers: list[tuple[bytes, bytes]] = []
        content = b""
        if reply.stream is not None:
            headers.append((b"content-type", (reply.media_type or "application/octet-stream").encode()))
        elif reply.body is None:
            if status not in (204, 304):
                headers.append((b"content-length", b"0"))
        else:
            if isinstance(reply.body, bytes):
                content = reply.body
                kind = (reply.media_type or "application/octet-stream").encode()
            else:
                content = _encode(reply.body)
                kind = reply.media_type.encode() if reply.media_type else _JSON
            headers.append((b"content-type", kind))
            headers.append((b"content-length", b"%d" % len(content)))
        for name, value in reply.headers.items():
            headers.append((name.lower().encode("latin-1"), _header(value)))
        if with_request_id:
            request_id = request.fault.request_id.encode()
            for name in api.request_id_headers:
                headers.append((name.encode(), request_id))
        if api.microversions is not None:
            for name, value in api.microversions.response_headers(request.version):
                headers.append((name.lower().encode(), value.encode()))
        for name, value in api.extra_headers:
            headers.append((name.encode(), value.encode()))
        return Answer(status, headers, content, reply.stream)

    def _refresh_policy(self) -> None:
        """Look at the operator's policy files every few seconds; a broken file keeps the rules in force."""
        if self._policy is None or time.monotonic() - self._policy_checked < 5:
            return
        self._policy_checked = time.monotonic()
        if not self._policy.changed():
            return
        for api in self.apis.values():
            try:
                api.load_policy(self._policy.for_service(api.name))
            except PolicyError as error:
                log.error("the policy of %s stays as it was: %s", api.name, error)


def _database_fault(error: Exception) -> CloudError | None:
    """What the database refused though no rule did: still a defect, and logged as one, but the client's to solve."""
    if isinstance(error, IntegrityError):
        return Conflict("Another request changed this at the same time. Look, then try again.")
    if isinstance(error, DataError | OverflowError):
        return BadInput("A value in the request is out of range.")
    if isinstance(error, OperationalError):
        return Unavailable("The database cannot be reached. Try again later.")
    return None


def _header(value: str) -> bytes:
    """A header value that cannot end the header block, whatever a name or message holds."""
    return value.replace("\r", " ").replace("\n", " ").encode("latin-1", "replace")


def _next(iterator: Iterator[bytes]) -> bytes | None:
    return next(iterator, None)
