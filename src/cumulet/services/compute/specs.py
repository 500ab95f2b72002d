"""What hosts are told of a server: its `ServerSpec` (all a domain is made of) and its `MetadataDoc`.

Both are pure functions of rows and of what the other services say, read in one transaction.
"""

from typing import Any

from cumulet.agent.contract import (
    DiskConnection,
    ImageSource,
    MetadataDoc,
    PortDoc,
    ServerSpec,
    VolumeAttachment,
    tap_name,
)
from cumulet.db import Tx
from cumulet.kernel.context import system_context
from cumulet.kernel.errors import CloudError, NotFound
from cumulet.services.compute import catalogue, store
from cumulet.services.compute.parts import Parts
from cumulet.services.compute.rows import BlockDeviceRow, ServerRow
from cumulet.services.network.public import Nic

DHCP_DOMAIN = "novalocal"


class Specs:
    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self._system = system_context("compute")

    def ports(self, tx: Tx, server_id: str, host: str) -> list[PortDoc]:
        """The documents of the server's ports, in the order of its NICs."""
        order = [row.port_id for row in store.interfaces(tx, server_id)]
        if not order:
            return []
        docs = {doc.id: doc for doc in self.parts.network.port_docs(tx, host, order)}
        return [docs[port_id] for port_id in order if port_id in docs]

    def images(
        self, tx: Tx, server: ServerRow, host: str, *, volume_backed: bool
    ) -> tuple[ImageSource | None, ImageSource | None, ImageSource | None]:
        """What the server stands on: image, kernel and ramdisk, whether or not they were deleted since."""
        wanted = (
            None if volume_backed else server.image_id,
            server.image_properties.get("kernel_id"),
            server.image_properties.get("ramdisk_id"),
        )
        image, kernel, ramdisk = (
            self.parts.images.source_ever(tx, image_id, host) if image_id else None for image_id in wanted
        )
        return image, kernel, ramdisk

    def source(self, tx: Tx, image_id: str | None, host: str) -> ImageSource | None:
        """For new disks; CloudError ``image-gone`` if the image was deleted."""
        if not image_id:
            return None
        try:
            image = self.parts.images.get(tx, self._system, image_id)
        except NotFound:
            raise CloudError(f"Image {image_id} could not be found.", code="image-gone") from None
        return self.parts.images.source(image, host)

    def server(
        self,
        tx: Tx,
        server: ServerRow,
        host: str,
        *,
        admin_password: str | None = None,
        ports: list[PortDoc] | None = None,
    ) -> ServerSpec:
        """``ports``: their documents, when they are at hand."""
        disks = store.disks(tx, [server.id]).get(server.id, [])
        properties = server.image_properties
        flavor = server.flavor
        booted_from_volume = any(disk.boot_index == 0 for disk in disks)
        image, kernel, ramdisk = self.images(tx, server, host, volume_backed=booted_from_volume)
        return ServerSpec(
            server_id=server.id,
            name=server.name,
            instance_name=server.instance_name,
            generation=self.parts.clock.now(),
            project_id=server.project_id,
            user_id=server.user_id,
            vcpus=server.vcpus,
            memory_mb=server.memory_mb,
            root_gb=server.root_gb,
            ephemeral_gb=server.ephemeral_gb,
            swap_mb=flavor.get("swap") or 0,
            image=image,
            kernel=kernel,
            ramdisk=ramdisk,
            image_properties={key: str(value) for key, value in properties.items()},
            extra_specs=flavor.get("extra_specs") or {},
            flavor_name=flavor["name"],
            ports=self.ports(tx, server.id, host) if ports is None else ports,
            volumes=[attachment(disk) for disk in disks if disk.connection is not None],
            config_drive=server.config_drive,
            metadata=self.metadata(tx, server, 0, admin_password) if server.config_drive else None,
            admin_password=admin_password,
            root_device_name=server.root_device_name or "/dev/vda",
        )

    # -- metadata ----------------------------------------------------------------------------------------------

    def metadata_doc(self, tx: Tx, server_id: str, generation: int) -> MetadataDoc | None:
        server = store.server(tx, server_id)
        if server is None or server.deleted_at is not None:
            return None
        return self.metadata(tx, server, generation)

    def metadata(self, tx: Tx, server: ServerRow, generation: int, admin_password: str | None = None) -> MetadataDoc:
        zone = server.availability_zone or catalogue.zones(tx).get(server.host or "", self.parts.default_zone)
        disks = store.disks(tx, [server.id]).get(server.id, [])
        interfaces = store.interfaces(tx, server.id)
        tags = {row.port_id: row.tag for row in interfaces}
        known = {nic.id: nic for nic in self.parts.network.nics(tx, server.id)} if server.host else {}
        nics = [known[row.port_id] for row in interfaces if row.port_id in known]
        hostname = server.hostname if "." in server.hostname else f"{server.hostname}.{DHCP_DOMAIN}"
        data: dict[str, Any] = {
            "uuid": server.id,
            "name": server.name,
            "hostname": hostname,
            "launch_index": server.launch_index,
            "availability_zone": zone,
            "project_id": server.project_id,
            "devices": _devices(nics, tags, disks),
            "dedicated_cpus": [],
        }
        if server.metadata:
            data["meta"] = server.metadata
        if server.key_name and server.public_key:
            data["public_keys"] = {server.key_name: server.public_key}
            data["keys"] = [{"name": server.key_name, "type": "ssh", "data": server.public_key}]
        if admin_password:
            data["admin_pass"] = admin_password
        return MetadataDoc(
            id=server.id,
            generation=generation,
            meta_data=data,
            network_data=_network_data(nics),
            user_data=server.user_data,
            ec2={"meta-data": self._ec2(tx, server, hostname, zone, disks), "password": server.password or ""},
        )

    def _ec2(self, tx: Tx, server: ServerRow, hostname: str, zone: str, disks: list[BlockDeviceRow]) -> dict[str, Any]:
        fixed, floating = "", ""
        for address in self.parts.network.addresses(tx, [server.id]).get(server.id, []):
            if address.version != 4:
                continue
            if address.type == "fixed" and not fixed:
                fixed = address.addr
            elif address.type == "floating" and not floating:
                floating = address.addr
        groups = self.parts.network.security_groups_of(tx, [server.id]).get(server.id, [])
        names = sorted({group if isinstance(group, str) else group.name for group in groups})
        root = server.root_device_name or "/dev/vda"
        mapping = {"ami": root.removeprefix("/dev/"), "root": root}
        mapping.update({f"ebs{n}": disk.device or "" for n, disk in enumerate(disks)})
        tree: dict[str, Any] = {
            "ami-id": f"ami-{server.number:08x}" if server.image_id else "",
            "ami-launch-index": str(server.launch_index),
            "ami-manifest-path": "FIXME",  # what upstream answers; guests compare it
            "block-device-mapping": mapping,
            "hostname": hostname,
            "instance-action": "none",
            "instance-id": f"i-{server.number:08x}",
            "instance-type": server.flavor["name"],
            "local-hostname": hostname,
            "local-ipv4": fixed,
            "placement": {"availability-zone": zone},
            "public-hostname": hostname,
            "public-ipv4": floating,
            "reservation-id": server.reservation_id,
            "security-groups": names,
        }
        if server.key_name and server.public_key:
            tree["public-keys"] = {"0": {"_name": f"0={server.key_name}", "openssh-key": server.public_key}}
        return tree


def attachment(disk: BlockDeviceRow) -> VolumeAttachment:
    connection = disk.connection
    if connection is None:
        raise NotFound(f"Volume {disk.volume_id} is not connected.")
    return VolumeAttachment(
        attachment_id=disk.attachment_id or disk.id,
        volume_id=disk.volume_id,
        device=disk.device or "/dev/vdb",
        connection=DiskConnection(**connection),
        boot_index=disk.boot_index,
    )


def _devices(nics: list[Nic], tags: dict[str, str | None], disks: list[BlockDeviceRow]) -> list[dict[str, Any]]:
    """Only tagged devices are listed, as upstream does."""
    found: list[dict[str, Any]] = [
        {"type": "nic", "bus": "pci", "address": "", "mac": nic.mac_address, "tags": [tags[nic.id]]}
        for nic in nics
        if tags.get(nic.id)
    ]
    found += [
        {
            "type": "disk",
            "bus": "virtio",
            "address": "",
            "serial": disk.volume_id,
            "path": disk.device or "",
            "tags": [disk.tag],
        }
        for disk in disks
        if disk.tag
    ]
    return found


def _network_data(nics: list[Nic]) -> dict[str, Any]:
    links: list[dict[str, Any]] = []
    networks: list[dict[str, Any]] = []
    for nic in nics:
        tap = tap_name(nic.id)
        links.append(
            {
                "id": tap,
                "vif_id": nic.id,
                "type": "bridge",
                "mtu": nic.mtu,
                "ethernet_mac_address": nic.mac_address,
            }
        )
        for address in nic.addresses:
            version = 6 if ":" in address else 4
            networks.append(
                {
                    "id": f"network{len(networks)}",
                    "type": f"ipv{version}_dhcp",
                    "link": tap,
                    "network_id": nic.network_id,
                }
            )
    return {"links": links, "networks": networks, "services": []}
