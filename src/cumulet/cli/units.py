"""systemd's units of our roles, where systemd runs: ``setup/systemd`` of the checkout has them.

An operator's own changes belong into drop-ins; the units themselves are ours and follow each release.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from cumulet.cli.output import Problem
from cumulet.settings import DEFAULT_FILE

_SOURCES = Path(__file__).parents[3] / "setup" / "systemd"
_PLACE = Path("/etc/systemd/system")
_COMMAND = Path("/usr/local/bin/cumulet")  # what the units start


def systemd() -> bool:
    """Is it process 1 here?"""
    return Path("/run/systemd/system").is_dir()


def name(role: str) -> str:
    return f"cumulet-{role}.service"


def install(role: str, config: Path) -> None:
    """The unit, enabled and started anew; a drop-in says what of it is different on this machine."""
    unit, drop_in = _PLACE / name(role), _PLACE / f"{name(role)}.d" / "join.conf"
    if (_SOURCES / unit.name).exists():  # else whoever packaged us brought it
        shutil.copy(_SOURCES / unit.name, unit)
    own = [f"Environment=CUMULET_CONFIG={config}"] if config != DEFAULT_FILE else []
    if not _COMMAND.exists():
        own += ["ExecStart=", f"ExecStart={sys.executable} -m cumulet serve --role {role}"]
    if own:
        drop_in.parent.mkdir(exist_ok=True)
        drop_in.write_text("\n".join(["[Service]", *own, ""]))
    else:
        drop_in.unlink(missing_ok=True)
    _systemctl("daemon-reload")
    _systemctl("enable", "--quiet", unit.name)
    _systemctl("restart", unit.name)


def stop(role: str) -> bool:
    """True if there was something to stop: a process that is only ended would be started again."""
    if not systemd() or not _active(role):
        return False
    _systemctl("stop", name(role))
    return True


def remove(role: str) -> None:
    """Stopped for good, and no trace of it left."""
    if not systemd() or not (_PLACE / name(role)).exists():
        return
    _systemctl("disable", "--quiet", "--now", name(role))
    (_PLACE / name(role)).unlink()
    (_PLACE / f"{name(role)}.d" / "join.conf").unlink(missing_ok=True)
    _systemctl("daemon-reload")


def _active(role: str) -> bool:
    words = ["systemctl", "show", "--value", "--property=ActiveState", name(role)]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip() in ("active", "activating")


def _systemctl(*words: str) -> None:
    done = subprocess.run(["systemctl", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Problem(f"systemctl {' '.join(words)}: {done.stderr.strip()}", f"journalctl -u {words[-1]}")
