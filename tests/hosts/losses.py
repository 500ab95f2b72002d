"""What Open vSwitch with its datapath in user space loses by itself, without anything of Cumulet.

Two pretend hosts, joined by a VXLAN tunnel of Open vSwitch, each with a "guest" (a namespace). While one pings the
other, the devices of further guests come and go on both hosts, as an agent would make them. What chaos upon three hosts
excuses (`tests.hosts.chaos.lost_to_links`) is measured here: ``python -m tests.hosts.losses --load 4``.
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

_HERE = Path(__file__).parents[1] / "hostnetwork"
_PING_S = 0.01
_HOST = """
bash {here}/ovs-start.sh >/dev/null 2>&1
ip link set eth1 up
ovs-vsctl add-br br-phy -- set bridge br-phy datapath_type=netdev fail_mode=standalone \
    "other_config:hwaddr=\\"$(cat /sys/class/net/eth1/address)\\"" -- add-port br-phy eth1
ip addr del 10.78.0.{own}/24 dev eth1
ip addr add 10.78.0.{own}/24 dev br-phy
ip link set br-phy mtu 1600 up
ovs-vsctl add-br br-int -- set bridge br-int datapath_type=netdev -- add-port br-int vx -- \
    set interface vx type=vxlan options:remote_ip=10.78.0.{other} options:local_ip=10.78.0.{own} options:key=5
ip netns add guest
ip link add v0 type veth peer name v1 netns guest
ip link set v0 up
ovs-vsctl add-port br-int v0
ip -n guest link set v1 up mtu 1450
ip -n guest addr add 10.9.0.{own}/24 dev v1
ip netns exec guest ethtool -K v1 tx off >/dev/null
"""
_COME_AND_GO = """
end=$((SECONDS + {seconds}))
while [ $SECONDS -lt $end ]; do
ip -batch - <<X
link add qbrx type bridge
link set qbrx up
link add qvbx type veth peer name qvox
link set qvbx master qbrx
link set qvbx up
link set qvox up
tuntap add tapx mode tap
link set tapx master qbrx
link set tapx up
X
ovs-vsctl add-port br-int qvox tag=7
sleep 0.2
ovs-vsctl del-port qvox
ip link del tapx; ip link del qvbx; ip link del qbrx
done
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.hosts.losses")
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--load", type=int, default=0, help="busy loops beside it")
    given = parser.parse_args()
    hosts = {**os.environ, "TH_PREFIX": "cumlosses"}

    def script(*words: str, out: int | None = None) -> "subprocess.Popen[str]":
        return subprocess.Popen([_HERE / "testhosts.sh", *words], env=hosts, text=True, stdout=out)

    script("down", out=subprocess.DEVNULL).wait()  # what a killed run left
    assert script("up", "2", out=subprocess.DEVNULL).wait() == 0
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(given.load)]
    try:
        for own, other in ((1, 2), (2, 1)):
            ready = script("exec", f"h{own}", "bash", "-ec", _HOST.format(here=_HERE, own=own, other=other))
            assert ready.wait() == 0
        sent = int(given.seconds / _PING_S)
        ping = f"ip netns exec guest ping -i {_PING_S} -c {sent} -W 1 10.9.0.1"
        pinging = script("exec", "h2", *ping.split(), out=subprocess.PIPE)
        churn = _COME_AND_GO.format(seconds=given.seconds)
        working = [script("exec", host, "bash", "-ec", churn) for host in ("h1", "h2")]
        said = pinging.communicate()[0]
        assert [one.wait() for one in working] == [0, 0]
    finally:
        for loop in loops:
            loop.kill()
        script("down").wait()
    told(sent, {int(number) for number in re.findall(r"seq=(\d+)", said)})


def told(sent: int, answered: set[int]) -> None:
    lost = sorted(set(range(1, sent + 1)) - answered)
    longest = run = 0
    for number in lost:
        run = run + 1 if number - 1 in lost else 1
        longest = max(longest, run)
    far = round(0.2 / _PING_S)  # between the pings of witnesses
    pairs = [number for number in lost if number + far in lost]
    triples = [number for number in pairs if number + 2 * far in lost]
    print(f"lost {len(lost)} of {sent} ({100 * len(lost) / sent:.1f}%), at most {longest * _PING_S:.2f} s at a time")
    print(f"of pings 0.2 s apart: two in a row {len(pairs)} times, three {len(triples)}")


if __name__ == "__main__":
    main()
