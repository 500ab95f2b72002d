"""What an image may look like: base properties, JSON patches, statuses. Pure functions; errors are the domain's."""

import re
from typing import Any

import msgspec

from cumulet.kernel.errors import BadInput, Conflict, Forbidden, TooLarge, UnsupportedMedia
from cumulet.kernel.ids import is_uuid

CONTAINER_FORMATS = ["ami", "ari", "aki", "bare", "ovf", "ova", "docker", "compressed"]
DISK_FORMATS = ["ami", "ari", "aki", "vhd", "vhdx", "vmdk", "raw", "qcow2", "vdi", "iso", "ploop"]
VISIBILITIES = ["community", "public", "private", "shared"]
SORT_KEYS = ("name", "status", "container_format", "disk_format", "size", "id", "created_at", "updated_at")
MAX_TAGS = 128
MAX_PROPERTIES = 128
MAX_MEMBERS = 128
RESERVED_PREFIX = "os_glance"

_DISALLOWED = ("direct_url", "self", "file", "schema", "stores")
_READ_ONLY = (
    *("created_at", "updated_at", "status", "checksum", "size", "virtual_size", "direct_url", "self", "file"),
    *("schema", "id", "os_hash_algo", "os_hash_value"),
)
_RESERVED = ("location", "deleted", "deleted_at")
# Settable columns and how each value is checked.
_TEXT_OR_NULL = ("name", "owner")
_BOOLEAN = ("protected", "os_hidden")
_INTEGER = ("min_ram", "min_disk")
SETTABLE = (*_TEXT_OR_NULL, *_BOOLEAN, *_INTEGER, "visibility", "container_format", "disk_format", "tags")
PATCH_TYPES = {
    "application/openstack-images-v2.0-json-patch": 4,
    "application/openstack-images-v2.1-json-patch": 10,
}
_OPERATIONS = ("add", "remove", "replace")


class Change(msgspec.Struct, frozen=True):
    op: str
    name: str
    value: Any = None
    draft: int = 10


def _invalid(name: str, why: str) -> BadInput:
    return BadInput(f"Provided object does not match schema 'image': {why} (property '{name}')")


def check_value(name: str, value: Any) -> None:
    """One property of a body against the image schema: BadInput when it does not fit."""
    if name in _TEXT_OR_NULL:
        if value is not None and not isinstance(value, str):
            raise _invalid(name, "is not of type 'null', 'string'")
        if value is not None and len(value) > 255:
            raise _invalid(name, "is too long")
    elif name in _BOOLEAN:
        if not isinstance(value, bool):
            raise _invalid(name, "is not of type 'boolean'")
    elif name in _INTEGER:
        if not isinstance(value, int) or isinstance(value, bool):
            raise _invalid(name, "is not of type 'integer'")
        if not 0 <= value <= 2**31 - 1:
            raise BadInput(f"Value of {name} must be from 0 to {2**31 - 1}.")
    elif name == "visibility":
        if value not in VISIBILITIES:
            raise _invalid(name, f"{value!r} is not one of {VISIBILITIES}")
    elif name == "container_format":
        _one_of(name, value, CONTAINER_FORMATS)
    elif name == "disk_format":
        _one_of(name, value, DISK_FORMATS)
    elif name == "tags":
        _check_tags(value)
    elif name == "id":
        if not (is_uuid(value) and len(value) == 36):
            raise _invalid(name, "is not a UUID")
    elif name == "locations":
        if not isinstance(value, list):
            raise _invalid(name, "is not of type 'array'")
    elif not isinstance(value, str):
        raise _invalid(name, f"{value!r} is not of type 'string'")


def _one_of(name: str, value: Any, known: list[str]) -> None:
    if value is not None and value not in known:
        raise _invalid(name, f"{value!r} is not one of {[None, *known]}")


def _check_tags(value: Any) -> None:
    if not isinstance(value, list) or not all(isinstance(tag, str) for tag in value):
        raise _invalid("tags", "is not an array of strings")
    if any(len(tag) > 255 for tag in value):
        raise _invalid("tags", "a tag is too long")


def distinct_tags(tags: list[str]) -> list[str]:
    found = list(dict.fromkeys(tags))
    if len(found) > MAX_TAGS:
        raise TooLarge(
            f"The limit has been exceeded on the number of allowed image tags. "
            f"Attempted: {len(found)}, Maximum: {MAX_TAGS}"
        )
    return found


def check_property_count(properties: dict[str, str]) -> None:
    if len(properties) > MAX_PROPERTIES:
        raise TooLarge(
            f"The limit has been exceeded on the number of allowed image properties. "
            f"Attempted: {len(properties)}, Maximum: {MAX_PROPERTIES}"
        )


def check_name(name: str) -> None:
    """A property's name: not reserved, not over-long."""
    if name in _RESERVED or name.startswith(RESERVED_PREFIX):
        raise Forbidden(f"Attribute '{name}' is reserved.")
    if len(name) > 255:
        raise BadInput("Custom property should not be greater than 255 characters.")


def parse_create(body: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """Columns and custom properties of a create request."""
    if not isinstance(body, dict):
        raise BadInput("The request body must be a JSON object.")
    for name in _DISALLOWED:
        if name in body:
            raise Forbidden(f"Attribute '{name}' is read-only.")
    for name in _READ_ONLY:
        if name in body and name != "id":
            raise Forbidden(f"Attribute '{name}' is read-only.")
    columns: dict[str, Any] = {}
    properties: dict[str, str] = {}
    for name, value in body.items():
        check_value(name, value)
        if name in SETTABLE or name == "id":
            columns[name] = value
        elif name == "locations":
            raise Forbidden("It's not allowed to add locations if locations are invisible.")
        else:
            check_name(name)
            properties[name] = value
    columns["tags"] = distinct_tags(columns.get("tags", []))
    check_property_count(properties)
    return columns, properties


# -- JSON patch --------------------------------------------------------------------------------------------


def parse_patch(media_type: str, body: Any) -> list[Change]:
    draft = PATCH_TYPES.get(media_type)
    if draft is None:
        known = ", ".join(sorted(PATCH_TYPES))
        raise UnsupportedMedia(f"Image PATCH expects Content-Type one of: {known}", headers={"Accept-Patch": known})
    if not isinstance(body, list):
        raise BadInput("Request body must be a JSON array of operation objects.")
    return [_parse_change(raw, draft) for raw in body]


def _parse_change(raw: Any, draft: int) -> Change:
    if not isinstance(raw, dict):
        raise BadInput("Operations must be JSON objects.")
    if draft == 10:
        op = raw.get("op")
        if op not in _OPERATIONS:
            raise BadInput(f"Invalid operation: `{op}`. It must be one of the following: {', '.join(_OPERATIONS)}.")
        if "path" not in raw:
            raise BadInput("Unable to find 'path' in JSON Schema change")
        pointer = raw["path"]
    else:
        ops = [name for name in _OPERATIONS if name in raw]
        if len(ops) != 1:
            raise BadInput('Operation objects must contain exactly one member named "add", "remove", or "replace".')
        op = ops[0]
        pointer = raw[op]
    path = _pointer(pointer)
    name = path[0]
    depth = {"add": 2, "remove": 2}.get(op, 1) if name == "locations" else 1
    if len(path) != depth:
        raise BadInput(f"Invalid JSON pointer for this resource: '/{'/'.join(path)}'")
    if op != "remove" and "value" not in raw:
        raise BadInput(f'Operation "{op}" requires a member named "value".')
    if name in _READ_ONLY:
        raise Forbidden(f"Attribute '{name}' is read-only.")
    check_name(name)
    if op != "remove" and depth == 1:
        check_value(name, raw["value"])
    return Change(op, name, raw.get("value"), draft)


def _pointer(pointer: Any) -> list[str]:
    if not isinstance(pointer, str) or not pointer.startswith("/"):
        raise BadInput(f'Pointer `{pointer}` does not start with "/".')
    if re.search(r"/\s*?/", pointer[1:]):
        raise BadInput(f'Pointer `{pointer}` contains adjacent "/".')
    if len(pointer) > 1 and pointer.endswith("/"):
        raise BadInput(f'Pointer `{pointer}` end with "/".')
    if re.search("~[^01]", pointer) or pointer.endswith("~"):
        raise BadInput(f'Pointer `{pointer}` contains "~" not part of a recognized escape sequence.')
    path = [part.replace("~1", "/").replace("~0", "~").strip() for part in pointer.lstrip("/").split("/")]
    if not path[0]:
        raise BadInput(f"Pointer `{pointer}` does not contains valid token.")
    return path


def apply_changes(
    columns: dict[str, Any], properties: dict[str, str], changes: list[Change], *, queued: bool, may_give: bool
) -> tuple[dict[str, Any], dict[str, str]]:
    """What the changes make of an image; ``columns`` are its settable ones. Raises as upstream does, in order."""
    columns = dict(columns)
    properties = dict(properties)
    for change in changes:
        name = change.name
        if name == "locations":
            verb = {"add": "add", "remove": "remove", "replace": "update"}[change.op]
            raise Forbidden(f"It's not allowed to {verb} locations if locations are invisible.")
        base = name in SETTABLE
        if change.op == "remove":
            if base:
                raise Forbidden(f"Property {name} may not be removed.")
            if name not in properties:
                raise Conflict(f"Property {name} does not exist.")
            del properties[name]
            continue
        if change.op == "replace" and not base and name not in properties:
            raise Conflict(f"Property {name} does not exist.")
        if change.op == "add" and change.draft == 4 and (base or name in properties):
            raise Conflict(f"Property {name} already present.")
        if not base:
            properties[name] = change.value
            continue
        if name in ("disk_format", "container_format") and not queued and change.value != columns[name]:
            raise Forbidden(f"Attribute {name} can be only replaced for a queued image.")
        if name == "owner" and not may_give and change.value != columns["owner"]:
            raise Forbidden("You are not permitted to modify 'owner' on this image.")
        columns[name] = distinct_tags(change.value) if name == "tags" else change.value
    check_property_count(properties)
    return columns, properties
