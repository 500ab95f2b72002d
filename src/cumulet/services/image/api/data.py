"""Image data: upload, download, stage, import; and the signed forms that agents use."""

import re
from typing import Any

from cumulet.db import Tx
from cumulet.http import Call, Reply, Route
from cumulet.kernel.errors import BadInput, CloudError, Forbidden, UnsupportedMedia
from cumulet.services.image.api.access import json_body, require
from cumulet.services.image.public import ImageService
from cumulet.services.image.store import ImageRow

_RANGE = re.compile(r"bytes\s*=\s*(\d*)\s*-\s*(\d*)\s*\Z")
_CONTENT_RANGE = re.compile(r"bytes\s+(\d+)-(\d+)/(\d+|\*)\s*\Z")
_OCTETS = "application/octet-stream"


def _expected_size(call: Call) -> int | None:
    text = call.headers.get("x-openstack-image-size")
    if text is None:
        text = call.headers.get("content-length")
    if text is None:
        return None
    if not text.isdigit() or len(text) > 18:
        raise BadInput("Invalid or missing image size in request headers.")
    return int(text)


def _check_media_type(call: Call) -> None:
    media_type = call.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != _OCTETS:
        raise UnsupportedMedia(f"Invalid content type {media_type or '(none)'}; {_OCTETS} is expected.")


def _row(call: Call, *rules: str) -> ImageRow:
    service: ImageService = call.service

    def work(tx: Tx) -> ImageRow:
        row = service.get(tx, call.ctx, call.params["image_id"])
        require(tx, call, row, *rules)
        return row

    return service.db.read(work)


def upload(call: Call) -> Reply:
    _check_media_type(call)
    expected = _expected_size(call)
    call.service.upload(_row(call, "upload_image"), call.stream, expected)
    return Reply(status=204)


def stage(call: Call) -> Reply:
    _check_media_type(call)
    expected = _expected_size(call)
    call.service.stage(_row(call, "modify_image"), call.stream, expected)
    return Reply(status=204)


def import_image(call: Call) -> Reply:
    service: ImageService = call.service
    body = json_body(call)
    if not isinstance(body, dict) or not isinstance(body.get("method"), dict):
        raise BadInput("Import request requires a 'method' field.")
    name = body["method"].get("name")
    if name is None:
        raise BadInput("Import request requires a 'name' field.")
    if name not in service.settings.import_methods:
        raise BadInput(f"Unknown import method name '{name}'.")
    for flag, default in (("all_stores_must_succeed", True), ("all_stores", False)):
        if not isinstance(body.get(flag, default), bool):
            raise BadInput(f"'{flag}' must be boolean value only")
    row = _row(call, "modify_image")
    service.import_staged(call.ctx, row.id, body)
    return Reply(status=202)


def download(call: Call) -> Reply:
    service: ImageService = call.service
    row = _row(call, "get_image")
    if row.status == "deactivated" and not call.ctx.is_admin:
        raise Forbidden("The requested image has been deactivated. Image data download is forbidden.")
    row = _row(call, "download_image")
    if call.query.get("prefer"):
        raise BadInput("Store selection for download is not available when multiple backends are not enabled.")
    if row.status not in ("active", "deactivated"):
        return Reply(status=204)
    return _content(service, call, row)


def _content(service: ImageService, call: Call, row: ImageRow) -> Reply:
    size = row.size or 0
    part = _range(call, size)
    offset, length = part or (0, size)
    headers = {"content-length": str(length)}
    if part is not None:
        headers["content-range"] = f"bytes {offset}-{offset + length - 1}/{size}"
    if row.checksum:
        headers["content-md5"] = row.checksum
    stream = service.read(row, offset, length if part is not None else None)
    return Reply(status=206 if part else 200, headers=headers, stream=stream, media_type=_OCTETS)


def _range(call: Call, size: int) -> tuple[int, int] | None:
    """Offset and length that a Range (or, as glance also takes, Content-Range) header asks for."""
    header = call.headers.get("range")
    old = call.headers.get("content-range")
    if header is None and old is None:
        return None
    unsatisfiable = CloudError(
        "The range is not satisfiable.", status=416, headers={"content-range": f"bytes */{size}"}
    )
    if header is not None:
        found = _RANGE.match(header.strip())
        if found is None or found.group(1) == found.group(2) == "":
            raise unsatisfiable
        if found.group(1) == "":
            length = min(int(found.group(2)[:18]), size)
            first, last = size - length, size - 1
        else:
            first = int(found.group(1)[:18])
            last = min(int(found.group(2)[:18]), size - 1) if found.group(2) else size - 1
    else:
        found = _CONTENT_RANGE.match((old or "").strip())
        if found is None:
            raise unsatisfiable
        first, last = int(found.group(1)[:18]), int(found.group(2)[:18])
        if last >= size:
            raise unsatisfiable
    if first > last or first >= size:
        raise unsatisfiable
    return first, last - first + 1


# -- signed: no token, the URL itself is the right ----------------------------------------------------------------


def signed_download(call: Call) -> Reply:
    from cumulet.services.image import store

    service: ImageService = call.service
    image_id = call.params["image_id"]
    service.check_signature("GET", image_id, call.query)
    row = service.db.read(lambda tx: store.image(tx, image_id))
    if row is None or row.status not in ("active", "deactivated"):
        raise CloudError(f"Image {image_id} is gone.", status=410)
    return _content(service, call, row)


def signed_upload(call: Call) -> Any:
    service: ImageService = call.service
    image_id = call.params["image_id"]
    upload_id = service.check_signature("PUT", image_id, call.query)
    received = service.receive_signed(image_id, upload_id, call.stream)
    return {"size": received.size, "md5": received.md5, "sha512": received.sha512}


ROUTES = [
    Route(
        method="PUT",
        path="/images/{image_id}/file",
        handler=upload,
        success=204,
        stream="request",
        summary="Upload image data",
    ),
    Route(
        method="GET",
        path="/images/{image_id}/file",
        handler=download,
        stream="response",
        summary="Download image data",
    ),
    Route(
        method="PUT",
        path="/images/{image_id}/stage",
        handler=stage,
        success=204,
        stream="request",
        summary="Stage image data",
    ),
    Route(
        method="POST", path="/images/{image_id}/import", handler=import_image, success=202, summary="Import an image"
    ),
]
SIGNED_ROUTES = [
    Route(method="GET", path="/signed/{image_id}", handler=signed_download, auth=False, stream="response"),
    Route(method="PUT", path="/signed/{image_id}", handler=signed_upload, auth=False, stream="request"),
]
