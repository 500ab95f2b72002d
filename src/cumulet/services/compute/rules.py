"""Prerequisite checks of compute calls, without side effects: what upstream's API refuses before its 202.

Pure functions over rows and parsed bodies. What another service must look up is passed in.
"""

import base64
import binascii
import ipaddress
import re
from typing import Any

from cumulet.kernel.errors import BadInput, Conflict, Forbidden, WrongState
from cumulet.kernel.ids import is_uuid
from cumulet.services.compute.rows import FlavorRow, ServerRow

GIB = 1024**3

# Which vm_states (and task_states: None is any, () is only none) admit an operation.
_ANY: tuple[str, ...] | None = None
ALLOWED: dict[str, tuple[tuple[str, ...] | None, tuple[str, ...] | None]] = {
    "stop": (("active", "error"), ()),
    "start": (("stopped",), ()),
    "soft_reboot": (("active",), ()),
    "hard_reboot": (
        ("active", "error", "paused", "stopped", "suspended"),
        ("pausing", "reboot_pending", "reboot_started", "rebooting", "rebooting_hard", "resuming", "suspending",
         "unpausing"),
    ),
    "pause": (("active",), ()),
    "unpause": (("paused",), ()),
    "suspend": (("active",), ()),
    "resume": (("suspended",), ()),
    "rescue": (("active", "error", "stopped"), ()),
    "unrescue": (("rescued",), ()),
    "rebuild": (("active", "error", "stopped"), ()),
    "resize": (("active", "stopped"), ()),
    "live_migrate": (("active", "paused"), ()),
    "evacuate": (("active", "error", "stopped"), _ANY),
    "confirm_resize": (("resized",), ()),
    "revert_resize": (("resized",), ()),
    "shelve": (("active", "paused", "stopped", "suspended"), ()),
    "shelve_offload": (("shelved",), ()),
    "unshelve": (("shelved", "shelved_offloaded"), ()),
    "snapshot": (("active", "paused", "stopped", "suspended"), ()),
    "set_admin_password": (("active",), ()),
    "attach_volume": (
        ("active", "paused", "resized", "shelved", "shelved_offloaded", "soft-delete", "stopped"), ()),
    "detach_volume": (
        ("active", "paused", "resized", "shelved", "shelved_offloaded", "soft-delete", "stopped"), ()),
    "attach_interface": (("active", "paused", "stopped"), ()),
    "detach_interface": (("active", "paused", "stopped"), ()),
    "update_instance_metadata": (("active", "paused", "stopped", "suspended"), _ANY),
    "delete_instance_metadata": (("active", "paused", "stopped", "suspended"), _ANY),
    "get_diagnostics": (("active", "paused", "rescued", "stopped"), _ANY),
    "restore": (("soft-delete",), ()),
}  # fmt: skip


def check_state(server: ServerRow, operation: str, called: str | None = None) -> None:
    """Raise WrongState unless the server's states admit ``operation``; ``called`` is its name in the message."""
    vm_states, task_states = ALLOWED[operation]
    attribute, value = None, None
    if vm_states is not None and server.vm_state not in vm_states:
        attribute, value = "vm_state", server.vm_state
    elif task_states is not None and server.task_state is not None and server.task_state not in task_states:
        attribute, value = "task_state", server.task_state
    if attribute is not None:
        raise WrongState(
            f"Cannot '{called or operation}' instance {server.id} while it is in {attribute} {value}",
            type_name="InstanceInvalidState",
        )


def check_host(server: ServerRow) -> None:
    """What only a host can do is refused of a server that found none."""
    if server.host is None:
        raise Conflict(f"Instance {server.id} is not ready", type_name="InstanceNotReady")


def check_migrating(server: ServerRow, called: str, vm_states: tuple[str, ...] | None = None) -> None:
    """A live migration of the server is to be under way."""
    attribute, value = "task_state", server.task_state
    if vm_states is not None and server.vm_state not in vm_states:
        attribute, value = "vm_state", server.vm_state
    elif server.task_state == "migrating":
        return
    raise WrongState(f"Cannot '{called}' instance {server.id} while it is in {attribute} {value}")


def check_lock(server: ServerRow, *, admin: bool) -> None:
    if server.locked and not admin:
        raise Conflict(f"Instance {server.id} is locked", type_name="InstanceIsLocked")


def check_not_busy(server: ServerRow, operation: str) -> None:
    if server.task_state is not None:
        raise WrongState(f"Cannot '{operation}' instance {server.id} while it is in task_state {server.task_state}")


# -- fields ---------------------------------------------------------------------------------------------------


def reference_id(reference: str | int) -> str:
    """A flavorRef may be an id or a link that ends in one."""
    return str(reference).rsplit("/", 1)[-1].split("?", 1)[0]


def ip_field(name: str, text: str, version: int) -> str | None:
    """``accessIPv4`` and the like; empty clears."""
    if text == "":
        return None
    try:
        found = ipaddress.IPv4Address(text) if version == 4 else ipaddress.IPv6Address(text)
    except ValueError:
        raise BadInput(
            f"Invalid input for field/attribute {name}. Value: {text}. {text!r} is not a 'ipv{version}'"
        ) from None
    return str(found)


def base64_field(name: str, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadInput(
            f"Invalid input for field/attribute {name}. Value: {text[:100]}. {text[:100]!r} is not a 'base64'"
        ) from None


_NOT_HOST = re.compile(r"[^a-zA-Z0-9-]+")


def host_name(name: str, default: str) -> str:
    """A host name made from a display name, as upstream makes it."""
    text = re.sub(r"[ _.]", "-", name)
    text = re.sub(r"[^\w.-]+", "", text.encode("ascii", "ignore").decode()).lower().strip(".-")
    text = _NOT_HOST.sub("", text)[:63].rstrip("-")
    return text or default


def hint_ids(name: str, value: str | list[str] | None) -> list[str]:
    found = [value] if isinstance(value, str) else list(value or [])
    for text in found:
        if not is_uuid(text):
            raise BadInput(f"Invalid input for field/attribute {name}. Value: {text}. {text!r} is not a 'uuid'")
    return found


# -- create ----------------------------------------------------------------------------------------------------


def counts(min_count: int | None, max_count: int | None) -> tuple[int, int]:
    low = min_count or 1
    high = max_count or low
    if low > high:
        raise BadInput("min_count must be <= max_count")
    return low, high


def flavor_fits_image(flavor: FlavorRow, image: Any, *, volume_backed: bool, root_gb: int) -> None:
    if image.status != "active":
        raise BadInput(f"Image {image.id} is not active.")
    if flavor.memory_mb < (image.min_ram or 0):
        raise BadInput("Flavor's memory is too small for requested image.")
    if volume_backed or root_gb == 0:
        return
    root_bytes = root_gb * GIB
    size = image.virtual_size or image.size or 0
    if size > root_bytes:
        raise BadInput(
            f"Flavor's disk is too small for requested image. Flavor disk is {root_bytes} bytes, image is {size} bytes."
        )
    if (image.min_disk or 0) * GIB > root_bytes:
        raise BadInput(
            f"Flavor's disk is smaller than the minimum size specified in image metadata. Flavor disk is {root_bytes}"
            f" bytes, minimum size is {image.min_disk * GIB} bytes."
        )


def zero_disk(flavor: FlavorRow, *, volume_backed: bool, allowed: bool) -> None:
    if flavor.root_gb == 0 and not volume_backed and not allowed:
        raise Forbidden("Only volume-backed servers are allowed for flavors with zero disk.")


def zone_and_host(text: str | None) -> tuple[str | None, str | None]:
    """``zone``, ``zone:host`` or ``zone:host:node``."""
    if text is None:
        return None, None
    parts = text.split(":")
    if len(parts) > 3:
        raise BadInput("Unable to parse availability_zone")
    zone = parts[0] or None
    host = parts[1] if len(parts) > 1 and parts[1] else None
    if len(parts) == 3 and parts[2]:
        if host is not None and parts[2] != host:
            raise BadInput(f"Compute host {parts[2]} could not be found.")
        host = parts[2]
    return zone, host


BOOT_SEQUENCE = (
    "Block Device Mapping is Invalid: Boot sequence for the instance and image/block device mapping combination is"
    " not valid."
)
