"""The one typed protocol between control plane and host.

Two ways of working, and no third:

* **Operations** - "do this once": a saga step of the conductor sends ``Execute(op_id, epoch, object_id, body)``; the
  agent journals it in its own store, answers ``Accepted`` at once, works, and reports ``Outcome`` through its on-disk
  outbox until the conductor acknowledges it. ``op_id`` is the idempotency key: a repeated ``Execute`` of a finished
  operation reports the same outcome again; of a running one, nothing more. An operation whose ``epoch`` is lower than
  the highest seen for its object is refused (a paused conductor that lost its lease). Every body is idempotent:
  done twice, the host is as after once.
* **Documents** - "make it so": the desired state of a port, network, router or metadata entry, with a generation. The
  agent pulls documents (a bus message is only a hint to look), applies them, reports the generation it applied,
  keeps the last ones on disk, and removes what the control plane names as absent.

Queries (``Query``) are answered directly and change nothing.

The agent never sees the database. Sizes say their unit in the name. All structs are frozen; unknown fields are
ignored on decoding so that an agent of the previous release understands a newer conductor.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import msgspec


class _Wire(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    pass


# -- shared parts -----------------------------------------------------------------------------------------


class ImageSource(_Wire):
    """Where an agent gets an image's bytes. ``path`` when the store is a directory of the same host, else ``url``
    (short-lived and signed; bulk data never rides the bus). With neither, the image was deleted: only hosts that have
    it cached can use it (``image-gone``)."""

    image_id: str
    disk_format: str  # raw, qcow2, ami, aki, ari, iso, vmdk, vdi, vhd
    size: int  # bytes of the stored file
    sha512: str | None = None
    path: str | None = None
    url: str | None = None


class Upload(_Wire):
    """Where an agent puts bytes it made (a snapshot): a path on the same host or a signed URL to PUT to."""

    image_id: str
    disk_format: str
    path: str | None = None
    url: str | None = None


class FixedIp(_Wire):
    subnet_id: str
    ip_address: str


class Route(_Wire):
    destination: str  # CIDR
    nexthop: str


class SubnetDoc(_Wire):
    id: str
    cidr: str
    ip_version: int
    gateway_ip: str | None = None
    enable_dhcp: bool = True
    dns_nameservers: list[str] = []
    host_routes: list[Route] = []
    ipv6_address_mode: str | None = None
    ipv6_ra_mode: str | None = None
    dhcp_ip: str | None = None  # the address of the DHCP port of this network in this subnet


class Segment(_Wire):
    """How a network looks on the wire. ``physical_network`` is mapped to a bridge or NIC by the host's settings."""

    network_type: Literal["local", "flat", "vlan", "vxlan", "gre"]
    physical_network: str | None = None
    segmentation_id: int | None = None
    mtu: int = 1500
    # vxlan/gre: underlay addresses of the other hosts that have ports of this network
    peers: list[str] = []


class FirewallRule(_Wire):
    """A security group rule as the host enforces it."""

    direction: Literal["ingress", "egress"]
    ethertype: Literal["IPv4", "IPv6"]
    protocol: str | None = None  # tcp, udp, icmp, ipv6-icmp, number as text, ...; None is any
    port_range_min: int | None = None  # ICMP type for icmp
    port_range_max: int | None = None  # ICMP code for icmp
    remote_ip_prefix: str | None = None
    remote_group_id: str | None = None  # its members are in its GroupDoc


def tap_name(port_id: str) -> str:
    """``tap`` + the first 11 characters of the port id, as Neutron names it."""
    return "tap" + port_id[:11]


class PortDoc(_Wire):
    """Document kind ``port``: one port bound to this host, and all the host needs to plug and filter it."""

    kind: ClassVar[str] = "port"
    id: str
    generation: int
    network_id: str
    segment: Segment
    mac_address: str
    fixed_ips: list[FixedIp]
    device_id: str = ""
    device_owner: str = ""
    admin_state_up: bool = True
    port_security_enabled: bool = True
    allowed_address_pairs: list[dict[str, str]] = []  # ip_address, mac_address
    rules: list[FirewallRule] = []
    dhcp_servers: list[str] = []  # addresses from which DHCP and RA answers are accepted

    @property
    def tap(self) -> str:
        return tap_name(self.id)


class GroupDoc(_Wire):
    """Document kind ``group``: who is in a security group that a rule of a port on this host refers to. A document of
    its own, so that a new member changes one document of each host and not every port's."""

    kind: ClassVar[str] = "group"
    id: str
    generation: int
    members: list[str]  # addresses, plain or CIDR, of both families


class DhcpHost(_Wire):
    port_id: str
    mac_address: str
    hostname: str
    fixed_ips: list[FixedIp]
    extra_dhcp_opts: list[dict[str, str]] = []  # opt_name, opt_value, ip_version


class NetworkDoc(_Wire):
    """Document kind ``network``: DHCP and metadata of one network on a host that serves it (``qdhcp-<id>``)."""

    kind: ClassVar[str] = "network"
    id: str
    generation: int
    segment: Segment
    subnets: list[SubnetDoc]
    dhcp_port: PortDoc | None  # the DHCP server's own port; None: no DHCP on this network
    hosts: list[DhcpHost] = []
    dns_domain: str = "openstacklocal"
    # metadata is answered on 169.254.169.254 in this namespace (``isolated`` networks and, as the route to it is
    # always given by DHCP option 121, all others)
    metadata: dict[str, str] = {}  # fixed ip -> server id


class FloatingIpDoc(_Wire):
    id: str
    floating_ip_address: str
    fixed_ip_address: str


class RouterPort(_Wire):
    """A leg of a router. ``qr-`` + port id[:11] inside, ``qg-`` + port id[:11] outside."""

    port: PortDoc
    subnets: list[SubnetDoc]


class RouterDoc(_Wire):
    """Document kind ``router``: namespace ``qrouter-<id>`` on its network host."""

    kind: ClassVar[str] = "router"
    id: str
    generation: int
    admin_state_up: bool = True
    gateway: RouterPort | None = None
    enable_snat: bool = True
    interfaces: list[RouterPort] = []
    routes: list[Route] = []
    floating_ips: list[FloatingIpDoc] = []
    metadata: dict[str, str] = {}  # "network_id/fixed ip" -> server id, for requests that come through the router


class MetadataDoc(_Wire):
    """Document kind ``metadata``: what one server's metadata service answers; id is the server's."""

    kind: ClassVar[str] = "metadata"
    id: str
    generation: int
    meta_data: dict[str, Any]  # the newest openstack/*/meta_data.json
    network_data: dict[str, Any]
    vendor_data: dict[str, Any] = {}
    user_data: str | None = None  # base64
    ec2: dict[str, Any] = {}  # nested: "meta-data" tree of the EC2 form


Document = PortDoc | NetworkDoc | RouterDoc | MetadataDoc
DOCUMENTS: dict[str, type[Any]] = {d.kind: d for d in (PortDoc, GroupDoc, NetworkDoc, RouterDoc, MetadataDoc)}


class DiskConnection(_Wire):
    """How a host reaches an exported volume."""

    driver: Literal["file", "nbd", "iscsi", "rbd", "door"]  # door: between compute hosts alone (DiskOffer)
    format: str = "raw"  # of the exported bytes (qemu's block driver above the protocol)
    path: str | None = None  # file: the path
    # nbd+unix:///NAME?socket=PATH, nbd://HOST:PORT/NAME, iscsi://…, rbd:…, door://HOST:PORT/SERVER/NAME
    uri: str | None = None
    secret: dict[str, str] = {}
    tls: bool = False  # nbd: with this host's certificate, and the storage host's checked


class VolumeAttachment(_Wire):
    """A volume as a disk of a server. The guest sees the first 20 characters of ``volume_id`` as serial."""

    attachment_id: str
    volume_id: str
    device: str  # /dev/vdb
    connection: DiskConnection
    boot_index: int | None = None
    bus: str = "virtio"
    read_only: bool = False


class ServerSpec(_Wire):
    """All a host needs to build a server's domain; the domain XML is a pure function of it and the host."""

    server_id: str
    name: str
    instance_name: str  # libvirt domain name, instance-0000000a
    generation: int
    project_id: str
    user_id: str
    vcpus: int
    memory_mb: int
    root_gb: int
    ephemeral_gb: int = 0
    swap_mb: int = 0
    image: ImageSource | None = None  # None: boots from a volume
    kernel: ImageSource | None = None
    ramdisk: ImageSource | None = None
    image_properties: dict[str, str] = {}  # hw_disk_bus, hw_vif_model, hw_machine_type, os_command_line, ...
    extra_specs: dict[str, str] = {}
    flavor_name: str = ""
    ports: list[PortDoc] = []
    volumes: list[VolumeAttachment] = []
    config_drive: bool = False
    metadata: MetadataDoc | None = None  # for the config drive
    admin_password: str | None = None
    root_device_name: str = "/dev/vda"
    secure: dict[str, str] = {}


# -- operations ------------------------------------------------------------------------------------------------


class Operation(_Wire, tag_field="op"):
    """Base of operation bodies. ``roles``: which kind of host may be asked. ``stall_seconds``: an operation that has
    made no progress for so long (scaled by the host's speed factor) is taken as failed by the conductor."""

    role: ClassVar[str] = "compute"
    stall_seconds: ClassVar[float] = 60

    def carried(self) -> Sequence[Any]:
        """Documents that stand on the host once this is done; the agent need not pull them."""
        return ()


class Result(_Wire):
    """Base of what operations return; encoded as JSON into the saga journal."""


class CacheImage(Operation, tag="compute.cache_image"):
    """Bring an image (and kernel, ramdisk) into the host's cache, checked and uncompressed."""

    stall_seconds: ClassVar[float] = 600
    image: ImageSource


class CacheImageResult(Result):
    hit: bool
    bytes: int
    virtual_size_bytes: int


class CreateDisks(Operation, tag="compute.create_disks"):
    """Root overlay, ephemeral, swap and config drive of a server. Undo: DeleteDisks."""

    stall_seconds: ClassVar[float] = 300
    server: ServerSpec


class DeleteDisks(Operation, tag="compute.delete_disks"):
    server_id: str


class PlugPorts(Operation, tag="compute.plug_ports"):
    """Create tap, bridge membership and filter of each port. Undo: UnplugPorts."""

    server_id: str
    ports: list[PortDoc]

    def carried(self) -> Sequence[PortDoc]:
        return self.ports


class UnplugPorts(Operation, tag="compute.unplug_ports"):
    server_id: str
    port_ids: list[str]


class DefineServer(Operation, tag="compute.define"):
    """Define the domain, not started. Undo: UndefineServer. Defining again replaces the definition."""

    server: ServerSpec


class DefineServerResult(Result):
    xml: str


class UndefineServer(Operation, tag="compute.undefine"):
    """Stop (destroy) and undefine the domain if there is one. Leaves disks and taps."""

    server_id: str
    instance_name: str


class PowerServer(Operation, tag="compute.power"):
    """start: run it (from managed-save if there is one). stop: ACPI, then force after ``grace_seconds``. Idempotent by
    outcome, except the two reboots, which carry the op_id as their only guard."""

    stall_seconds: ClassVar[float] = 150
    server_id: str
    instance_name: str
    action: Literal["start", "stop", "soft_reboot", "hard_reboot", "pause", "unpause", "suspend", "resume"]
    grace_seconds: float = 60


class AttachVolume(Operation, tag="compute.attach_volume"):
    server_id: str
    instance_name: str
    volume: VolumeAttachment


class DetachVolume(Operation, tag="compute.detach_volume"):
    """Waits until the guest let go of the disk; fails with ``detach-refused`` if it does not."""

    server_id: str
    instance_name: str
    volume_id: str


class ResizeAttachedVolume(Operation, tag="compute.resize_attached_volume"):
    server_id: str
    instance_name: str
    volume_id: str
    size_gb: int


class AttachPort(Operation, tag="compute.attach_port"):
    """Plug the port and add the NIC, live if the domain runs. Undo: DetachPort."""

    server_id: str
    instance_name: str
    port: PortDoc

    def carried(self) -> Sequence[PortDoc]:
        return [self.port]


class DetachPort(Operation, tag="compute.detach_port"):
    server_id: str
    instance_name: str
    port_id: str
    mac_address: str


class SnapshotServer(Operation, tag="compute.snapshot"):
    """Write the root disk as one flat image to ``upload``; consistent to a point in time, the guest goes on."""

    stall_seconds: ClassVar[float] = 600
    server_id: str
    instance_name: str
    upload: Upload


class SnapshotServerResult(Result):
    size: int
    sha512: str
    md5: str
    virtual_size_bytes: int


class SetAdminPassword(Operation, tag="compute.set_admin_password"):
    server_id: str
    instance_name: str
    user: str
    password: str


class DiskOffer(_Wire):
    """One disk of a server that another host may read. ``name``: as among the server's files (disk, disk.eph0, …), or
    the id of an image that it stands on."""

    name: str
    connection: DiskConnection
    format: str  # of what is read
    size_bytes: int


class OfferDisks(Operation, tag="compute.offer_disks"):
    """Source of a cold move: let ``to_host`` alone read the disks of a server that does not run here. They go on being
    offered by another life of the agent; a running server's are not (``guest-running``). Undo: WithdrawDisks."""

    server_id: str
    to_host: str


class OfferDisksResult(Result):
    disks: list[DiskOffer]


class WithdrawDisks(Operation, tag="compute.withdraw_disks"):
    """Neither disks nor images are offered."""

    server_id: str


class OfferImages(Operation, tag="compute.offer_images"):
    """Source of any move: let ``to_host`` alone read, from this host's cache, images that the server stands on and that
    were deleted. ``image-gone`` if this host does not have one. Undo: WithdrawDisks."""

    server_id: str
    to_host: str
    images: list[ImageSource]


class FetchImages(Operation, tag="compute.fetch_images"):
    """Target of any move: CacheImage of each of ``images``, from ``from_host`` where that offers it."""

    stall_seconds: ClassVar[float] = 600
    server_id: str
    from_host: str
    images: list[ImageSource]
    offers: list[DiskOffer]


class FetchDisks(Operation, tag="compute.fetch_disks"):
    """Target of a cold move: the disks of ``server`` with the contents that ``from_host`` offers, grown where
    ``server`` says more. Its image is cached. Undo: DeleteDisks."""

    stall_seconds: ClassVar[float] = 600
    server: ServerSpec
    from_host: str
    disks: list[DiskOffer]


class ResizeDisks(Operation, tag="compute.resize_disks"):
    """A resize on the same host: keep the disks as they are aside, and grow the server's own to what ``server`` says.
    Undo: RevertDisks. `DropDisksAside` confirms it."""

    stall_seconds: ClassVar[float] = 600
    server: ServerSpec


class RevertDisks(Operation, tag="compute.revert_disks"):
    """The disks kept aside are the server's again; without such, nothing."""

    server_id: str


class DropDisksAside(Operation, tag="compute.drop_disks_aside"):
    server_id: str


class PrepareReceive(Operation, tag="compute.prepare_receive"):
    """Target of a live migration: disks to copy into, and a door to this host's hypervisor for ``from_host`` and this
    server alone. ``server`` is as it will be here; its image is cached, its ports are plugged, its volumes exported to
    this host. Undo: EndReceive."""

    stall_seconds: ClassVar[float] = 300
    server: ServerSpec
    from_host: str


class PrepareReceiveResult(Result):
    address: str  # host:port of the door


class EndReceive(Operation, tag="compute.end_receive"):
    """Close the door. With ``discard`` what came for a migration that failed goes, too: a domain that does not run, and
    disks. A domain that runs stays, and is an error (``guest-running``)."""

    server_id: str
    instance_name: str
    discard: bool = False


class MigrateServer(Operation, tag="compute.migrate"):
    """Source of a live migration. Done: the guest runs on the target and is no more here. Failed: it runs here
    (``aborted``: somebody wanted that; ``timeout``). Repeated by another life of the agent, it looks first. ``server``
    as in PrepareReceive. ``on_timeout``: what happens when it is not over after ``timeout_seconds`` (0: never)."""

    stall_seconds: ClassVar[float] = 300
    server: ServerSpec
    to_host: str
    address: str
    timeout_seconds: int = 0
    on_timeout: Literal["abort", "force_complete"] = "abort"


class MigrateServerResult(Result):
    downtime_ms: int | None = None
    transferred_bytes: int | None = None


class SteerMigration(Operation, tag="compute.steer_migration"):
    """To the source, while it migrates; its object is the migration, not the server. ``not-found``: none goes on."""

    server_id: str
    instance_name: str
    action: Literal["abort", "force_complete"]


class CreateVolume(Operation, tag="volume.create"):
    role: ClassVar[str] = "storage"
    stall_seconds: ClassVar[float] = 600
    volume_id: str
    size_gb: int
    image: ImageSource | None = None
    source_snapshot_id: str | None = None
    source_snapshot_volume_id: str | None = None
    source_volume_id: str | None = None


class DeleteVolume(Operation, tag="volume.delete"):
    role: ClassVar[str] = "storage"
    volume_id: str


class FetchVolume(Operation, tag="volume.fetch"):
    """Target of a move: this volume with the contents that ``from_host`` exports to this host; nobody else writes to it
    meanwhile. ``move_id``: what an earlier try of the same move brought is the outcome; any other volume of this id is
    moved aside. Undo: DeleteVolume."""

    role: ClassVar[str] = "storage"
    stall_seconds: ClassVar[float] = 600
    volume_id: str
    size_gb: int
    move_id: str
    from_host: str
    connection: DiskConnection


class ExtendVolume(Operation, tag="volume.extend"):
    role: ClassVar[str] = "storage"
    volume_id: str
    new_size_gb: int


class CreateVolumeSnapshot(Operation, tag="volume.create_snapshot"):
    role: ClassVar[str] = "storage"
    snapshot_id: str
    volume_id: str


class DeleteVolumeSnapshot(Operation, tag="volume.delete_snapshot"):
    role: ClassVar[str] = "storage"
    snapshot_id: str
    volume_id: str


class ExportVolume(Operation, tag="volume.export"):
    """Make a volume reachable from one host, for one attachment. Undo: UnexportVolume."""

    role: ClassVar[str] = "storage"
    volume_id: str
    attachment_id: str
    attachment_generation: int
    host: str  # the host that will connect; a unix socket if it is the same


class ExportVolumeResult(Result):
    connection: DiskConnection


class UnexportVolume(Operation, tag="volume.unexport"):
    role: ClassVar[str] = "storage"
    volume_id: str
    attachment_id: str


class UploadVolume(Operation, tag="volume.upload"):
    """Write a volume as an image (os-volume_upload_image)."""

    role: ClassVar[str] = "storage"
    stall_seconds: ClassVar[float] = 600
    volume_id: str
    upload: Upload


class UploadVolumeResult(SnapshotServerResult):
    pass


class RevertVolume(Operation, tag="volume.revert"):
    """Take a volume that is not exported back to its newest snapshot."""

    role: ClassVar[str] = "storage"
    volume_id: str
    snapshot_id: str


class BackupVolume(Operation, tag="volume.backup"):
    """Copy a volume (or a snapshot of it) into the backup store of the storage host. ``parent_backup_id``: chunks equal
    to the parent's are not stored twice. Undo: DeleteBackup."""

    role: ClassVar[str] = "storage"
    stall_seconds: ClassVar[float] = 600
    volume_id: str
    backup_id: str
    snapshot_id: str | None = None
    parent_backup_id: str | None = None


class BackupVolumeResult(Result):
    object_count: int
    size_bytes: int  # of the volume


class RestoreBackup(Operation, tag="volume.restore_backup"):
    """Overwrite a volume that is not exported with a backup."""

    role: ClassVar[str] = "storage"
    stall_seconds: ClassVar[float] = 600
    volume_id: str
    backup_id: str


class DeleteBackup(Operation, tag="volume.delete_backup"):
    role: ClassVar[str] = "storage"
    backup_id: str


class MendItem(_Wire):
    """One thing on a host that an operator wants mended (`cumulet doctor --fix`). ``document``: apply this document
    again. Otherwise the host is to be rid of the thing, by the control plane's word: named absent as of ``generation``.
    A host refuses if it holds a document of the thing that is newer. What holds data is moved aside, never deleted."""

    kind: str
    id: str
    problem: str
    generation: int
    document: tuple[str, str] | None = None


class MendHost(Operation, tag="host.mend"):
    role: ClassVar[str] = ""
    stall_seconds: ClassVar[float] = 60
    items: list[MendItem]


class MendHostResult(Result):
    done: list[str]  # of each item, for people


OperationBody = (
    CacheImage
    | CreateDisks
    | DeleteDisks
    | PlugPorts
    | UnplugPorts
    | DefineServer
    | UndefineServer
    | PowerServer
    | AttachVolume
    | DetachVolume
    | ResizeAttachedVolume
    | AttachPort
    | DetachPort
    | SnapshotServer
    | SetAdminPassword
    | OfferDisks
    | WithdrawDisks
    | OfferImages
    | FetchImages
    | FetchDisks
    | ResizeDisks
    | RevertDisks
    | DropDisksAside
    | PrepareReceive
    | EndReceive
    | MigrateServer
    | SteerMigration
    | CreateVolume
    | DeleteVolume
    | FetchVolume
    | ExtendVolume
    | CreateVolumeSnapshot
    | DeleteVolumeSnapshot
    | ExportVolume
    | UnexportVolume
    | UploadVolume
    | RevertVolume
    | BackupVolume
    | RestoreBackup
    | DeleteBackup
    | MendHost
)


class Execute(_Wire):
    """Conductor -> agent, topic ``agent.<host>``. Answered by ``Accepted`` or ``Refused``."""

    op_id: str  # <saga id>:<step>:<do|undo>:<attempt>
    epoch: int
    object_id: str
    request_id: str
    body: OperationBody


class Accepted(_Wire):
    op_id: str


class Refused(_Wire):
    """Not taken: stale epoch, no such role on this host, or shutting down."""

    op_id: str
    reason: str


class Outcome(_Wire):
    """Agent -> conductor (topic ``conductor``), repeated until acknowledged by a reply. ``error`` None is success.
    ``state`` is ``running`` for progress, ``unknown`` in answer to an ask about an op_id never seen."""

    op_id: str
    host: str
    state: Literal["running", "done", "failed", "unknown"]
    result: dict[str, Any] | None = None
    error: str | None = None  # for people
    error_code: str | None = None  # for programs: no-space, image-invalid, detach-refused, not-found, timeout, ...
    progress: float | None = None  # 0..1
    seconds: float = 0.0
    # when the agent took it, began and ended, by the host's clock (microseconds since the epoch)
    accepted_at: int | None = None
    started_at: int | None = None
    ended_at: int | None = None


class AskOutcome(_Wire):
    """Conductor -> agent: what became of this? Answered by ``Outcome``."""

    op_id: str


# -- documents ---------------------------------------------------------------------------------------------------


class LookAgain(_Wire):
    """Conductor -> agent hint: these documents changed; empty means compare everything."""

    keys: list[tuple[str, str]] = []  # (kind, id)


class PullIndex(_Wire):
    """Agent -> conductor: which documents am I to have? Answered by ``Index``."""

    host: str


class Index(_Wire):
    entries: list[tuple[str, str, int]]  # (kind, id, generation)


class Pull(_Wire):
    """Agent -> conductor: give me these. Answered by ``Documents``."""

    host: str
    keys: list[tuple[str, str]]


class Documents(_Wire):
    documents: list[tuple[str, dict[str, Any]]]  # (kind, document)
    absent: list[tuple[str, str, int]]  # (kind, id, generation): remove if yours is not newer


class Applied(_Wire):
    """Agent -> conductor: what I made of the documents."""

    host: str
    entries: list[tuple[str, str, int, str | None]]  # (kind, id, generation, error)


# -- host life ----------------------------------------------------------------------------------------------------


class HostResources(_Wire):
    """What a host offers and how it is doing. Memory from /proc/meminfo, not virNodeGetInfo (one NUMA node only)."""

    vcpus: int
    memory_mb: int
    local_gb: int
    memory_mb_used: int = 0  # by everything on the host
    local_gb_used: int = 0
    hypervisor_type: str = "QEMU"
    hypervisor_version: int = 0
    cpu_info: dict[str, Any] = {}
    running_vms: int = 0
    volume_total_gb: float = 0
    volume_free_gb: float = 0
    # the agent itself
    operations: int = 0  # taken and not ended
    pid: int = 0
    cpu_seconds: float = 0
    rss_mb: float = 0
    # filled in by the conductor: the host's clock less its own, the way of the heartbeat included
    clock_ahead_ms: float = 0


class Heartbeat(_Wire):
    """Agent -> conductor, every few seconds and at start (``started`` then differs)."""

    host: str
    started: int  # microseconds since the epoch: identifies this run of the agent
    roles: list[str]
    version: str
    tunnel_ip: str | None
    ip: str
    speed_factor: float  # 1.0 with KVM; how many times slower emulation is
    mechanism: str  # openvswitch or linuxbridge
    virt_type: str  # kvm, qemu or fake
    bridge_mappings: dict[str, str]
    resources: HostResources
    warnings: list[dict[str, str]] = []  # code, message, cure
    sent_at: int = 0  # by the host's clock; 0: an agent of the previous release


DISKS_ONLY = "disks only"  # the reason of a report, in an inventory, of a server that has files and no domain


class ServerReport(_Wire):
    """Agent -> conductor: what one QEMU process is doing, seen by events and by a periodic listing."""

    host: str
    server_id: str
    sequence: int  # rises with every report of this host; older ones are ignored
    power_state: int  # 0 pending, 1 running, 3 paused, 4 shutdown, 6 crashed, 7 suspended
    reason: str = ""


class PasswordPosted(_Wire):
    """Agent -> conductor: a guest gave its metadata service the admin password it made (as a rule encrypted with its
    user's key). Answered by `PasswordTaken`."""

    server_id: str
    password: str


class PasswordTaken(_Wire):
    outcome: Literal["kept", "conflict", "gone", "unavailable"]  # conflict: it has one, which stays


class RenewCertificate(_Wire):
    """Agent -> conductor: this host's certificate nears its end. ``csr`` is signed with the key that ``certificate`` is
    for, which proves that the host still has it. Answered by `Certified`."""

    host: str
    certificate: str  # PEM, as are all of them
    csr: str


class Certified(_Wire):
    certificate: str


class Inventory(_Wire):
    """Agent -> conductor at start and now and then: everything of ours on this host. The conductor answers with
    ``Absent``: what to remove for sure. What neither names is quarantined with a warning, never deleted."""

    host: str
    servers: list[ServerReport]
    ports: list[str]
    volumes: list[str]  # and those on their way here
    exports: list[tuple[str, str]]  # (volume id, attachment id)
    # servers that came from elsewhere and are not settled here, or left and have only files here: nothing is reported
    # of them, and they go once no move of theirs is between this host and another
    moving: list[str] = []
    # of when it was taken, among the reports; 0: an agent of the previous release, whose silence tells nothing
    sequence: int = 0


class Absent(_Wire):
    servers: list[str] = []
    ports: list[str] = []
    exports: list[tuple[str, str]] = []
    volumes: list[str] = []  # copies that stayed behind when a volume moved, or that a failed move left
    again: bool = False  # of something it cannot be said yet: send another soon


# -- queries: conductor -> agent, answered directly -------------------------------------------------------------------


class Query(_Wire, tag_field="query"):
    role: ClassVar[str] = "compute"


class ConsoleLog(Query, tag="compute.console_log"):
    """The last ``length`` lines of the serial console (None: all). Answered by ``Text``."""

    server_id: str
    length: int | None = None


class DomainXml(Query, tag="compute.xml"):
    """Answered by ``Text``."""

    server_id: str
    instance_name: str


class Diagnostics(Query, tag="compute.diagnostics"):
    """Answered by ``Data``."""

    server_id: str
    instance_name: str


class MigrationProgress(Query, tag="compute.migration_progress"):
    """Of a live migration under way, asked of its source. Answered by ``Data``: memory_total_bytes,
    memory_processed_bytes, memory_remaining_bytes and the same of disk; empty when none goes on."""

    server_id: str
    instance_name: str


class ConsoleEndpoint(Query, tag="compute.console_endpoint"):
    """Where the agent's console of a type is reached. Answered by ``Data``: host, port or unix socket path."""

    server_id: str
    instance_name: str
    type: Literal["vnc", "spice", "serial"]


class AuditHost(Query, tag="host.audit"):
    """What is there, and what of it is not as the host's documents say. Answered by ``Data``: `Audited`."""

    role: ClassVar[str] = ""


class Thing(_Wire):
    """Something of ours that exists on a host. ``owner``: the server, volume, … it belongs to, where it shows."""

    kind: str  # domain, disk, tap, volume, export, backup, quarantine
    id: str
    owner: str = ""
    state: str = ""


class Drift(_Wire):
    """Plumbing of a document that is not as the document says: ``missing``, ``different``, ``expired``; or that no
    document asks for (``unknown``)."""

    kind: str  # namespace, dnsmasq, dhcp-host, lease, chain, forwarding, …
    id: str
    problem: Literal["missing", "different", "unknown", "expired"]
    message: str
    document: tuple[str, str] | None = None  # kind and id: whose application mends it


class Audited(_Wire):
    """``kinds``: of which every thing that exists is in ``things``; nothing follows from the absence of others."""

    kinds: list[str] = []
    things: list[Thing] = []
    drift: list[Drift] = []


QueryBody = ConsoleLog | DomainXml | Diagnostics | MigrationProgress | ConsoleEndpoint | AuditHost


class Ask(_Wire):
    query: QueryBody


class Answer(_Wire):
    text: str | None = None
    data: dict[str, Any] | None = None
    error: str | None = None
    error_code: str | None = None
