"""QoS specs, and the volume types they go with."""

from typing import Any

from sqlalchemy import update as sql_update

from cumulet.db import Tx
from cumulet.http import Call, Reply, Route, page_of, paged_in_memory
from cumulet.kernel.errors import BadInput, Conflict, NotFound
from cumulet.kernel.ids import new_uuid
from cumulet.services.volume import store
from cumulet.services.volume.api.common import Name, boolean
from cumulet.services.volume.store import QosRow, TypeRow
from cumulet.services.volume.tables import TYPES


def _qos_view(row: QosRow) -> dict[str, Any]:
    return {"id": row.id, "name": row.name, "consumer": row.consumer, "specs": row.specs}


def _qos_link(call: Call, row: QosRow) -> list[dict[str, str]]:
    return [{"rel": "self", "href": f"{call.url_base}/qos-specs/{row.id}"}]


def _qos(tx: Tx, call: Call) -> QosRow:
    row = store.QOS.find(tx, call.params["id"], change=True)
    if row is None:
        raise NotFound(f"No such QoS spec {call.params['id']}.")
    return row


def _split(given: dict[str, Any]) -> tuple[str | None, dict[str, str]]:
    specs = {}
    for key, value in given.items():
        if not isinstance(value, (str, type(None))) or len(value or "") > 255 or len(key) > 255 or not key:
            raise BadInput(f"Invalid input for field {key!r}.")
        specs[key] = value or ""
    consumer = specs.pop("consumer", None)
    if consumer is not None and consumer not in ("front-end", "back-end", "both"):
        raise BadInput("Valid consumer of QoS specs are: ['front-end', 'back-end', 'both']")
    return consumer, specs


def list_qos(call: Call) -> dict[str, Any]:
    page = page_of(call.query, sort_keys=("id", "name", "created_at"))
    rows = call.service.db.read(lambda tx: store.QOS.where(tx))
    missing = NotFound(f"No such QoS spec {page.marker}.")
    rows = paged_in_memory(rows, page, key=lambda row, field: getattr(row, field), marker_missing=missing)
    return {"qos_specs": [_qos_view(row) for row in rows]}


def create_qos(call: Call) -> dict[str, Any]:
    given = dict(call.body)
    name = given.pop("name", None)
    if not isinstance(name, str) or not 1 <= len(name.strip()) <= 255:
        raise BadInput("Invalid input for field 'name'.")
    name = name.strip()
    consumer, specs = _split(given)

    def work(tx: Tx) -> QosRow:
        tx.lock("qos", name)
        if any(row.name == name for row in store.QOS.where(tx)):
            raise Conflict(f"QoS Specs {name} already exists.")
        return store.QOS.insert(tx, QosRow(new_uuid(), name, consumer or "back-end", specs, tx.now))

    row = call.service.db.write(work)
    return {"qos_specs": _qos_view(row), "links": _qos_link(call, row)}


def show_qos(call: Call) -> dict[str, Any]:
    row = call.service.db.read(lambda tx: _qos(tx, call))
    return {"qos_specs": _qos_view(row), "links": _qos_link(call, row)}


def update_qos(call: Call) -> dict[str, Any]:
    consumer, specs = _split(dict(call.body))

    def work(tx: Tx) -> None:
        row = _qos(tx, call)
        store.QOS.change(tx, row.id, specs={**row.specs, **specs}, consumer=consumer or row.consumer)

    call.service.db.write(work)
    return {"qos_specs": call.body}


def delete_qos_keys(call: Call) -> Reply:
    keys = call.body

    def work(tx: Tx) -> None:
        row = _qos(tx, call)
        for key in keys:
            if key not in row.specs:
                raise BadInput(f"QoS spec {row.id} has no spec with key {key}.")
        store.QOS.change(tx, row.id, specs={k: v for k, v in row.specs.items() if k not in keys})

    call.service.db.write(work)
    return Reply(status=202)


def _associated(tx: Tx, row: QosRow) -> list[TypeRow]:
    return store.TYPES.where(tx, TYPES.c.qos_specs_id == row.id)


def delete_qos(call: Call) -> Reply:
    force = boolean(call.query.get("force") or "false", "force")

    def work(tx: Tx) -> None:
        row = _qos(tx, call)
        if _associated(tx, row) and not force:
            raise BadInput(f"QoS Specs {row.id} is still associated with entities.")
        tx.run(sql_update(TYPES).where(TYPES.c.qos_specs_id == row.id).values(qos_specs_id=None))
        store.QOS.remove(tx, row.id)

    call.service.db.write(work)
    return Reply(status=202)


def qos_associations(call: Call) -> dict[str, Any]:
    rows = call.service.db.read(lambda tx: _associated(tx, _qos(tx, call)))
    return {"qos_associations": [{"association_type": "volume_type", "name": r.name, "id": r.id} for r in rows]}


def associate_qos(call: Call) -> Reply:
    return _set_qos(call, True)


def disassociate_qos(call: Call) -> Reply:
    return _set_qos(call, False)


def _set_qos(call: Call, associate: bool) -> Reply:
    type_id = call.query.get("vol_type_id")
    if not type_id:
        raise BadInput("Volume Type id must not be None.")

    def work(tx: Tx) -> None:
        row = _qos(tx, call)
        kind = store.TYPES.find(tx, type_id, change=True)
        if kind is None:
            raise NotFound(f"Volume type {type_id} could not be found.")
        if associate and kind.qos_specs_id not in (None, row.id):
            raise BadInput(f"Type {kind.id} is already associated with another qos specs: {kind.qos_specs_id}")
        store.TYPES.change(tx, kind.id, qos_specs_id=row.id if associate else None)

    call.service.db.write(work)
    return Reply(status=202)


def disassociate_all_qos(call: Call) -> Reply:
    def work(tx: Tx) -> None:
        row = _qos(tx, call)
        tx.run(sql_update(TYPES).where(TYPES.c.qos_specs_id == row.id).values(qos_specs_id=None))

    call.service.db.write(work)
    return Reply(status=202)


_QOS = "/qos-specs/{id}"
_P = "volume_extension:"
ROUTES = [
    Route(method="GET", path="/qos-specs", handler=list_qos, policy=_P + "qos_specs_manage:get_all"),
    Route(
        method="POST",
        path="/qos-specs",
        handler=create_qos,
        policy=_P + "qos_specs_manage:create",
        body=dict[str, Any],
        body_key="qos_specs",
    ),
    Route(method="GET", path=_QOS, handler=show_qos, policy=_P + "qos_specs_manage:get"),
    Route(
        method="PUT",
        path=_QOS,
        handler=update_qos,
        policy=_P + "qos_specs_manage:update",
        body=dict[str, Any],
        body_key="qos_specs",
    ),
    Route(method="DELETE", path=_QOS, handler=delete_qos, policy=_P + "qos_specs_manage:delete", success=202),
    Route(
        method="PUT",
        path=_QOS + "/delete_keys",
        handler=delete_qos_keys,
        policy=_P + "qos_specs_manage:delete",
        body=list[Name],
        body_key="keys",
        success=202,
    ),
    Route(method="GET", path=_QOS + "/associations", handler=qos_associations, policy=_P + "qos_specs_manage:get_all"),
    Route(
        method="GET",
        path=_QOS + "/associate",
        handler=associate_qos,
        policy=_P + "qos_specs_manage:update",
        success=202,
    ),
    Route(
        method="GET",
        path=_QOS + "/disassociate",
        handler=disassociate_qos,
        policy=_P + "qos_specs_manage:update",
        success=202,
    ),
    Route(
        method="GET",
        path=_QOS + "/disassociate_all",
        handler=disassociate_all_qos,
        policy=_P + "qos_specs_manage:update",
        success=202,
    ),
]
