"""POST /servers: everything that is judged before the 202, and the one transaction that makes the servers.

In that transaction: quota, server rows, placement claims, ports, volumes, sagas. That no host can take a server does
not fail the request: the server shows ERROR with the reason, as upstream.
"""

import secrets
import string
from typing import Any

import msgspec
from msgspec import UNSET

from cumulet.db import Tx
from cumulet.kernel.context import RequestContext
from cumulet.kernel.errors import BadInput, Conflict, Forbidden, NotFound, NoValidHost
from cumulet.kernel.ids import is_uuid, new_uuid
from cumulet.services.compute import catalogue, rules, store
from cumulet.services.compute.parts import Parts
from cumulet.services.compute.quotas import Quotas
from cumulet.services.compute.rows import ActionRow, FlavorRow
from cumulet.services.compute.scheduling import Scheduling
from cumulet.services.compute.schema import DeviceV2, Hints, NetworkRequest, ServerCreate, truth
from cumulet.services.compute.workflows.create import CreateParams, CreateWorkflows

_ALPHABET = string.ascii_letters + string.digits


def new_password() -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(12))


class May(msgspec.Struct, kw_only=True, frozen=True):
    """What the caller's roles allow of a create."""

    zero_disk: bool = False
    forced_host: bool = False
    requested_destination: bool = False
    external_network: bool = False


class Created(msgspec.Struct):
    server_ids: list[str]
    reservation_id: str
    admin_password: str
    security_groups: list[str]


class Intake:
    def __init__(self, parts: Parts, quotas: Quotas, scheduling: Scheduling, create: CreateWorkflows) -> None:
        self.parts = parts
        self.quotas = quotas
        self.scheduling = scheduling
        self.create_workflow = create

    def create(self, tx: Tx, ctx: RequestContext, body: ServerCreate, hints: Hints, may: May) -> Created:
        project_id, user_id = ctx.project_id, ctx.user_id
        if project_id is None or user_id is None:
            raise Forbidden("A server needs a project.")
        low, high = rules.counts(body.min_count, body.max_count)
        flavor = self._flavor(tx, ctx, body)
        key = self._key(tx, user_id, body)
        image, image_properties = self._image(tx, ctx, body)
        disks = self._disks(tx, ctx, body, image)
        volume_backed = any(disk.get("boot_index") == 0 for disk in disks)
        if image is not None:
            rules.flavor_fits_image(flavor, image, volume_backed=volume_backed, root_gb=flavor.root_gb)
        elif not volume_backed:
            raise BadInput(rules.BOOT_SEQUENCE)
        if high > 1 and any(disk.get("volume_id") for disk in disks):
            raise BadInput("Cannot attach one or more volumes to multiple instances")
        rules.zero_disk(flavor, volume_backed=volume_backed, allowed=may.zero_disk)
        if body.user_data:
            rules.base64_field("user_data", body.user_data)
        self.quotas.admit_metadata(tx, project_id, len(body.metadata))
        if body.personality is not UNSET:
            files = [(f.path, rules.base64_field("contents", f.contents)) for f in body.personality]
            self.quotas.admit_files(tx, project_id, files)
        zone, host = self._destination(tx, body, may)
        group = self._group(tx, ctx, hints)
        self._check_requested(body, high)
        count = self.quotas.admit(tx, project_id, user_id, flavor, low, high)
        if group is not None:
            members = catalogue.members(tx, [group.id]).get(group.id, [])
            mine = [member for member in members if member[2] == user_id]
            self.quotas.admit_members(tx, project_id, user_id, len(mine), count)
        password = body.adminPass or new_password()
        reservation = "r-" + "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8))
        rows = self._rows(tx, ctx, body, flavor, key, image, image_properties, zone, reservation, count, hints)
        ids = [row["id"] for row in rows]
        request = {
            "zone": zone,
            "host": host,
            "hints": msgspec.to_builtins(hints),
            "group": group.id if group is not None else None,
            "image_properties": image_properties,
            "volume_backed": volume_backed,
        }
        placed, refusal = self._place(tx, ctx, flavor, request, ids)
        plan = self._plan(tx, ctx, body, count, may)  # after the claims: locks are taken in one order
        for row in rows:
            row["host"] = placed.get(row["id"])
            if volume_backed:
                row["image_id"] = None
        store.insert_servers(tx, rows)
        if group is not None:
            catalogue.add_members(tx, group.id, ids)
        store.add_tags(tx, ids, dict.fromkeys(body.tags))
        names = self._security_groups(body)
        self._ports(tx, rows, plan, names, zone)
        actions = []
        for row in rows:
            self._insert_disks(tx, ctx, row["id"], disks, image, flavor)
            params = CreateParams(
                host=placed.get(row["id"]),
                reason=refusal.message if refusal is not None else None,
                reasons=refusal.details if refusal is not None else {},
                request=request,
                admin_password=password,
            )
            saga_id = self.parts.sagas.start(tx, self.create_workflow.create, row["id"], params, ctx, settled=True)
            actions.append(
                ActionRow(
                    saga_id, row["id"], ctx.request_id, "create", user_id, project_id, tx.now, "server", row["id"]
                )
            )
        store.insert_actions(tx, actions)
        return Created(ids, reservation, password, names)

    # -- judging -------------------------------------------------------------------------------------------------

    def _flavor(self, tx: Tx, ctx: RequestContext, body: ServerCreate) -> FlavorRow:
        flavor = catalogue.flavor(tx, rules.reference_id(body.flavorRef))
        if flavor is None or not catalogue.may_use(tx, flavor, ctx):
            raise BadInput("Invalid flavorRef provided.")
        return flavor

    def _key(self, tx: Tx, user_id: str, body: ServerCreate) -> tuple[str, str] | None:
        if body.key_name is None:
            return None
        found = catalogue.keypair(tx, user_id, body.key_name)
        if found is None:
            raise BadInput("Invalid key_name provided.")
        return found.name, found.public_key

    def _image(self, tx: Tx, ctx: RequestContext, body: ServerCreate) -> tuple[Any, dict[str, Any]]:
        image_id = body.imageRef
        if not image_id:
            devices = body.block_device_mapping_v2
            image_id = next((d.uuid or "" for d in devices if d.source_type == "image" and d.boot_index == 0), "")
        if not image_id:
            return None, {}
        try:
            image = self.parts.images.get(tx, ctx, image_id)
        except NotFound:
            raise BadInput("Can not find requested image") from None
        return image, dict(image.properties)

    def _destination(self, tx: Tx, body: ServerCreate, may: May) -> tuple[str | None, str | None]:
        zone, host = rules.zone_and_host(body.availability_zone)
        if host is not None and not may.forced_host:
            raise Forbidden("Policy doesn't allow os_compute_api:servers:create:forced_host to be performed.")
        for name in (body.host, body.hypervisor_hostname):
            if name is None:
                continue
            if not may.requested_destination:
                raise Forbidden("Policy doesn't allow compute:servers:create:requested_destination to be performed.")
            if host is not None and host != name:
                raise BadInput("The host and the availability zone name different hosts.")
            host = name
        if zone is not None and zone not in self.scheduling.zones(tx):
            raise BadInput("The requested availability zone is not available")
        if host is not None:
            try:
                self.parts.hosts.get(tx, host)
            except NotFound:
                raise BadInput(f"Compute host {host} could not be found.") from None
        return zone, host

    def _group(self, tx: Tx, ctx: RequestContext, hints: Hints) -> Any:
        rules.hint_ids("different_host", hints.different_host)
        rules.hint_ids("same_host", hints.same_host)
        if hints.group is None:
            return None
        group = catalogue.group(tx, hints.group)
        if group is None or (group.project_id != ctx.project_id and not ctx.is_admin):
            raise BadInput(f"Instance group {hints.group} could not be found.")
        return group

    def _check_requested(self, body: ServerCreate, count: int) -> None:
        if isinstance(body.networks, list):
            for item in body.networks:
                self._network(item, count)

    def _plan(self, tx: Tx, ctx: RequestContext, body: ServerCreate, count: int, may: May) -> Any:
        """What the network service makes ports from: checked by it."""
        # None: the project's only network, or the ones shared with it
        requested = None if body.networks is UNSET or body.networks == [] else body.networks
        try:
            return self.parts.network.plan_server_ports(tx, ctx, requested, count, external=may.external_network)
        except NotFound as error:
            raise BadInput(error.message) from None

    def _network(self, item: NetworkRequest, count: int) -> None:
        if item.port is not None:
            if count > 1:
                raise BadInput("Unable to launch multiple instances with a single configured port ID.")
            if item.fixed_ip is not None:
                raise BadInput(f"Specified Fixed IP '{item.fixed_ip}' cannot be used with port '{item.port}'.")
            return
        if item.uuid is None:
            raise BadInput("Bad networks format: network uuid is not in proper format (None)")
        if not is_uuid(item.uuid):
            raise BadInput(f"Bad networks format: network uuid is not in proper format ({item.uuid})")
        if item.fixed_ip is not None and count > 1:
            raise BadInput("Invalid fixed IP Address used with more than one instance.")

    def _security_groups(self, body: ServerCreate) -> list[str]:
        if body.security_groups is UNSET or not body.security_groups:
            return ["default"]
        return list(dict.fromkeys(group.name for group in body.security_groups))

    # -- making --------------------------------------------------------------------------------------------------

    def _rows(
        self,
        tx: Tx,
        ctx: RequestContext,
        body: ServerCreate,
        flavor: FlavorRow,
        key: tuple[str, str] | None,
        image: Any,
        image_properties: dict[str, Any],
        zone: str | None,
        reservation: str,
        count: int,
        hints: Hints,
    ) -> list[dict[str, Any]]:
        rows = []
        for index in range(count):
            server_id = new_uuid()
            name = body.name if count == 1 else f"{body.name}-{index + 1}"
            hostname = body.hostname or rules.host_name(name, f"Server-{server_id}")
            if body.hostname and count > 1:
                hostname = f"{body.hostname}-{index + 1}"
            rows.append(
                {
                    "id": server_id,
                    "project_id": ctx.project_id,
                    "user_id": ctx.user_id,
                    "name": name,
                    "hostname": hostname,
                    "description": name if body.description is UNSET else body.description,
                    "created_at": tx.now,
                    "updated_at": tx.now,
                    "goal": "active",
                    "failed": False,
                    "deleting": False,
                    "task": "scheduling",
                    "host": None,
                    "availability_zone": zone,
                    "image_id": image.id if image is not None else None,
                    "image_properties": image_properties,
                    "flavor_id": flavor.id,
                    "flavor": flavor.embedded(),
                    "vcpus": flavor.vcpus,
                    "memory_mb": flavor.memory_mb,
                    "root_gb": flavor.root_gb,
                    "ephemeral_gb": flavor.ephemeral_gb,
                    "key_name": key[0] if key else None,
                    "public_key": key[1] if key else None,
                    "user_data": body.user_data,
                    "config_drive": truth(body.config_drive) or image_properties.get("img_config_drive") == "mandatory",
                    "access_ip_v4": rules.ip_field("accessIPv4", body.accessIPv4 or "", 4),
                    "access_ip_v6": rules.ip_field("accessIPv6", body.accessIPv6 or "", 6),
                    "disk_config": body.disk_config if body.disk_config is not UNSET else "MANUAL",
                    "metadata": body.metadata,
                    "locked": False,
                    "reservation_id": reservation,
                    "launch_index": index,
                    "root_device_name": image_properties.get("root_device_name") or "/dev/vda",
                    "scheduler_hints": msgspec.to_builtins(hints),
                }
            )
        return rows

    def _place(
        self, tx: Tx, ctx: RequestContext, flavor: FlavorRow, request: dict[str, Any], ids: list[str]
    ) -> tuple[dict[str, str], NoValidHost | None]:
        try:
            hosts = self.scheduling.place(tx, ids, flavor.embedded(), ctx.project_id or "", ctx.user_id or "", request)
        except NoValidHost as refusal:
            return {}, refusal
        return dict(zip(ids, hosts, strict=True)), None

    def _ports(self, tx: Tx, rows: list[dict[str, Any]], plan: Any, groups: list[str], zone: str | None) -> None:
        servers = {row["id"]: row["hostname"] for row in rows}
        try:
            made = self.parts.network.make_server_ports(
                plan, servers, zone or self.parts.default_zone, security_groups=groups
            )
        except NotFound as error:
            raise BadInput(error.message) from None
        tags = [choice.tag for choice in plan.choices]
        store.insert_interfaces(tx, {id: list(zip(ports, tags, strict=True)) for id, ports in made.items()})

    # -- disks ---------------------------------------------------------------------------------------------------

    def _disks(self, tx: Tx, ctx: RequestContext, body: ServerCreate, image: Any) -> list[dict[str, Any]]:
        """The volumes among the block devices; the image as a local disk is not one."""
        if body.block_device_mapping and body.block_device_mapping_v2:
            raise BadInput("Using different block_device_mapping syntaxes is not allowed in the same request.")
        devices: list[DeviceV2] = list(body.block_device_mapping_v2)
        for old in body.block_device_mapping:
            source = "snapshot" if old.snapshot_id else "volume"
            devices.append(
                DeviceV2(
                    source_type=source,  # type: ignore[arg-type]
                    destination_type="volume",
                    uuid=old.snapshot_id or old.volume_id,
                    volume_size=old.volume_size,
                    device_name=old.device_name,
                    delete_on_termination=old.delete_on_termination,
                    boot_index=0 if not body.imageRef and (old.device_name or "").endswith("vda") else None,
                )
            )
        if body.imageRef and any(
            d.boot_index == 0 and not (d.source_type == "image" and d.destination_type == "local") for d in devices
        ):
            local = [d for d in devices if d.source_type == "image" and d.destination_type == "local"]
            if local:
                raise BadInput(rules.BOOT_SEQUENCE)
        indexes = [d.boot_index for d in devices if d.boot_index is not None and d.boot_index >= 0]
        if len(indexes) != len(set(indexes)):
            raise BadInput(rules.BOOT_SEQUENCE)
        return [found for n, device in enumerate(devices) if (found := self._disk(tx, ctx, device, n)) is not None]

    def _disk(self, tx: Tx, ctx: RequestContext, device: DeviceV2, position: int) -> dict[str, Any] | None:
        source = device.source_type or "blank"
        reference = device.uuid or device.volume_id or device.snapshot_id or device.image_id
        destination = device.destination_type or ("local" if source in ("image", "blank") else "volume")
        if device.no_device:
            return None
        if source != "blank" and (reference is None or not is_uuid(reference)):
            raise BadInput("Block Device Mapping is Invalid: Invalid uuid.")
        if destination == "local":
            if source in ("volume", "snapshot"):
                raise BadInput(f"Block Device Mapping is Invalid: Mapping {source} to local is not supported.")
            if source == "image" and device.boot_index != 0:
                raise BadInput("Block Device Mapping is Invalid: Mapping image to local is not supported.")
            return None
        if source in ("blank", "image") and not device.volume_size:
            raise BadInput(
                "Block Device Mapping is Invalid: Images with destination_type 'volume' need to have a non-zero size"
                " specified"
            )
        if source == "volume":
            try:
                volume = self.parts.volumes.get(tx, ctx, reference)
            except NotFound:
                raise BadInput(f"Block Device Mapping is Invalid: failed to get volume {reference}.") from None
            if volume.status not in ("available", "in-use") or (volume.status == "in-use" and not volume.multiattach):
                raise BadInput(
                    f"Block Device Mapping is Invalid: volume {reference} must be available, it is {volume.status}."
                )
        return {
            "source": source,
            "reference": reference,
            "volume_id": reference if source == "volume" else None,
            "size_gb": device.volume_size,
            "volume_type": device.volume_type,
            "device": device.device_name,
            "boot_index": device.boot_index if device.boot_index is None or device.boot_index >= 0 else None,
            "tag": device.tag,
            "delete_on_termination": truth(device.delete_on_termination),
            "position": position,
        }

    def _insert_disks(
        self, tx: Tx, ctx: RequestContext, server_id: str, disks: list[dict[str, Any]], image: Any, flavor: FlavorRow
    ) -> None:
        taken = {disk["device"] for disk in disks if disk["device"]}
        letters = iter(string.ascii_lowercase[1:])
        for disk in disks:
            device = disk["device"]
            if disk["boot_index"] == 0:
                device = device or "/dev/vda"
            while device is None:
                candidate = f"/dev/vd{next(letters)}"
                if candidate not in taken:
                    device = candidate
            volume_id = disk["volume_id"]
            if volume_id is None:
                volume_id = self.parts.volumes.create_for_server(
                    tx,
                    ctx,
                    size_gb=disk["size_gb"],
                    source=disk["source"],
                    source_id=disk["reference"],
                    volume_type=disk["volume_type"],
                    server_id=server_id,
                )
            try:
                attachment_id = self.parts.volumes.reserve_attachment(tx, ctx, volume_id, server_id, device)
            except Conflict as error:
                raise BadInput(error.message) from None
            store.insert_disks(
                tx,
                [
                    {
                        "id": new_uuid(),
                        "server_id": server_id,
                        "volume_id": volume_id,
                        "attachment_id": attachment_id,
                        "device": device,
                        "boot_index": disk["boot_index"],
                        "tag": disk["tag"],
                        "delete_on_termination": disk["delete_on_termination"],
                        "connection": None,
                        "created_at": tx.now + disk["position"],
                    }
                ],
            )
