"""Hands a finished file to the image store: by rename on the same host, else by PUT to a signed URL."""

import hashlib
import http.client
import os
import shutil
import ssl
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from cumulet.agent.contract import Upload
from cumulet.agent.errors import DriverError

_BLOCK = 1 << 20


def hashes(path: Path, alive: Callable[..., None]) -> tuple[str, str]:
    """md5 and sha512 of a file."""
    md5, sha512 = hashlib.md5(usedforsecurity=False), hashlib.sha512()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            md5.update(block)
            sha512.update(block)
            alive()
    return md5.hexdigest(), sha512.hexdigest()


def hand_in(path: Path, upload: Upload, alive: Callable[..., None], trust: ssl.SSLContext | None = None) -> None:
    """``path`` is gone afterwards. ``trust``: whom to believe of HTTPS; None: whom the system does."""
    if upload.path is not None:
        _place(path, Path(upload.path))
    elif upload.url is not None:
        _put(path, upload.url, alive, trust)
        path.unlink(missing_ok=True)
    else:
        raise DriverError("internal", f"image {upload.image_id} has nowhere to go")


def _place(path: Path, target: Path) -> None:
    try:
        os.replace(path, target)
    except OSError as error:
        if error.errno != 18:  # EXDEV: another file system
            raise DriverError("internal", f"the image could not be stored: {error.strerror}") from error
        part = target.with_name(f"{target.name}.part")
        try:
            shutil.copyfile(path, part)
            with open(part, "rb") as written:
                os.fsync(written.fileno())
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    os.chmod(target, 0o644)


def _put(path: Path, url: str, alive: Callable[..., None], trust: ssl.SSLContext | None) -> None:
    link = urlsplit(url)
    host, port = link.hostname or "", link.port
    if link.scheme == "https":
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            host, port, timeout=120, blocksize=_BLOCK, context=trust
        )
    else:
        connection = http.client.HTTPConnection(host, port, timeout=120, blocksize=_BLOCK)
    try:
        with open(path, "rb") as file:

            def blocks() -> object:
                while block := file.read(_BLOCK):
                    alive()
                    yield block

            connection.request(
                "PUT",
                f"{link.path}?{link.query}",
                body=blocks(),  # type: ignore[arg-type]
                headers={
                    "Content-Type": "application/octet-stream",
                    "Content-Length": str(path.stat().st_size),
                },
            )
            answer = connection.getresponse()
            said = answer.read(500)
    except OSError as error:
        raise DriverError("image-fetch", f"the image store cannot be reached: {error}") from error
    finally:
        connection.close()
    if answer.status >= 300:
        raise DriverError("image-fetch", f"the image store answered {answer.status}: {said.decode(errors='replace')}")
