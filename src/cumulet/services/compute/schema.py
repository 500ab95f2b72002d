"""Request bodies of the newest version; ``Since``/``Until`` say which versions know a field.

Refuses what upstream's schemas refuse (types, lengths, patterns, unknown fields). What needs more than one field or
the database is `rules`. Like upstream, integers may come as strings and booleans in many spellings (`truth`).
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType, field

from cumulet.http.microversion import Since, Until

UUID_PATTERN = r"^[0-9a-fA-F]{8}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{12}$"
_PRINTABLE = r"^(?!\s)[^\x00-\x1f\x7f-\x9f]*(?<!\s)$"
MAX_INT = 2**31 - 1

Name = Annotated[str, Meta(min_length=1, max_length=255, pattern=_PRINTABLE)]
ZoneName = Annotated[str, Meta(min_length=1, max_length=255, pattern=r"^(?!\s)[^\x00-\x1f\x7f:]*(?<!\s)$")]
Text1to255 = Annotated[str, Meta(min_length=1, max_length=255)]
Text255 = Annotated[str, Meta(max_length=255)]
UuidText = Annotated[str, Meta(pattern=UUID_PATTERN)]
ImageRef = Annotated[str, Meta(pattern=rf"^$|{UUID_PATTERN}")]
Tag = Annotated[str, Meta(min_length=1, max_length=60)]
ServerTag = Annotated[str, Meta(min_length=1, max_length=60, pattern=r"^[^,/]*$")]
Count = Annotated[int, Meta(ge=1, le=MAX_INT)]
Size = Annotated[int, Meta(ge=0, le=MAX_INT)]
Limit = Annotated[int, Meta(ge=-1, le=MAX_INT)]
MetadataKey = Annotated[str, Meta(min_length=1, max_length=255, pattern=r"^[a-zA-Z0-9\-_:. ]{1,255}$")]
Metadata = dict[MetadataKey, Text255]
SpecKey = Annotated[str, Meta(min_length=1, max_length=255, pattern=r"^[a-zA-Z0-9\-_:. ]{1,255}$")]
Fqdn = Annotated[str, Meta(min_length=1, max_length=255, pattern=r"^[a-zA-Z0-9-._]*$")]
HostName63 = Annotated[str, Meta(min_length=1, max_length=255, pattern=r"^[a-zA-Z0-9]+[a-zA-Z0-9-.]*[a-zA-Z0-9]+$")]
UserData = Annotated[str, Meta(max_length=65535)]
DiskConfig = Literal["AUTO", "MANUAL"]

_TRUE = ("True", "TRUE", "true", "1", "ON", "On", "on", "YES", "Yes", "yes", "y", "t")
BoolLike = (
    bool
    | Literal[
        "True",
        "TRUE",
        "true",
        "1",
        "ON",
        "On",
        "on",
        "YES",
        "Yes",
        "yes",
        "y",
        "t",
        "False",
        "FALSE",
        "false",
        "0",
        "OFF",
        "Off",
        "off",
        "NO",
        "No",
        "no",
        "n",
        "f",
    ]
)


def truth(value: bool | str | UnsetType | None) -> bool:
    return value is True or (isinstance(value, str) and value in _TRUE)


class Body(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    pass


# -- servers ------------------------------------------------------------------------------------------------


class NetworkRequest(Body):
    uuid: str | None = None
    port: UuidText | None = None
    fixed_ip: str | None = None
    tag: Annotated[Tag, Since("2.32")] | None = None


class FileRequest(Body):
    path: str
    contents: str


class DeviceV1(Body):
    virtual_name: Text255 | None = None
    volume_id: UuidText | None = None
    snapshot_id: UuidText | None = None
    volume_size: Count | None = None
    device_name: Text1to255 | None = None
    delete_on_termination: BoolLike = False
    no_device: Any = None
    connection_info: str | None = None


class DeviceV2(DeviceV1):
    source_type: Literal["volume", "image", "snapshot", "blank"] | None = None
    uuid: Text1to255 | None = None
    image_id: UuidText | None = None
    destination_type: Literal["local", "volume"] | None = None
    guest_format: Text255 | None = None
    device_type: Text255 | None = None
    disk_bus: Text255 | None = None
    boot_index: int | None = None
    tag: Annotated[Tag, Since("2.32")] | None = None
    volume_type: Annotated[Text255 | None, Since("2.67")] = None


class GroupName(Body):
    name: Name


class ServerCreate(Body):
    name: Name
    flavorRef: str | int
    imageRef: ImageRef = ""
    adminPass: str | None = None
    metadata: Metadata = {}
    networks: list[NetworkRequest] | Literal["auto", "none"] | UnsetType = UNSET
    disk_config: DiskConfig | UnsetType = field(name="OS-DCF:diskConfig", default=UNSET)
    accessIPv4: str | None = None
    accessIPv6: str | None = None
    personality: Annotated[list[FileRequest], Until("2.56")] | UnsetType = UNSET
    availability_zone: Annotated[str, Meta(min_length=1, max_length=255)] | None = None
    block_device_mapping: list[DeviceV1] = []
    block_device_mapping_v2: list[DeviceV2] = []
    config_drive: BoolLike | Literal[""] = False
    key_name: Name | None = None
    min_count: Count | None = None
    max_count: Count | None = None
    return_reservation_id: BoolLike = False
    security_groups: list[GroupName] | UnsetType = UNSET
    user_data: UserData | None = None
    description: Annotated[Text255 | None, Since("2.19")] | UnsetType = UNSET
    tags: Annotated[list[ServerTag], Meta(max_length=50), Since("2.52")] = []
    trusted_image_certificates: Annotated[list[str] | None, Since("2.63")] | UnsetType = UNSET
    host: Annotated[Text1to255, Since("2.74")] | None = None
    hypervisor_hostname: Annotated[Text1to255, Since("2.74")] | None = None
    hostname: Annotated[HostName63, Since("2.90")] | None = None


class Hints(msgspec.Struct, kw_only=True):
    """Scheduler hints; unknown ones are taken and ignored, as upstream does."""

    group: UuidText | None = None
    different_host: str | list[str] | None = None  # UUIDs: `rules`; msgspec frees a pattern twice in such a union
    same_host: str | list[str] | None = None
    query: str | dict[str, Any] | None = None
    target_cell: Name | None = None
    different_cell: str | list[str] | None = None
    build_near_host_ip: str | None = None
    cidr: str | None = None


class ServerCreateRequest(Body):
    server: ServerCreate
    hints: Hints | UnsetType = field(name="os:scheduler_hints", default=UNSET)
    old_hints: Hints | UnsetType = field(name="OS-SCH-HNT:scheduler_hints", default=UNSET)


class ServerUpdate(Body):
    name: Name | UnsetType = UNSET
    disk_config: DiskConfig | UnsetType = field(name="OS-DCF:diskConfig", default=UNSET)
    accessIPv4: str | UnsetType = UNSET
    accessIPv6: str | UnsetType = UNSET
    description: Annotated[Text255 | None, Since("2.19")] | UnsetType = UNSET
    hostname: Annotated[HostName63, Since("2.90")] | UnsetType = UNSET


class Reboot(Body):
    type: Literal["HARD", "Hard", "hard", "SOFT", "Soft", "soft"]


class CreateImage(Body):
    name: Name
    metadata: Metadata = {}


class ChangePassword(Body):
    adminPass: str


class ConsoleOutput(Body):
    length: Annotated[int, Meta(ge=-1)] | None = None


class ResetState(Body):
    state: Literal["active", "error"]


class SecurityGroupAction(msgspec.Struct, kw_only=True):
    name: Annotated[str, Meta(min_length=1)]


class Lock(Body):
    locked_reason: Annotated[Text1to255, Since("2.73")] | None = None


class Resize(Body):
    flavorRef: str | int
    disk_config: DiskConfig | UnsetType = field(name="OS-DCF:diskConfig", default=UNSET)


class Migrate(Body):
    host: Fqdn | None = None


class Evacuate(Body):
    host: Fqdn | None = None
    onSharedStorage: Annotated[BoolLike, Until("2.13")] | UnsetType = UNSET
    adminPass: str | None = None
    force: Annotated[BoolLike, Since("2.29"), Until("2.67")] | UnsetType = UNSET


class MigrateLive(Body):
    host: Fqdn | None
    block_migration: BoolLike | Literal["auto"]
    disk_over_commit: Annotated[BoolLike, Until("2.24")] | UnsetType = UNSET
    force: Annotated[BoolLike, Since("2.30"), Until("2.67")] | UnsetType = UNSET


class Rebuild(Body):
    imageRef: UuidText
    name: Name | UnsetType = UNSET
    adminPass: str | None = None
    metadata: Metadata | UnsetType = UNSET
    preserve_ephemeral: BoolLike = False
    disk_config: DiskConfig | UnsetType = field(name="OS-DCF:diskConfig", default=UNSET)
    accessIPv4: str | UnsetType = UNSET
    accessIPv6: str | UnsetType = UNSET
    personality: Annotated[list[FileRequest], Until("2.56")] | UnsetType = UNSET
    description: Annotated[Text255 | None, Since("2.19")] | UnsetType = UNSET
    key_name: Annotated[Name | None, Since("2.54")] | UnsetType = UNSET
    user_data: Annotated[UserData | None, Since("2.57")] | UnsetType = UNSET
    trusted_image_certificates: Annotated[list[str] | None, Since("2.63")] | UnsetType = UNSET
    hostname: Annotated[HostName63, Since("2.90")] | UnsetType = UNSET


class Rescue(Body):
    adminPass: str | None = None
    rescue_image_ref: UuidText | None = None


class MetadataBody(Body):
    metadata: Metadata


class MetaBody(Body):
    meta: Metadata


class TagsBody(Body):
    tags: Annotated[list[ServerTag], Meta(max_length=50)]


class FixedIpRequest(Body):
    ip_address: str


class InterfaceCreate(Body):
    net_id: UuidText | None = None
    port_id: UuidText | None = None
    fixed_ips: Annotated[list[FixedIpRequest], Meta(min_length=1, max_length=1)] | None = None
    tag: Annotated[Tag, Since("2.49")] | None = None


class InterfaceRequest(Body):
    interfaceAttachment: InterfaceCreate = field(default_factory=InterfaceCreate)


class AttachmentCreate(Body):
    volumeId: UuidText
    device: (
        Annotated[str, Meta(min_length=1, max_length=255, pattern=r"(^/dev/x{0,1}[a-z]{0,1}d{0,1})([a-z]+)[0-9]*$")]
        | None
    ) = None
    tag: Annotated[Tag, Since("2.49")] | None = None
    delete_on_termination: Annotated[BoolLike, Since("2.79")] = False


class AttachmentUpdate(Body):
    volumeId: UuidText
    device: Annotated[str | None, Since("2.85")] = None
    tag: Annotated[Tag, Since("2.85")] | None = None
    delete_on_termination: Annotated[BoolLike, Since("2.85")] | UnsetType = UNSET
    serverId: Annotated[UuidText, Since("2.85")] | None = None
    id: Annotated[UuidText, Since("2.85")] | None = None


class ConsoleCreate(Body):
    protocol: Literal["vnc", "spice", "serial", "rdp", "mks"]
    type: Literal["novnc", "xvpvnc", "spice-html5", "serial", "rdp-html5", "webmks"]


# -- flavors, key pairs, groups -------------------------------------------------------------------------------


class FlavorCreate(Body):
    name: Name
    ram: Count
    vcpus: Count
    disk: Size
    id: Annotated[str, Meta(min_length=1, max_length=255, pattern=r"^(?! )[a-zA-Z0-9. _-]+(?<! )$")] | int | None = None
    ephemeral: Size = field(name="OS-FLV-EXT-DATA:ephemeral", default=0)
    swap: Size = 0
    rxtx_factor: Annotated[float, Meta(gt=0, le=3.40282e38)] = 1.0
    is_public: BoolLike = field(name="os-flavor-access:is_public", default=True)
    description: Annotated[Annotated[str, Meta(max_length=65535)] | None, Since("2.55")] = None


class FlavorUpdate(Body):
    description: Annotated[str, Meta(max_length=65535)] | None


class ExtraSpecs(Body):
    extra_specs: dict[SpecKey, Text255 | float | int]


class TenantAccess(Body):
    tenant: Text1to255


class KeypairCreate(Body):
    name: Text1to255
    public_key: str | None = None
    type: Annotated[Literal["ssh", "x509"], Since("2.2")] = "ssh"
    user_id: Annotated[str, Since("2.10")] | None = None


class GroupPolicies(Body):
    name: Name
    policies: Annotated[
        list[Literal["anti-affinity", "affinity", "soft-anti-affinity", "soft-affinity"]],
        Meta(min_length=1, max_length=1),
    ]


class GroupRules(Body):
    max_server_per_host: Count | UnsetType = UNSET


class GroupPolicy(Body):
    name: Name
    policy: Literal["anti-affinity", "affinity", "soft-anti-affinity", "soft-affinity"]
    rules: GroupRules = field(default_factory=GroupRules)


# -- administration -------------------------------------------------------------------------------------------


class AggregateCreate(Body):
    name: Name
    availability_zone: ZoneName | None = None


class AggregateUpdate(Body):
    name: Name | UnsetType = UNSET
    availability_zone: ZoneName | UnsetType | None = UNSET


class AggregateHost(Body):
    host: Text1to255


class AggregateMetadata(Body):
    metadata: dict[MetadataKey, Text255 | None]


class ServiceUpdate(Body):
    status: Literal["enabled", "disabled"] | UnsetType = UNSET
    disabled_reason: Text1to255 | UnsetType = UNSET
    forced_down: BoolLike | UnsetType = UNSET


class ServiceSwitch(Body):
    host: Text1to255
    binary: Text1to255
    disabled_reason: Text1to255 | None = None
    forced_down: Annotated[BoolLike, Since("2.11")] | UnsetType = UNSET


class QuotaUpdate(Body):
    instances: Limit | UnsetType = UNSET
    cores: Limit | UnsetType = UNSET
    ram: Limit | UnsetType = UNSET
    metadata_items: Limit | UnsetType = UNSET
    key_pairs: Limit | UnsetType = UNSET
    server_groups: Limit | UnsetType = UNSET
    server_group_members: Limit | UnsetType = UNSET
    injected_files: Annotated[Limit, Until("2.56")] | UnsetType = UNSET
    injected_file_content_bytes: Annotated[Limit, Until("2.56")] | UnsetType = UNSET
    injected_file_path_bytes: Annotated[Limit, Until("2.56")] | UnsetType = UNSET
    floating_ips: Annotated[Limit, Until("2.35")] | UnsetType = UNSET
    fixed_ips: Annotated[Limit, Until("2.35")] | UnsetType = UNSET
    security_groups: Annotated[Limit, Until("2.35")] | UnsetType = UNSET
    security_group_rules: Annotated[Limit, Until("2.35")] | UnsetType = UNSET
    force: BoolLike = False


class QuotaClassUpdate(QuotaUpdate):
    pass


class ExternalEvent(Body):
    name: Literal[
        "network-changed",
        "network-vif-plugged",
        "network-vif-unplugged",
        "network-vif-deleted",
        "volume-extended",
        "power-update",
        "accelerator-request-bound",
        "volume-reimaged",
    ]
    server_uuid: UuidText
    status: Literal["failed", "completed", "in-progress"] = "completed"
    tag: Text255 | None = None


class ExternalEvents(Body):
    events: Annotated[list[ExternalEvent], Meta(min_length=1)]


# -- long ended -------------------------------------------------------------------------------------------------


class SecurityGroupCreate(Body):
    name: Text1to255
    description: Text255 | None = None


class SecurityGroupRuleCreate(msgspec.Struct, kw_only=True):
    parent_group_id: str
    ip_protocol: str | None = None
    from_port: int | None = None
    to_port: int | None = None
    cidr: str | None = None
    group_id: str | None = None


class AddFixedIp(Body):
    networkId: str | int


class RemoveFixedIp(Body):
    address: str
