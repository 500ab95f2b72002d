"""Bodies that nearly make sense: filled from the schema with plausible values, then broken in one place."""

import random
import uuid
from typing import Any

NASTY: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 1.5, 2**31, 2**63 - 1, 2**63, 2**70, -(2**63) - 1, 1e308, "", " ", "x" * 256,
    "x" * 70_000, "\0", "a\0b", "\u00e9\U0001f600", "\ud800", "a\r\nx: y", "null", "-1", "1", "0x10", "1e9", "true",
    [], {}, [{}], [[]], [None], [""], {"a": 1}, {"": None}, {"a": {"b": {"c": []}}}, "not-a-uuid", "../../etc/passwd",
    "%00", "0.0.0.0/0", "10.0.0.0/99", "10.0.0.1/24", "::/0", "2001:db8::/64", "fe80::1", "300.1.1.1", "10.0.0.0",
    "2020-13-45T00:00:00", "2020-01-01T00:00:00Z", "latest", "';--", "a" * 36, "<b>", "/dev/vdb", "AAAA", "=" * 10,
    [1] * 300,
)  # fmt: skip
_BY_NAME: dict[str, tuple[Any, ...]] = {
    "cidr": ("10.9.0.0/24", "2001:db8:9::/64"),
    "ip_address": ("10.9.0.7",),
    "remote_ip_prefix": ("10.0.0.0/8",),
    "gateway_ip": ("10.9.0.1",),
    "mac_address": ("fa:16:3e:00:00:01",),
    "ip_version": (4, 6),
    "size": (1, 2),
    "disk_format": ("raw",),
    "container_format": ("bare",),
    "protocol": ("tcp", "icmp"),
    "direction": ("ingress",),
    "url": ("http://example.test/",),
    "expires_at": ("2030-01-01T00:00:00.000000Z",),
    "resource_class": ("VCPU", "CUSTOM_FUZZ"),
    "user_data": ("AAAA",),
}
_SERVICES = {"imageRef": "images", "image": "images", "flavorRef": "flavors", "tenant_id": "projects"}


class Pools:
    """Ids that exist, by the collection they belong to."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self._ids: dict[str, list[str]] = {}

    def add(self, kind: str, *ids: Any) -> None:
        self._ids.setdefault(kind, []).extend(str(id) for id in ids if id is not None)

    def pick(self, kind: str) -> str | None:
        """Mostly one of the latest: the older may be gone."""
        known = self._ids.get(kind)
        return self._dice.choice(known[-6:]) if known else None

    def some(self, kind: str) -> list[str]:
        return list(self._ids.get(kind, ()))

    def anything(self) -> str:
        return self._dice.choice(self._dice.choice([ids for ids in self._ids.values() if ids]))

    def named(self, field: str) -> str | None:
        """An id for a field, by its name."""
        if field in _SERVICES:
            return self.pick(_SERVICES[field])
        for ending in ("_ids", "_id", "_uuid", "Id", "uuid"):
            if field.endswith(ending) and field != ending:
                stem = field.removesuffix(ending).removeprefix("target_").replace("default_", "")
                return self.pick(stem + "s") or self.pick(stem.replace("_", "-") + "s")
        return self.pick(field) or self.pick(field + "s")


class Bodies:
    def __init__(self, document: dict[str, Any], pools: Pools, dice: random.Random) -> None:
        self._components = document.get("components", {}).get("schemas", {})
        self._pools = pools
        self._dice = dice

    def plausible(self, schema: Any, name: str = "", depth: int = 0) -> Any:
        dice = self._dice
        while "$ref" in schema:
            schema = self._components[schema["$ref"].rpartition("/")[2]]
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return dice.choice(schema["enum"])
        for word in ("anyOf", "oneOf"):
            if word in schema:
                options = [option for option in schema[word] if option.get("type") != "null"] or schema[word]
                return self.plausible(dice.choice(options), name, depth)
        kind = schema.get("type")
        if isinstance(kind, list):
            kind = dice.choice([one for one in kind if one != "null"] or ["null"])
        if kind == "object" or "properties" in schema:
            return self._object(schema, depth)
        if name in _BY_NAME and dice.random() < 0.9:
            return dice.choice(_BY_NAME[name])
        if kind == "array":
            items = schema.get("items")
            low, high = schema.get("minItems", 0), min(schema.get("maxItems", 2), 2)
            return [self.plausible(items or {}, name, depth + 1) for _ in range(dice.randint(low, max(low, high)))]
        if kind == "integer":
            low = schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1)
            return dice.randint(low, min(schema.get("maximum", low + 5), low + 5))
        if kind == "number":
            return dice.random()
        if kind == "boolean":
            return dice.random() < 0.5
        if kind == "null":
            return None
        return self._string(schema, name)

    def _object(self, schema: Any, depth: int) -> dict[str, Any]:
        required = set(schema.get("required", ()))
        chance = 0.45 if depth < 3 else 0.15
        made = {
            key: self.plausible(inner, key, depth + 1)
            for key, inner in schema.get("properties", {}).items()
            if key in required or self._dice.random() < chance
        }
        if isinstance(schema.get("additionalProperties"), dict) and self._dice.random() < 0.5:
            made[f"key{self._dice.randint(0, 9)}"] = self.plausible(schema["additionalProperties"], "", depth + 1)
        return made

    def _string(self, schema: Any, name: str) -> str:
        dice = self._dice
        known = self._pools.named(name)
        if known is not None and dice.random() < 0.85:
            return known
        if schema.get("format") == "date-time":
            return "2030-01-01T00:00:00Z"
        if name.endswith(("_id", "uuid", "Ref")):
            return str(uuid.UUID(int=dice.getrandbits(128), version=4))
        word = f"fuzz{dice.randint(0, 10**6)}"
        return word.ljust(schema.get("minLength", 0), "x")[: schema.get("maxLength", 255)]

    def broken(self, body: Any) -> Any:
        """The same with one place changed for the worse."""
        places = list(_places(body))
        if not places:
            return self._dice.choice(NASTY)
        holder, key = self._dice.choice(places)
        what = self._dice.random()
        if what < 0.12:
            del holder[key]
        elif what < 0.22 and isinstance(holder, dict):
            holder[f"unknown{key}"] = self._dice.choice(NASTY)
        elif what < 0.32:
            holder[key] = self._pools.anything()
        elif what < 0.40 and isinstance(holder, list):
            holder.append(holder[key])
        elif what < 0.48:
            holder[key] = [holder[key]]
        else:
            holder[key] = self._dice.choice(NASTY)
        return body


def _places(value: Any) -> Any:
    if isinstance(value, dict):
        pairs: Any = list(value.items())
    elif isinstance(value, list):
        pairs = list(enumerate(value))
    else:
        return
    for key, inner in pairs:
        yield value, key
        yield from _places(inner)
