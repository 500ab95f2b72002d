"""Subnet pools: ranges from which subnets are cut."""

import ipaddress
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, or_, select

from cumulet.db import Tx
from cumulet.kernel.context import RequestContext
from cumulet.kernel.ids import new_uuid
from cumulet.services.network import tables as t
from cumulet.services.network.faults import bad, conflict, invalid, missing
from cumulet.services.network.intake import Given
from cumulet.services.network.ipam import Network
from cumulet.services.network.noun import Noun, apply, plain
from cumulet.services.network.query import Condition
from cumulet.services.network.resources import SUBNETPOOL

if TYPE_CHECKING:
    from cumulet.services.network.work import Work

_CUT = select(t.SUBNETS.c.cidr, t.SUBNETS.c.project_id).where(t.SUBNETS.c.subnetpool_id == bindparam("pool_id"))
_DEFAULT = select(t.SUBNETPOOLS.c.id).where(
    t.SUBNETPOOLS.c.is_default.is_(True), t.SUBNETPOOLS.c.ip_version == bindparam("ip_version")
)


class SubnetPools(Noun[t.SubnetPoolRow]):
    resource = SUBNETPOOL
    row = t.SubnetPoolRow

    def scope(self, tx: Tx, ctx: RequestContext) -> list[Condition]:
        return [or_(t.SUBNETPOOLS.c.project_id == (ctx.project_id or ""), t.SUBNETPOOLS.c.shared.is_(True))]

    def views(self, tx: Tx, rows: Sequence[t.SubnetPoolRow]) -> list[dict[str, Any]]:
        tags = self.tags(tx, rows)
        return [
            {
                **self.standard(row),
                "name": row.name,
                "ip_version": row.ip_version,
                "prefixes": row.prefixes,
                "min_prefixlen": row.min_prefixlen,
                "default_prefixlen": row.default_prefixlen,
                "max_prefixlen": row.max_prefixlen,
                "default_quota": row.default_quota,
                "shared": row.shared,
                "is_default": row.is_default,
                "address_scope_id": None,
                "tags": tags.get(row.id, []),
            }
            for row in rows
        ]

    def create(self, work: "Work", items: list[Given]) -> list[t.SubnetPoolRow]:
        self.service.quotas.reserve(work.tx, "subnetpool", [g["project_id"] for g in items])
        return [self._new(work.tx, given) for given in items]

    def _new(self, tx: Tx, given: Given) -> t.SubnetPoolRow:
        prefixes = given["prefixes"]
        if not prefixes:
            raise bad("A subnet pool needs prefixes.", "EmptySubnetPoolPrefixList")
        version = _version(prefixes)
        longest = 32 if version == 4 else 128
        low = given["min_prefixlen"] if given.has("min_prefixlen") else (8 if version == 4 else 64)
        high = given["max_prefixlen"] if given.has("max_prefixlen") else longest
        row = t.SubnetPoolRow(
            id=new_uuid(),
            ip_version=version,
            prefixes=_compact(prefixes),
            min_prefixlen=low,
            max_prefixlen=high,
            default_prefixlen=given["default_prefixlen"] if given.has("default_prefixlen") else low,
            default_quota=given["default_quota"] if given.has("default_quota") else None,
            **plain(given, "project_id", "name", "description", "shared", "is_default"),
            **self.stamps(tx),
        )
        self._check(tx, row)
        tx.insert(t.SUBNETPOOLS, row.values())
        return row

    def _check(self, tx: Tx, row: t.SubnetPoolRow) -> None:
        longest = 32 if row.ip_version == 4 else 128
        if row.max_prefixlen > longest or row.min_prefixlen > longest or row.default_prefixlen > longest:
            raise bad(f"A prefix length is beyond {longest}.", "IllegalSubnetPoolPrefixBounds")
        if not row.min_prefixlen <= row.default_prefixlen <= row.max_prefixlen:
            raise bad(
                f"The prefix lengths min {row.min_prefixlen}, default {row.default_prefixlen} and max "
                f"{row.max_prefixlen} are not in order.",
                "IllegalSubnetPoolPrefixBounds",
            )
        if row.is_default:
            tx.lock("default-subnetpool", str(row.ip_version))
            other = tx.scalar(_DEFAULT, {"ip_version": row.ip_version})
            if other is not None and other != row.id:
                raise invalid(f"A default subnet pool for IPv{row.ip_version} is set already: {other}.")

    def update(self, work: "Work", row: t.SubnetPoolRow, given: Given) -> t.SubnetPoolRow:
        if "prefixes" in given:
            if not given["prefixes"] or _version(given["prefixes"]) != row.ip_version:
                raise bad("The prefixes are not of the pool's ip_version.", "PrefixVersionMismatch")
            wider = _compact([*row.prefixes, *given["prefixes"]])
            if wider != _compact(given["prefixes"]):
                raise bad("Prefixes cannot be taken from a subnet pool.", "IllegalSubnetPoolUpdate")
            row.prefixes = wider
        names = ("name", "description", "is_default", "min_prefixlen", "max_prefixlen", "default_prefixlen")
        apply(row, given, *names, "default_quota")
        self._check(work.tx, row)
        self.save(work.tx, row)
        return row

    def change_prefixes(self, tx: Tx, row: t.SubnetPoolRow, prefixes: list[str], *, add: bool) -> list[str]:
        if prefixes and _version(prefixes) != row.ip_version:
            raise bad("The prefixes are not of the pool's ip_version.", "PrefixVersionMismatch")
        if add:
            row.prefixes = _compact([*row.prefixes, *prefixes])
        else:
            left = list(map(ipaddress.ip_network, row.prefixes))
            for gone in map(ipaddress.ip_network, prefixes):
                left = [part for have in left for part in _without(have, gone)]
            for cut in tx.rows(_CUT, {"pool_id": row.id}):
                if not any(_contains(n, ipaddress.ip_network(cut.cidr)) for n in left):
                    raise conflict("IllegalSubnetPoolPrefixUpdate", f"Subnet {cut.cidr} is cut from these prefixes.")
            row.prefixes = _compact([str(n) for n in left])
        self.save(tx, row)
        return row.prefixes

    def delete(self, work: "Work", row: t.SubnetPoolRow) -> None:
        work.tx.lock("subnetpool", row.id)
        if work.tx.first(_CUT, {"pool_id": row.id}) is not None:
            raise conflict("SubnetPoolDeleteError", f"Subnet pool {row.id} has subnets allocated from it.")
        self.remove(work.tx, [row.id])

    # -- cutting subnets ----------------------------------------------------------------------------------------

    def pool_for(self, tx: Tx, given: Given) -> str | None:
        """The pool a new subnet is to be cut from, if any."""
        pool_id: str | None = given["subnetpool_id"] if given.has("subnetpool_id") else None
        if pool_id == "prefix_delegation":
            raise bad("Prefix delegation is not offered by this cloud.", "BadRequest")
        if given["use_default_subnetpool"]:
            if pool_id is not None:
                raise bad("subnetpool_id and use_default_subnetpool cannot both be given.", "BadRequest")
            pool_id = tx.scalar(_DEFAULT, {"ip_version": given["ip_version"]})
            if pool_id is None:
                raise bad("No default subnetpool found for this ip_version.", "BadRequest")
        return pool_id

    def allocate(self, work: "Work", pool_id: str, given: Given) -> Network:
        tx = work.tx
        pool = self.find(tx, pool_id, change=True)
        if pool is None or not (pool.shared or work.sees_all or pool.project_id == given["project_id"]):
            raise missing("SubnetPoolNotFound", "Subnet pool", pool_id)
        if pool.ip_version != given["ip_version"]:
            raise bad("The ip_version of the subnet and of its pool differ.", "BadRequest")
        tx.lock("subnetpool", pool_id)
        cut = tx.rows(_CUT, {"pool_id": pool_id})
        taken = [ipaddress.ip_network(row.cidr) for row in cut]
        wanted = given["cidr"] if given.has("cidr") else None
        length = ipaddress.ip_network(wanted).prefixlen if wanted is not None else pool.default_prefixlen
        if given.has("prefixlen"):
            if wanted is not None:
                raise bad("cidr and prefixlen cannot both be given.", "BadRequest")
            length = given["prefixlen"]
        if length < pool.min_prefixlen:
            raise bad(f"Prefix length {length} is below the pool's minimum.", "MinPrefixSubnetAllocationError")
        if length > pool.max_prefixlen:
            raise bad(f"Prefix length {length} is above the pool's maximum.", "MaxPrefixSubnetAllocationError")
        self._check_quota(
            pool, length, [n for n, row in zip(taken, cut, strict=True) if row.project_id == given["project_id"]]
        )
        if wanted is not None:
            found: Network = ipaddress.ip_network(wanted)
            inside = any(_contains(ipaddress.ip_network(p), found) for p in pool.prefixes)
            if inside and not any(found.overlaps(other) for other in taken):
                return found
            raise bad(f"Subnet {wanted} cannot be cut from pool {pool_id}.", "SubnetAllocationError")
        for prefix in pool.prefixes:
            free = _first_free(ipaddress.ip_network(prefix), length, taken)
            if free is not None:
                return free
        raise bad(f"Pool {pool_id} has no free /{length} left.", "SubnetAllocationError")

    def _check_quota(self, pool: t.SubnetPoolRow, length: int, mine: list[Network]) -> None:
        if pool.default_quota is None:
            return
        unit = 32 if pool.ip_version == 4 else 64
        used = sum(2 ** max(0, unit - n.prefixlen) for n in mine)
        if used + 2 ** max(0, unit - length) > pool.default_quota:
            raise conflict("SubnetPoolQuotaExceeded", "The quota of prefixes in this pool is exceeded.")


def _version(prefixes: list[str]) -> int:
    versions = {ipaddress.ip_network(prefix).version for prefix in prefixes}
    if len(versions) > 1:
        raise bad("Prefixes of both IP versions cannot be in one pool.", "PrefixVersionMismatch")
    return versions.pop()


def _compact(prefixes: list[str]) -> list[str]:
    return [str(n) for n in ipaddress.collapse_addresses(ipaddress.ip_network(p) for p in prefixes)]  # type: ignore[type-var]


def _contains(outer: Network, inner: Network) -> bool:
    return outer.version == inner.version and inner.subnet_of(outer)  # type: ignore[arg-type]


def _without(have: Network, gone: Network) -> list[Network]:
    if _contains(gone, have):
        return []
    return list(have.address_exclude(gone)) if _contains(have, gone) else [have]  # type: ignore[arg-type]


def _first_free(prefix: Network, length: int, taken: list[Network]) -> Network | None:
    """The lowest subnet of that length in the prefix that overlaps none of the taken ones."""
    if length < prefix.prefixlen:
        return None
    at, end = int(prefix.network_address), int(prefix.broadcast_address)
    size = 2 ** (prefix.max_prefixlen - length)
    spans: Iterator[tuple[int, int]] = iter(
        sorted((int(n.network_address), int(n.broadcast_address)) for n in taken if n.overlaps(prefix))
    )
    span = next(spans, None)
    while at + size - 1 <= end:
        while span is not None and span[1] < at:
            span = next(spans, None)
        if span is None or span[0] > at + size - 1:
            return type(prefix)((at, length))
        at = -(-(span[1] + 1) // size) * size
    return None
