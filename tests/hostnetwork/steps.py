"""Death before each step of a removal: whatever was done by then, the next life removes the rest."""

import time
from collections.abc import Sequence
from difflib import unified_diff
from itertools import permutations
from typing import Any

from .conftest import Host

_LOOK = """
ip -br link | cut -d@ -f1 | awk '{print "device", $1}' | sort
ip netns list | sed 's/^/namespace /'
nft list ruleset
find /var/lib/cumulet-test /run/cumulet-test -type f
ps -eo args | grep '^dnsmasq' || true
for b in $(ovs-vsctl list-br 2>/dev/null); do
  ovs-vsctl list-ports $b
  ovs-ofctl --no-stats dump-flows $b | grep -v hard_timeout
done
"""


def removed_at_every_step(host: Host, docs: Sequence[Any]) -> int:
    """How many steps there were."""
    orders = list(permutations((doc.kind, doc.id) for doc in docs))
    before: list[str] = []
    step, died = -1, True
    while died:
        assert host.worker is not None
        for doc in docs:
            host.worker.apply(doc)
        if step >= 0:  # the first time nobody dies
            host.worker("die_before", step)
        died = step < 0
        for kind, id in orders[step % len(orders)]:
            if not host.worker.survives("remove", kind, id, 9):
                died = True
                host.restart()("remove", kind, id, 9)
        before = before or _look(host)
        _is_so_soon(host, before, step)
        step += 1
    return step


def _look(host: Host) -> list[str]:
    return host.sh(_LOOK).splitlines()


def _is_so_soon(host: Host, before: list[str], step: int) -> None:
    """Flows are looked after by themselves."""
    deadline = time.monotonic() + 15
    while (left := _look(host)) != before:
        differs = "\n".join(unified_diff(before, left, "before", "left", lineterm="", n=1))
        assert time.monotonic() < deadline, f"killed before step {step}:\n{differs}"
        time.sleep(0.2)
