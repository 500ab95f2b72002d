"""Servers that move between real hosts by the APIs: live under ping, cold, and away from a host that is drained."""

import itertools
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.hosts.machines import eventually
from tests.hosts.world import World
from tests.support.cloud import unique

pytestmark = [pytest.mark.host, pytest.mark.timeout(1800)]
_MOST_LOST = 0.5  # of the time that moving takes; a tenth is usual


@contextmanager
def pinged(address: str) -> Iterator[None]:
    """From outside; prints how many packets were lost, and for how long at a stretch."""
    ping = subprocess.Popen(["ping", "-i", "0.1", address], stdout=subprocess.PIPE, text=True)
    time.sleep(1)
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    time.sleep(1)
    ping.send_signal(2)
    said = ping.communicate(timeout=20)[0]
    answered = sorted({int(number) for number in re.findall(r"seq=(\d+)", said)})
    longest = max(after - before for before, after in itertools.pairwise(answered)) - 1
    print(f"{re.findall(r'.* packets transmitted.*', said)}: away for {longest / 10:.1f} s at most, of {took:.1f} s")
    assert longest / 10 < took * _MOST_LOST


def test_live_with_a_volume(world: World) -> None:
    """The same guest goes on elsewhere, with its disks, its volume, its addresses and connections, and leaves nothing
    behind; on the way back a conductor dies."""
    machines, server = world.machines, world.servers["h2"]
    volume = world.made("volume", "/volumes", {"volume": {"size": 1, "name": unique("volume")}})["volume"]["id"]
    is_now = lambda status: world.admin.get("volume", f"/volumes/{volume}")["volume"]["status"] == status  # noqa: E731
    eventually("the volume is made", lambda: is_now("available"))
    attach = {"volumeAttachment": {"volumeId": volume}}
    world.made("compute", f"/servers/{server}/os-volume_attachments", attach)
    eventually("the guest sees it", lambda: world.says("test -b /dev/vdb") is not None)
    written = "echo on the volume | sudo dd of=/dev/vdb conv=sync 2>/dev/null; echo on the disk > kept; sync"
    assert world.says(written) is not None
    boot = world.says("cat /proc/sys/kernel/random/boot_id")
    connected = subprocess.Popen(
        world.ssh("read line; echo $line"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    for here, there in (("h2", "h3"), ("h3", "h2")):
        with pinged(world.floating_ip):
            world.act(server, {"os-migrateLive": {"host": there, "block_migration": "auto"}}, "2.79")
            if here == "h3":
                machines.nodes["c1"].kill("conductor")
            eventually("it is there", lambda there=there: world.is_at(server, there, "ACTIVE"))
        assert len(machines.guests(here)) == (1 if here == "h3" else 0)
        folder = machines.nodes[here].settings.state_dir / "compute" / "servers" / server
        eventually("it has left", lambda folder=folder: not folder.exists())
    machines.nodes["c1"].start("conductor")
    assert connected.communicate("still there\n", timeout=60)[0] == "still there\n"
    assert world.says("cat /proc/sys/kernel/random/boot_id") == boot
    assert world.says("cat kept") == "on the disk\n"
    assert (world.says("sudo dd if=/dev/vdb bs=512 count=1 iflag=direct 2>/dev/null") or "").startswith("on the volume")
    (done, *_) = world.admin.get("compute", f"/os-migrations?instance_uuid={server}", version="2.59")["migrations"]
    assert done["status"] == "completed"
    detached = world.admin.delete("compute", f"/servers/{server}/os-volume_attachments/{volume}")
    assert detached.status == 202, detached.text
    eventually("it is detached", lambda: is_now("available"))
    assert world.admin.delete("volume", f"/volumes/{volume}").status == 202


def test_cold_and_back(world: World, sector: str) -> None:
    server = world.create("h2", sector)
    world.active(server, "h2")
    files = {
        host: world.machines.nodes[host].settings.state_dir / "compute" / "servers" / server for host in ["h2", "h3"]
    }
    world.act(server, {"migrate": {"host": "h3"}}, "2.56")
    eventually("it waits to be confirmed", lambda: world.is_at(server, "h3", "VERIFY_RESIZE"))
    assert files["h2"].exists(), "until it is confirmed it may go back"
    world.act(server, {"revertResize": None})
    eventually("it is back", lambda: world.is_at(server, "h2", "ACTIVE"))
    eventually("nothing is left there", lambda: not files["h3"].exists())
    world.act(server, {"migrate": {"host": "h3"}}, "2.56")
    eventually("it waits to be confirmed", lambda: world.is_at(server, "h3", "VERIFY_RESIZE"))
    world.act(server, {"confirmResize": None})
    eventually("it is there", lambda: world.is_at(server, "h3", "ACTIVE"))
    eventually("nothing is left here", lambda: not files["h2"].exists())
    world.delete(server)


def test_a_drained_host(world: World, sector: str) -> None:
    """`cumulet host drain`: what runs goes live, what is off goes cold, and the host is empty."""
    machines = world.machines
    stopped = world.create("h2", sector)
    world.active(stopped, "h2")
    world.act(stopped, {"os-stop": None})
    eventually("it is off", lambda: world.is_at(stopped, "h2", "SHUTOFF"))
    with pinged(world.floating_ip):
        machines.operator("/hosts/h2/drain", {"drain": True})
        eventually("nothing is left on it", lambda: not machines.operator("/hosts/h2")["host"]["left"])
    assert machines.guests("h2") == {}
    assert world.says("cat kept") == "on the disk\n"
    machines.operator("/hosts/h2/drain", {"drain": False})
    world.delete(stopped)
    world.act(world.servers["h2"], {"os-migrateLive": {"host": "h2", "block_migration": "auto"}}, "2.79")
    eventually("it is back", lambda: world.is_at(world.servers["h2"], "h2", "ACTIVE"))
