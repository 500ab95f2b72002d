"""Microversions: which version a request asks for, and which body fields that version knows."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args, get_origin, get_type_hints

import msgspec

from cumulet.http.call import Version
from cumulet.kernel.errors import BadInput, NotAcceptable

_FORM = re.compile(r"([1-9]\d*)\.([1-9]\d*|0)\Z")


def parse_version(text: str) -> Version:
    found = _FORM.match(text)
    if found is None:
        raise ValueError(text)
    return int(found.group(1)), int(found.group(2))


def format_version(version: Version) -> str:
    return f"{version[0]}.{version[1]}"


def Since(version: str) -> msgspec.Meta:
    """``Annotated[T, Since("2.90")]``: requests of older versions do not know this field."""
    return msgspec.Meta(extra={"since": parse_version(version)})


def Until(version: str) -> msgspec.Meta:
    """``Annotated[T, Until("2.56")]``: the last version that knows this field."""
    return msgspec.Meta(extra={"until": parse_version(version)})


@dataclass(frozen=True)
class Microversions:
    """``service_type`` is the word in ``OpenStack-API-Version: <word> X.Y``."""

    service_type: str
    minimum: Version
    maximum: Version
    legacy_header: str | None = None
    default: Version | None = None
    aliases: tuple[str, ...] = ()
    names: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", frozenset((self.service_type, *self.aliases)))

    @property
    def range(self) -> tuple[str, str]:
        return format_version(self.minimum), format_version(self.maximum)

    def negotiate(self, headers: Mapping[str, str]) -> Version:
        """The version asked for; 400 when malformed, 406 when out of range."""
        asked: str | None = None
        header = headers.get("openstack-api-version")
        if header:
            for part in header.split(","):
                words = part.split()
                if len(words) == 2 and words[0].lower() in self.names:
                    asked = words[1]
                elif len(words) == 1 and words[0].lower() in self.names:
                    raise BadInput(f"The header OpenStack-API-Version names no version: {part.strip()!r}.")
        if asked is None and self.legacy_header is not None:
            asked = headers.get(self.legacy_header)
            asked = asked.strip() if asked else None
        if asked is None:
            return self.default or self.minimum
        if asked.lower() == "latest":
            return self.maximum
        try:
            version = parse_version(asked)
        except ValueError:
            raise BadInput(f"{asked!r} is not a version; expected MAJOR.MINOR or latest.") from None
        if not self.minimum <= version <= self.maximum:
            low, high = self.range
            raise NotAcceptable(
                f"Version {asked} is not supported by the API. Minimum is {low} and maximum is {high}.",
                min_version=low,
                max_version=high,
            )
        return version

    def response_headers(self, version: Version | None) -> list[tuple[str, str]]:
        text = format_version(version or self.default or self.minimum)
        found = [("openstack-api-version", f"{self.service_type} {text}"), ("vary", "OpenStack-API-Version")]
        if self.legacy_header is not None:
            found += [(self.legacy_header, text), ("vary", self.legacy_header)]
        return found


class VersionedFields:
    """Refuses fields that the request's version does not know. Made once per route; None when nothing is versioned."""

    def __init__(self, fields: dict[str, tuple[Version | None, Version | None, "VersionedFields | None"]]) -> None:
        self._fields = fields

    @classmethod
    def of(cls, kind: Any, seen: frozenset[Any] = frozenset()) -> "VersionedFields | None":
        structs = list(_structs_in(kind))
        fields: dict[str, tuple[Version | None, Version | None, VersionedFields | None]] = {}
        for struct in structs:
            if struct in seen:
                continue
            hints = get_type_hints(struct, include_extras=True)
            for info in msgspec.structs.fields(struct):
                since = until = None
                for extra in _extras_in(hints[info.name]):
                    since, until = extra.get("since", since), extra.get("until", until)
                inner = cls.of(hints[info.name], seen | {struct})
                if since or until or inner:
                    fields[info.encode_name] = (since, until, inner)
        return cls(fields) if fields else None

    def check(self, value: Any, version: Version, path: str = "") -> None:
        if isinstance(value, list):
            for item in value:
                self.check(item, version, path)
            return
        if not isinstance(value, dict):
            return
        for name, (since, until, inner) in self._fields.items():
            if name not in value:
                continue
            if (since is not None and version < since) or (until is not None and version > until):
                raise BadInput(
                    f"Additional properties are not allowed: {path}{name!r} is unknown in version "
                    f"{format_version(version)}."
                )
            if inner is not None:
                inner.check(value[name], version, f"{path}{name}.")


def _structs_in(kind: Any) -> Any:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        yield kind
    elif get_origin(kind) is not None and get_origin(kind) is not dict:
        for inner in get_args(kind):
            yield from _structs_in(inner)


def _extras_in(hint: Any) -> Any:
    for meta in getattr(hint, "__metadata__", ()):
        if isinstance(meta, msgspec.Meta) and meta.extra:
            yield meta.extra
    if get_origin(hint) is not None:
        for inner in get_args(hint):
            yield from _extras_in(inner)
