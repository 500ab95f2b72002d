"""Quotas of compute: limits per project, user and class; use is always a sum over rows under the project's lock."""

from typing import Any

from cumulet.db import Tx
from cumulet.kernel.errors import QuotaExceeded
from cumulet.services.compute import catalogue, store

DEFAULTS: dict[str, int] = {
    "instances": 10,
    "cores": 20,
    "ram": 51200,
    "metadata_items": 128,
    "injected_files": 5,
    "injected_file_content_bytes": 10240,
    "injected_file_path_bytes": 255,
    "key_pairs": 100,
    "server_groups": 10,
    "server_group_members": 10,
    "fixed_ips": -1,
    "floating_ips": 10,
    "security_groups": 10,
    "security_group_rules": 20,
}
# Resources that a project may limit per user.
PER_USER = ("instances", "cores", "ram")
NETWORK = ("fixed_ips", "floating_ips", "security_groups", "security_group_rules")
FILES = ("injected_files", "injected_file_content_bytes", "injected_file_path_bytes")
CLASS = "class:default"


class Quotas:
    def __init__(self, defaults: dict[str, int] | None = None) -> None:
        self.configured = {**DEFAULTS, **(defaults or {})}

    def defaults(self, tx: Tx) -> dict[str, int]:
        return {**self.configured, **catalogue.quotas(tx, [CLASS])[CLASS]}

    def limits(self, tx: Tx, project_id: str, user_id: str | None = None) -> dict[str, int]:
        scopes = [CLASS, f"project:{project_id}"]
        if user_id is not None:
            scopes.append(f"user:{project_id}:{user_id}")
        found = catalogue.quotas(tx, scopes)
        limits = dict(self.configured)
        for scope in scopes:
            limits.update(found[scope])
        return limits

    def update(self, tx: Tx, project_id: str, user_id: str | None, values: dict[str, int]) -> None:
        scope = f"project:{project_id}" if user_id is None else f"user:{project_id}:{user_id}"
        for name, limit in values.items():
            catalogue.set_quota(tx, scope, name, limit)

    def use(self, tx: Tx, project_id: str, user_id: str | None = None) -> dict[str, int]:
        """What is in use; resources that are limits of one object count as 0."""
        instances, cores, ram = store.used(tx, project_id, user_id)
        use = dict.fromkeys(self.configured, 0)
        use.update(instances=instances, cores=cores, ram=ram, server_groups=catalogue.groups_used(tx, project_id))
        return use

    def admit(self, tx: Tx, project_id: str, user_id: str, flavor: Any, low: int, high: int) -> int:
        """As many of low..high more servers as fit; QuotaExceeded if not even ``low``. Call it in the transaction that
        inserts them."""
        tx.lock("quota", project_id)
        project, user = f"project:{project_id}", f"user:{project_id}:{user_id}"
        found, used = catalogue.quotas_and_use(tx, [CLASS, project, user], project_id)
        bounds = [({**self.configured, **found[CLASS], **found[project]}, used)]
        if found[user]:
            bounds.append(({**bounds[0][0], **found[user]}, store.used(tx, project_id, user_id)))
        for count in range(high, low - 1, -1):
            wanted = {"instances": count, "cores": count * flavor.vcpus, "ram": count * flavor.memory_mb}
            try:
                for limits, use in bounds:
                    self._check(limits, wanted, use)
            except QuotaExceeded:
                if count == low:
                    raise
            else:
                return count
        raise AssertionError("unreachable")

    def admit_change(self, tx: Tx, project_id: str, user_id: str, cores: int, ram: int) -> None:
        """The same for a resize by these differences."""
        tx.lock("quota", project_id)
        limits = self.limits(tx, project_id, user_id)
        wanted = {"instances": 0, "cores": max(0, cores), "ram": max(0, ram)}
        self._check(limits, wanted, store.used(tx, project_id))

    def _check(self, limits: dict[str, int], wanted: dict[str, int], used: tuple[int, int, int]) -> None:
        over = [
            (name, wanted[name], have, limits[name])
            for name, have in zip(PER_USER, used, strict=True)
            if wanted[name] and limits[name] >= 0 and have + wanted[name] > limits[name]
        ]
        if over:
            names = ", ".join(name for name, *_ in over)
            asked = ", ".join(str(asked) for _, asked, *_ in over)
            have = ", ".join(str(have) for _, _, have, _ in over)
            limit = ", ".join(str(limit) for *_, limit in over)
            raise QuotaExceeded(
                f"Quota exceeded for {names}: Requested {asked}, but already used {have} of {limit} {names}",
                over=[{"resource": n, "requested": r, "used": u, "limit": m} for n, r, u, m in over],
            )

    def admit_metadata(self, tx: Tx, project_id: str, count: int) -> None:
        if not count:
            return
        limit = self.limits(tx, project_id)["metadata_items"]
        if 0 <= limit < count:
            raise QuotaExceeded(f"Maximum number of metadata items exceeds {limit}")

    def admit_files(self, tx: Tx, project_id: str, files: list[tuple[str, bytes]]) -> None:
        if not files:
            return
        limits = self.limits(tx, project_id)
        if 0 <= limits["injected_files"] < len(files):
            raise QuotaExceeded("Personality file limit exceeded.")
        if any(0 <= limits["injected_file_path_bytes"] < len(path) for path, _ in files):
            raise QuotaExceeded("Personality file path exceeds maximum length.")
        if any(0 <= limits["injected_file_content_bytes"] < len(data) for _, data in files):
            raise QuotaExceeded("Personality file content exceeds maximum size.")

    def admit_keypair(self, tx: Tx, project_id: str | None, user_id: str) -> None:
        tx.lock("quota", f"user:{user_id}")
        limit = self.limits(tx, project_id or "", user_id)["key_pairs"]
        if 0 <= limit <= catalogue.keypairs_used(tx, user_id):
            raise QuotaExceeded("Quota exceeded, too many key pairs.")

    def admit_group(self, tx: Tx, project_id: str) -> None:
        tx.lock("quota", project_id)
        limit = self.limits(tx, project_id)["server_groups"]
        if 0 <= limit <= catalogue.groups_used(tx, project_id):
            raise QuotaExceeded("Quota exceeded, too many server groups.")

    def admit_members(self, tx: Tx, project_id: str, user_id: str, members: int, new: int) -> None:
        limit = self.limits(tx, project_id, user_id)["server_group_members"]
        if 0 <= limit < members + new:
            raise QuotaExceeded("Quota exceeded, too many servers in group")
