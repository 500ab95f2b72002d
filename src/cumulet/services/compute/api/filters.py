"""Filters, sorting and paging of GET /servers and /servers/detail."""

import re
from re import _constants, _parser  # type: ignore[attr-defined]
from typing import Any

from sqlalchemy import ColumnElement, select

from cumulet.db import Tx
from cumulet.http import Call, Page
from cumulet.kernel.clock import parse_iso
from cumulet.kernel.errors import BadInput, Forbidden
from cumulet.services.compute.api.common import boolean, only_query, page_of, service_of, version_of
from cumulet.services.compute.state import vm_states_of
from cumulet.services.compute.store import DELETED, LIVING, OF_PROJECT, SORTABLE, ServerQuery
from cumulet.services.compute.tables import SERVERS

_ALL_TENANTS = "os_compute_api:servers:{}:get_all_tenants"
_ALL_FILTERS = "os_compute_api:servers:allow_all_filters"

# Filters of everybody, and the version from which they are.
_COMMON = {
    "reservation_id": (2, 1),
    "name": (2, 1),
    "status": (2, 1),
    "image": (2, 1),
    "flavor": (2, 1),
    "ip": (2, 1),
    "changes-since": (2, 1),
    "all_tenants": (2, 1),
    "ip6": (2, 5),
    "tags": (2, 26),
    "tags-any": (2, 26),
    "not-tags": (2, 26),
    "not-tags-any": (2, 26),
    "changes-before": (2, 66),
    "locked": (2, 73),
    "availability_zone": (2, 83),
    "config_drive": (2, 83),
    "key_name": (2, 83),
    "created_at": (2, 83),
    "launched_at": (2, 83),
    "terminated_at": (2, 83),
    "power_state": (2, 83),
    "task_state": (2, 83),
    "vm_state": (2, 83),
    "progress": (2, 83),
    "user_id": (2, 83),
}
_EXACT = {
    "reservation_id": SERVERS.c.reservation_id,
    "image": SERVERS.c.image_id,
    "image_ref": SERVERS.c.image_id,
    "flavor": SERVERS.c.flavor_id,
    "user_id": SERVERS.c.user_id,
    "uuid": SERVERS.c.id,
    "host": SERVERS.c.host,
    "vm_state": SERVERS.c.vm_state,
    "task_state": SERVERS.c.task_state,
}
_PATTERN = {
    "name": SERVERS.c.name,
    "display_name": SERVERS.c.name,
    "description": SERVERS.c.description,
    "display_description": SERVERS.c.description,
    "node": SERVERS.c.host,
    "hostname": SERVERS.c.hostname,
    "key_name": SERVERS.c.key_name,
    "availability_zone": SERVERS.c.availability_zone,
    "root_device_name": SERVERS.c.root_device_name,
    "access_ip_v4": SERVERS.c.access_ip_v4,
    "access_ip_v6": SERVERS.c.access_ip_v6,
    "locked_by": SERVERS.c.locked_by,
    "auto_disk_config": SERVERS.c.disk_config,
}
_NUMBER = {"power_state": SERVERS.c.power_state, "launch_index": SERVERS.c.launch_index}
_TIME = {
    "created_at": SERVERS.c.created_at,
    "launched_at": SERVERS.c.launched_at,
    "terminated_at": SERVERS.c.terminated_at,
}
_KNOWN = {
    *_COMMON, *_EXACT, *_PATTERN, *_NUMBER, *_TIME, "project_id", "tenant_id", "deleted", "soft_deleted", "sort_key",
    "sort_dir", "limit", "marker", "kernel_id", "ramdisk_id",
}  # fmt: skip
_IGNORED_SORT = {
    "architecture", "cell_name", "cleaned", "default_ephemeral_device", "default_swap_device", "deleted", "deleted_at",
    "disable_terminate", "ephemeral_gb", "ephemeral_key_uuid", "id", "key_data", "launched_on", "memory_mb", "os_type",
    "reservation_id", "root_gb", "shutdown_terminate", "user_data", "vcpus", "vm_mode",
}  # fmt: skip
_PLAIN = re.compile(r"[\w \-:@/]*\Z")


class Nothing(Exception):
    """The filters can match no server."""


def query_of(call: Call, tx: Tx, form: str) -> tuple[ServerQuery, Page]:
    """``form``: ``index`` or ``detail``. May raise `Nothing`."""
    only_query(call, sorted(_KNOWN), (2, 75))
    version = version_of(call)
    query = ServerQuery()
    page = page_of(call)
    if call.query.get("limit") == "0":
        raise Nothing
    query.limit, query.marker = page.size, page.marker
    given = {name: call.query.getlist(name) for name in call.query}
    if not call.allowed(_ALL_FILTERS):
        since = {name: _COMMON[name] for name in given if name in _COMMON}
        wanted = {name for name, first in since.items() if version >= first} | {"sort_key", "sort_dir", "tenant_id"}
        given = {name: values for name, values in given.items() if name in wanted}
    _scope(call, query, given, form)
    _deleted(call, query, given)
    _status(call, query, given, version)
    _times(query, given)
    _columns(query, given)
    if version >= (2, 26):
        query.tags(every=_tags(given, "tags"), some=_tags(given, "tags-any"))
        query.not_tags(every=_tags(given, "not-tags"), some=_tags(given, "not-tags-any"))
    if version >= (2, 73) and "locked" in given:
        query.where.append(SERVERS.c.locked.is_(boolean(given["locked"][-1], name="locked")))
    _sort(call, query, version)
    for name in ("ip", "ip6"):
        if name in given:
            _address(call, tx, query, given[name][-1])
    return query, page


def _scope(call: Call, query: ServerQuery, given: dict[str, list[str]], form: str) -> None:
    named = given.get("project_id") or given.get("tenant_id")
    project = named[-1] if named else None
    everyone = boolean(call.query.get("all_tenants"), name="all_tenants")
    if everyone:
        call.authorize(_ALL_TENANTS.format(form))
        if project is not None:
            _of_project(query, project)
    else:
        _of_project(query, call.ctx.project_id)


def _of_project(query: ServerQuery, project: str | None) -> None:
    query.where.append(OF_PROJECT)
    query.params["the_project"] = project


def _deleted(call: Call, query: ServerQuery, given: dict[str, list[str]]) -> None:
    statuses = {text.upper() for text in given.get("status", [])}
    deleted: bool | None = None
    if "deleted" in given and call.ctx.is_admin:
        deleted = boolean(given["deleted"][-1], name="deleted", empty=False)
    if "DELETED" in statuses or "deleted" in given.get("vm_state", []):
        if not call.ctx.is_admin:
            raise Forbidden("Only administrators may list deleted instances")
        deleted = True
    if deleted is None and "changes-since" not in given:
        deleted = False
    if deleted is not None:
        query.where.append(DELETED if deleted else LIVING)


def _status(call: Call, query: ServerQuery, given: dict[str, list[str]], version: tuple[int, int]) -> None:
    if "status" not in given:
        return
    wanted = []
    for text in given["status"]:
        known = vm_states_of(text.upper())
        if known is not None:
            wanted.append(text.upper())
        elif version >= (2, 38):
            raise BadInput(f"Invalid status value: {text}")
    if not wanted:
        raise Nothing
    query.where.append(SERVERS.c.status.in_(wanted))


def _times(query: ServerQuery, given: dict[str, list[str]]) -> None:
    bounds: dict[str, int] = {}
    for name in ("changes-since", "changes-before"):
        if name in given:
            try:
                bounds[name] = parse_iso(given[name][-1])
            except ValueError:
                text = given[name][-1]
                raise BadInput(
                    f"Invalid input for query parameters {name}. Value: {text}. {text!r} is not a 'date-time'"
                ) from None
    changed = SERVERS.c.updated_at
    if "changes-since" in bounds:
        query.where.append(changed >= bounds["changes-since"])
    if "changes-before" in bounds:
        if bounds.get("changes-since", 0) > bounds["changes-before"]:
            raise BadInput("The value of changes-since must be less than or equal to changes-before.")
        query.where.append(changed <= bounds["changes-before"])


def _columns(query: ServerQuery, given: dict[str, list[str]]) -> None:
    for name, values in given.items():
        if name in _EXACT:
            column: ColumnElement[Any] = _EXACT[name]
            query.where.append(column.in_(values))
        elif name in _PATTERN:
            query.where.append(matches(_PATTERN[name], values[-1]))
        elif name in _NUMBER:
            if not values[-1].lstrip("-").isdigit():
                raise BadInput(f"Invalid input for query parameters {name}. Value: {values[-1]}.")
            query.where.append(_NUMBER[name] == int(values[-1]))
        elif name in _TIME:
            try:
                query.where.append(_TIME[name] == parse_iso(values[-1]))
            except ValueError:
                raise BadInput(f"Invalid input for query parameters {name}. Value: {values[-1]}.") from None
        elif name == "config_drive":
            query.where.append(SERVERS.c.config_drive.is_(boolean(values[-1], name=name, empty=False)))
        elif (name == "progress" and values[-1] not in ("", "0")) or (
            name in ("kernel_id", "ramdisk_id") and values[-1]
        ):
            raise Nothing


def matches(column: ColumnElement[Any], pattern: str) -> ColumnElement[bool]:
    """Upstream's name filter: a regular expression found anywhere."""
    if _PLAIN.match(pattern):
        return column.contains(pattern, autoescape=True)
    check_pattern(pattern)
    return column.regexp_match(pattern)


def check_pattern(pattern: str) -> None:
    """Refuse what does not compile, and repeats of repeats, which may take for ever."""
    try:
        if len(pattern) > 255 or _nested(_parser.parse(pattern), inside=False):
            raise BadInput(f"The regular expression {pattern[:255]!r} is too complex.")
    except (re.error, OverflowError, RecursionError):
        raise BadInput(f"{pattern!r} is not a regular expression.") from None


_REPEATS = (_constants.MAX_REPEAT, _constants.MIN_REPEAT, _constants.POSSESSIVE_REPEAT)


def _nested(tree: Any, *, inside: bool) -> bool:
    return any(_complex(code, argument, inside=inside) for code, argument in tree)


def _complex(code: Any, argument: Any, *, inside: bool) -> bool:
    if code in _REPEATS:
        return inside or _nested(argument[2], inside=True)
    if code is _constants.SUBPATTERN:
        return _nested(argument[3], inside=inside)
    if code is _constants.BRANCH:
        return any(_nested(part, inside=inside) for part in argument[1])
    return code in (_constants.GROUPREF, _constants.ASSERT, _constants.ASSERT_NOT)


def _tags(given: dict[str, list[str]], name: str) -> list[str]:
    return [tag for tag in ",".join(given.get(name, [])).split(",") if tag]


def _sort(call: Call, query: ServerQuery, version: tuple[int, int]) -> None:
    keys, dirs = call.query.getlist("sort_key"), [d.lower() for d in call.query.getlist("sort_dir")]
    for direction in dirs:
        if direction not in ("asc", "desc"):
            raise BadInput("Unknown sort direction, must be one of: asc, desc")
    found = []
    for position, key in enumerate(keys):
        if (key not in SORTABLE and key not in _IGNORED_SORT) or (key == "locked" and version < (2, 73)):
            raise BadInput(f"Invalid input for query parameters sort_key. Value: {key}. {key!r} is not one of the keys")
        if key in _IGNORED_SORT:
            continue
        if key in ("host", "node") and not call.ctx.is_admin:
            raise Forbidden("Only administrators can sort servers by host or node")
        direction = dirs[position] if position < len(dirs) else (dirs[-1] if dirs else "desc")
        found.append((key, direction))
    if len(dirs) > max(len(keys), 1):
        raise BadInput("Sort direction size exceeds sort key size")
    query.sort = tuple(found) or (("created_at", dirs[0] if dirs else "desc"),)


def _address(call: Call, tx: Tx, query: ServerQuery, pattern: str) -> None:
    """Servers with an address that matches. The network service knows addresses."""
    check_pattern(pattern)
    expression = re.compile(pattern)
    ids = [row[0] for row in tx.rows(select(SERVERS.c.id).where(*query.where, LIVING), query.params)]
    known = service_of(call).parts.network.addresses(tx, ids) if ids else {}
    found = [
        server_id
        for server_id, addresses in known.items()
        if any(expression.search(address.addr) for address in addresses)
    ]
    if not found:
        raise Nothing
    query.where.append(SERVERS.c.id.in_(found))
