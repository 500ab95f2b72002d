"""The reckoning: what was acknowledged against what there is, and the removal of everything.

`compare` asks the API for each thing that a client was promised and answers what is not so; `remove_all` deletes what
any client made, known to it or not. Neither repairs anything.
"""

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from cumulet.chaos.ground import Ground, Tenant
from cumulet.chaos.model import Event, Record, Thing
from cumulet.chaos.session import Reply, Session

# what may be seen of a thing when nobody is at it; others are on the way somewhere
SETTLED: dict[str, frozenset[str]] = {
    "server": frozenset({"ACTIVE", "SHUTOFF", "ERROR", "VERIFY_RESIZE"}),
    "volume": frozenset({"available", "in-use", "error", "error_deleting", "error_extending", "error_restoring"}),
    "snapshot": frozenset({"available", "error", "error_deleting"}),
    "image": frozenset({"active", "deleted", "killed"}),
}
_FAILED = {"server": {"ERROR"}, "volume": {"error", "error_deleting", "in-use", "available"},
           "snapshot": {"error_deleting", "error"}}  # fmt: skip
_ACTIONS = {  # a client's verb on a server -> the operations that the journal may call it
    "create": "create", "delete": "delete", "stop": "stop", "start": "start", "reboot": "reboot",
    "rebuild": "rebuild", "image": "createImage", "attach": "attach", "detach": "detach", "resize": "resize",
    "migrate": "migrate", "migrate live": "live-migration", "confirmResize": "confirmResize",
    "revertResize": "revertResize", "evacuate": "evacuate",
}  # fmt: skip
_POWER = {"create": {"ACTIVE"}, "start": {"ACTIVE"}, "reboot": {"ACTIVE"}, "stop": {"SHUTOFF"},
          "rebuild": {"ACTIVE", "SHUTOFF"}, "resize": {"VERIFY_RESIZE"}, "migrate": {"VERIFY_RESIZE"},
          "confirmResize": {"ACTIVE", "SHUTOFF"}, "revertResize": {"ACTIVE", "SHUTOFF"},
          "live-migration": {"ACTIVE", "SHUTOFF"}, "evacuate": {"ACTIVE", "SHUTOFF"}}  # fmt: skip


_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# a rebuild or delete that failed half-way leaves a server in ERROR, which may have nothing on its host
_OF_BROKEN_SERVERS = ("server-without-disk", "server-without-domain", "stopped-server-without-domain")


@dataclass
class Violation:
    what: str  # stuck, lost, undead, disagreement, audit, leaked-rows, leaked-on-host, defect
    about: str
    message: str
    story: list[str] = field(default_factory=list)


class Reckoning:
    def __init__(self, ground: Ground, record: Record, admin: Session) -> None:
        self.ground, self.record, self.admin = ground, record, admin
        self.violations: list[Violation] = []
        self.failed_deletes = 0
        self._stories: dict[str, dict[str, Any]] = {}

    def violate(self, what: str, about: str, message: str, *things: Thing | None) -> None:
        stories = [self.story(thing) for thing in things if thing is not None]
        self.violations.append(Violation(what, about, message, [line for story in stories for line in story]))

    # -- what was promised --------------------------------------------------------------------------------------------

    def compare(self) -> None:
        shown = {thing.id: self.admin.ask("GET", thing.service, thing.path) for thing in self.record.all()}
        for thing in self.record.all():
            reply = shown[thing.id]
            if reply.status not in (200, 404):
                self.violate("defect", _about(thing), f"GET answers {reply.status}: {reply.message}", thing)
                continue
            self._existence(thing, reply)
            if reply.status == 200:
                self._state(thing, _one(reply))
        for server in self.record.all("server"):
            self._journal(server)
        for volume in self.record.all("volume"):
            self._attachments(volume, shown[volume.id])
        for port in self.record.all("port"):
            self._port(port, shown[port.id])
        for address in self.record.all("floatingip"):
            self._address(address, shown)
        for group in self.record.all("security_group"):
            self._rules(group, shown[group.id])
        for what, reply in self.record.defects:
            self.violate("defect", what, f"answered {reply.status} ({reply.request_id}): {reply.message}")

    def _existence(self, thing: Thing, reply: Reply) -> None:
        there = reply.status == 200
        if thing.delete_acknowledged is not None and there:
            status = str(_one(reply).get("status"))
            if status in _FAILED.get(thing.kind, ()) and self._delete_failed(thing, status):
                self.failed_deletes += 1
            else:
                self.violate("undead", _about(thing), f"its delete was acknowledged and it is {status}", thing)
        if not there and not thing.maybe_deleted and not self._may_go(thing):
            self.violate("lost", _about(thing), "it was acknowledged, nobody deleted it, and it is gone", thing)

    def _delete_failed(self, thing: Thing, status: str) -> bool:
        """Did the cloud say that it could not?"""
        if thing.kind != "server":
            return status.startswith("error")
        return any(one["action"] == "delete" and one["status"] == "failed" for one in self._operations(thing))

    def _may_go(self, thing: Thing) -> bool:
        """An image of a server whose snapshot failed is dropped; a subnet goes with its network."""
        if thing.kind == "image":
            return any(
                one["action"] == "createImage" and one["request_id"] == thing.created.request_id
                and one["status"] != "finished"
                for server in self.record.all("server") for one in self._operations(server)
            )  # fmt: skip
        parent = self.record.things.get(thing.details.get("of", ""))
        return parent is not None and parent.maybe_deleted

    def _state(self, thing: Thing, one: dict[str, Any]) -> None:
        settled = SETTLED.get(thing.kind)
        if settled is not None and one["status"] not in settled:
            self.violate("stuck", _about(thing), f"it is {one['status']} and nothing is under way", thing)
        if thing.kind == "volume" and one["migration_status"] in ("starting", "migrating", "completing"):
            message = f"its migration is {one['migration_status']} and nothing is under way"
            self.violate("stuck", _about(thing), message, thing)
        if thing.kind == "server":
            task = one.get("OS-EXT-STS:task_state")
            if task is not None:
                self.violate("stuck", _about(thing), f"its task is {task} and nothing is under way", thing)
            self._power(thing, one["status"])

    def _power(self, server: Thing, status: str) -> None:
        done = [one for one in self._operations(server) if one["action"] in _POWER or one["action"] == "delete"]
        if done and done[0]["status"] == "finished":  # the newest
            expected = _POWER.get(done[0]["action"])
            if expected is not None and status not in expected:
                message = f"its last operation, {done[0]['action']}, succeeded and it is {status}"
                self.violate("disagreement", _about(server), message, server)

    def _journal(self, server: Thing) -> None:
        """Each acknowledged request has its operation, which has ended."""
        operations = {(one["request_id"], one["action"]): one for one in self._operations(server)}
        for event in server.events:
            if not event.reply.acknowledged or event.verb not in _ACTIONS:
                continue
            if event.verb in ("attach", "detach"):  # owned by the disk or the port, not by the server
                operation = self._of_request(event)
            else:
                operation = operations.get((event.reply.request_id, _ACTIONS[event.verb]))
            if operation is None:
                if event.verb in ("delete", "detach") or self._joined(event, server, operations.keys()):
                    continue  # asked twice: the first one's operation does it
                message = f"{event.verb} was acknowledged ({event.reply.request_id}) and the journal has nothing of it"
                self.violate("lost", _about(server), message, server)
            elif operation["status"] not in ("finished", "failed", "cancelled"):
                message = f"{event.verb} was acknowledged and its operation is {operation['status']}"
                self.violate("stuck", _about(server), message, server)

    @staticmethod
    def _joined(event: Event, server: Thing, known: Collection[tuple[str, str]]) -> bool:
        """A hard reboot that is asked for while another waits for its turn is that one."""
        return event.verb == "reboot" and any(
            (other.reply.request_id, "reboot") in known and other.began < event.ended
            for other in server.of("reboot") if other is not event
        )  # fmt: skip

    def _of_request(self, event: Event) -> dict[str, Any] | None:
        """The first operation that a request began; of a create, the server's: its volume may be made before."""
        reply = self.admin.ask("GET", "operator", f"/v1/explain/requests/{event.reply.request_id}")
        sagas = reply.body["sagas"] if reply.acknowledged else []
        return next((saga for saga in sagas if saga["kind"] == "server.create"), sagas[0] if sagas else None)

    def _last(self, thing: Thing) -> Event | None:
        """The last attach or detach, if no other may have come at the same time or after."""
        events = [event for event in thing.of("attach", "detach") if event.maybe]
        if not events:
            return None
        last = max(events, key=lambda event: event.ended)
        if any(event is not last and event.ended > last.began for event in events):
            return None
        return last if last.reply.acknowledged else None

    def _attachments(self, volume: Thing, reply: Reply) -> None:
        if reply.status != 200:
            return
        one = _one(reply)
        by_volume = {attachment["server_id"] for attachment in one["attachments"]}
        if (one["status"] == "in-use") != bool(by_volume):
            message = f"it is {one['status']} and has {len(by_volume)} attachments"
            self.violate("disagreement", _about(volume), message, volume)
        by_server = set()
        for server in self.record.all("server"):
            if server.project == volume.project and any(event.other == volume.id for event in server.events):
                listed = self.admin.ask("GET", "compute", f"{server.path}/os-volume_attachments")
                attached = (listed.body or {}).get("volumeAttachments", []) if listed.acknowledged else []
                by_server |= {server.id for attachment in attached if attachment["volumeId"] == volume.id}
        if by_server != by_volume:
            message = f"it is attached to {sorted(by_volume)}, and servers {sorted(by_server)} have it"
            self.violate("disagreement", _about(volume), message, volume)
        self._effect(volume, by_volume)

    def _effect(self, thing: Thing, attached: set[str]) -> None:
        last = self._last(thing)
        operation = self._of_request(last) if last is not None else None
        if last is None or operation is None or operation["status"] != "finished":
            return
        server = self.record.things[last.other]
        if last.verb == "detach" and last.other in attached:
            self.violate("lost", _about(thing), f"its detach from {last.other} succeeded and it is attached", thing)
        if last.verb == "attach" and last.other not in attached and not server.maybe_deleted:
            self.violate("lost", _about(thing), f"its attach to {last.other} succeeded and it is not attached", thing)

    def _port(self, port: Thing, reply: Reply) -> None:
        if reply.status != 200:
            return
        device = _one(reply)["device_id"]
        self._effect(port, {device} if device else set())
        for event in port.of("group")[-1:]:
            groups = _one(reply)["security_groups"]
            if event.reply.acknowledged and event.details not in groups:
                self.violate("lost", _about(port), f"group {event.details} was set and it has {groups}", port)

    def _address(self, address: Thing, shown: dict[str, Reply]) -> None:
        """Only its owner touches it: the last acknowledged association stands, unless one came to nothing known."""
        reply = shown[address.id]
        events = [event for event in address.of("associate") if event.maybe]
        if reply.status != 200 or not events or not events[-1].reply.acknowledged:
            return
        wanted, found = events[-1].details, _one(reply)["port_id"]
        port = self.record.things.get(wanted or "")
        moved = port is not None and (port.maybe_deleted or len(port.of("attach", "detach")) > 0)
        stolen = any(  # another address was given to the same port and fixed address
            other is not address and event.details == wanted and event.ended > events[-1].began
            for other in self.record.all("floatingip") for event in other.of("associate")
        )  # fmt: skip
        if found != wanted and not moved and not stolen:
            self.violate("lost", _about(address), f"it was associated with {wanted} and is with {found}", address)

    def _rules(self, group: Thing, reply: Reply) -> None:
        if reply.status != 200:
            return
        there = {rule["port_range_min"] for rule in _one(reply)["security_group_rules"]}
        for event in group.of("rule"):
            if event.reply.acknowledged and event.details not in there:
                self.violate("lost", _about(group), f"its rule for port {event.details} is gone", group)

    # -- stories ------------------------------------------------------------------------------------------------------

    def _operations(self, server: Thing) -> list[dict[str, Any]]:
        """What the journal has of it, the newest first."""
        story = self._stories.get(server.id)
        if story is None:
            reply = self.admin.ask("GET", "operator", f"/v1/explain/servers/{server.id}?xml=0")
            story = self._stories[server.id] = reply.body if reply.acknowledged else {"operations": []}
        found: list[dict[str, Any]] = story["operations"]
        return found

    def story(self, thing: Thing) -> list[str]:
        """As `cumulet explain` has it, and what its clients remember."""
        lines = [
            _about(thing),
            *(
                f"{event.verb}{f' {event.other}' if event.other else ''} -> {event.reply.status or 'no answer'}"
                f" {event.reply.request_id}"
                for event in thing.events
            ),
        ]
        if thing.kind == "server":
            lines += operation_lines(self._operations(thing))
        for event in thing.events:
            reply = self.admin.ask("GET", "operator", f"/v1/explain/requests/{event.reply.request_id}")
            for saga in (reply.body or {}).get("sagas", []) if reply.acknowledged else []:
                if saga["object_id"] != thing.id or thing.kind != "server":
                    why = f": {saga['error']}" if saga["error"] else ""
                    about = f"{saga['kind']} of {saga['object_kind']} {saga['object_id']}"
                    lines.append(f"  {event.verb}: {about} {saga['status']}{why}")
        return lines

    def findings(self, *, ignore: Iterable[str] = ()) -> None:
        """The auditor's word: the same checks as `cumulet doctor`."""
        reply = self.admin.ask("POST", "operator", "/v1/audit", {"audit": {"fix": False}})
        if not reply.acknowledged:
            self.violate("defect", "audit", f"the audit answers {reply.status}: {reply.message}")
            return
        for finding in reply.body["findings"]:
            if finding["severity"] == "info" or finding["code"] in ignore:
                continue
            thing = self.record.things.get(finding["object_id"])
            if finding["code"] in _OF_BROKEN_SERVERS and self._status(thing) == "ERROR":
                continue
            host = f" on {finding['host']}" if finding["host"] else ""
            about = f"{finding['object_kind']} {finding['object_id']}{host}"
            message = f"[{finding['code']}] {finding['message']}"
            self.violate("audit", about, message, *self._named(f"{finding['object_id']} {finding['message']}"))

    def _named(self, message: str) -> list[Thing]:
        """What an audit's words are about: the things that they name, and the servers of their volumes."""
        found = [self.record.things[one] for one in _UUID.findall(message) if one in self.record.things]
        for volume in [thing for thing in found if thing.kind == "volume"]:
            others = dict.fromkeys(event.other for event in volume.of("attach"))
            found += [self.record.things[one] for one in others if one in self.record.things]
        return list({thing.id: thing for thing in found}.values())

    def _status(self, thing: Thing | None) -> str:
        reply = self.admin.ask("GET", thing.service, thing.path) if thing is not None else Reply(0)
        return str(_one(reply).get("status")) if reply.acknowledged else ""

    # -- removal ------------------------------------------------------------------------------------------------------

    def remove_all(self, settle: Callable[[], list[str]]) -> None:
        """What is in the clients' projects, whoever made it."""
        left: list[str] = []
        for _ in range(3):
            left = []
            for tenant in self.ground.tenants:
                session = self.ground.session(tenant, tenant.users[0])
                self._remove(session, tenant, left, settle)
                session.close()
            if not left:
                break
            settle()
        for line in dict.fromkeys(left):
            kind, _, rest = line.partition(" ")
            thing = self.record.things.get(rest.partition(":")[0])
            self.violate("undead", f"{kind} {rest.partition(':')[0]}", f"cannot be removed: {line}", thing)

    def _remove(self, session: Session, tenant: Tenant, left: list[str], settle: Callable[[], list[str]]) -> None:
        for service, path, key in (
            ("network", "/floatingips", "floatingips"), ("compute", "/servers/detail", "servers"),
            ("block-storage", "/snapshots/detail", "snapshots"), ("block-storage", "/volumes/detail", "volumes"),
            ("image", "/images?visibility=private", "images"), ("network", "/ports", "ports"),
            ("network", "/routers", "routers"), ("network", "/networks", "networks"),
            ("network", "/security-groups", "security_groups"),
        ):  # fmt: skip
            where = path.partition("/detail")[0].partition("?")[0]
            found = [one for one in session.must("GET", service, path)[key] if self._ours(key, one, tenant)]
            for one in found:
                if key == "routers":
                    for port in session.must("GET", "network", f"/ports?device_id={one['id']}")["ports"]:
                        session.ask("PUT", "network", f"{where}/{one['id']}/remove_router_interface",
                                    {"port_id": port["id"]})  # fmt: skip
                reply = self._remove_one(session, service, f"{where}/{one['id']}", str(one.get("status")))
                if not reply.acknowledged and reply.status != 404:
                    left.append(f"{key} {one['id']}: {reply.status} {reply.message}")
            if service != "network" and found:
                left += [f"{key} {line}" for line in settle()]
                session.close()
                for one in session.must("GET", service, path)[key]:
                    if self._ours(key, one, tenant):
                        left.append(f"{key} {one['id']}: it is {one.get('status')} after its delete")

    def _remove_one(self, session: Session, service: str, path: str, status: str) -> Reply:
        if status != "error_deleting":
            return session.ask("DELETE", service, path)
        # as in Cinder, only an administrator may try again what failed to be deleted
        return self.admin.ask("POST", service, f"{path}/action", {"os-force_delete": {}})

    @staticmethod
    def _ours(key: str, one: dict[str, Any], tenant: Tenant) -> bool:
        if key == "ports":
            return not one["device_owner"].startswith("network:")
        if key == "security_groups":
            return bool(one["name"] != "default")
        return (
            one["id"] not in (tenant.network, tenant.router)
            and one.get("project_id", tenant.project_id) == tenant.project_id
        )


def operation_lines(operations: Iterable[dict[str, Any]]) -> list[str]:
    lines = []
    for one in operations:
        why = f": {one['error']}" if one["error"] else ""
        lines.append(f"{one['action']} {one['status']} {one['request_id']}{why}")
        for step in one["steps"]:
            error = f": {step['error']}" if step["error"] else ""
            lines.append(f"    {step['name']} on {step['host'] or '-'} {step['state']}{error}")
    return lines


def _about(thing: Thing) -> str:
    return f"{thing.kind} {thing.id} ({thing.name})"


def _one(reply: Reply) -> dict[str, Any]:
    one: dict[str, Any] = reply.body if "id" in reply.body else next(iter(reply.body.values()))
    return one
