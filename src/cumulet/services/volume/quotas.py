"""Limits of projects: use is a sum over rows, under a lock, in the transaction that adds to it."""

from collections.abc import Mapping

from cumulet.db import Tx
from cumulet.kernel.errors import QuotaExceeded
from cumulet.services.volume import store

DEFAULTS = {
    "volumes": 10,
    "per_volume_gigabytes": -1,
    "snapshots": 10,
    "gigabytes": 1000,
    "backups": 10,
    "backup_gigabytes": 1000,
    "groups": 10,
}
_PER_TYPE = ("volumes", "gigabytes", "snapshots")


def usages(tx: Tx, project_id: str) -> dict[str, int]:
    volumes, snapshots, backups = store.sums(tx, project_id)
    found = {
        "volumes": sum(count for count, _ in volumes.values()),
        "snapshots": sum(count for count, _ in snapshots.values()),
        "gigabytes": sum(size for _, size in (*volumes.values(), *snapshots.values())),
        "backups": backups[0],
        "backup_gigabytes": backups[1],
        "groups": 0,
        "per_volume_gigabytes": 0,
    }
    for type_id, name in store.type_names(tx).items():
        count, size = volumes.get(type_id, (0, 0))
        snapshot_count, snapshot_size = snapshots.get(type_id, (0, 0))
        found[f"volumes_{name}"] = count
        found[f"snapshots_{name}"] = snapshot_count
        found[f"gigabytes_{name}"] = size + snapshot_size
    return found


class Quotas:
    """``given``: resource -> what a project has that nobody set; of the others `DEFAULTS`."""

    def __init__(self, given: Mapping[str, int]) -> None:
        self._defaults = {**DEFAULTS, **given}

    def defaults(self, tx: Tx) -> dict[str, int]:
        """Of the default class: what a project has that nobody set."""
        found = dict(self._defaults)
        for name in store.type_names(tx).values():
            found.update({f"{resource}_{name}": -1 for resource in _PER_TYPE})
        found.update(store.class_limits(tx, "default"))
        return found

    def limits(self, tx: Tx, project_id: str) -> dict[str, int]:
        return {**self.defaults(tx), **store.project_limits(tx, project_id)}

    def claim(self, tx: Tx, project_id: str, asked: dict[str, int], type_name: str | None = None) -> None:
        """May the project have so much more? Raises QuotaExceeded; holds the project's lock to the end of ``tx``."""
        tx.lock("quota", f"volume:{project_id}")
        allowed, used = self.limits(tx, project_id), usages(tx, project_id)
        wanted = dict(asked)
        if type_name is not None:
            wanted.update({f"{key}_{type_name}": value for key, value in asked.items() if key in _PER_TYPE})
        for resource, more in wanted.items():
            limit = allowed.get(resource, -1)
            if limit < 0 or used.get(resource, 0) + more <= limit:
                continue
            kind = resource.partition("_")[0] if not resource.startswith("backup_") else resource
            if kind == "gigabytes":
                message = (
                    f"Requested volume or snapshot exceeds allowed {resource} quota. Requested {more}G, quota is"
                    f" {limit}G and {used[resource]}G has been consumed."
                )
            elif kind == "backup_gigabytes":
                message = (
                    f"Requested backup exceeds allowed Backup gigabytes quota. Requested {more}G, quota is {limit}G and"
                    f" {used[resource]}G has been consumed."
                )
            else:
                message = f"Maximum number of {kind} allowed ({limit}) exceeded for quota '{resource}'."
            raise QuotaExceeded(message, resource=resource, limit=limit, used=used.get(resource, 0))

    def check_size(self, tx: Tx, project_id: str, size_gb: int) -> None:
        limit = self.limits(tx, project_id)["per_volume_gigabytes"]
        if 0 <= limit < size_gb:
            raise QuotaExceeded(
                f"Requested volume size {size_gb}G is larger than the maximum allowed volume size {limit}G.", status=400
            )
