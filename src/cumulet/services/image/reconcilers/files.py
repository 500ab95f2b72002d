"""Rows and files of the image store agree.

* An upload whose process died (or that has not been seen writing for long) gives its image back: ``queued``.
* A partial file that no live upload owns, and a whole file that no image owns, are removed; young ones are left alone,
  for their transaction may still come.

Takes no arguments, changes nothing when nothing is wrong, may run in several processes at once.
"""

import os
import socket

from cumulet.db import Tx
from cumulet.kernel.clock import SECOND
from cumulet.services.image import store
from cumulet.services.image.public import ImageService, process_start

_SILENT_SECONDS = 900  # another host's upload that has written nothing for so long is taken as dead
_YOUNG_SECONDS = 600


def reconcile_files(service: ImageService) -> str:
    """One pass; what was done, for the reconciler's status."""
    freed = service.db.write(lambda tx: _free_dead_uploads(service, tx))
    removed = _remove_orphans(service)
    return f"{freed} uploads freed, {removed} files removed"


def _dead(upload_by: str | None, upload_seen: int | None, now: int) -> bool:
    if upload_by is None or upload_by == "agent":
        return False  # staged data waits for its import; a snapshot is its saga's business
    host, _, rest = upload_by.partition(":")
    pid, _, started = rest.partition(":")
    if host == socket.gethostname() and pid.isdigit():
        return process_start(int(pid)) != started
    return now - (upload_seen or 0) > _SILENT_SECONDS * SECOND


def _free_dead_uploads(service: ImageService, tx: Tx) -> int:
    freed = 0
    for row in store.being_written(tx):
        if _dead(row.upload_by, row.upload_seen, tx.now):
            values = {"status": "queued", "upload_id": None, "upload_by": None, "upload_seen": None}
            freed += store.change_image(tx, row.id, values, upload_id=row.upload_id)
    return freed


def _remove_orphans(service: ImageService) -> int:
    # Files first, rows after: a file whose row appears between the two is then seen as owned.
    listing = service.files.listing()
    live = service.db.read(store.live_ids)
    writing = service.db.read(lambda tx: {row.upload_id for row in store.being_written(tx)})
    owned = {
        "images": {i for i, status in live.items() if status not in ("queued", "uploading")},
        "staging": {i for i, status in live.items() if status in ("uploading", "importing")},
        "partial": {name for name in listing["partial"] if name.partition(".")[2] in writing},
    }
    removed = 0
    for place, names in listing.items():
        for name in names:
            path = service.files.root / place / name
            if name.partition(".part")[0] in owned[place] or not _old(path, service.clock.now()):
                continue
            path.unlink(missing_ok=True)
            removed += 1
    return removed


def _old(path: os.PathLike[str], now: int) -> bool:
    try:
        return now - int(os.stat(path).st_mtime * SECOND) > _YOUNG_SECONDS * SECOND
    except FileNotFoundError:
        return False
