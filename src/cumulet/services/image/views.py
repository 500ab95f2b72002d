"""Bodies of the image API."""

from typing import Any

from cumulet.kernel.clock import iso
from cumulet.services.image.store import ImageRow, MemberRow, TaskRow


def image(row: ImageRow) -> dict[str, Any]:
    path = f"/v2/images/{row.id}"
    return {
        **row.properties,
        "id": row.id,
        "name": row.name,
        "status": row.status,
        "visibility": row.visibility,
        "protected": row.protected,
        "os_hidden": row.os_hidden,
        "owner": row.owner,
        "disk_format": row.disk_format,
        "container_format": row.container_format,
        "size": row.size,
        "virtual_size": row.virtual_size,
        "checksum": row.checksum,
        "os_hash_algo": row.os_hash_algo,
        "os_hash_value": row.os_hash_value,
        "min_ram": row.min_ram,
        "min_disk": row.min_disk,
        "tags": row.tags,
        "created_at": iso(row.created_at),
        "updated_at": iso(row.updated_at),
        "self": path,
        "file": f"{path}/file",
        "schema": "/v2/schemas/image",
    }


def member(row: MemberRow) -> dict[str, Any]:
    return {
        "member_id": row.member_id,
        "image_id": row.image_id,
        "status": row.status,
        "created_at": iso(row.created_at),
        "updated_at": iso(row.updated_at),
        "schema": "/v2/schemas/member",
    }


def task(row: TaskRow, *, full: bool = True) -> dict[str, Any]:
    view: dict[str, Any] = {
        "id": row.id,
        "type": row.type,
        "status": row.status,
        "owner": row.owner,
        "created_at": iso(row.created_at),
        "updated_at": iso(row.updated_at),
        "self": f"/v2/tasks/{row.id}",
        "schema": "/v2/schemas/task",
    }
    if row.expires_at is not None:
        view["expires_at"] = iso(row.expires_at)
    if full:
        view.update(
            input=row.input,
            result=row.result,
            message=row.message,
            image_id=row.image_id,
            request_id=row.request_id,
            user_id=row.user_id,
        )
    return view
