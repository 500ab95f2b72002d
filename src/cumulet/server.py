"""An HTTP server for an ASGI application on a thread of its own: uvicorn with uvloop and httptools.

The socket is bound by us first, so that a port in use is a clear error before anything else starts, and port 0 works.
"""

import errno
import logging
import socket
import threading
import time
from typing import Any

import uvicorn

from cumulet.http.protocol import LimitedHttpProtocol

_log = logging.getLogger(__name__)
_BIND_SECONDS = 3.0  # a process that was killed a moment ago may still hold the port


class HttpServer:
    def __init__(
        self,
        app: Any,
        bind: str,
        port: int,
        *,
        certificate: str | None = None,
        key: str | None = None,
        shutdown_seconds: float = 5.0,
        protocol: type[LimitedHttpProtocol] = LimitedHttpProtocol,
    ) -> None:
        """``certificate`` and ``key``: PEM files; with them it speaks HTTPS and nothing else."""
        self._socket = socket.socket(socket.AF_INET6 if ":" in bind else socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            _bind(self._socket, bind, port)
        except OSError:
            self._socket.close()
            raise
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            app,
            loop="uvloop",
            http=protocol,
            ws="none",
            lifespan="on",
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=int(shutdown_seconds),
            backlog=1024,
            ssl_certfile=certificate,
            ssl_keyfile=key,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="http-server", daemon=True
        )

    def start(self, seconds: float = 10.0) -> None:
        """Returns when requests are answered."""
        self._thread.start()
        end = time.monotonic() + seconds
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > end:
                raise RuntimeError("the HTTP server did not start")
            time.sleep(0.002)

    def alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self, seconds: float = 8.0) -> None:
        """Take no more requests and let those under way end."""
        self._server.should_exit = True
        if self._thread.ident is None:  # never started
            self._socket.close()
            return
        self._thread.join(seconds)
        if self._thread.is_alive():
            _log.warning("requests were still under way when the server stopped")
            self._server.force_exit = True
            self._thread.join(1)
        self._socket.close()


def _bind(listener: socket.socket, bind: str, port: int) -> None:
    end = time.monotonic() + _BIND_SECONDS
    while True:
        try:
            listener.bind((bind, port))
            return
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() >= end:
                raise
        time.sleep(0.02)
