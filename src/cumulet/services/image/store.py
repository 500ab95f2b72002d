"""SQL of images, members and tasks. Rows in, rows out; who may see what is `visible`'s clause here, as the page must
be cut after it."""

from dataclasses import dataclass, field
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, and_, bindparam, delete, exists, func, or_, select, update

from cumulet.db import Tx, to_change
from cumulet.http.paging import Sort, ordered
from cumulet.services.image.tables import IMAGES, KEYS, MEMBERS, TASKS


class ImageRow(msgspec.Struct, frozen=True):
    id: str
    name: str | None
    owner: str | None
    status: str
    visibility: str
    protected: bool
    os_hidden: bool
    disk_format: str | None
    container_format: str | None
    size: int | None
    virtual_size: int | None
    checksum: str | None
    os_hash_algo: str | None
    os_hash_value: str | None
    min_ram: int
    min_disk: int
    tags: list[str]
    properties: dict[str, str]
    created_at: int
    updated_at: int
    deleted_at: int | None = None
    upload_id: str | None = None
    upload_by: str | None = None
    upload_seen: int | None = None


NO_UPLOAD: dict[str, Any] = {"upload_id": None, "upload_by": None, "upload_seen": None}


class MemberRow(msgspec.Struct, frozen=True):
    image_id: str
    member_id: str
    status: str
    created_at: int
    updated_at: int


class TaskRow(msgspec.Struct, frozen=True):
    id: str
    type: str
    status: str
    owner: str | None
    image_id: str | None
    user_id: str | None
    request_id: str | None
    input: dict[str, Any] | None
    result: dict[str, Any] | None
    message: str
    created_at: int
    updated_at: int
    expires_at: int | None


_GET = select(IMAGES).where(IMAGES.c.id == bindparam("id"), IMAGES.c.deleted_at.is_(None))
_GET_TO_CHANGE = to_change(_GET)
_GET_EVER = select(IMAGES).where(IMAGES.c.id == bindparam("id"))
_TAKEN = select(IMAGES.c.id).where(IMAGES.c.id == bindparam("id"))
_MEMBER = select(MEMBERS).where(MEMBERS.c.image_id == bindparam("image"), MEMBERS.c.member_id == bindparam("member"))
_MEMBERS = select(MEMBERS).where(MEMBERS.c.image_id == bindparam("image")).order_by(MEMBERS.c.created_at)
_MEMBER_STATUS = (
    update(MEMBERS)
    .where(MEMBERS.c.image_id == bindparam("image"), MEMBERS.c.member_id == bindparam("member"))
    .values(status=bindparam("new_status"), updated_at=bindparam("now"))
)
_DROP_MEMBER = delete(MEMBERS).where(
    MEMBERS.c.image_id == bindparam("image"), MEMBERS.c.member_id == bindparam("member")
)
_DROP_MEMBERS = delete(MEMBERS).where(MEMBERS.c.image_id == bindparam("image"))
_USAGE = select(func.coalesce(func.sum(IMAGES.c.size), 0), func.count(IMAGES.c.id)).where(
    IMAGES.c.owner == bindparam("owner"), IMAGES.c.deleted_at.is_(None)
)
_WRITING = select(IMAGES).where(IMAGES.c.deleted_at.is_(None), IMAGES.c.status.in_(("saving", "uploading")))
_LIVE = select(IMAGES.c.id, IMAGES.c.status).where(IMAGES.c.deleted_at.is_(None))
_SEEN = update(IMAGES).where(IMAGES.c.upload_id == bindparam("upload")).values(upload_seen=bindparam("now"))
_KEY = select(KEYS.c.secret).where(KEYS.c.id == 1)
_TASK = select(TASKS).where(TASKS.c.id == bindparam("id"))
_IMAGE_TASKS = select(TASKS).where(TASKS.c.image_id == bindparam("image")).order_by(TASKS.c.created_at)


def image(tx: Tx, image_id: str, *, change: bool = False) -> ImageRow | None:
    """``change``: nobody else changes it until the end of a writing unit of work (`cumulet.db.to_change`)."""
    row = tx.first(_GET_TO_CHANGE if change and tx.writing else _GET, {"id": image_id})
    return ImageRow(*row) if row else None


def image_ever(tx: Tx, image_id: str) -> ImageRow | None:
    """Also one that was deleted."""
    row = tx.first(_GET_EVER, {"id": image_id})
    return ImageRow(*row) if row else None


def taken(tx: Tx, image_id: str) -> bool:
    """True if an image has or had this id."""
    return tx.first(_TAKEN, {"id": image_id}) is not None


def insert_image(tx: Tx, row: ImageRow) -> None:
    tx.insert(IMAGES, msgspec.structs.asdict(row))


def change_image(tx: Tx, image_id: str, values: dict[str, Any], *, upload_id: str | None = None) -> bool:
    """Write these columns; with ``upload_id`` only if the image still belongs to that upload. False: it does not."""
    statement = update(IMAGES).where(IMAGES.c.id == image_id, IMAGES.c.deleted_at.is_(None))
    if upload_id is not None:
        statement = statement.where(IMAGES.c.upload_id == upload_id)
    return tx.run(statement.values(updated_at=tx.now, **values)) == 1


def upload_seen(tx: Tx, upload_id: str) -> None:
    tx.run(_SEEN, {"upload": upload_id, "now": tx.now})


def remove_image(tx: Tx, image_id: str) -> None:
    change_image(tx, image_id, {"status": "deleted", "deleted_at": tx.now, **NO_UPLOAD})
    tx.run(_DROP_MEMBERS, {"image": image_id})


def usage(tx: Tx, owner: str | None) -> tuple[int, int]:
    """Bytes stored and number of images of a project."""
    total, count = tx.rows(_USAGE, {"owner": owner})[0]
    return int(total), count


def being_written(tx: Tx) -> list[ImageRow]:
    return [ImageRow(*row) for row in tx.rows(_WRITING)]


def live_ids(tx: Tx) -> dict[str, str]:
    """id -> status of every image there is."""
    return {row[0]: row[1] for row in tx.rows(_LIVE)}


@dataclass
class Listing:
    """What a list request asks for. ``equal``: column -> value; ``within``: column -> values; ``compare``: clauses the
    caller made from typed input."""

    project_id: str | None
    admin: bool
    visibility: str | None = None
    member_status: str = "accepted"
    equal: dict[str, Any] = field(default_factory=dict)
    within: dict[str, list[str]] = field(default_factory=dict)
    compare: list[ColumnElement[bool]] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    properties: dict[str, str] = field(default_factory=dict)
    sorts: Sort = ()
    marker: ImageRow | None = None
    limit: int = 25


def _visible(ask: Listing) -> list[ColumnElement[bool]]:
    clauses: list[ColumnElement[bool]] = []
    mine = IMAGES.c.owner == ask.project_id
    if not ask.admin:
        member = and_(MEMBERS.c.image_id == IMAGES.c.id, MEMBERS.c.member_id == ask.project_id)
        if ask.member_status != "all":
            member = and_(member, MEMBERS.c.status == ask.member_status)
        clauses.append(
            or_(
                IMAGES.c.visibility.in_(("public", "community")),
                mine,
                and_(IMAGES.c.visibility == "shared", exists(select(MEMBERS.c.image_id).where(member))),
            )
        )
    if ask.visibility is None:
        clauses.append(or_(mine, IMAGES.c.visibility != "community"))
    elif ask.visibility != "all":
        clauses.append(IMAGES.c.visibility == ask.visibility)
    return clauses


def _text_match(ask: Listing) -> list[ColumnElement[bool]]:
    """Narrows to rows whose JSON text contains the value; `_exact` decides."""
    clauses = []
    for tag in ask.tags:
        clauses.append(IMAGES.c.tags.cast(IMAGES.c.name.type).contains(_json(tag), autoescape=True))
    for key, value in ask.properties.items():
        text = f"{_json(key)}:{_json(value)}"
        clauses.append(IMAGES.c.properties.cast(IMAGES.c.name.type).contains(text, autoescape=True))
    return clauses


def _json(text: str) -> str:
    return msgspec.json.encode(text).decode()


def _exact(row: ImageRow, ask: Listing) -> bool:
    return all(tag in row.tags for tag in ask.tags) and all(
        row.properties.get(key) == value for key, value in ask.properties.items()
    )


def list_images(tx: Tx, ask: Listing) -> list[ImageRow]:
    names = [key for key, _ in ask.sorts]
    clauses = [IMAGES.c.deleted_at.is_(None), *_visible(ask), *ask.compare]
    clauses += [IMAGES.c[key] == value for key, value in ask.equal.items()]
    clauses += [IMAGES.c[key].in_(values) for key, values in ask.within.items()]
    clauses += _text_match(ask)
    statement = select(IMAGES).where(*clauses).limit(ask.limit)
    found: list[ImageRow] = []
    last = ask.marker
    while len(found) < ask.limit:
        marker = None if last is None else {name: getattr(last, name) for name in names}
        rows = [ImageRow(*row) for row in tx.rows(ordered(statement, dict(IMAGES.c), ask.sorts, marker))]
        found += [row for row in rows if _exact(row, ask)]
        if len(rows) < ask.limit:
            break
        last = rows[-1]
    return found[: ask.limit]


def member(tx: Tx, image_id: str, member_id: str | None) -> MemberRow | None:
    row = tx.first(_MEMBER, {"image": image_id, "member": member_id})
    return MemberRow(*row) if row else None


def members(tx: Tx, image_id: str) -> list[MemberRow]:
    return [MemberRow(*row) for row in tx.rows(_MEMBERS, {"image": image_id})]


def insert_member(tx: Tx, row: MemberRow) -> None:
    tx.insert(MEMBERS, msgspec.structs.asdict(row))


def set_member_status(tx: Tx, image_id: str, member_id: str, status: str) -> None:
    tx.run(_MEMBER_STATUS, {"image": image_id, "member": member_id, "new_status": status, "now": tx.now})


def remove_member(tx: Tx, image_id: str, member_id: str) -> bool:
    return tx.run(_DROP_MEMBER, {"image": image_id, "member": member_id}) == 1


def insert_task(tx: Tx, row: TaskRow) -> None:
    tx.insert(TASKS, msgspec.structs.asdict(row))


def task(tx: Tx, task_id: str) -> TaskRow | None:
    row = tx.first(_TASK, {"id": task_id})
    return TaskRow(*row) if row else None


def image_tasks(tx: Tx, image_id: str) -> list[TaskRow]:
    return [TaskRow(*row) for row in tx.rows(_IMAGE_TASKS, {"image": image_id})]


def list_tasks(
    tx: Tx, filters: dict[str, str], sort: tuple[str, str], marker: TaskRow | None, limit: int
) -> list[TaskRow]:
    sorts = (sort, ("id", sort[1]))
    after = None if marker is None else {sort[0]: getattr(marker, sort[0]), "id": marker.id}
    statement = select(TASKS).where(*[TASKS.c[key] == value for key, value in filters.items()]).limit(limit)
    return [TaskRow(*row) for row in tx.rows(ordered(statement, dict(TASKS.c), sorts, after))]


def signing_key(tx: Tx) -> str | None:
    return tx.scalar(_KEY)


def insert_signing_key(tx: Tx, secret: str) -> None:
    tx.insert(KEYS, {"id": 1, "secret": secret, "created_at": tx.now})
