"""JSON schemas that the image service publishes; clients (and Tempest) learn an image's attributes from them."""

from typing import Any

from cumulet.services.image.rules import CONTAINER_FORMATS, DISK_FORMATS, VISIBILITIES

_STATUSES = [
    *("queued", "saving", "active", "killed", "deleted", "uploading", "importing", "pending_delete", "deactivated"),
]
_NULL_TEXT = ["null", "string"]


def _p(kind: Any, description: str = "", **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"type": kind, **more}
    if description:
        found["description"] = description
    return found


_READ_ONLY: dict[str, Any] = {"readOnly": True}
_HASH_FIELDS = {
    "checksum": _p("string", minLength=32, maxLength=32),
    "os_hash_algo": _p("string", maxLength=64),
    "os_hash_value": _p("string", maxLength=128),
}
IMAGE_PROPERTIES: dict[str, Any] = {
    "id": _p(
        "string",
        "Id of the image",
        pattern="^([0-9a-fA-F]){8}-([0-9a-fA-F]){4}-([0-9a-fA-F]){4}-([0-9a-fA-F]){4}-([0-9a-fA-F]){12}$",
    ),
    "name": _p(_NULL_TEXT, "Name for people", maxLength=255),
    "status": _p("string", "Where the image is in its life", enum=_STATUSES, **_READ_ONLY),
    "visibility": _p("string", "Who may see the image", enum=VISIBILITIES),
    "protected": _p("boolean", "A protected image cannot be deleted"),
    "os_hidden": _p("boolean", "A hidden image is left out of lists that do not ask for it"),
    "checksum": _p(_NULL_TEXT, "MD5 of the data", maxLength=32, **_READ_ONLY),
    "os_hash_algo": _p(_NULL_TEXT, "Name of the hash in os_hash_value", maxLength=64, **_READ_ONLY),
    "os_hash_value": _p(_NULL_TEXT, "Hash of the data", maxLength=128, **_READ_ONLY),
    "owner": _p(_NULL_TEXT, "Project that owns the image", maxLength=255),
    "size": _p(["null", "integer"], "Bytes of the image file", **_READ_ONLY),
    "virtual_size": _p(["null", "integer"], "Bytes of the disk inside the image", **_READ_ONLY),
    "container_format": _p(_NULL_TEXT, "What wraps the disk", enum=[None, *CONTAINER_FORMATS]),
    "disk_format": _p(_NULL_TEXT, "How the disk is written", enum=[None, *DISK_FORMATS]),
    "created_at": _p("string", "When the image was registered", **_READ_ONLY),
    "updated_at": _p("string", "When the image last changed", **_READ_ONLY),
    "tags": _p("array", "Words attached to the image", items={"type": "string", "maxLength": 255}),
    "direct_url": _p("string", "Where the data is in its store", **_READ_ONLY),
    "min_ram": _p("integer", "Memory in MB a server of this image needs"),
    "min_disk": _p("integer", "Disk in GB a server of this image needs"),
    "self": _p("string", "Path of this image", **_READ_ONLY),
    "file": _p("string", "Path of the data", **_READ_ONLY),
    "stores": _p("string", "Stores that hold the data", **_READ_ONLY),
    "schema": _p("string", "Path of this schema", **_READ_ONLY),
    "locations": _p(
        "array",
        "Places of the data in external stores",
        items={
            "type": "object",
            "required": ["url", "metadata"],
            "properties": {
                "url": {"type": "string", "maxLength": 255},
                "metadata": {"type": "object"},
                "validation_data": {
                    "type": "object",
                    "writeOnly": True,
                    "additionalProperties": False,
                    "required": ["os_hash_algo", "os_hash_value"],
                    "properties": _HASH_FIELDS,
                },
            },
        },
    ),
}
_MEMBER = {
    "member_id": _p("string", "Project that the image is shared with"),
    "image_id": _p("string", "The image"),
    "created_at": _p("string", "When the sharing began"),
    "updated_at": _p("string", "When it last changed"),
    "status": _p("string", "What the member made of it", enum=["pending", "accepted", "rejected"]),
    "schema": _p("string", **_READ_ONLY),
}
_TASK = {
    "id": _p("string", "Id of the task", pattern=IMAGE_PROPERTIES["id"]["pattern"]),
    "type": _p("string", "What the task does", enum=["import", "api_image_import", "location_import"]),
    "status": _p("string", "How far it is", enum=["pending", "processing", "success", "failure"]),
    "input": _p(["null", "object"], "What it was given"),
    "result": _p(["null", "object"], "What it made"),
    "owner": _p("string", "Project of the task"),
    "message": _p("string", "What went wrong"),
    "image_id": _p("string", "The image"),
    "request_id": _p("string", "The request that began it"),
    "user_id": _p("string", "Who asked"),
    "expires_at": _p(_NULL_TEXT, "When the record is dropped"),
    "created_at": _p("string"),
    "updated_at": _p("string"),
    "self": _p("string", **_READ_ONLY),
    "schema": _p("string", **_READ_ONLY),
}


def _collection(name: str, of: str, item: dict[str, Any], *, paged: bool = True) -> dict[str, Any]:
    properties: dict[str, Any] = {name: {"type": "array", "items": item}, "schema": {"type": "string"}}
    links = [{"rel": "describedby", "href": "{schema}"}]
    if paged:
        properties |= {"first": {"type": "string"}, "next": {"type": "string"}}
        links = [{"rel": "first", "href": "{first}"}, {"rel": "next", "href": "{next}"}, *links]
    return {"name": name, "properties": properties, "links": links}


IMAGE: dict[str, Any] = {
    "name": "image",
    "properties": IMAGE_PROPERTIES,
    "additionalProperties": {"type": "string"},
    "links": [
        {"rel": "self", "href": "{self}"},
        {"rel": "enclosure", "href": "{file}"},
        {"rel": "describedby", "href": "{schema}"},
    ],
}
MEMBER: dict[str, Any] = {"name": "member", "properties": _MEMBER}
TASK: dict[str, Any] = {"name": "task", "properties": _TASK}
_NAME = _p("string", "Name", maxLength=80)
_TIMES = {
    "created_at": _p("string", "When it was made", format="date-time", **_READ_ONLY),
    "updated_at": _p("string", "When it last changed", format="date-time", **_READ_ONLY),
}
_LINKS = {"schema": _p("string", **_READ_ONLY), "self": _p("string", **_READ_ONLY)}
_KINDS = ["array", "boolean", "integer", "number", "object", "string", None]
_PROPERTY: dict[str, Any] = {
    "name": _NAME,
    "title": _p("string", "Name for people"),
    "description": _p("string"),
    "operators": _p("array", items={"type": "string"}),
    "type": _p("string", enum=_KINDS),
    "required": {"$ref": "#/definitions/stringArray"},
    "minimum": _p("number"),
    "maximum": _p("number"),
    "maxLength": {"$ref": "#/definitions/positiveInteger"},
    "minLength": {"$ref": "#/definitions/positiveIntegerDefault0"},
    "pattern": _p("string", format="regex"),
    "enum": _p("array"),
    "readonly": _p("boolean"),
    "default": {},
    "items": _p("object", properties={"type": _p("string", enum=_KINDS), "enum": _p("array")}),
    "maxItems": {"$ref": "#/definitions/positiveInteger"},
    "minItems": {"$ref": "#/definitions/positiveIntegerDefault0"},
    "uniqueItems": _p("boolean", default=False),
    "additionalItems": _p("boolean"),
}
_DEFINITIONS: dict[str, Any] = {
    "positiveInteger": {"minimum": 0, "type": "integer"},
    "positiveIntegerDefault0": {"allOf": [{"$ref": "#/definitions/positiveInteger"}, {"default": 0}]},
    "stringArray": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
    "property": {"type": "object", "additionalProperties": {"type": "object", "properties": _PROPERTY}},
}
_PROPERTIES = {"$ref": "#/definitions/property"}
_TAG = {"name": _NAME, **_TIMES}
_RESOURCE_TYPE = {"name": _NAME, "prefix": _NAME, "properties_target": _NAME, **_TIMES}
_OBJECT = {
    "name": _NAME,
    "description": _p("string"),
    "required": {"$ref": "#/definitions/stringArray"},
    "properties": _PROPERTIES,
    **_LINKS,
    **_TIMES,
}
_NAMESPACE = {
    "namespace": _p("string", "The unique name", maxLength=80),
    "display_name": _p("string", "Name for people", maxLength=80),
    "description": _p("string", maxLength=500),
    "visibility": _p("string", "Who may see it", enum=["public", "private"]),
    "protected": _p("boolean", "A protected namespace cannot be deleted"),
    "owner": _p("string", "Project that owns it", maxLength=255),
    "resource_type_associations": _p("array", items={"type": "object", "properties": _RESOURCE_TYPE}),
    "properties": _PROPERTIES,
    "objects": _p("array", items={"type": "object", "properties": _OBJECT}),
    "tags": _p("array", items={"type": "object", "properties": {"name": _NAME}}),
    **_LINKS,
    **_TIMES,
}


def _definition(name: str, properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {
        "name": name,
        "definitions": _DEFINITIONS,
        "required": list(required),
        "properties": properties,
        "additionalProperties": False,
    }


NAMESPACE = _definition("namespace", _NAMESPACE, "namespace")
OBJECT = _definition("object", _OBJECT, "name")
PROPERTY = _definition("property", _PROPERTY, "name", "title", "type")
TAG = _definition("tag", _TAG, "name")
RESOURCE_TYPE = _definition("resource_type_association", _RESOURCE_TYPE, "name")
METADEF_SCHEMAS: dict[str, dict[str, Any]] = {
    "namespace": NAMESPACE,
    "namespaces": _collection("namespaces", "namespace", NAMESPACE),
    "resource_type": RESOURCE_TYPE,
    "resource_types": _collection("resource_type_associations", "resource_type", RESOURCE_TYPE),
    "property": PROPERTY,
    "properties": _collection("properties", "property", PROPERTY),
    "object": OBJECT,
    "objects": _collection("objects", "object", OBJECT),
    "tag": TAG,
    "tags": _collection("tags", "tag", TAG),
}
SCHEMAS: dict[str, dict[str, Any]] = {
    "image": IMAGE,
    "images": _collection("images", "image", IMAGE),
    "member": MEMBER,
    "members": _collection("members", "member", MEMBER, paged=False),
    "task": TASK,
    "tasks": _collection("tasks", "task", TASK),
}
