"""What stands before an emulated cloud's services: faults of requests, the control endpoint, and a gate.

The gate is shut while the cloud is put back: requests under way end first, new ones wait. What hosts fetch and upload
by signed URL passes untouched.
"""

import asyncio
import threading
from collections import deque
from typing import Any

from cumulet.emulator.faults import CloudFaults, RequestFault
from cumulet.http.app import AsgiApp, HttpApp, Receive, Scope, Send
from cumulet.http.protocol import LimitedHttpProtocol
from cumulet.kernel.errors import CloudError

ABORT = "cumulet.abort"
_REMEMBERED = 1000


class EmulatorProtocol(LimitedHttpProtocol):
    """Lets the application cut a connection."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        extensions: Any = {ABORT: self.transport.abort}
        self.scope["extensions"] = extensions


class Gateway:
    """``http`` and ``control`` are given once they exist, before the first request."""

    def __init__(self, faults: CloudFaults) -> None:
        self.http: HttpApp | None = None
        self.control: AsgiApp | None = None
        self.requests: deque[tuple[str, str]] = deque(maxlen=_REMEMBERED)  # method and path, the newest last
        self._faults = faults
        self._open = True
        self._state = threading.Condition()
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self.http is not None
        if scope["type"] != "http":
            await self.http(scope, receive, send)
            return
        path: str = scope["path"]
        if path == "/emulator" or path.startswith("/emulator/"):
            assert self.control is not None
            await self.control(scope, receive, send)
            return
        if path.startswith("/image/signed/"):
            await self.http(scope, receive, send)
            return
        while not self._enter():
            await asyncio.sleep(0.002)
        try:
            self.requests.append((scope["method"], path))
            fault = self._faults.of_request(scope["method"], path)
            if fault is None or not await self._meet(fault, scope, receive, send):
                await self.http(scope, receive, send)
        finally:
            with self._state:
                self._under_way -= 1
                self._state.notify_all()

    def _enter(self) -> bool:
        with self._state:
            if self._open:
                self._under_way += 1
            return self._open

    def shut(self, seconds: float) -> bool:
        """No request passes any more; True when those under way have ended."""
        with self._state:
            self._open = False
            return self._state.wait_for(lambda: self._under_way == 0, seconds)

    def open(self) -> None:
        with self._state:
            self._open = True

    async def _meet(self, fault: RequestFault, scope: Scope, receive: Receive, send: Send) -> bool:
        """True if the request is thereby answered."""
        if fault.seconds:
            await asyncio.sleep(fault.seconds)
        if fault.drop:
            scope["extensions"][ABORT]()
            while (await receive())["type"] != "http.disconnect":
                pass  # what came of the body
            return True
        if fault.status is None:
            return False
        assert self.http is not None
        more = {} if fault.retry_after is None else {"retry-after": str(fault.retry_after)}
        answer = self.http.refusal(scope, CloudError(fault.message, status=fault.status, headers=more))
        await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else answer.body})
        return True
