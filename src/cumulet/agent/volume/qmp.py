"""A QMP connection: one command at a time, with a deadline."""

import contextlib
import json
import socket
from pathlib import Path
from typing import Any


class QmpError(Exception):
    """The daemon refused a command; ``kind`` is QMP's error class."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Qmp:
    def __init__(self, path: Path, timeout: float = 60) -> None:
        """Raises OSError when nobody listens."""
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(timeout)
            self._socket.connect(str(path))
            self._file = self._socket.makefile("rw", encoding="utf-8")
            self._file.readline()  # the greeting
            self.execute("qmp_capabilities")
        except BaseException:
            self._socket.close()
            raise

    def execute(self, command: str, **arguments: Any) -> Any:
        self._file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._file.flush()
        while True:
            line = self._file.readline()
            if not line:
                raise ConnectionError("the storage daemon closed its monitor")
            answer = json.loads(line)
            if "error" in answer:
                raise QmpError(answer["error"]["class"], answer["error"]["desc"])
            if "return" in answer:
                return answer["return"]

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()  # first: while it is open, so is the socket, and the monitor has one client
        self._socket.close()

    def __enter__(self) -> "Qmp":
        return self

    def __exit__(self, *ignored: object) -> None:
        self.close()
