"""Daemons of a host that outlive the agent which starts them."""

from pathlib import Path

_SYSTEMD = Path("/run/systemd/system")  # there if it is process 1
_SCOPE = (
    "systemd-run", "--scope", "--quiet", "--collect", "--slice=cumulet.slice", "--property=TasksMax=infinity", "--",
)  # fmt: skip


def outliving(argv: list[str]) -> list[str]:
    """``argv`` in a control group of its own where systemd runs: who kills the agent's unit, or the session that
    `cumulet up` was typed in, does not kill it. What is passed to a process (files, environment, namespaces) reaches
    it all the same."""
    return [*_SCOPE, *argv] if _SYSTEMD.is_dir() else argv
