"""``cumulet join`` looks after the machine first. Joining itself: test_tls, test_systemd, tests/hosts."""

import os
import shutil
import subprocess
import sys
from pathlib import Path


def test_a_machine_that_cannot_have_what_a_host_needs_does_not_join(tmp_path: Path) -> None:
    """Its packages come first (`setup/install`): nothing is asked of the cloud, nothing written."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "dirname", "id", "mkdir"):  # a system without apt-get
        (programs / name).symlink_to(str(shutil.which(name)))
    config = tmp_path / "cumulet.toml"
    words = [
        sys.executable,
        "-m",
        "cumulet",
        "join",
        "https://127.0.0.1:1",
        "--token",
        "a.b.c",
        "--config",
        str(config),
    ]
    environment = {**os.environ, "PATH": str(programs), "CUMULET_SETUP_LOG": str(tmp_path / "setup.log")}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "this is not a Debian-like system" in done.stderr
    assert "what a host needs could not be installed" in done.stderr
    assert not config.exists()
