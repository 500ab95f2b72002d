"""One client: does at random what users do, one request after the other, and has everything noted.

What it chooses comes from its own generator, seeded by the run's seed and its number: the same seed gives the same
wishes, as far as the cloud's answers allow. It works on its own things, and now and then on those of the other client
of its project, so that requests meet on one object.
"""

import random
import threading
import time
from collections.abc import Callable
from typing import Any

from cumulet.chaos.ground import Ground, Tenant
from cumulet.chaos.model import KINDS, Event, Record, Thing, now
from cumulet.chaos.session import Reply, Session

# how many of a kind a client keeps: when it has so many it rather removes one
_MOST = {
    "server": 4, "volume": 3, "snapshot": 2, "image": 2, "port": 3, "floatingip": 2, "network": 2, "router": 1,
    "security_group": 2,
}  # fmt: skip


_HEARD_S = 90.0  # in which an operator's word is heard, whatever is disturbed


class Client:
    """``stop`` is set when the work ends; the request under way is waited for."""

    def __init__(
        self, number: int, seed: int, ground: Ground, tenant: Tenant, user: str, record: Record, stop: threading.Event
    ) -> None:
        self.thread = threading.Thread(target=self._run, name=f"chaos-client-{number}", daemon=True)
        self.number = number
        self.random = random.Random(f"{seed}/client/{number}")
        self.ground, self.tenant, self.record = ground, tenant, record
        self.session: Session = ground.session(tenant, user)
        self.operator: Session = ground.operator()
        self.error: BaseException | None = None
        self._stop_work = stop
        self._most = {**_MOST, **ground.habits.most}
        self._names = 0
        self._wishes: list[tuple[Callable[[], None], int]] = [
            (self._create_server, 10), (self._power, 14), (self._rebuild, 3), (self._delete_server, 7),
            (self._resize, 4), (self._migrate, 5), (self._end_move, 8), (self._evacuate, 2),
            (self._create_volume, 6), (self._attach_volume, 10), (self._detach_volume, 6), (self._extend_volume, 2),
            (self._move_volume, 4), (self._delete_volume, 4), (self._create_snapshot, 3), (self._delete_snapshot, 2),
            (self._create_image, 3), (self._delete_image, 2),
            (self._create_port, 4), (self._attach_port, 5), (self._detach_port, 3), (self._delete_port, 2),
            (self._create_address, 3), (self._associate, 5), (self._delete_address, 2),
            (self._create_network, 2), (self._delete_network, 1), (self._create_router, 2), (self._delete_router, 1),
            (self._create_group, 2), (self._add_rule, 4), (self._delete_group, 1), (self._look, 8),
        ]  # fmt: skip

    def _run(self) -> None:
        try:
            while not self._stop_work.is_set():
                wishes, weights = zip(*self._wishes, strict=True)
                self.random.choices(wishes, weights)[0]()
                self._stop_work.wait(self.random.expovariate(1 / self.ground.habits.think_s))
        except BaseException as error:  # noqa: BLE001 - it is told at the end: a client that dies is a defect of the run
            self.error = error
        finally:
            self.session.close()
            self.operator.close()

    # -- asking -------------------------------------------------------------------------------------------------------

    def _name(self, kind: str) -> str:
        self._names += 1
        return f"chaos-{self.number}-{kind}-{self._names}"

    def _ask(self, what: str, method: str, service: str, path: str, body: Any = None) -> Reply:
        reply = self.session.ask(method, service, path, body)
        self.record.count(what, reply)
        return reply

    def _create(self, kind: str, body: dict[str, Any], **details: Any) -> Thing | None:
        service, path, key = KINDS[kind]
        name = self._name(kind)
        body = {"name": name, **body}
        began = now()
        reply = self._ask(f"create {kind}", "POST", service, path, {key: body} if key else body)
        if not reply.acknowledged:
            return None
        one = reply.body[key] if key else reply.body
        thing = Thing(kind, one["id"], name, self.tenant.project, self.number, reply, details)
        thing.events.append(Event("create", began, now(), reply))
        self.record.add(thing)
        return thing

    def _act(
        self, thing: Thing, verb: str, method: str, path: str, body: Any = None, *, other: Thing | None = None,
        service: str | None = None, details: Any = None,
    ) -> Reply:  # fmt: skip
        """A request that changes ``thing`` (and ``other``)."""
        began = now()
        reply = self._ask(f"{verb} {thing.kind}", method, service or thing.service, path, body)
        self.record.note(thing, Event(verb, began, now(), reply, other.id if other else "", details))
        if other is not None:
            self.record.note(other, Event(verb, began, now(), reply, thing.id, details))
        return reply

    def _delete(self, kind: str) -> None:
        thing = self._one(kind)
        if thing is not None:
            self._act(thing, "delete", "DELETE", thing.path)

    def _one(self, kind: str, *, own: bool = False) -> Thing | None:
        """One that may be there."""
        mine = self.record.living(kind, self.tenant.project, self.number)
        if not own and (not mine or self.random.random() < 0.25):
            mine = self.record.living(kind, self.tenant.project)
        return self.random.choice(mine) if mine else None

    def _full(self, kind: str) -> bool:
        return len(self.record.living(kind, self.tenant.project, self.number)) >= self._most[kind]

    # -- servers ------------------------------------------------------------------------------------------------------

    def _create_server(self) -> None:
        if self._full("server"):
            self._delete("server")
            return
        body: dict[str, Any] = {"flavorRef": self.random.choice(self.ground.flavors)}
        kind = self.random.random()
        if kind < 0.2:
            body["block_device_mapping_v2"] = [
                {"boot_index": 0, "uuid": self._image(), "source_type": "image", "destination_type": "volume",
                 "volume_size": 1, "delete_on_termination": True}
            ]  # fmt: skip
        else:
            body["imageRef"] = self._image()
        port = self._one("port", own=True) if self.random.random() < 0.2 else None
        body["networks"] = [{"port": port.id} if port else {"uuid": self._network()}]
        made = self._create("server", body)
        if port is not None and made is not None:
            self.record.note(port, Event("attach", now(), now(), made.created, made.id))

    def _image(self) -> str:
        return self.random.choice(self.ground.images)

    def _network(self) -> str:
        own = self._one("network", own=True)
        return own.id if own and own.details.get("subnet") and self.random.random() < 0.3 else self.tenant.network

    def _server_action(self, verb: str, body: Any) -> Reply | None:
        server = self._one("server")
        return None if server is None else self._act(server, verb, "POST", f"{server.path}/action", body)

    def _power(self) -> None:
        verb, body = self.random.choice(
            [
                ("stop", {"os-stop": None}), ("start", {"os-start": None}),
                ("reboot", {"reboot": {"type": "SOFT"}}), ("reboot", {"reboot": {"type": "HARD"}}),
                ("start", {"os-start": None}),
            ]
        )  # fmt: skip
        self._server_action(verb, body)

    def _rebuild(self) -> None:
        self._server_action("rebuild", {"rebuild": {"imageRef": self._image()}})

    def _resize(self) -> None:
        self._server_action("resize", {"resize": {"flavorRef": self.random.choice(self.ground.flavors)}})

    def _migrate(self) -> None:
        live = {"host": None, "block_migration": True, "disk_over_commit": False}
        verb, body = self.random.choice(
            [
                ("migrate", {"migrate": None}),
                ("migrate live", {"os-migrateLive": live}),
            ]
        )
        self._server_action(verb, body)

    def _end_move(self) -> None:
        verb = self.random.choice(["confirmResize", "revertResize"])
        self._server_action(verb, {verb: None})

    def _evacuate(self) -> None:
        """As an operator: vouch that a server's host is dead, have the server made anew, take the word back."""
        server = self._one("server")
        if server is None or not self.ground.fencing.acquire(blocking=False):
            return
        try:
            shown = self.operator.ask("GET", "compute", server.path)
            host = shown.body["server"]["OS-EXT-SRV-ATTR:host"] if shown.acknowledged else None
            if not host:
                return
            self._vouch(host, down=True)
            began = now()
            reply = self.operator.ask(
                "POST", "compute", f"{server.path}/action", {"evacuate": {"onSharedStorage": False}}
            )
            self.record.count("evacuate server", reply)
            self.record.note(server, Event("evacuate", began, now(), reply))
            self._stop_work.wait(self.random.uniform(0, 2) * self.ground.habits.think_s)
            self._vouch(host, down=False)
        finally:
            self.ground.fencing.release()

    def _vouch(self, host: str, *, down: bool) -> None:
        """Until it is heard: no host may stay down for want of an answer."""
        path, end = f"/v1/hosts/{host}/down", now() + _HEARD_S
        while not (reply := self.operator.ask("POST", "operator", path, {"down": down})).acknowledged:
            if now() > end or reply.refused:
                raise RuntimeError(f"{path} is not heard: {reply.status} {reply.message}")
            time.sleep(0.2)

    def _delete_server(self) -> None:
        self._delete("server")

    def _create_image(self) -> None:
        if self._full("image"):
            self._delete("image")
            return
        server = self._one("server")
        if server is None:
            return
        name = self._name("image")
        began = now()
        body = {"createImage": {"name": name}}
        reply = self._ask("snapshot server", "POST", "compute", f"{server.path}/action", body)
        self.record.note(server, Event("image", began, now(), reply))
        if reply.acknowledged:
            # old clients read the id from a header; names are ours alone
            found = self._ask("list images", "GET", "image", f"/images?name={name}")
            for image in (found.body or {}).get("images", []) if found.acknowledged else []:
                self.record.add(Thing("image", image["id"], name, self.tenant.project, self.number, reply))

    def _delete_image(self) -> None:
        self._delete("image")

    def _look(self) -> None:
        kind = self.random.choice(["server", "volume", "port"])
        service, path, _ = KINDS[kind]
        self._ask(f"list {kind}s", "GET", service, path + ("/detail" if service != "network" else ""))

    # -- volumes ------------------------------------------------------------------------------------------------------

    def _create_volume(self) -> None:
        if self._full("volume"):
            self._delete("volume")
            return
        more: dict[str, Any] = {}
        kind = self.random.random()
        if kind < 0.2:
            more["imageRef"] = self._image()
        elif kind < 0.35 and (snapshot := self._one("snapshot")):
            more["snapshot_id"] = snapshot.id
        elif kind < 0.45 and (source := self._one("volume")):
            more["source_volid"] = source.id
        self._create("volume", {"size": self.random.choice([1, 1, 2]) if not more else 3, **more})

    def _attach_volume(self) -> None:
        volume, server = self._one("volume"), self._one("server")
        if volume is None or server is None:
            return
        body = {"volumeAttachment": {"volumeId": volume.id}}
        path = f"{server.path}/os-volume_attachments"
        self._act(server, "attach", "POST", path, body, other=volume)

    def _detach_volume(self) -> None:
        volume = self._one("volume")
        if volume is None:
            return
        attached = [event for event in volume.of("attach") if event.maybe]
        server = self.record.things.get(attached[-1].other) if attached else None
        if server is not None:
            self._act(server, "detach", "DELETE", f"{server.path}/os-volume_attachments/{volume.id}", other=volume)

    def _extend_volume(self) -> None:
        volume = self._one("volume")
        if volume is not None:
            body = {"os-extend": {"new_size": self.random.randint(3, 6)}}
            self._act(volume, "extend", "POST", f"{volume.path}/action", body)

    def _move_volume(self) -> None:
        """As an operator: to any other storage host."""
        volume = self._one("volume")
        if volume is None:
            return
        shown = self.operator.ask("GET", volume.service, volume.path)
        listed = self.operator.ask("GET", volume.service, "/os-services?binary=cinder-volume")
        if not (shown.acknowledged and listed.acknowledged):
            return
        own = str(shown.body["volume"]["os-vol-host-attr:host"]).partition("@")[0]
        others = sorted({one["host"] for one in listed.body["services"] if one["host"].partition("@")[0] != own})
        if not others:
            return
        body = {"host": self.random.choice(others), "lock_volume": self.random.random() < 0.5}
        began = now()
        reply = self.operator.ask("POST", volume.service, f"{volume.path}/action", {"os-migrate_volume": body})
        self.record.count("move volume", reply)
        self.record.note(volume, Event("move", began, now(), reply))

    def _delete_volume(self) -> None:
        self._delete("volume")

    def _create_snapshot(self) -> None:
        if self._full("snapshot"):
            self._delete("snapshot")
            return
        volume = self._one("volume")
        if volume is not None:
            self._create("snapshot", {"volume_id": volume.id, "force": True})

    def _delete_snapshot(self) -> None:
        self._delete("snapshot")

    # -- networks -----------------------------------------------------------------------------------------------------

    def _create_port(self) -> None:
        if self._full("port"):
            self._delete("port")
            return
        self._create("port", {"network_id": self.tenant.network})

    def _attach_port(self) -> None:
        port, server = self._one("port"), self._one("server")
        if port is None or server is None:
            return
        body = {"interfaceAttachment": {"port_id": port.id}}
        self._act(server, "attach", "POST", f"{server.path}/os-interface", body, other=port)

    def _detach_port(self) -> None:
        port = self._one("port")
        if port is None:
            return
        attached = [event for event in port.of("attach") if event.maybe]
        server = self.record.things.get(attached[-1].other) if attached else None
        if server is not None:
            self._act(server, "detach", "DELETE", f"{server.path}/os-interface/{port.id}", other=port)

    def _delete_port(self) -> None:
        self._delete("port")

    def _create_address(self) -> None:
        if self._full("floatingip"):
            self._delete("floatingip")
            return
        service, path, key = KINDS["floatingip"]
        body = {"floating_network_id": self.ground.outer, "description": self._name("address")}
        began = now()
        reply = self._ask("create floatingip", "POST", service, path, {key: body})
        if reply.acknowledged:
            made = Thing(
                "floatingip", reply.body[key]["id"], body["description"], self.tenant.project, self.number, reply
            )
            made.events.append(Event("create", began, now(), reply))
            self.record.add(made)

    def _associate(self) -> None:
        address, port = self._one("floatingip", own=True), self._one("port", own=True)
        if address is None:
            return
        target = port.id if port is not None and self.random.random() < 0.7 else None
        body = {"floatingip": {"port_id": target}}
        self._act(address, "associate", "PUT", address.path, body, details=target)

    def _delete_address(self) -> None:
        self._delete("floatingip")

    def _create_network(self) -> None:
        if self._full("network"):
            self._delete("network")
            return
        network = self._create("network", {})
        if network is not None:
            cidr = f"10.{100 + self.number}.{self.random.randrange(16) * 16}.0/24"
            subnet = self._create("subnet", {"network_id": network.id, "ip_version": 4, "cidr": cidr}, of=network.id)
            if subnet is not None:
                network.details["subnet"] = subnet.id

    def _delete_network(self) -> None:
        network = self._one("network")
        if network is None:
            return
        reply = self._act(network, "delete", "DELETE", network.path)
        subnet = self.record.things.get(network.details.get("subnet", ""))
        if subnet is not None:
            self.record.note(subnet, Event("delete", now(), now(), reply))

    def _create_router(self) -> None:
        if self._full("router"):
            self._router_port("remove_router_interface" if self.random.random() < 0.5 else "add_router_interface")
            return
        self._create("router", {"external_gateway_info": {"network_id": self.ground.outer}})

    def _router_port(self, verb: str) -> None:
        router, network = self._one("router", own=True), self._one("network", own=True)
        if router is not None and network is not None and network.details.get("subnet"):
            body = {"subnet_id": network.details["subnet"]}
            self._act(router, verb, "PUT", f"{router.path}/{verb}", body, other=network)

    def _delete_router(self) -> None:
        self._delete("router")

    def _create_group(self) -> None:
        if self._full("security_group"):
            self._delete("security_group")
            return
        self._create("security_group", {})

    def _add_rule(self) -> None:
        group = self._one("security_group", own=True)
        if group is None:
            return
        if (port := self._one("port", own=True)) and self.random.random() < 0.3:
            self._act(port, "group", "PUT", port.path, {"port": {"security_groups": [group.id]}}, details=group.id)
            return
        first = self.random.randrange(1, 60_000)
        rule = {"security_group_id": group.id, "direction": "ingress", "protocol": "tcp", "ethertype": "IPv4",
                "port_range_min": first, "port_range_max": first}  # fmt: skip
        self._act(group, "rule", "POST", "/security-group-rules", {"security_group_rule": rule}, details=first)

    def _delete_group(self) -> None:
        self._delete("security_group")
