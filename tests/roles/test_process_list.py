"""Which processes count as this machine's."""

import os
import subprocess
import time

import pytest

from cumulet.cli import process


@pytest.mark.skipif(os.geteuid() != 0, reason="namespaces of one's own need root")
def test_a_containers_processes_are_not_this_machines() -> None:
    inside = subprocess.Popen(["unshare", "--pid", "--fork", "--kill-child", "sleep", "600.25"])
    outside = subprocess.Popen(["sleep", "600.5"])
    try:
        end = time.monotonic() + 10
        while not any(b"600.25" in command and command.startswith(b"sleep") for command in _commands()):
            assert time.monotonic() < end
            time.sleep(0.01)
        found = {command for _, command in process.processes() if command.startswith("sleep 600.")}
        assert found == {"sleep 600.5"}
    finally:
        inside.kill()
        outside.kill()
        inside.wait()
        outside.wait()


def _commands() -> list[bytes]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    found.append(file.read())
            except OSError:
                continue
    return found
