"""Finds the operation for a path: a tree of path segments, literal segments before parameters, with backtracking."""

import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any
from urllib.parse import unquote_to_bytes

import msgspec

from cumulet.http.call import Version
from cumulet.http.microversion import VersionedFields, parse_version
from cumulet.http.route import Route
from cumulet.kernel.errors import BadInput

_PARAMETER = re.compile(r"\{(\w+)\}\Z")


class Operation:
    """A route made ready: versions parsed, parameter names in order. The tables of its fields are made by its first
    request: for all routes they would cost as much time as the rest of a start."""

    def __init__(self, route: Route, names: tuple[str, ...]) -> None:
        self.route = route
        self.names = names
        self.minimum: Version | None = parse_version(route.min_version) if route.min_version else None
        self.maximum: Version | None = parse_version(route.max_version) if route.max_version else None

    @cached_property
    def fields(self) -> VersionedFields | None:
        return VersionedFields.of(self.route.body) if self.route.body is not None else None

    @cached_property
    def query_names(self) -> frozenset[str]:
        return frozenset(field.encode_name for field in self._query)

    @cached_property
    def query_lists(self) -> frozenset[str]:
        return frozenset(field.encode_name for field in self._query if _is_list(field.type))

    @property
    def _query(self) -> tuple[msgspec.inspect.Field, ...]:
        if self.route.query is None:
            return ()
        info = msgspec.inspect.type_info(self.route.query)
        assert isinstance(info, msgspec.inspect.StructType)
        return info.fields

    def serves(self, version: Version | None) -> bool:
        if version is None:
            return True
        return (self.minimum is None or version >= self.minimum) and (self.maximum is None or version <= self.maximum)


def _is_list(kind: Any) -> bool:
    if isinstance(kind, (msgspec.inspect.ListType, msgspec.inspect.VarTupleType, msgspec.inspect.SetType)):
        return True
    if isinstance(kind, msgspec.inspect.UnionType):
        return any(_is_list(inner) for inner in kind.types)
    return False


class Leaf:
    """The operations of one path: by method, and for ``POST …/action`` by method and action."""

    __slots__ = ("actions", "methods")

    def __init__(self) -> None:
        self.methods: dict[str, list[Operation]] = {}
        self.actions: dict[str, list[Operation]] = {}

    def add(self, operation: Operation) -> None:
        route = operation.route
        if route.action is not None:
            others = self.actions.setdefault(route.action, [])
        else:
            others = self.methods.setdefault(route.method, [])
        for other in others:
            if _overlap(other, operation):
                raise ValueError(f"two routes for {route.method} {route.path} {route.action or ''}")
        others.append(operation)

    def allowed(self) -> set[str]:
        found = set(self.methods)
        if self.actions:
            found.add("POST")
        return found


def _overlap(one: Operation, other: Operation) -> bool:
    low = max(one.minimum or (0, 0), other.minimum or (0, 0))
    high = min(one.maximum or (9999, 0), other.maximum or (9999, 0))
    return low <= high


class _Node:
    __slots__ = ("leaf", "literals", "parameter")

    def __init__(self) -> None:
        self.literals: dict[str, _Node] = {}
        self.parameter: _Node | None = None
        self.leaf: Leaf | None = None


class Router:
    def __init__(self) -> None:
        self._root = _Node()

    def add(self, route: Route, path: str) -> None:
        node, names = self._root, []
        for segment in segments_of(path):
            found = _PARAMETER.match(segment)
            if found:
                names.append(found.group(1))
                node.parameter = node.parameter or _Node()
                node = node.parameter
            else:
                if "{" in segment:
                    raise ValueError(f"{path}: a parameter is a whole segment")
                node = node.literals.setdefault(segment, _Node())
        node.leaf = node.leaf or Leaf()
        node.leaf.add(Operation(route, tuple(names)))

    def find(self, segments: list[str]) -> tuple[Leaf, list[str]] | None:
        """The leaf, and the values of its parameters in order."""
        return _descend(self._root, segments, 0, [])


def _descend(node: _Node, segments: list[str], at: int, values: list[str]) -> tuple[Leaf, list[str]] | None:
    if at == len(segments):
        return None if node.leaf is None else (node.leaf, values)
    segment = segments[at]
    literal = node.literals.get(segment)
    if literal is not None:
        found = _descend(literal, segments, at + 1, values)
        if found is not None:
            return found
    if node.parameter is not None and segment:
        return _descend(node.parameter, segments, at + 1, [*values, segment])
    return None


def segments_of(path: str) -> list[str]:
    """``/servers/{id}/`` has three segments, the last one empty; the root and the empty path have none."""
    path = path[1:] if path.startswith("/") else path
    return path.split("/") if path else []


def decoded_segments(raw_path: bytes) -> Iterator[str]:
    """Segments of the path as sent: an escaped slash does not separate. Raises `BadInput`."""
    for part in raw_path.split(b"/")[1:]:
        try:
            text = (unquote_to_bytes(part) if b"%" in part else part).decode()
        except UnicodeDecodeError:
            raise BadInput("The path is not valid UTF-8.") from None
        if "\0" in text:
            raise BadInput("The path holds a NUL character.")
        yield text
