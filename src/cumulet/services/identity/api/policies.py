"""/v3/policies: documents that other services may keep here. Identity does not read them."""

from typing import Any

from msgspec import UNSET

from cumulet.db import Tx
from cumulet.http import Call, Route
from cumulet.kernel.ids import new_hex
from cumulet.services.identity import store
from cumulet.services.identity.api.support import collection, found, self_link, service_of
from cumulet.services.identity.schema import NewPolicy, PolicyChange, extra_of
from cumulet.services.identity.store import PolicyRow


def _view(call: Call, row: PolicyRow) -> dict[str, Any]:
    return {
        **row.extra,
        "id": row.id,
        "type": row.type,
        "blob": row.blob,
        "links": self_link(call, "policies", row.id),
    }


def _one(tx: Tx, call: Call) -> PolicyRow:
    id = call.params["policy_id"]
    return found(store.policies.get(tx, id), "policy", id)


def listing(call: Call) -> dict[str, Any]:
    rows = service_of(call).db.read(store.policies.list)
    return collection(call, "policies", [_view(call, row) for row in rows], exact=("type",))


def create(call: Call) -> dict[str, Any]:
    new: NewPolicy = call.body
    row = PolicyRow(new_hex(), new.type, new.blob, extra_of(call.document, NewPolicy))
    return {"policy": _view(call, service_of(call).db.write(lambda tx: store.policies.add(tx, row)))}


def show(call: Call) -> dict[str, Any]:
    return {"policy": _view(call, service_of(call).db.read(lambda tx: _one(tx, call)))}


def update(call: Call) -> dict[str, Any]:
    change: PolicyChange = call.body

    def work(tx: Tx) -> PolicyRow:
        store.lock(tx)
        row = _one(tx, call)
        if change.type is not UNSET:
            row.type = change.type
        if change.blob is not UNSET:
            row.blob = change.blob
        row.extra = {**row.extra, **extra_of(call.document, PolicyChange)}
        return store.policies.save(tx, row)

    return {"policy": _view(call, service_of(call).db.write(work))}


def delete(call: Call) -> None:
    service_of(call).db.write(lambda tx: store.policies.remove(tx, _one(tx, call).id))


_ONE = "/policies/{policy_id}"
ROUTES = [
    Route(method="GET", path="/policies", handler=listing, policy="identity:list_policies"),
    Route(method="POST", path="/policies", handler=create, body=NewPolicy, body_key="policy", success=201,
          policy="identity:create_policy"),
    Route(method="GET", path=_ONE, handler=show, policy="identity:get_policy"),
    Route(method="PATCH", path=_ONE, handler=update, body=PolicyChange, body_key="policy",
          policy="identity:update_policy"),
    Route(method="DELETE", path=_ONE, handler=delete, success=204, policy="identity:delete_policy"),
]  # fmt: skip
