"""Death before each step of making and of removing: whatever was done by then, the next life does the rest."""

import time
from collections.abc import Sequence
from difflib import unified_diff
from itertools import permutations
from typing import Any

from .conftest import Host

_LOOK = """
ip -br link | cut -d@ -f1 | awk '{print "device", $1}' | sort
ip netns list | awk '{print "namespace", $1}' | sort
nft list tables | sort | while read -r _ family table; do nft list table $family $table; done
find /var/lib/cumulet-test /run/cumulet-test -type f | sort
ps -eo args | grep '^dnsmasq' || true
for b in $(ovs-vsctl list-br 2>/dev/null); do
  ovs-vsctl list-ports $b
  ovs-ofctl --no-stats --names dump-flows $b | grep -v hard_timeout
done
"""


def killed_at_every_step(host: Host, docs: Sequence[Any], *, of: str) -> int:
    """How many steps there were ``of`` applying ("apply") or removing ("remove") these documents."""
    orders = list(permutations(docs))
    made: list[str] = []
    gone: list[str] = []
    step, died = -1, True
    while died:
        died = step < 0  # the first time nobody dies
        for request, wanted in (("apply", made), ("remove", gone)):
            if of == request and step >= 0:
                assert host.worker is not None
                host.worker("die_before", step)
            for doc in orders[step % len(orders)]:
                assert host.worker is not None
                words = (doc.kind, doc) if request == "apply" else (doc.kind, doc.id, 9)
                if not host.worker.survives(request, *words):
                    died = True
                    host.restart()(request, *words)
            if of == request and not died:
                host.worker("die_before", 1 << 30)
            if step < 0:
                wanted += _look(host)
            _is_so_soon(host, wanted, f"{request}, killed before step {step} of {of}")
        step += 1
    return step


def _look(host: Host) -> list[str]:
    return host.sh(_LOOK).splitlines()


def _is_so_soon(host: Host, before: list[str], when: str) -> None:
    """Flows are looked after by themselves."""
    deadline = time.monotonic() + 15
    while (left := _look(host)) != before:
        differs = "\n".join(unified_diff(before, left, "before", "left", lineterm="", n=1))
        assert time.monotonic() < deadline, f"{when}:\n{differs}"
        time.sleep(0.2)
