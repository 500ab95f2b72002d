"""A request body as it arrives, for handlers on worker threads."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any

from cumulet.kernel.errors import BadInput, CloudError


class BodyStream:
    """Iterate for chunks, or ``read(size)``. Raises `BadInput` when the client goes away before the end, so that a
    half-sent image never looks complete. ``timeout`` bounds the wait for each chunk."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        timeout: float,
    ) -> None:
        self._loop = loop
        self._receive = receive
        self._timeout = timeout
        self._ended = False
        self._rest = b""

    def __iter__(self) -> Iterator[bytes]:
        if self._rest:
            rest, self._rest = self._rest, b""
            yield rest
        while not self._ended:
            chunk = self._next()
            if chunk:
                yield chunk

    def read(self, size: int = -1) -> bytes:
        """At most ``size`` bytes; empty only at the end. Without a size: everything that is left."""
        if size < 0:
            return b"".join(self)
        while not self._rest and not self._ended:
            self._rest = self._next()
        found, self._rest = self._rest[:size], self._rest[size:]
        return found

    def _next(self) -> bytes:
        future = asyncio.run_coroutine_threadsafe(self._await(), self._loop)
        try:
            message = future.result(self._timeout)
        except TimeoutError:
            future.cancel()
            raise CloudError("The request body did not arrive in time.", status=408) from None
        if message["type"] == "http.disconnect":
            self._ended = True
            raise BadInput("The connection was closed before the end of the body.")
        self._ended = not message.get("more_body", False)
        return message.get("body", b"")

    async def _await(self) -> MutableMapping[str, Any]:
        return await self._receive()
