"""Identifiers. Refuses nothing but malformed text: what an id refers to is its service's business."""

import os
import re
import uuid

_UUID = re.compile(r"[0-9a-fA-F]{8}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{12}\Z")


def new_uuid() -> str:
    """A random UUID with dashes (nova, neutron, cinder, glance)."""
    return str(uuid.UUID(bytes=os.urandom(16), version=4))


def new_hex() -> str:
    """A random UUID without dashes (keystone)."""
    return os.urandom(16).hex()


def new_request_id() -> str:
    return "req-" + new_uuid()


def is_uuid(text: object) -> bool:
    """True for a UUID with or without dashes."""
    return isinstance(text, str) and _UUID.match(text) is not None
