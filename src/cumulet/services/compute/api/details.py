"""Sub-resources of a server: metadata, tags, addresses, security groups, actions, diagnostics, password, topology."""

from typing import Any

from cumulet.agent.contract import Diagnostics
from cumulet.db import Tx
from cumulet.http import Call, Reply, Route, next_links
from cumulet.kernel.clock import iso
from cumulet.kernel.errors import BadInput, Conflict, NotFound
from cumulet.services.compute import rules, schema, store
from cumulet.services.compute.api.common import (
    cut,
    load,
    load_unlocked,
    marker_missing,
    only_query,
    page_of,
    service_of,
    target,
    time_of,
    version_of,
)
from cumulet.services.compute.rows import ActionRow, ServerRow
from cumulet.services.compute.views import addresses, host_id

_META = "os_compute_api:server-metadata:"
_TAGS = "os_compute_api:os-server-tags:"
_MAX_TAGS = 50


# -- metadata -------------------------------------------------------------------------------------------------------


def metadata_index(call: Call) -> dict[str, Any]:
    row = service_of(call).db.read(lambda tx: load(call, tx, _META + "index"))
    return {"metadata": row.metadata}


def metadata_show(call: Call) -> dict[str, Any]:
    row = service_of(call).db.read(lambda tx: load(call, tx, _META + "show"))
    key = call.params["key"]
    if key not in row.metadata:
        raise NotFound("Metadata item was not found")
    return {"meta": {key: row.metadata[key]}}


def _set_metadata(call: Call, rule: str, new: dict[str, str], *, replace: bool) -> dict[str, str]:
    service = service_of(call)

    def work(tx: Tx) -> dict[str, str]:
        row = load_unlocked(call, tx, _META + rule)
        rules.check_state(row, "update_instance_metadata", "update metadata")
        whole = new if replace else {**row.metadata, **new}
        service.quotas.admit_metadata(tx, row.project_id, len(whole))
        service.changed(tx, row, metadata=whole)
        return whole

    return service.db.write(work)


def metadata_create(call: Call) -> dict[str, Any]:
    return {"metadata": _set_metadata(call, "create", call.body.metadata, replace=False)}


def metadata_replace(call: Call) -> dict[str, Any]:
    return {"metadata": _set_metadata(call, "update_all", call.body.metadata, replace=True)}


def metadata_update(call: Call) -> dict[str, Any]:
    body: schema.MetaBody = call.body
    key = call.params["key"]
    if len(body.meta) != 1:
        raise BadInput("Request body contains too many items" if body.meta else "Request body and URI mismatch")
    if key not in body.meta:
        raise BadInput("Request body and URI mismatch")
    _set_metadata(call, "update", body.meta, replace=False)
    return {"meta": body.meta}


def metadata_delete(call: Call) -> None:
    key = call.params["key"]

    def work(tx: Tx) -> None:
        row = load_unlocked(call, tx, _META + "delete")
        if key not in row.metadata:
            raise NotFound("Metadata item was not found")
        rules.check_state(row, "delete_instance_metadata", "delete metadata")
        left = {name: value for name, value in row.metadata.items() if name != key}
        service_of(call).changed(tx, row, metadata=left)

    service_of(call).db.write(work)


# -- tags -----------------------------------------------------------------------------------------------------------


def _check_tag_state(row: ServerRow) -> None:
    if row.vm_state not in ("active", "paused", "suspended", "stopped"):
        raise Conflict(f"Cannot 'update tags' instance {row.id} while it is in vm_state {row.vm_state}")


def tags_index(call: Call) -> dict[str, Any]:
    def work(tx: Tx) -> list[str]:
        row = load(call, tx, _TAGS + "index")
        return store.tags(tx, [row.id]).get(row.id, [])

    return {"tags": service_of(call).db.read(work)}


def tags_replace(call: Call) -> dict[str, Any]:
    body: schema.TagsBody = call.body
    new = sorted(set(body.tags))

    def work(tx: Tx) -> None:
        row = load(call, tx, _TAGS + "update_all")
        _check_tag_state(row)
        store.delete_tags(tx, row.id)
        store.add_tags(tx, [row.id], new)
        store.update_server(tx, row.id)

    service_of(call).db.write(work)
    return {"tags": new}


def tags_clear(call: Call) -> None:
    def work(tx: Tx) -> None:
        row = load(call, tx, _TAGS + "delete_all")
        _check_tag_state(row)
        store.delete_tags(tx, row.id)
        store.update_server(tx, row.id)

    service_of(call).db.write(work)


def _tag_missing(row: ServerRow, tag: str) -> NotFound:
    return NotFound(f"Server {row.id} has no tag '{tag}'")


def tag_show(call: Call) -> None:
    def work(tx: Tx) -> None:
        row = load(call, tx, _TAGS + "show")
        if call.params["tag"] not in store.tags(tx, [row.id]).get(row.id, []):
            raise _tag_missing(row, call.params["tag"])

    service_of(call).db.read(work)


def tag_add(call: Call) -> Reply:
    tag = call.params["tag"]
    if not 1 <= len(tag) <= 60:
        raise BadInput(f"Invalid input for field/attribute tag. Value: {tag}. '{tag}' is too long")
    if set(tag) & set(",/"):
        raise BadInput(f"Invalid input for field/attribute tag. Value: {tag}. '{tag}' does not match '^[^,/]*$'")

    def work(tx: Tx) -> bool:
        row = load(call, tx, _TAGS + "update")
        _check_tag_state(row)
        have = store.tags(tx, [row.id]).get(row.id, [])
        if tag in have:
            return False
        if len(have) >= _MAX_TAGS:
            raise BadInput(f"The number of tags exceeded the per-server limit {_MAX_TAGS}")
        store.add_tags(tx, [row.id], [tag])
        store.update_server(tx, row.id)
        return True

    if not service_of(call).db.write(work):
        return Reply(status=204)
    return Reply(status=201, headers={"location": f"{call.url_base}/servers/{call.params['server_id']}/tags/{tag}"})


def tag_delete(call: Call) -> None:
    tag = call.params["tag"]

    def work(tx: Tx) -> None:
        row = load(call, tx, _TAGS + "delete")
        _check_tag_state(row)
        if not store.delete_tag(tx, row.id, tag):
            raise _tag_missing(row, tag)
        store.update_server(tx, row.id)

    service_of(call).db.write(work)


# -- addresses and security groups ------------------------------------------------------------------------------------


def _addresses(call: Call, rule: str) -> dict[str, Any]:
    def work(tx: Tx) -> dict[str, Any]:
        row = load(call, tx, rule)
        return addresses(service_of(call).parts.network.addresses(tx, [row.id]).get(row.id, []), whole=False)

    return service_of(call).db.read(work)


def ips_index(call: Call) -> dict[str, Any]:
    return {"addresses": _addresses(call, "os_compute_api:ips:index")}


def ips_show(call: Call) -> dict[str, Any]:
    label = call.params["label"]
    found = _addresses(call, "os_compute_api:ips:show")
    if label not in found:
        raise NotFound("Instance is not a member of specified network")
    return {label: found[label]}


def security_groups(call: Call) -> dict[str, Any]:
    def work(tx: Tx) -> list[dict[str, Any]]:
        row = load(call, tx, "os_compute_api:os-security-groups:list")
        groups = service_of(call).parts.network.security_groups_of(tx, [row.id]).get(row.id, [])
        seen = {group.id: group for group in groups}
        return [
            {"id": group.id, "name": group.name, "description": "", "tenant_id": row.project_id, "rules": []}
            for group in seen.values()
        ]

    return {"security_groups": service_of(call).db.read(work)}


# -- actions ----------------------------------------------------------------------------------------------------------


def _action_server(call: Call, tx: Tx, rule: str) -> str:
    """From 2.21 on the actions of deleted servers can be read too."""
    server_id = call.params["server_id"]
    if version_of(call) >= (2, 21):
        row = store.server(tx, server_id)
        if row is None or (row.project_id != call.ctx.project_id and not call.ctx.is_admin):
            raise NotFound(f"Instance {server_id} could not be found.")
        call.authorize(rule, target(row))
        return row.id
    return load(call, tx, rule).id


def _merged(rows: list[ActionRow]) -> list[ActionRow]:
    seen: dict[str, ActionRow] = {}
    for row in rows:
        seen.setdefault(row.request_id, row)
    return list(seen.values())


def _action_view(call: Call, row: ActionRow, history: dict[str, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "action": row.action,
        "instance_uuid": row.server_id,
        "request_id": row.request_id,
        "user_id": row.user_id,
        "project_id": row.project_id,
        "start_time": iso(row.started_at, zone="", micros=True),
        "message": None,
    }
    saga = history.get(row.saga_id)
    if saga is not None and saga.saga.status == "failed":
        shown["message"] = "Error"
    if version_of(call) >= (2, 58):
        updated = saga.saga.updated_at if saga is not None else row.started_at
        shown["updated_at"] = iso(updated, zone="", micros=True)
    return shown


def _history(call: Call, tx: Tx, rows: list[ActionRow], server_id: str) -> dict[str, Any]:
    """The sagas behind these actions, by id."""
    return {one.saga.id: one for one in service_of(call).history(tx, server_id, rows)}


def actions_index(call: Call) -> dict[str, Any]:
    if version_of(call) >= (2, 58):
        only_query(call, ["limit", "marker", "changes-since", "changes-before"], (2, 58))
    bounds = {name: time_of(call, name, (2, 58)) for name in ("changes-since", "changes-before")}

    def work(tx: Tx) -> tuple[list[dict[str, Any]], list[str]]:
        server_id = _action_server(call, tx, "os_compute_api:os-instance-actions:list")
        rows = _merged(store.actions(tx, server_id))
        history = _history(call, tx, rows, server_id)
        since, before = bounds["changes-since"], bounds["changes-before"]
        rows = [row for row in rows if _within(row, history, since, before)]
        if version_of(call) >= (2, 58):
            rows = cut(rows, page_of(call), lambda row: row.request_id, marker_missing)
        return [_action_view(call, row, history) for row in rows], [row.request_id for row in rows]

    shown, ids = service_of(call).db.read(work)
    body: dict[str, Any] = {"instanceActions": shown}
    if version_of(call) >= (2, 58):
        path = f"/servers/{call.params['server_id']}/os-instance-actions"
        links = next_links(call, path, ids, page_of(call))
        if links:
            body["links"] = links
    return body


def _within(row: ActionRow, history: dict[str, Any], since: int | None, before: int | None) -> bool:
    saga = history.get(row.saga_id)
    updated = saga.saga.updated_at if saga is not None else row.started_at
    return (since is None or updated >= since) and (before is None or updated <= before)


def actions_show(call: Call) -> dict[str, Any]:
    request_id = call.params["request_id"]

    def work(tx: Tx) -> dict[str, Any]:
        server_id = _action_server(call, tx, "os_compute_api:os-instance-actions:show")
        rows = [row for row in store.actions(tx, server_id) if row.request_id == request_id]
        if not rows:
            raise NotFound(f"Action for request_id {request_id} on instance {server_id} not found")
        history = _history(call, tx, rows, server_id)
        shown = _action_view(call, rows[0], history)
        server = store.server(tx, server_id)
        whole = call.allowed("os_compute_api:os-instance-actions:events")
        if whole or version_of(call) >= (2, 51):
            shown["events"] = [_event(call, event, server, whole=whole) for event in _events(history, request_id)]
        return shown

    return {"instanceAction": service_of(call).db.read(work)}


def _events(history: dict[str, Any], request_id: str) -> list[dict[str, Any]]:
    """Steps with an event's name, put together: from the first one's start to the last one's end."""
    events: dict[tuple[str, str], dict[str, Any]] = {}
    for item in history.values():
        if item.saga.request_id != request_id:
            continue
        for step in item.steps:
            name = item.events.get(step.name)
            if name is None:
                continue
            event = events.setdefault(
                (item.saga.id, name),
                {"event": name, "start": step.started_at, "end": None, "result": None, "host": None, "error": None},
            )
            event["start"] = min(event["start"], step.started_at)
            event["host"] = step.host or event["host"]
            if step.state == "failed":
                event.update(result="Error", error=step.error, end=step.ended_at)
            elif item.saga.status in ("finished", "failed") or step.ended_at:
                event["end"] = max(event["end"] or 0, step.ended_at)
                event["result"] = event["result"] or "Success"
            if step.state == "running":
                event.update(end=None, result=None)
    return sorted(events.values(), key=lambda event: event["start"], reverse=True)


def _event(call: Call, event: dict[str, Any], server: ServerRow | None, *, whole: bool) -> dict[str, Any]:
    version = version_of(call)
    shown: dict[str, Any] = {
        "event": event["event"],
        "start_time": iso(event["start"], zone="", micros=True),
        "finish_time": iso(event["end"], zone="", micros=True),
        "result": event["result"],
    }
    if whole:
        shown["traceback"] = event["error"]
    if version >= (2, 62):
        host = event["host"]
        project = server.project_id if server is not None else ""
        shown["hostId"] = host_id(project, host) if host else ""
        if call.ctx.is_admin:
            shown["host"] = host
    if version >= (2, 84) and call.allowed("os_compute_api:os-instance-actions:events:details"):
        shown["details"] = event["error"]
    return shown


# -- guest ------------------------------------------------------------------------------------------------------------


def diagnostics(call: Call) -> dict[str, Any]:
    def work(tx: Tx) -> ServerRow:
        row = load(call, tx, "os_compute_api:os-server-diagnostics")
        rules.check_state(row, "get_diagnostics")
        return row

    row = service_of(call).db.read(work)
    rules.check_host(row)
    assert row.host is not None
    answer = service_of(call).parts.ask(row.host, Diagnostics(server_id=row.id, instance_name=row.instance_name))
    if answer.error is not None:
        raise Conflict(f"Unable to get diagnostics: {answer.error}")
    data: dict[str, Any] = answer.data or {}
    if version_of(call) >= (2, 48):
        return data
    flat: dict[str, Any] = {f"cpu{n}_time": cpu.get("time") for n, cpu in enumerate(data.get("cpu_details", []))}
    memory = data.get("memory_details", {})
    flat["memory"] = memory.get("maximum")
    for n, disk in enumerate(data.get("disk_details", [])):
        letter = chr(ord("a") + n)
        flat.update(
            {
                f"vd{letter}_read_req": disk.get("read_requests"),
                f"vd{letter}_read": disk.get("read_bytes"),
                f"vd{letter}_write_req": disk.get("write_requests"),
                f"vd{letter}_write": disk.get("write_bytes"),
                f"vd{letter}_errors": disk.get("errors_count"),
            }
        )
    return flat


def password_show(call: Call) -> dict[str, Any]:
    row = service_of(call).db.read(lambda tx: load(call, tx, "os_compute_api:os-server-password:show"))
    return {"password": row.password or ""}


def password_clear(call: Call) -> None:
    def work(tx: Tx) -> None:
        row = load(call, tx, "os_compute_api:os-server-password:clear")
        service_of(call).changed(tx, row, password=None)

    service_of(call).db.write(work)


def topology(call: Call) -> dict[str, Any]:
    row = service_of(call).db.read(lambda tx: load(call, tx, "compute:server:topology:index"))
    del row
    return {"nodes": [], "pagesize_kb": None}


_S = "/servers/{server_id}"
ROUTES = [
    Route(method="GET", path=_S + "/metadata", handler=metadata_index),
    Route(method="POST", path=_S + "/metadata", handler=metadata_create, body=schema.MetadataBody),
    Route(method="PUT", path=_S + "/metadata", handler=metadata_replace, body=schema.MetadataBody),
    Route(method="GET", path=_S + "/metadata/{key}", handler=metadata_show),
    Route(method="PUT", path=_S + "/metadata/{key}", handler=metadata_update, body=schema.MetaBody),
    Route(method="DELETE", path=_S + "/metadata/{key}", handler=metadata_delete, success=204),
    Route(method="GET", path=_S + "/tags", handler=tags_index, min_version="2.26"),
    Route(method="PUT", path=_S + "/tags", handler=tags_replace, body=schema.TagsBody, min_version="2.26"),
    Route(method="DELETE", path=_S + "/tags", handler=tags_clear, success=204, min_version="2.26"),
    Route(method="GET", path=_S + "/tags/{tag}", handler=tag_show, success=204, min_version="2.26"),
    Route(method="PUT", path=_S + "/tags/{tag}", handler=tag_add, success=201, statuses=(204,), min_version="2.26"),
    Route(method="DELETE", path=_S + "/tags/{tag}", handler=tag_delete, success=204, min_version="2.26"),
    Route(method="GET", path=_S + "/ips", handler=ips_index),
    Route(method="GET", path=_S + "/ips/{label}", handler=ips_show),
    Route(method="GET", path=_S + "/os-security-groups", handler=security_groups),
    Route(method="GET", path=_S + "/os-instance-actions", handler=actions_index),
    Route(method="GET", path=_S + "/os-instance-actions/{request_id}", handler=actions_show),
    Route(method="GET", path=_S + "/diagnostics", handler=diagnostics),
    Route(method="GET", path=_S + "/os-server-password", handler=password_show),
    Route(method="DELETE", path=_S + "/os-server-password", handler=password_clear, success=204),
    Route(method="GET", path=_S + "/topology", handler=topology, min_version="2.78"),
]
