"""Structs are worked out before threads decode them: else msgspec reads what another thread has not filled in yet."""

import subprocess
import sys
from typing import Any

from cumulet.kernel import structs

# many struct classes, each first used by four threads at once
_HAMMER = """
import sys, threading
import msgspec
from cumulet.kernel import structs

sys.setswitchinterval(1e-6)

def new():
    known = {"msgspec": msgspec}
    leaves = "".join(
        f"class L{k}(msgspec.Struct):\\n" + "".join(f"    f{i}: int | str | list[str] = 0\\n" for i in range(8))
        for k in range(6)
    )
    top = "class Top(msgspec.Struct):\\n" + "".join(f"    g{k}: L{k} | None = None\\n" for k in range(6))
    exec(leaves + top, known)
    return known["Top"]

def use(kind, together):
    together.wait()
    msgspec.json.decode(b'{"g0": {"f0": 1}, "g1": {"f7": "x"}, "g5": {"f3": ["a"]}}', type=kind)

kept = [new() for _ in range(int(sys.argv[1]))]
structs.prepare()
for kind in kept:
    together = threading.Barrier(4)
    threads = [threading.Thread(target=use, args=(kind, together)) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
"""


def hammered(count: int) -> int:
    return subprocess.run([sys.executable, "-c", _HAMMER, str(count)], timeout=60, check=False).returncode


def test_threads_may_use_what_is_prepared() -> None:
    """Without that the process died each time it was tried."""
    assert hammered(1500) == 0


def test_a_cloud_that_runs_has_all_of_them_prepared(cloud: Any) -> None:
    """Also those that came with hosts and what they are asked."""
    ours = {one for one in structs.known() if one.__module__.startswith("cumulet.")}
    assert len(ours) > 300
    assert ours <= set(structs.known(prepared=True))
