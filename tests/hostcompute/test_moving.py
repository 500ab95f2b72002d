"""Servers between two real hosts: live, at rest, and killed at any moment."""

import asyncio
import contextlib
import json
import os
import random
import signal
import struct
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cumulet.agent import contract as c
from cumulet.agent.compute.libvirtd import qemu_group
from cumulet.agent.compute.moving.door import Caller, Identity, Loop
from cumulet.agent.driver import Driver, Found, FoundServer, Hooks, OperationBody, QueryBody
from cumulet.agent.errors import DriverError
from cumulet.agent.image.cache import ImageCache
from cumulet.agent.volume.driver import FileProvider
from cumulet.guest import boot_sector_qcow2
from cumulet.kernel.ids import new_uuid
from tests.agent.conformance import ComputeRig, DriverRig, MoveConformance, MoveRig
from tests.hostcompute.conftest import learned
from tests.hostcompute.movers import DOOR, Authority, Call, Mover, movers, until

pytestmark = [pytest.mark.host, pytest.mark.timeout(900)]


class Pair:
    """Two hosts, and the words of the sagas that move a server between them."""

    def __init__(self, first: Mover, second: Mover) -> None:
        self.first, self.second = first, second
        self.directory = first.config.state.parents[1]
        path = self.directory / "image"
        path.write_bytes(boot_sector_qcow2())
        size = path.stat().st_size
        self.image = c.ImageSource(image_id=new_uuid(), disk_format="qcow2", size=size, path=str(path))

    def spec(self, **changes: Any) -> c.ServerSpec:
        server_id = new_uuid()
        base = c.ServerSpec(
            server_id=server_id, name="test", instance_name=f"instance-{server_id[:8]}", generation=1,
            project_id="p" * 32, user_id="u" * 32, vcpus=1, memory_mb=32, root_gb=1, image=self.image, swap_mb=1,
        )  # fmt: skip
        return msgspec.structs.replace(base, **changes)

    def create(self, host: Mover, *, start: bool = True, **changes: Any) -> c.ServerSpec:
        spec = self.spec(**changes)
        host.do(c.CreateDisks(server=spec))
        host.do(c.DefineServer(server=spec))
        if start:
            self.power(host, spec, "start")
        return spec

    def power(self, host: Mover, spec: c.ServerSpec, action: Any) -> None:
        host.do(c.PowerServer(server_id=spec.server_id, instance_name=spec.instance_name, action=action))

    def prepare(self, spec: c.ServerSpec, source: Mover, target: Mover) -> str:
        return str(target.do(c.PrepareReceive(server=spec, from_host=source.name))["address"])

    def migrate(self, spec: c.ServerSpec, source: Mover, target: Mover, **more: Any) -> Call:
        address = self.prepare(spec, source, target)
        return source.begin(c.MigrateServer(server=spec, to_host=target.name, address=address, **more))

    def end(self, spec: c.ServerSpec, target: Mover, *, discard: bool = False) -> None:
        target.do(c.EndReceive(server_id=spec.server_id, instance_name=spec.instance_name, discard=discard))

    def moved(self, spec: c.ServerSpec, source: Mover, target: Mover) -> None:
        """What the saga does when the guest is over there."""
        self.end(spec, target)
        source.do(c.DeleteDisks(server_id=spec.server_id))
        assert source.servers() == {}
        assert target.servers() == {spec.server_id: 1}

    def failed(self, spec: c.ServerSpec, source: Mover, target: Mover) -> None:
        self.end(spec, target, discard=True)
        assert target.servers() == {}
        assert not target.folder(spec.server_id).exists()
        assert target.guests() == []
        assert source.servers() == {spec.server_id: 1}

    def delete(self, host: Mover, spec: c.ServerSpec) -> None:
        host.do(c.UndefineServer(server_id=spec.server_id, instance_name=spec.instance_name))
        host.do(c.DeleteDisks(server_id=spec.server_id))


@pytest.fixture(scope="module")
def pair(pytestconfig: pytest.Config) -> Iterator[Pair]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with movers(learned(pytestconfig)) as (first, second):
        yield Pair(first, second)


@pytest.fixture(autouse=True)
def tidy(pair: Pair) -> Iterator[None]:
    """A test that failed leaves nothing to the next."""
    yield
    for host in (pair.first, pair.second):
        quick(host)
        for server_id in host.sh(f"ls {host.config.state}/servers").split():
            host.send(call="_remove_domain", **{"with": [server_id]}).result()
            host.do(c.DeleteDisks(server_id=server_id))


def slow(host: Mover, rate: str) -> None:
    host.sh(f"tc qdisc replace dev eth0 root tbf rate {rate} burst 64kb latency 100ms")


def quick(*hosts: Mover) -> None:
    for host in hosts:
        host.sh("tc qdisc del dev eth0 root 2>/dev/null || true")


def heavy(pair: Pair, **changes: Any) -> c.ServerSpec:
    """A server whose ephemeral disk takes a while to copy."""
    spec = pair.create(pair.first, ephemeral_gb=1, **changes)
    pair.first.sh(f"dd if=/dev/urandom of={pair.first.folder(spec.server_id)}/disk.eph0 bs=1M count=64 conv=notrunc")
    slow(pair.first, "40mbit")
    return spec


def code_of(work: Callable[[], Any]) -> str:
    with pytest.raises(DriverError) as caught:
        work()
    return caught.value.code


class Remote(Driver):
    """A driver of another process, for tests that call one."""

    def __init__(self, mover: Mover) -> None:
        self._mover = mover

    def start(self, hooks: Hooks) -> None:
        self._mover.hooks = hooks

    def operations(self) -> dict[type[c.Operation], OperationBody]:
        return defaultdict(lambda: lambda operation, progress: self._mover.do(operation))

    def queries(self) -> dict[type[c.Query], QueryBody]:
        return defaultdict(lambda: self._mover.ask)

    def inventory(self) -> Found:
        return Found(servers=[FoundServer(*one) for one in self._mover.servers().items()])


class TestLibvirtMove(MoveConformance):
    @pytest.fixture
    def rig(self, pair: Pair) -> MoveRig:
        here, there = (
            ComputeRig(DriverRig(Remote(mover), pair.directory), pair.image, _nothing, _nothing, memory_mb=32)
            for mover in (pair.first, pair.second)
        )
        return MoveRig(here, there, pair.first.name, pair.second.name)


def _nothing() -> None:
    """No ports, no volumes: other tests have them."""


# -- live ---------------------------------------------------------------------------------------------------------


def test_a_guest_moves_with_its_disks_and_volume(pair: Pair) -> None:
    source, target = pair.first, pair.second
    cache = ImageCache(pair.directory / "volumes" / "images")
    provider = FileProvider(pair.directory / "volumes", pair.directory / "qsd", cache, group=qemu_group())
    provider.start()

    def volume(host: Mover, generation: int) -> c.VolumeAttachment:
        export = c.ExportVolume(
            volume_id=volume_id, attachment_id=attachment, attachment_generation=generation, host=host.name
        )
        exported = provider.operations()[c.ExportVolume](
            msgspec.structs.replace(export, attachment_id=f"{attachment[:-1]}{generation}"), lambda *f: None
        )
        assert isinstance(exported, c.ExportVolumeResult)
        return c.VolumeAttachment(
            attachment_id=attachment, volume_id=volume_id, device="/dev/vdc", connection=exported.connection
        )

    volume_id, attachment = new_uuid(), new_uuid()
    try:
        provider.operations()[c.CreateVolume](c.CreateVolume(volume_id=volume_id, size_gb=1), lambda *f: None)
        metadata = c.MetadataDoc(id="s", generation=1, meta_data={"name": "test"}, network_data={})
        spec = pair.create(source, config_drive=True, metadata=metadata, volumes=[volume(source, 1)])
        swap = source.folder(spec.server_id) / "disk.swap"
        drive = (source.folder(spec.server_id) / "disk.config").read_bytes()
        source.sh(f"echo written before > {swap}.x; dd if={swap}.x of={swap} conv=notrunc; rm {swap}.x")
        until("it speaks", lambda: source.ask(c.ConsoleLog(server_id=spec.server_id)))
        there = msgspec.structs.replace(spec, volumes=[volume(target, 2)], generation=2)
        before = source.virsh("dumpxml", spec.instance_name)
        began = time.monotonic()
        result = pair.migrate(there, source, target).result()
        took = time.monotonic() - began
        print(f"away for {result['downtime_ms']} ms of {took:.1f} s")
        assert result["downtime_ms"] / 1000 < took / 2
        assert source.guests() == []
        assert len(target.guests()) == 1
        after = target.virsh("dumpxml", spec.instance_name)
        assert f"{attachment[:-1]}1.1" in before
        assert f"{attachment[:-1]}2.2" in after
        assert f"{attachment[:-1]}1.1" not in after
        assert str(source.config.state) not in after
        assert target.virsh("dumpxml", "--inactive", spec.instance_name).count('generation="2"') == 1, (
            "its definition is the target's own"
        )
        assert (target.folder(spec.server_id) / "disk.swap").read_bytes()[:14] == b"written before"
        assert (target.folder(spec.server_id) / "disk.config").read_bytes() == drive
        assert target.ask(c.ConsoleLog(server_id=spec.server_id)), "with the log of its console"
        assert (spec.server_id, 3, "") not in target.reports, "an arriving guest is not reported as paused"
        assert [state for server, state, _ in source.reports if server == spec.server_id][-1] == 1
        pair.moved(spec, source, target)
        pair.power(target, spec, "hard_reboot")
        assert target.servers() == {spec.server_id: 1}
        pair.delete(target, spec)
    finally:
        provider.cleanup_all()


def test_a_paused_guest_stays_paused(pair: Pair) -> None:
    spec = pair.create(pair.first)
    pair.power(pair.first, spec, "pause")
    pair.migrate(spec, pair.first, pair.second).result()
    pair.end(spec, pair.second)
    assert pair.second.servers() == {spec.server_id: 3}
    assert code_of(lambda: pair.end(spec, pair.second, discard=True)) == "guest-running", "paused by its user, it lives"
    pair.first.do(c.DeleteDisks(server_id=spec.server_id))
    pair.power(pair.second, spec, "unpause")
    assert pair.second.servers() == {spec.server_id: 1}
    pair.delete(pair.second, spec)


def test_what_a_move_leaves_goes_by_the_control_planes_word(pair: Pair) -> None:
    """Its last steps are skipped while a host is down: the inventory names what is left there, and is answered."""
    source, target = pair.first, pair.second
    spec = pair.create(source)
    pair.migrate(spec, source, target).result()
    pair.end(spec, target)
    source.kill()
    source.start()
    assert (source.servers(), source.on_the_way()) == ({}, [spec.server_id])
    assert (target.servers(), target.on_the_way()) == ({spec.server_id: 1}, [])
    source.send(absent={"servers": [spec.server_id]}).result()
    assert source.on_the_way() == []
    assert not source.folder(spec.server_id).exists()
    pair.prepare(spec, target, source)  # back, but that comes to nothing
    assert (source.servers(), source.on_the_way()) == ({}, [spec.server_id])
    source.send(absent={"servers": [spec.server_id]}).result()
    assert not source.folder(spec.server_id).exists()
    assert target.servers() == {spec.server_id: 1}
    pair.delete(target, spec)


def test_ended_and_hurried(pair: Pair) -> None:
    """Progress, an abort, a time-out that aborts, a time-out that forces, and an order to force it."""
    source, target = pair.first, pair.second
    spec = heavy(pair)
    names = {"server_id": spec.server_id, "instance_name": spec.instance_name}
    try:
        assert code_of(lambda: source.do(c.SteerMigration(action="abort", **names))) == "not-found"
        assert source.ask(c.MigrationProgress(**names)) == {}
        call = pair.migrate(spec, source, target)
        seen = until("it has come some way", lambda: source.ask(c.MigrationProgress(**names)))
        assert set(seen) == {f"{a}_{b}_bytes" for a in ("memory", "disk") for b in ("total", "processed", "remaining")}
        assert target.servers() == {}, "what arrives is not reported"
        assert target.on_the_way() == [spec.server_id]
        source.do(c.SteerMigration(action="abort", **names))
        assert code_of(call.result) == "aborted"
        pair.failed(spec, source, target)

        call = pair.migrate(spec, source, target, timeout_seconds=1)
        assert code_of(call.result) == "timeout"
        pair.failed(spec, source, target)

        call = pair.migrate(spec, source, target, timeout_seconds=1, on_timeout="force_complete")
        call.result()
        assert any(0 < fraction < 1 for fraction in call.progress)
        pair.moved(spec, source, target)
    finally:
        quick(source, target)
    call = pair.migrate(spec, target, source)
    until("it runs or is over", lambda: call.over.is_set() or target.ask(c.MigrationProgress(**names)), 20)
    with contextlib.suppress(DriverError):  # it may be over
        target.do(c.SteerMigration(action="force_complete", **names))
    call.result()
    pair.moved(spec, target, source)
    pair.delete(source, spec)


# -- who is let in ------------------------------------------------------------------------------------------------


def test_only_who_is_expected_gets_in(pair: Pair) -> None:
    source, target = pair.first, pair.second
    spec = pair.create(source)
    address = pair.prepare(spec, source, target)
    assert source.config.tls is not None
    other = Authority("another cloud's").issue(pair.directory / "stranger", "h1")
    knocks: list[tuple[str, Path | None, str, str]] = [
        ("h1", other, spec.server_id, "unreachable"),  # the right name, of another authority
        ("h1", None, spec.server_id, "unreachable"),  # in the clear
        ("h1", source.config.tls, new_uuid(), "refused"),  # a server that is not expected
        ("h1", target.config.tls, spec.server_id, "refused"),  # another host, whatever it claims
    ]
    loop = Loop()
    with source.hosts.inside("h1"):
        for claims, pki, server_id, code in knocks:
            caller = Caller(loop, Identity(claims, pki), "h2", address, server_id)
            for stream in ("describe", "control", "memory", "disks", "run"):
                assert code_of(lambda caller=caller, stream=stream: caller.ask(stream)) == code, (claims, stream)
        mistaken = Caller(loop, Identity("h1", source.config.tls), "h7", address, spec.server_id)
        assert code_of(lambda: mistaken.ask("describe")) == "refused", "who answers is looked at, too"
        rightful = Caller(loop, Identity("h1", source.config.tls), "h2", address, spec.server_id)
        assert spec.server_id in rightful.ask("describe")["xml"]
        assert code_of(lambda: rightful.ask("run")) == "not-found", "nothing has arrived that could run"
        assert code_of(lambda: rightful.ask("put", name="../../x", size=1)) == "refused"

        async def asked(procedure: int, program: int = 0x20008086) -> bytes:
            """What libvirtd says to one call, after the connection was opened."""
            reader, writer, _ = await rightful.dial("control")
            words = b"qemu:///system"
            opening = struct.pack(">II", 1, len(words)) + words.ljust(16, b"\0") + struct.pack(">I", 0)
            try:
                for number, body in ((66, b""), (1, opening), (procedure, b"")):
                    head = struct.pack(">6I", 0x20008086 if number != procedure else program, 1, number, 0, 1, 0)
                    writer.write(struct.pack(">I", 28 + len(body)) + head + body)
                    length = await asyncio.wait_for(reader.read(4), 10)
                    if not length:
                        return b""
                    answer = await reader.readexactly(struct.unpack(">I", length)[0] - 4)
                return answer
            finally:
                writer.close()

        assert loop.run(asked(66)), "a call that a migration makes is answered"
        for procedure in (59, 10, 11, 23, 212):  # host name, create, define, look up, ...
            assert loop.run(asked(procedure)) == b"", procedure
        assert loop.run(asked(1, program=0x20008087)) == b"", "QEMU's monitor, by libvirt"
    loop.stop()
    pair.failed(spec, source, target)
    assert target.sh(f"ss -ltn | grep -c :{DOOR} || true").strip() == "0", "nobody is expected: there is no door"
    pair.delete(source, spec)


def test_the_description_that_arrives_is_looked_at(pair: Pair) -> None:
    """A source that was taken over cannot have the target run what it likes."""
    source, target = pair.first, pair.second
    spec = pair.create(source)
    source.virsh("attach-disk", spec.instance_name, "/etc/hostname", "vdx", "--mode", "readonly")
    assert code_of(pair.migrate(spec, source, target).result) == "unsupported"
    pair.failed(spec, source, target)
    pair.delete(source, spec)


# -- killed -------------------------------------------------------------------------------------------------------


def at(host: Mover, spec: c.ServerSpec, moment: str, call: Call, dice: random.Random) -> None:
    """Wait for a phase of the migration, by the source's libvirtd, or some time."""
    if moment == "any":
        time.sleep(dice.uniform(0.05, 0.9))
        return
    status = host.config.run / "libvirt" / "qemu" / f"{spec.instance_name}.xml"
    while not call.over.is_set():
        with contextlib.suppress(FileNotFoundError):
            if f"phase='{moment}'" in status.read_text():
                return


@pytest.mark.parametrize("moment", ["any", "perform3", "perform3_done", "confirm3"])
@pytest.mark.parametrize("victim", ["source agent", "target agent", "source libvirtd", "target libvirtd"])
def test_killed_at_any_moment(pair: Pair, victim: str, moment: str) -> None:
    """Whoever dies whenever: one host has the guest and it runs, and the repeated operation says which."""
    source, target = pair.first, pair.second
    spec = pair.create(source)
    dice = random.Random(victim)
    outcomes = []
    for _ in range(3):
        address = pair.prepare(spec, source, target)
        operation = c.MigrateServer(server=spec, to_host=target.name, address=address)
        who = source if victim.startswith("source") else target
        pid = who.outer_pid(who.pid if victim.endswith("agent") else who.libvirtd())
        call = source.begin(operation)
        at(source, spec, moment, call, dice)
        os.kill(pid, signal.SIGKILL)
        if victim.endswith("agent"):
            who.wait()
            who.start()
        if victim == "source agent":
            call = source.begin(operation)  # its journal makes the next life do it again
        try:
            call.result()
            outcome = "moved"
        except DriverError as error:
            outcome = f"{error.code}: {error.message}"
        outcomes.append(outcome)
        assert not outcome.startswith(("internal", "guest-lost")), outcomes
        here, there = len(source.guests()), len(target.guests())
        if outcome == "moved":
            assert (here, there) == (0, 1), outcomes
            pair.moved(spec, source, target)
            source, target = target, source
        else:
            assert here == 1, outcomes
            pair.failed(spec, source, target)
        assert "running" in source.virsh("domstate", spec.instance_name)
    pair.delete(source, spec)
    print(victim, moment, outcomes)


# -- at rest ------------------------------------------------------------------------------------------------------


def written(host: Mover, spec: c.ServerSpec, megabytes: int) -> None:
    path = host.folder(spec.server_id) / "disk"
    host.sh(
        f"dd if=/dev/urandom of={path}.new bs=1M count={megabytes} 2>/dev/null;"
        f"qemu-io -f qcow2 -c 'write -s {path}.new 8M {megabytes}M' {path} >/dev/null; rm {path}.new"
    )


def flat(host: Mover, spec: c.ServerSpec) -> str:
    path = host.folder(spec.server_id) / "disk"
    return host.sh(f"qemu-img convert -f qcow2 -O raw {path} {path}.flat; sha256sum < {path}.flat; rm {path}.flat")


def test_disks_are_fetched_as_they_are(pair: Pair) -> None:
    source, target = pair.first, pair.second
    spec = pair.create(source, start=False, ephemeral_gb=1)
    written(source, spec, 20)
    before = flat(source, spec)
    offer = source.do(c.OfferDisks(server_id=spec.server_id, to_host="h2"))["disks"]
    assert {disk["name"] for disk in offer} >= {"disk", "disk.eph0", "disk.swap"}
    disks = [msgspec.convert(disk, c.DiskOffer) for disk in offer]
    larger = msgspec.structs.replace(spec, root_gb=2)
    fetch = c.FetchDisks(server=larger, from_host="h1", disks=disks)
    slow(source, "80mbit")
    call = target.begin(fetch)
    part = target.folder(spec.server_id) / "disk.fetch"
    until("some of it is there", lambda: part.exists() and part.stat().st_size > 2 << 20)
    assert target.servers() == {}, "half of a server is not in the inventory"
    source.kill()  # the offer outlives it
    source.start()
    time.sleep(0.5)
    target.kill()
    have = part.stat().st_blocks
    target.start()
    quick(source)
    call = target.begin(fetch)
    call.result()
    assert have > 0
    assert call.progress == sorted(call.progress)
    target.do(fetch)  # nothing is left to do
    backing = json.loads(target.sh(f"qemu-img info --output=json {target.folder(spec.server_id)}/disk"))
    assert backing["full-backing-filename"].startswith(str(target.config.state)), "on its own copy of the image"
    assert backing["virtual-size"] == 2 << 30
    target.do(c.DefineServer(server=larger))
    assert target.servers() == {spec.server_id: 4}
    source.do(c.WithdrawDisks(server_id=spec.server_id))
    target.sh(f"qemu-img resize -q --shrink -f qcow2 {target.folder(spec.server_id)}/disk 1G")
    assert flat(target, spec) == before
    pair.power(target, spec, "start")
    assert target.servers() == {spec.server_id: 1}
    assert code_of(lambda: target.do(c.OfferDisks(server_id=spec.server_id, to_host="h1"))) == "guest-running"
    pair.delete(target, spec)
    pair.delete(source, spec)


def test_an_offer_is_for_one_host(pair: Pair) -> None:
    source, target = pair.first, pair.second
    spec = pair.create(source, start=False)
    (disk, *_) = source.do(c.OfferDisks(server_id=spec.server_id, to_host="h3"))["disks"]
    fetch = c.FetchDisks(server=spec, from_host="h1", disks=[msgspec.convert(disk, c.DiskOffer)])
    assert code_of(lambda: target.do(fetch)) == "refused"
    target.do(c.DeleteDisks(server_id=spec.server_id))
    another = pair.create(source, start=False)
    for one in (spec, another):
        source.do(c.OfferDisks(server_id=one.server_id, to_host="h2"))
    source.do(c.WithdrawDisks(server_id=spec.server_id))
    assert code_of(lambda: target.do(fetch)) == "refused"
    target.do(c.DeleteDisks(server_id=spec.server_id))
    assert target.servers() == {}
    pair.delete(source, spec)
    pair.delete(source, another)


def test_images_are_offered_to_one_host(pair: Pair) -> None:
    """Those that the control plane names, by another life of the agent, too."""
    source, target = pair.first, pair.second
    gone, other = (msgspec.structs.replace(pair.image, image_id=new_uuid()) for _ in range(2))
    spec = pair.create(source, image=gone, start=False)
    source.do(c.CacheImage(image=other))
    gone, other = (msgspec.structs.replace(image, path=None) for image in (gone, other))
    ids = {"server_id": spec.server_id}

    def offered(to_host: str) -> c.DiskOffer:
        [disk] = source.do(c.OfferImages(**ids, to_host=to_host, images=[gone]))["disks"]
        return msgspec.convert(disk, c.DiskOffer)

    def fetch(image: c.ImageSource, offer: c.DiskOffer) -> c.FetchImages:
        offer = msgspec.structs.replace(offer, name=image.image_id)
        return c.FetchImages(**ids, from_host="h1", images=[image], offers=[offer])

    assert code_of(lambda: target.do(fetch(gone, offered("h3")))) == "refused"
    offer = offered("h2")
    for name in (other.image_id, "images.json", "disk"):
        asked = msgspec.structs.replace(other, image_id=name)
        assert code_of(lambda asked=asked: target.do(fetch(asked, offer))) == "refused"  # type: ignore[misc]
    source.kill()
    source.start()
    target.do(fetch(gone, offer))
    assert target.do(c.CacheImage(image=gone))["hit"]
    source.do(c.WithdrawDisks(**ids))
    pair.delete(source, spec)


def test_no_space_is_told(pair: Pair) -> None:
    source, target = pair.first, pair.second
    spec = pair.create(source, start=False)
    written(source, spec, 90)
    disks = source.do(c.OfferDisks(server_id=spec.server_id, to_host="h2"))["disks"]
    fetch = c.FetchDisks(server=spec, from_host="h1", disks=[msgspec.convert(disk, c.DiskOffer) for disk in disks])
    servers = target.config.state / "servers"
    target.sh(f"mount -t tmpfs -o size=100m tmpfs {servers}")
    try:
        assert code_of(lambda: target.do(fetch)) == "no-space"
    finally:
        target.sh(f"umount -l {servers}")
    pair.delete(source, spec)


# -- on the same host ---------------------------------------------------------------------------------------------


def test_resized_and_taken_back(pair: Pair) -> None:
    host = pair.first
    spec = pair.create(host, start=False)
    written(host, spec, 4)
    before = flat(host, spec)
    larger = msgspec.structs.replace(spec, root_gb=2, ephemeral_gb=1, swap_mb=2)
    for _ in range(2):  # done twice is done once
        host.do(c.ResizeDisks(server=larger))
    info = json.loads(host.sh(f"qemu-img info --output=json {host.folder(spec.server_id)}/disk"))
    assert info["virtual-size"] == 2 << 30
    assert (host.folder(spec.server_id) / "disk.swap").stat().st_size == 2 << 20
    host.do(c.DefineServer(server=larger))
    pair.power(host, spec, "start")
    assert code_of(lambda: host.do(c.RevertDisks(server_id=spec.server_id))) == "guest-running"
    pair.power(host, spec, "stop")
    written(host, spec, 6)
    for _ in range(2):
        host.do(c.RevertDisks(server_id=spec.server_id))
    assert flat(host, spec) == before
    assert not (host.folder(spec.server_id) / "disk.eph0").exists()
    assert (host.folder(spec.server_id) / "disk.swap").stat().st_size == 1 << 20
    host.do(c.ResizeDisks(server=larger))
    for _ in range(2):
        host.do(c.DropDisksAside(server_id=spec.server_id))
    host.do(c.RevertDisks(server_id=spec.server_id))
    info = json.loads(host.sh(f"qemu-img info --output=json {host.folder(spec.server_id)}/disk"))
    assert info["virtual-size"] == 2 << 30, "confirmed is confirmed"
    pair.delete(host, spec)
