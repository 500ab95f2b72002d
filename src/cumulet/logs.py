"""Logs: one JSON object a line, with the request id of the work that the thread is doing.

``with request("req-…"):`` marks a thread's work; `configure` sends everything to a file (and warnings to stderr).
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

_local = threading.local()
_encode = msgspec.json.Encoder(enc_hook=str).encode


@contextmanager
def request(request_id: str | None) -> Iterator[None]:
    before = getattr(_local, "request_id", None)
    _local.request_id = request_id
    try:
        yield
    finally:
        _local.request_id = before


def current_request() -> str | None:
    found: str | None = getattr(_local, "request_id", None)
    return found


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "thread": record.threadName,
            "message": record.getMessage(),
        }
        request_id = getattr(record, "request_id", None)
        if request_id:
            line["request_id"] = request_id
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _encode(line).decode()


class JournalFormatter(logging.Formatter):
    """Lines that systemd's journal knows the priority of."""

    def format(self, record: logging.LogRecord) -> str:
        level = 3 if record.levelno >= logging.ERROR else 4 if record.levelno >= logging.WARNING else 6
        return "\n".join(f"<{level}>{line}" for line in super().format(record).splitlines())


def _stamp(record: logging.LogRecord) -> bool:
    record.request_id = getattr(record, "request_id", None) or current_request()
    return True


def configure(file: Path | None, *, level: str = "INFO") -> None:
    """Send the process's logs to ``file`` (made 0640 if new), and warnings to stderr. None: everything to stderr."""
    root = logging.getLogger()
    root.setLevel(level)
    for handler in list(root.handlers):
        root.removeHandler(handler)
    stderr = logging.StreamHandler(sys.stderr)
    form = JournalFormatter if "JOURNAL_STREAM" in os.environ else logging.Formatter
    stderr.setFormatter(form("%(levelname)s %(name)s: %(message)s"))
    stderr.setLevel(level if file is None else logging.WARNING)
    root.addHandler(stderr)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o640)
        # WatchedFileHandler: logrotate may move the file away
        from logging.handlers import WatchedFileHandler

        to_file = WatchedFileHandler(file, encoding="utf-8")
        to_file.setFormatter(JsonFormatter())
        to_file.addFilter(_stamp)
        root.addHandler(to_file)
