"""`ImageService`: everything about images that the API and other services call.

Owns the rows and, through `ImageFiles`, the bytes. A file operation never happens inside a transaction: data is made
whole on disk first, then one transaction makes it visible (or finds that the image is gone, and the file goes too);
what a crash leaves between the two is put right by `reconcilers.files`.
"""

import os
import secrets
import socket
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from cumulet.agent.contract import ImageSource, SnapshotServerResult, Upload
from cumulet.db import Database, Tx
from cumulet.kernel.clock import Clock
from cumulet.kernel.context import RequestContext
from cumulet.kernel.errors import (
    BadInput,
    CloudError,
    Conflict,
    Forbidden,
    Gone,
    NotFound,
    QuotaExceeded,
    TooLarge,
    Unavailable,
    UnsupportedMedia,
)
from cumulet.kernel.ids import new_uuid
from cumulet.services.image import rules, signing, store
from cumulet.services.image.files import ImageFiles, Received
from cumulet.services.image.inspection import Inspect, Rejected, inspect_file
from cumulet.services.image.store import ImageRow, Listing, MemberRow, TaskRow

HASH_ALGORITHM = "sha512"


class ImageSettings(msgspec.Struct, frozen=True, kw_only=True):
    """``0`` means no limit for the two project quotas."""

    size_cap_bytes: int = 1 << 40
    project_quota_bytes: int = 0
    project_quota_images: int = 0
    page_default: int = 25
    page_max: int = 1000
    import_methods: tuple[str, ...] = ("glance-direct",)


def process_name() -> str:
    """This run of this process on this host: whoever reads it later can tell whether it still lives."""
    return f"{socket.gethostname()}:{os.getpid()}:{process_start(os.getpid())}"


def process_start(pid: int) -> str | None:
    """Start time of a process in clock ticks since boot; None when there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return stat.rpartition(")")[2].split()[19]


class ImageService:
    def __init__(
        self,
        *,
        db: Database,
        clock: Clock,
        root: Path,
        public_url: str = "",
        store_host: str | None = None,
        settings: ImageSettings | None = None,
        inspect: Inspect = inspect_file,
        in_use: Callable[[Tx, str], str | None] | None = None,
    ) -> None:
        """``root``: the store's directory. ``public_url``: of this service's prefix (``http://…/image``), for signed
        URLs. ``store_host``: the host whose agent sees ``root`` as a local path. ``in_use(tx, image_id)``: why an
        image may not be deleted, or None."""
        self.db = db
        self.clock = clock
        self.files = ImageFiles(root)
        self.public_url = public_url.rstrip("/")
        self.store_host = store_host
        self.settings = settings or ImageSettings()
        self.inspect = inspect
        self.in_use = in_use
        self.process = process_name()
        self._secret: str | None = None

    # -- for other services (tx first) ------------------------------------------------------------------------

    def get(self, tx: Tx, ctx: RequestContext, image_id: str, *, change: bool = False) -> ImageRow:
        """The image if the caller may see it, else NotFound. ``change``: the caller decides by it what to change."""
        row = store.image(tx, image_id, change=change)
        if row is None or not self.visible(tx, ctx, row):
            raise NotFound(f"No image found with ID {image_id}")
        return row

    def visible(self, tx: Tx, ctx: RequestContext, row: ImageRow) -> bool:
        if ctx.is_admin or row.owner is None or row.visibility in ("public", "community"):
            return True
        if ctx.project_id is not None and row.owner == ctx.project_id:
            return True
        return row.visibility == "shared" and store.member(tx, row.id, ctx.project_id) is not None

    def source(self, image: ImageRow, host_name: str) -> ImageSource:
        """How an agent on this host reads an active image."""
        if image.status not in ("active", "deactivated") or image.size is None:
            raise Conflict(f"Image {image.id} is not active.")
        described = _described(image)
        if host_name == self.store_host:
            return msgspec.structs.replace(described, path=str(self.files.path(image.id)))
        query = signing.signed_query(self._key(), "GET", image.id, self.clock.now())
        return msgspec.structs.replace(described, url=f"{self.public_url}/signed/{quote(image.id)}?{query}")

    def source_ever(self, tx: Tx, image_id: str, host_name: str) -> ImageSource:
        """The same for a server that was made from the image: of one that was deleted since, hosts that have it are
        told which it was, and nobody gets its bytes."""
        row = store.image_ever(tx, image_id)
        if row is None:
            raise NotFound(f"No image found with ID {image_id}")
        return _described(row) if row.deleted_at is not None else self.source(row, host_name)

    def create_snapshot_image(
        self,
        tx: Tx,
        ctx: RequestContext,
        name: str,
        properties: dict[str, str],
        *,
        disk_format: str = "qcow2",
        container_format: str = "bare",
        visibility: str = "private",
        min_disk: int = 0,
        min_ram: int = 0,
        protected: bool = False,
        image_id: str | None = None,
    ) -> str:
        """A new queued image that an agent will fill (`upload_target`, then `activate` or `discard`)."""
        columns = {
            "name": name,
            "disk_format": disk_format,
            "container_format": container_format,
            "visibility": visibility,
            "min_disk": min_disk,
            "min_ram": min_ram,
            "protected": protected,
            "tags": [],
        }
        if image_id is not None:
            columns["id"] = image_id
        return self._insert(tx, ctx, columns, properties).id

    def upload_target(self, tx: Tx, image_id: str, host_name: str | None = None) -> Upload:
        """Where the agent of ``host_name`` writes the image; the image is ``saving`` from here on. Asked again (a
        repeated step), the answer is the same place. A ``path`` is written by rename of a finished file beside it."""
        row = store.image(tx, image_id, change=True)
        if row is None:
            raise Gone(f"Image {image_id} was deleted.")
        upload_id = row.upload_id if row.upload_by == "agent" and row.upload_id else new_uuid()
        if row.status == "queued" and tx.writing:
            store.change_image(
                tx,
                image_id,
                {"status": "saving", "upload_id": upload_id, "upload_by": "agent", "upload_seen": tx.now},
            )
        elif row.status != "saving" or row.upload_by != "agent":
            raise Conflict(f"Image {image_id} is {row.status}.")
        disk_format = row.disk_format or "qcow2"
        if host_name is not None and host_name == self.store_host:
            return Upload(image_id=image_id, disk_format=disk_format, path=str(self.files.path(image_id)))
        query = signing.signed_query(self._key(), "PUT", image_id, tx.now, upload_id)
        return Upload(
            image_id=image_id, disk_format=disk_format, url=f"{self.public_url}/signed/{quote(image_id)}?{query}"
        )

    def activate(self, tx: Tx, image_id: str, result: SnapshotServerResult | dict[str, Any]) -> bool:
        """The agent's upload is whole. False when the image was deleted meanwhile (its file goes at the next sweep)."""
        made = msgspec.convert(result, SnapshotServerResult) if isinstance(result, dict) else result
        row = store.image(tx, image_id, change=True)
        if row is None:
            tx.after_commit(lambda: self.files.discard(image_id))
            return False
        if row.status == "active":
            return True
        received = Received("", made.size, made.md5, made.sha512)
        return store.change_image(tx, image_id, self._activated(received, made.virtual_size_bytes))

    def discard(self, tx: Tx, image_id: str) -> None:
        """The snapshot failed or was cancelled: no image, no file. Doing it twice is no error."""
        if store.image(tx, image_id) is not None:
            store.remove_image(tx, image_id)
        tx.after_commit(lambda: self.files.discard(image_id))

    # -- the image itself ---------------------------------------------------------------------------------------

    def create(self, tx: Tx, ctx: RequestContext, columns: dict[str, Any], properties: dict[str, str]) -> ImageRow:
        return self._insert(tx, ctx, columns, properties)

    def _insert(self, tx: Tx, ctx: RequestContext, columns: dict[str, Any], properties: dict[str, str]) -> ImageRow:
        image_id = columns.get("id") or new_uuid()
        owner = columns.get("owner", ctx.project_id)
        if "id" in columns and store.taken(tx, image_id):
            raise Conflict(f"Image ID {image_id} already exists!")
        if self.settings.project_quota_images:
            tx.lock("quota", f"image:{owner}")
            if store.usage(tx, owner)[1] >= self.settings.project_quota_images:
                raise QuotaExceeded(
                    f"Project {owner} is over a limit for image_count_total: limit {self.settings.project_quota_images}"
                )
        row = ImageRow(
            id=image_id,
            name=columns.get("name"),
            owner=owner,
            status="queued",
            visibility=columns.get("visibility", "shared"),
            protected=columns.get("protected", False),
            os_hidden=columns.get("os_hidden", False),
            disk_format=columns.get("disk_format"),
            container_format=columns.get("container_format"),
            size=None,
            virtual_size=None,
            checksum=None,
            os_hash_algo=None,
            os_hash_value=None,
            min_ram=columns.get("min_ram", 0),
            min_disk=columns.get("min_disk", 0),
            tags=columns.get("tags", []),
            properties=properties,
            created_at=tx.now,
            updated_at=tx.now,
        )
        store.insert_image(tx, row)
        return row

    def update(self, tx: Tx, ctx: RequestContext, row: ImageRow, changes: list[rules.Change]) -> ImageRow:
        current = {name: getattr(row, name) for name in rules.SETTABLE}
        columns, properties = rules.apply_changes(
            current, row.properties, changes, queued=row.status == "queued", may_give=ctx.is_admin
        )
        if changes:
            store.change_image(tx, row.id, {**columns, "properties": properties})
        return msgspec.structs.replace(
            row, **columns, properties=properties, updated_at=tx.now if changes else row.updated_at
        )

    def delete(self, tx: Tx, row: ImageRow) -> None:
        if row.protected:
            raise Forbidden(f"Image {row.id} is protected and cannot be deleted.")
        reason = self.in_use(tx, row.id) if self.in_use is not None else None
        if reason is not None:
            raise Conflict(f"Image {row.id} could not be deleted because it is in use: {reason}")
        store.remove_image(tx, row.id)
        tx.after_commit(lambda: self.files.discard(row.id))

    def set_deactivated(self, tx: Tx, row: ImageRow, deactivated: bool) -> None:
        wanted, other = ("deactivated", "active") if deactivated else ("active", "deactivated")
        if row.status == wanted:
            return
        if row.status != other:
            verb = "deactivate" if deactivated else "reactivate"
            raise Forbidden(f"Not allowed to {verb} image in status '{row.status}'")
        store.change_image(tx, row.id, {"status": wanted})

    def list(self, tx: Tx, ask: Listing) -> list[ImageRow]:
        return store.list_images(tx, ask)

    # -- data --------------------------------------------------------------------------------------------------

    def upload(self, row: ImageRow, chunks: Iterable[bytes], expected: int | None) -> None:
        """Store the data of a queued image and activate it; on any failure the image is queued again."""
        row, upload_id = self._begin(row, "saving")
        try:
            received = self._receive(row, upload_id, chunks, expected)
            virtual_size = self._inspected(received.path, row)
            self.files.adopt(received.path, row.id)
        except BaseException:
            self._restore(row.id, upload_id)
            raise
        self._finish(row.id, upload_id, self._activated(received, virtual_size))

    def stage(self, row: ImageRow, chunks: Iterable[bytes], expected: int | None) -> None:
        """Keep the data aside for a later import."""
        row, upload_id = self._begin(row, "uploading")
        try:
            received = self._receive(row, upload_id, chunks, expected)
            self.files.adopt(received.path, row.id, "staging")
        except BaseException:
            self._restore(row.id, upload_id)
            raise
        values: dict[str, Any] = {
            "size": received.size,
            "checksum": received.md5,
            "os_hash_algo": HASH_ALGORITHM,
            "os_hash_value": received.sha512,
            "upload_id": None,
            "upload_by": None,
        }
        self._finish(row.id, upload_id, values)

    def import_staged(self, ctx: RequestContext, image_id: str, request: dict[str, Any]) -> None:
        """Make staged data the image's. The hashes are known since the upload, so this is one look at the format and
        one rename; it is done when the request returns, and may be repeated if it was cut off."""
        task_id = new_uuid()

        def begin(tx: Tx) -> ImageRow:
            row = self.get(tx, ctx, image_id)
            if row.status == "active":
                raise Conflict("Image with status active cannot be target for import")
            if row.status != "uploading" or row.upload_id is not None:
                raise Conflict("Image needs to be staged before 'glance-direct' method can be used")
            for name in ("container_format", "disk_format"):
                if getattr(row, name) is None:
                    raise Conflict(f"'{name}' needs to be set before import")
            return row

        row = self.db.read(begin)
        message, virtual_size = "", None
        try:
            staged = self.files.path(image_id, "staging")
            if staged.exists():
                virtual_size = self._inspected(str(staged), row)
                self.files.adopt(staged, image_id)
            else:  # cut off after the rename
                virtual_size = self._inspected(str(self.files.path(image_id)), row)
        except FileNotFoundError:
            raise Conflict(
                f"The staged data of image {image_id} is gone: it was imported or deleted meanwhile."
            ) from None
        except CloudError as error:
            message = error.message
            self.files.discard(image_id)

        def end(tx: Tx) -> None:
            values: dict[str, Any]
            if message:
                values = {
                    "status": "queued",
                    "size": None,
                    "checksum": None,
                    "os_hash_value": None,
                    "os_hash_algo": None,
                }
            else:
                values = {"status": "active", "virtual_size": virtual_size}
            now = store.image(tx, image_id, change=True)
            if now is None:
                tx.after_commit(lambda: self.files.discard(image_id))
            elif now.status == "uploading":  # else another request imported it
                store.change_image(tx, image_id, values)
            task = TaskRow(
                id=task_id,
                type="api_image_import",
                status="failure" if message else "success",
                owner=ctx.project_id,
                image_id=image_id,
                user_id=ctx.user_id,
                request_id=ctx.request_id,
                input={"image_id": image_id, "import_req": request, "backend": [None]},
                result=None if message else {"image_id": image_id},
                message=message,
                created_at=tx.now,
                updated_at=tx.now,
                expires_at=tx.now + 48 * 3600 * 1_000_000,
            )
            store.insert_task(tx, task)

        self.db.write(end)

    def read(self, row: ImageRow, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        try:
            return self.files.read(row.id, offset, length)
        except FileNotFoundError:
            raise Unavailable(f"The data of image {row.id} cannot be found in the store.") from None

    def receive_signed(self, image_id: str, upload_id: str, chunks: Iterable[bytes]) -> Received:
        """A snapshot that an agent hands in by URL. What it activates it says in its operation's result."""
        row = self.db.read(lambda tx: store.image(tx, image_id))
        if row is None or row.upload_id != upload_id or row.status != "saving":
            raise Gone(f"Image {image_id} does not wait for data.")
        received = self.files.receive(image_id, upload_id, chunks, self.settings.size_cap_bytes)
        self.files.adopt(received.path, image_id)
        return received

    def check_signature(self, method: str, image_id: str, query: Any) -> str:
        """Raises Forbidden unless the URL is ours; the upload id it names."""
        upload_id = query.get("upload") or ""
        signing.check(
            self._key(), method, image_id, upload_id, query.get("expires"), query.get("signature"), self.clock.now()
        )
        return upload_id

    def start(self) -> None:
        """Once the tables exist: read the key that signs URLs, made by the first process of the cloud that starts."""

        def work(tx: Tx) -> str:
            tx.lock("image-key", "1")
            found = store.signing_key(tx)
            if found is None:
                found = secrets.token_hex(32)
                store.insert_signing_key(tx, found)
            return found

        self._secret = self.db.read(store.signing_key) or self.db.write(work)

    # -- members ----------------------------------------------------------------------------------------------

    def add_member(self, tx: Tx, row: ImageRow, member_id: str) -> MemberRow:
        if store.member(tx, row.id, member_id) is not None:
            raise Conflict(f"Member {member_id} is duplicated for image {row.id}")
        count = len(store.members(tx, row.id))
        if count >= rules.MAX_MEMBERS:
            raise TooLarge(
                f"Image member limit exceeded for image {row.id}: The limit has been exceeded on the number of"
                f" allowed image members for this image. Attempted: {count + 1}, Maximum: {rules.MAX_MEMBERS}"
            )
        made = MemberRow(row.id, member_id, "pending", tx.now, tx.now)
        store.insert_member(tx, made)
        return made

    # -- inside -----------------------------------------------------------------------------------------------

    def _key(self) -> str:
        if self._secret is None:
            raise Unavailable("The image service is not started.")
        return self._secret

    def _begin(self, row: ImageRow, status: str) -> tuple[ImageRow, str]:
        """The image as it is now, and the upload it belongs to."""
        upload_id = new_uuid()

        def work(tx: Tx) -> ImageRow:
            found = store.image(tx, row.id, change=True)
            if found is None:
                raise NotFound(f"No image found with ID {row.id}")
            if found.status != "queued":
                raise Conflict(f"Image status transition from {found.status} to {status} is not allowed")
            if status == "saving":
                missing = [name for name in ("disk_format", "container_format") if getattr(found, name) is None]
                if missing:
                    raise BadInput(f"Properties {', '.join(missing)} must be set prior to saving data.")
            values = {"status": status, "upload_id": upload_id, "upload_by": self.process, "upload_seen": tx.now}
            store.change_image(tx, row.id, values)
            return found

        return self.db.write(work), upload_id

    def _receive(self, row: ImageRow, upload_id: str, chunks: Iterable[bytes], expected: int | None) -> Received:
        limit = self.settings.size_cap_bytes
        quota = self.settings.project_quota_bytes
        if quota:
            used = self.db.read(lambda tx: store.usage(tx, row.owner))[0]
            limit = min(limit, max(0, quota - used))
        if expected is not None and expected > limit:
            raise TooLarge(f"The incoming image of {expected} bytes is too large: {limit} bytes are allowed.")

        def alive() -> None:
            self.db.write(lambda tx: store.upload_seen(tx, upload_id))

        received = self.files.receive(row.id, upload_id, chunks, limit, alive=alive)
        if expected is not None and received.size != expected:
            self.files.partial(row.id, upload_id).unlink(missing_ok=True)
            raise BadInput(f"The image has {received.size} bytes, not the {expected} announced.")
        return received

    def _inspected(self, path: str, row: ImageRow) -> int | None:
        try:
            return self.inspect(path, row.disk_format or "raw", row.container_format or "bare")
        except Rejected as error:
            Path(path).unlink(missing_ok=True)
            raise UnsupportedMedia(f"Image {row.id} is refused: {error}") from None

    def _activated(self, received: Received, virtual_size: int | None) -> dict[str, Any]:
        return {
            "status": "active",
            "size": received.size,
            "virtual_size": virtual_size,
            "checksum": received.md5,
            "os_hash_algo": HASH_ALGORITHM,
            "os_hash_value": received.sha512,
            "upload_id": None,
            "upload_by": None,
            "upload_seen": None,
        }

    def _restore(self, image_id: str, upload_id: str) -> None:
        values = {"status": "queued", "upload_id": None, "upload_by": None, "upload_seen": None}
        self.db.write(lambda tx: store.change_image(tx, image_id, values, upload_id=upload_id))

    def _finish(self, image_id: str, upload_id: str, values: dict[str, Any]) -> None:
        if not self.db.write(lambda tx: store.change_image(tx, image_id, values, upload_id=upload_id)):
            self.files.discard(image_id)
            raise Gone(f"Image {image_id} was deleted during the upload; its data has been removed.")


def _described(image: ImageRow) -> ImageSource:
    return ImageSource(
        image_id=image.id,
        disk_format=image.disk_format or "raw",
        size=image.size or 0,
        sha512=image.os_hash_value,
    )
