"""Inventories and usages of one provider."""

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, UnsetType

from cumulet.db import Tx
from cumulet.http import Call, Reply, Route
from cumulet.kernel.errors import CloudError, NotFound
from cumulet.services.placement import editing, store
from cumulet.services.placement.api import common
from cumulet.services.placement.api.common import MAX_INT, ClassName, Count, Positive, body, since
from cumulet.services.placement.store import InventoryRow, ProviderRow

Ratio = Annotated[float, msgspec.Meta(ge=0, le=3.40282e38)]


class InventoryBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    total: Positive
    reserved: Count = 0
    min_unit: Positive = 1
    max_unit: Positive = MAX_INT
    step_size: Positive = 1
    allocation_ratio: Ratio = 1.0
    resource_provider_generation: int | UnsetType = UNSET

    def row(self, tx: Tx, uuid: str, name: str) -> InventoryRow:
        return InventoryRow(
            uuid, name, self.total, self.reserved, self.min_unit, self.max_unit, self.step_size,
            self.allocation_ratio, tx.now,
        )  # fmt: skip


class NewInventory(InventoryBody, forbid_unknown_fields=True, kw_only=True):
    resource_class: ClassName


class OneInventory(InventoryBody, forbid_unknown_fields=True, kw_only=True):
    resource_provider_generation: int


class InventoriesBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    resource_provider_generation: int
    inventories: dict[ClassName, InventoryBody]


def facts(row: InventoryRow) -> dict[str, Any]:
    return {
        "total": row.total, "reserved": row.reserved, "min_unit": row.min_unit, "max_unit": row.max_unit,
        "step_size": row.step_size, "allocation_ratio": row.allocation_ratio,
    }  # fmt: skip


def _all(call: Call, provider: ProviderRow, rows: dict[str, InventoryRow]) -> Reply:
    result = {
        "resource_provider_generation": provider.generation,
        "inventories": {name: facts(row) for name, row in rows.items()},
    }
    return body(call, result, max((row.updated_at for row in rows.values()), default=provider.updated_at))


def listing(call: Call) -> Reply:
    def work(tx: Tx) -> tuple[ProviderRow, dict[str, InventoryRow]]:
        provider = editing.provider(tx, common.path_uuid(call))
        return provider, store.inventories(tx, provider.uuid)

    return _all(call, *call.service.db.read(work))


def show(call: Call) -> Reply:
    name = call.params["resource_class"]

    def work(tx: Tx) -> tuple[ProviderRow, InventoryRow]:
        provider = editing.provider(tx, common.path_uuid(call))
        found = store.inventories(tx, provider.uuid).get(name)
        if found is None:
            raise NotFound(f"No inventory of class {name} for {provider.uuid}.")
        return provider, found

    provider, row = call.service.db.read(work)
    return body(call, {"resource_provider_generation": provider.generation, **facts(row)}, row.updated_at)


def create(call: Call) -> Reply:
    given: NewInventory = call.body
    uuid = common.path_uuid(call)

    def work(tx: Tx) -> tuple[ProviderRow, InventoryRow]:
        row = given.row(tx, uuid, given.resource_class)
        editing.provider(tx, uuid)
        editing.check_inventories(tx, [row], full_reserve=since(call, 26))
        generation = common.present(given.resource_provider_generation)
        return editing.set_inventory(tx, uuid, generation, row, new=True), row

    provider, row = call.service.db.write(work)
    where = common.location(call, f"/resource_providers/{uuid}/inventories/{row.resource_class}")
    result = {"resource_provider_generation": provider.generation, **facts(row)}
    return body(call, result, row.updated_at, status=201, location=where)


def update(call: Call) -> Reply:
    given: OneInventory = call.body
    uuid, name = common.path_uuid(call), call.params["resource_class"]

    def work(tx: Tx) -> tuple[ProviderRow, InventoryRow]:
        row = given.row(tx, uuid, name)
        editing.provider(tx, uuid)
        editing.check_inventories(tx, [row], full_reserve=since(call, 26))
        return editing.set_inventory(tx, uuid, given.resource_provider_generation, row, new=False), row

    provider, row = call.service.db.write(work)
    return body(call, {"resource_provider_generation": provider.generation, **facts(row)}, row.updated_at)


def replace(call: Call) -> Reply:
    given: InventoriesBody = call.body
    uuid = common.path_uuid(call)

    def work(tx: Tx) -> tuple[ProviderRow, dict[str, InventoryRow]]:
        rows = {name: one.row(tx, uuid, name) for name, one in given.inventories.items()}
        editing.at_generation(tx, uuid, given.resource_provider_generation)
        editing.check_inventories(tx, rows.values(), full_reserve=since(call, 26))
        return editing.set_inventories(tx, uuid, None, rows), rows

    return _all(call, *call.service.db.write(work))


def delete(call: Call) -> Reply:
    uuid, name = common.path_uuid(call), call.params["resource_class"]
    call.service.db.write(lambda tx: editing.drop_inventory(tx, uuid, name))
    return common.plain(call)


def delete_all(call: Call) -> Reply:
    if not since(call, 5):
        raise CloudError(
            "The method DELETE is not allowed for this resource.", status=405, headers={"allow": "GET, POST, PUT"}
        )
    call.service.db.write(lambda tx: editing.set_inventories(tx, common.path_uuid(call), None, {}))
    return common.plain(call)


def usages(call: Call) -> Reply:
    def work(tx: Tx) -> tuple[ProviderRow, dict[str, int]]:
        provider = editing.provider(tx, common.path_uuid(call))
        used = store.usage(tx, provider.uuid)
        return provider, {name: used.get(name, 0) for name in store.inventories(tx, provider.uuid)}

    provider, used = call.service.db.read(work)
    return body(call, {"resource_provider_generation": provider.generation, "usages": used})


_P = "placement:resource_providers:inventories:"
_ALL = "/resource_providers/{uuid}/inventories"
_ONE = _ALL + "/{resource_class}"
ROUTES = [
    Route(method="GET", path=_ALL, handler=listing, policy=_P + "list"),
    Route(method="POST", path=_ALL, handler=create, policy=_P + "create", body=NewInventory, success=201),
    Route(method="PUT", path=_ALL, handler=replace, policy=_P + "update", body=InventoriesBody),
    Route(method="DELETE", path=_ALL, handler=delete_all, policy=_P + "delete", success=204),
    Route(method="GET", path=_ONE, handler=show, policy=_P + "show"),
    Route(method="PUT", path=_ONE, handler=update, policy=_P + "update", body=OneInventory),
    Route(method="DELETE", path=_ONE, handler=delete, policy=_P + "delete", success=204),
    Route(
        method="GET", path="/resource_providers/{uuid}/usages", handler=usages,
        policy="placement:resource_providers:usages",
    ),
]  # fmt: skip
