"""What a server's metadata service answers to a path. Pure.

Two trees. ``/openstack/<version>/…`` has a version for every date at which upstream added something; older dates are
answered without what came later. ``/<version>/meta-data/…`` is the EC2 form, a tree in which a directory lists its
entries, with a slash after directories.
"""

import base64
import binascii
import json
from typing import Any

from cumulet.agent.contract import MetadataDoc

OPENSTACK = (
    "2012-08-10",
    "2013-04-04",
    "2013-10-17",
    "2015-10-15",
    "2016-06-30",
    "2016-10-06",
    "2017-02-22",
    "2018-08-27",
    "2020-10-14",
    "2025-04-04",
)
EC2 = (
    "1.0",
    "2007-01-19",
    "2007-03-01",
    "2007-08-29",
    "2007-10-10",
    "2007-12-15",
    "2008-02-01",
    "2008-09-01",
    "2009-04-04",
)
_SINCE = {  # files, and keys of meta_data.json
    "password": "2013-04-04",
    "vendor_data.json": "2013-10-17",
    "network_data.json": "2015-10-15",
    "vendor_data2.json": "2016-10-06",
}
_KEYS_SINCE = {
    "random_seed": "2013-04-04",
    "project_id": "2015-10-15",
    "devices": "2016-06-30",
    "dedicated_cpus": "2020-10-14",
}

Found = tuple[str, bytes]  # content type, body
_TEXT = "text/plain; charset=UTF-8"
_JSON = "application/json"


def answer(doc: MetadataDoc, path: str) -> Found | None:
    """Content type and body; None is 404."""
    parts = [p for p in path.split("?", 1)[0].split("/") if p]
    if not parts:
        return _text("\n".join([*EC2, "latest"]))
    if parts[0] == "openstack":
        return _openstack(doc, parts[1:])
    if parts[0] in EC2 or parts[0] == "latest":
        return _ec2(doc, parts[1:])
    return None


def is_password(path: str) -> bool:
    """The one path that guests may POST to."""
    parts = [p for p in path.split("?", 1)[0].split("/") if p]
    if len(parts) != 3 or parts[0] != "openstack" or parts[2] != "password":
        return False
    return parts[1] == "latest" or (parts[1] in OPENSTACK and parts[1] >= _SINCE["password"])


def user_data(doc: MetadataDoc) -> bytes | None:
    if doc.user_data is None:
        return None
    try:
        return base64.b64decode(doc.user_data)
    except (ValueError, binascii.Error):
        return doc.user_data.encode()


def _text(text: str) -> Found:
    return _TEXT, text.encode()


def _json(value: Any) -> Found:
    return _JSON, json.dumps(value).encode()


def _openstack(doc: MetadataDoc, parts: list[str]) -> Found | None:
    if not parts or parts == ["versions"]:
        return _text("\n".join([*OPENSTACK, "latest"]))
    version = OPENSTACK[-1] if parts[0] == "latest" else parts[0]
    if version not in OPENSTACK:
        return None
    if len(parts) == 1:
        files = ["meta_data.json", *(["user_data"] if doc.user_data is not None else [])]
        return _text("\n".join([*files, *(f for f, since in _SINCE.items() if since <= version)]))
    name = "/".join(parts[1:])
    if _SINCE.get(name, "") > version:
        return None
    match name:
        case "meta_data.json":
            return _json({k: v for k, v in doc.meta_data.items() if _KEYS_SINCE.get(k, "") <= version})
        case "user_data":
            data = user_data(doc)
            return None if data is None else ("application/octet-stream", data)
        case "network_data.json":
            return _json(doc.network_data)
        case "vendor_data.json":
            return _json(doc.vendor_data)
        case "vendor_data2.json":
            return _json({"static": doc.vendor_data} if doc.vendor_data else {})
        case "password":
            return _text(str(doc.ec2.get("password", "")))
    return None


def _ec2(doc: MetadataDoc, parts: list[str]) -> Found | None:
    tree = dict(doc.ec2)
    if "meta-data" not in tree:
        tree = {"meta-data": tree}
    tree.pop("password", None)
    if doc.user_data is not None:
        tree["user-data"] = user_data(doc)
    node: Any = tree
    for part in parts:
        if not isinstance(node, dict) or part not in node or part == "_name":
            return None
        node = node[part]
    if isinstance(node, bytes):
        return "application/octet-stream", node
    if isinstance(node, dict):
        return _text("\n".join(_entry(key, node[key]) for key in sorted(node) if key != "_name"))
    if isinstance(node, list):
        return _text("\n".join(str(item) for item in node))
    return _text("" if node is None else str(node))


def _entry(key: str, value: Any) -> str:
    if isinstance(value, dict):
        return str(value["_name"]) if "_name" in value else f"{key}/"
    return key
