"""Rows of the compute tables as structs; field order is the table's column order."""

from typing import Any

import msgspec


class ServerRow(msgspec.Struct):
    number: int
    id: str
    project_id: str
    user_id: str
    name: str
    hostname: str
    description: str | None
    created_at: int
    updated_at: int | None
    deleted_at: int | None
    launched_at: int | None
    terminated_at: int | None
    goal: str
    failed: bool
    deleting: bool
    vm_state: str
    task_state: str | None
    power_state: int
    status: str
    host: str | None
    availability_zone: str | None
    image_id: str | None
    image_properties: dict[str, Any]
    flavor_id: str
    flavor: dict[str, Any]
    vcpus: int
    memory_mb: int
    root_gb: int
    ephemeral_gb: int
    key_name: str | None
    public_key: str | None
    user_data: str | None
    config_drive: bool
    access_ip_v4: str | None
    access_ip_v6: str | None
    disk_config: str
    metadata: dict[str, str]
    locked: bool
    locked_by: str | None
    locked_reason: str | None
    reservation_id: str
    launch_index: int
    root_device_name: str | None
    scheduler_hints: dict[str, Any]
    password: str | None
    rescue: dict[str, Any] | None
    resize: dict[str, Any] | None

    @property
    def instance_name(self) -> str:
        return f"instance-{self.number:08x}"


class FlavorRow(msgspec.Struct):
    number: int
    id: str
    name: str
    description: str | None
    vcpus: int
    memory_mb: int
    root_gb: int
    ephemeral_gb: int
    swap_mb: int
    rxtx_factor: float
    is_public: bool
    extra_specs: dict[str, str]
    created_at: int
    updated_at: int | None

    def embedded(self) -> dict[str, Any]:
        """What a server remembers of the flavor it was made with."""
        return {
            "id": self.id,
            "name": self.name,
            "vcpus": self.vcpus,
            "ram": self.memory_mb,
            "disk": self.root_gb,
            "ephemeral": self.ephemeral_gb,
            "swap": self.swap_mb,
            "extra_specs": self.extra_specs,
        }


class FaultRow(msgspec.Struct):
    server_id: str
    created_at: int
    code: int
    message: str
    details: str | None


class KeypairRow(msgspec.Struct):
    number: int
    user_id: str
    name: str
    type: str
    fingerprint: str
    public_key: str
    created_at: int


class BlockDeviceRow(msgspec.Struct):
    id: str
    server_id: str
    volume_id: str
    attachment_id: str | None
    device: str | None
    boot_index: int | None
    tag: str | None
    delete_on_termination: bool
    connection: dict[str, Any] | None
    created_at: int
    move: dict[str, Any] | None = None


class MigrationRow(msgspec.Struct):
    number: int
    id: str
    server_id: str
    type: str
    status: str
    source: str
    dest: str | None
    old_flavor: int | None
    new_flavor: int | None
    user_id: str | None
    project_id: str | None
    created_at: int
    updated_at: int


class InterfaceRow(msgspec.Struct):
    port_id: str
    server_id: str
    position: int
    tag: str | None


class GroupRow(msgspec.Struct):
    id: str
    project_id: str
    user_id: str
    name: str
    policy: str
    rules: dict[str, Any]
    created_at: int


class AggregateRow(msgspec.Struct):
    id: int
    uuid: str
    name: str
    metadata: dict[str, str]
    created_at: int
    updated_at: int | None


class ActionRow(msgspec.Struct):
    saga_id: str
    server_id: str
    request_id: str
    action: str
    user_id: str | None
    project_id: str | None
    started_at: int
    object_kind: str
    object_id: str
