"""POST /servers/{id}/action: what is done to one server."""

from collections.abc import Callable
from typing import Any

from msgspec import UNSET

from cumulet.agent.contract import ConsoleLog
from cumulet.db import Tx
from cumulet.http import Call, Reply, Route
from cumulet.kernel.errors import BadInput, Conflict, Forbidden, NotFound
from cumulet.services.compute import catalogue, rules, schema, state, store
from cumulet.services.compute.api.common import load, load_unlocked, service_of, target, version_of
from cumulet.services.compute.intake import new_password
from cumulet.services.compute.views import ServerViews
from cumulet.services.compute.workflows.guest import PasswordParams, RebuildParams, SnapshotParams

PATH = "/servers/{server_id}/action"


def _power(name: str, rule: str) -> Callable[[Call], None]:
    def handler(call: Call) -> None:
        def work(tx: Tx) -> None:
            server = load_unlocked(call, tx, rule)
            service_of(call).power_action(tx, call.ctx, server, name)

        service_of(call).db.write(work)

    return handler


def reboot(call: Call) -> None:
    body: schema.Reboot = call.body

    def work(tx: Tx) -> None:
        server = load_unlocked(call, tx, "os_compute_api:servers:reboot")
        hard = body.type.upper() == "HARD"
        service_of(call).power_action(tx, call.ctx, server, "hard_reboot" if hard else "soft_reboot")

    service_of(call).db.write(work)


def lock(call: Call) -> None:
    body = call.body if version_of(call) >= (2, 73) else None

    def work(tx: Tx) -> None:
        server = load(call, tx, "os_compute_api:os-lock-server:lock")
        owner = server.project_id == call.ctx.project_id
        if server.locked and owner:
            return
        service = service_of(call)
        reason = body.locked_reason if body is not None else None
        store.update_server(tx, server.id, locked=True, locked_by="owner" if owner else "admin", locked_reason=reason)
        service.note(tx, server.id, "lock", call.ctx)

    service_of(call).db.write(work)


def unlock(call: Call) -> None:
    def work(tx: Tx) -> None:
        server = load(call, tx, "os_compute_api:os-lock-server:unlock")
        expected = "owner" if server.project_id == call.ctx.project_id else "admin"
        if server.locked_by is not None and server.locked_by != expected:
            call.authorize("os_compute_api:os-lock-server:unlock:unlock_override", target(server))
        store.update_server(tx, server.id, locked=False, locked_by=None, locked_reason=None)
        service_of(call).note(tx, server.id, "unlock", call.ctx)

    service_of(call).db.write(work)


def reset_state(call: Call) -> None:
    body: schema.ResetState = call.body

    def work(tx: Tx) -> None:
        server = load(call, tx, "os_compute_api:os-admin-actions:reset_state")
        launched = server.launched_at or tx.now
        if body.state == "active":
            store.update_server(tx, server.id, goal="active", failed=False, launched_at=launched)
        else:
            store.update_server(tx, server.id, failed=True)
        state.settle(tx, server.id, None)
        service_of(call).note(tx, server.id, "resetState", call.ctx)

    service_of(call).db.write(work)


def _security_group(rule: str, *, add: bool) -> Callable[[Call], None]:
    def handler(call: Call) -> None:
        body: schema.SecurityGroupAction = call.body

        def work(tx: Tx) -> None:
            server = load(call, tx, rule)
            network = service_of(call).parts.network
            network.set_port_security_group(tx, call.ctx, server.id, body.name, add=add)

        service_of(call).db.write(work)

    return handler


def change_password(call: Call) -> None:
    body: schema.ChangePassword = call.body

    def work(tx: Tx) -> None:
        server = load_unlocked(call, tx, "os_compute_api:os-admin-password")
        rules.check_state(server, "set_admin_password", "changePassword")
        rules.check_host(server)
        service = service_of(call)
        params = PasswordParams(password=body.adminPass)
        service.start(tx, server, service.guest.password, params, call.ctx, "changePassword")

    service_of(call).db.write(work)


def console_output(call: Call) -> dict[str, Any]:
    body: schema.ConsoleOutput = call.body
    server = service_of(call).db.read(lambda tx: load(call, tx, "os_compute_api:os-console-output"))
    if server.host is None or (server.launched_at is None and server.vm_state == "building"):
        raise Conflict(f"Instance {server.id} is not ready")
    length = None if body.length is None or body.length < 0 else body.length
    if length == 0:
        return {"output": ""}
    answer = service_of(call).parts.ask(server.host, ConsoleLog(server_id=server.id, length=length))
    if answer.error_code == "not-found":
        raise NotFound("The console log of the server could not be found.")
    if answer.error is not None:
        raise Conflict(f"Unable to get console log: {answer.error}")
    return {"output": answer.text or ""}


def create_image(call: Call) -> Reply:
    body: schema.CreateImage = call.body
    service = service_of(call)

    def work(tx: Tx) -> str:
        server = load(call, tx, "os_compute_api:servers:create_image")
        service.quotas.admit_metadata(tx, server.project_id, len(body.metadata))
        rules.check_state(server, "snapshot", "createImage")
        rules.check_host(server)
        disks = store.disks(tx, [server.id]).get(server.id, [])
        if any(disk.boot_index == 0 for disk in disks):
            raise BadInput("Snapshots of volume-backed servers are not offered.")
        properties = {
            key: str(value)
            for key, value in server.image_properties.items()
            if not key.startswith(("base_image_ref", "instance_uuid", "image_type", "user_id", "owner_", "boot_roles"))
        }
        properties.update(body.metadata)
        properties.update(
            {
                "base_image_ref": server.image_id or "",
                "instance_uuid": server.id,
                "user_id": call.ctx.user_id or "",
                "image_type": "snapshot",
                "owner_user_name": call.ctx.user_name or "",
                "owner_project_name": call.ctx.project_name or "",
                "boot_roles": ",".join(sorted(call.ctx.roles)),
            }
        )
        image_id: str = service.parts.images.create_snapshot_image(
            tx, call.ctx, body.name, properties, min_disk=server.root_gb
        )
        params = SnapshotParams(image_id=image_id)
        service.start(tx, server, service.guest.snapshot, params, call.ctx, "createImage")
        return image_id

    image_id = service.db.write(work)
    if version_of(call) >= (2, 45):
        return Reply({"image_id": image_id})
    return Reply(headers={"location": f"{call.url_host}/image/v2/images/{image_id}"})


def rebuild(call: Call) -> Reply:
    body: schema.Rebuild = call.body
    service = service_of(call)
    password = body.adminPass or new_password()

    def work(tx: Tx) -> Any:
        server = load_unlocked(call, tx, "os_compute_api:servers:rebuild")
        if body.trusted_image_certificates is not UNSET and body.trusted_image_certificates:
            call.authorize("os_compute_api:servers:rebuild:trusted_certs", target(server))
        rules.check_state(server, "rebuild")
        rules.check_host(server)
        try:
            image = service.parts.images.get(tx, call.ctx, body.imageRef)
        except NotFound:
            raise BadInput("Cannot find image for rebuild") from None
        disks = store.disks(tx, [server.id]).get(server.id, [])
        if any(disk.boot_index == 0 for disk in disks):
            raise BadInput("Rebuilding a volume-backed server with a new image is not offered.")
        flavor = catalogue.FlavorRow(
            0, server.flavor_id, server.flavor["name"], None, server.vcpus, server.memory_mb, server.root_gb,
            server.ephemeral_gb, 0, 1.0, True, {}, 0, None,
        )  # fmt: skip
        rules.flavor_fits_image(flavor, image, volume_backed=False, root_gb=server.root_gb)
        values: dict[str, Any] = {"image_id": image.id, "image_properties": dict(image.properties)}
        if body.name is not UNSET:
            values["name"] = body.name
        if body.description is not UNSET:
            values["description"] = body.description
        if body.hostname is not UNSET:
            values["hostname"] = body.hostname
        if body.metadata is not UNSET:
            service.quotas.admit_metadata(tx, server.project_id, len(body.metadata))
            values["metadata"] = body.metadata
        if body.disk_config is not UNSET:
            values["disk_config"] = body.disk_config
        if body.accessIPv4 is not UNSET:
            values["access_ip_v4"] = rules.ip_field("accessIPv4", body.accessIPv4, 4)
        if body.accessIPv6 is not UNSET:
            values["access_ip_v6"] = rules.ip_field("accessIPv6", body.accessIPv6, 6)
        if body.user_data is not UNSET:
            if body.user_data:
                rules.base64_field("user_data", body.user_data)
            values["user_data"] = body.user_data
        if body.key_name is not UNSET:
            values.update(_key(tx, server.user_id, body.key_name))
        store.update_server(tx, server.id, **values)
        params = RebuildParams(admin_password=password, was_stopped=server.vm_state == "stopped")
        service.start(tx, server, service.guest.rebuild, params, call.ctx, "rebuild")
        row = service.visible(tx, call.ctx, server.id)
        view = ServerViews(call, "rebuild").read(tx, [row])[0]
        view.adminPass = password
        return view

    view = service.db.write(work)
    return Reply({"server": view}, headers={"location": view.links[0].href})


def _key(tx: Tx, user_id: str, name: str | None) -> dict[str, Any]:
    if name is None:
        return {"key_name": None, "public_key": None}
    found = catalogue.keypair(tx, user_id, name)
    if found is None:
        raise BadInput("Invalid key_name provided.")
    return {"key_name": found.name, "public_key": found.public_key}


def force_delete(call: Call) -> None:
    def work(tx: Tx) -> None:
        server = load_unlocked(call, tx, "os_compute_api:os-deferred-delete:force")
        service_of(call).delete(tx, call.ctx, server)

    service_of(call).db.write(work)


def restore(call: Call) -> None:
    """Deleted servers are not kept for reclaiming, so no server is ever in the state that this needs."""

    def work(tx: Tx) -> None:
        server = load(call, tx, "os_compute_api:os-deferred-delete:restore")
        rules.check_state(server, "restore")
        raise Forbidden("The server cannot be restored.")

    service_of(call).db.write(work)


def inject_network_info(call: Call) -> None:
    def work(tx: Tx) -> None:
        server = load_unlocked(call, tx, "os_compute_api:os-admin-actions:inject_network_info")
        service_of(call).parts.desired.touch_holders(tx, "metadata", server.id)

    service_of(call).db.write(work)


def _route(action: str, handler: Callable[[Call], Any], **more: Any) -> Route:
    return Route(method="POST", path=PATH, action=action, handler=handler, **{"success": 202, **more})


ROUTES = [
    _route("os-start", _power("start", "os_compute_api:servers:start")),
    _route("os-stop", _power("stop", "os_compute_api:servers:stop")),
    _route("reboot", reboot, body=schema.Reboot),
    _route("pause", _power("pause", "os_compute_api:os-pause-server:pause")),
    _route("unpause", _power("unpause", "os_compute_api:os-pause-server:unpause")),
    _route("suspend", _power("suspend", "os_compute_api:os-suspend-server:suspend")),
    _route("resume", _power("resume", "os_compute_api:os-suspend-server:resume")),
    _route("lock", lock, body=schema.Lock | None, min_version="2.73"),
    _route("lock", lock, body=None, max_version="2.72"),
    _route("unlock", unlock),
    _route("os-resetState", reset_state, body=schema.ResetState),
    _route(
        "addSecurityGroup",
        _security_group("os_compute_api:os-security-groups:add", add=True),
        body=schema.SecurityGroupAction,
    ),
    _route(
        "removeSecurityGroup",
        _security_group("os_compute_api:os-security-groups:remove", add=False),
        body=schema.SecurityGroupAction,
    ),
    _route("changePassword", change_password, body=schema.ChangePassword),
    _route("os-getConsoleOutput", console_output, body=schema.ConsoleOutput, strict=False, success=200),
    _route("createImage", create_image, body=schema.CreateImage),
    _route("rebuild", rebuild, body=schema.Rebuild, strict=False),
    _route("forceDelete", force_delete),
    _route("restore", restore, refusal=409),
    _route("injectNetworkInfo", inject_network_info),
]
