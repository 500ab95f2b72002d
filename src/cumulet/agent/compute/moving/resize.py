"""A resize on the same host: a copy of the disks stays aside, in the server's folder, until it is confirmed or taken
back. The server does not run meanwhile. Each step looks what stands and does what is missing."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from cumulet.agent.compute.instances import Instances, grow_root, run_tool
from cumulet.agent.contract import ServerSpec
from cumulet.agent.driver import Progress
from cumulet.agent.errors import DriverError

_DISKS = ("disk", "disk.eph0", "disk.swap")
_COPY_SECONDS = 3600


class Resize:
    def __init__(self, instances: Instances, runs: Callable[[str], bool]) -> None:
        self._instances, self._runs = instances, runs

    def resize(self, server: ServerSpec, progress: Progress) -> None:
        self._at_rest(server.server_id)
        folder, aside = self._instances.folder(server.server_id), self._instances.resized_from(server.server_id)
        if not folder.exists():
            return  # volumes only
        if not aside.exists():
            part = aside.with_name(aside.name + ".part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(mode=0o700)
            for name in _DISKS:
                if (folder / name).is_file():
                    progress()
                    run_tool(
                        ["cp", "--reflink=auto", "--sparse=always", str(folder / name), str(part / name)], _COPY_SECONDS
                    )
            _sync(part)
            os.replace(part, aside)
        progress()
        grow_root(folder / "disk", server)
        if server.swap_mb << 20 != _size(folder / "disk.swap"):
            (folder / "disk.swap").unlink(missing_ok=True)  # what is in it, is worth nothing
        ephemeral = folder / "disk.eph0"
        if ephemeral.exists() and ephemeral.stat().st_size < server.ephemeral_gb << 30:
            os.truncate(ephemeral, server.ephemeral_gb << 30)
        self._instances.create(server, progress)

    def revert(self, server_id: str) -> None:
        folder, aside = self._instances.folder(server_id), self._instances.resized_from(server_id)
        if not aside.exists():
            return
        self._at_rest(server_id)
        kept = aside / "kept"  # which disks there were: known to a repeat that finds them back in place
        if not kept.exists():
            part = aside / "kept.part"
            part.write_text("\n".join(name for name in _DISKS if (aside / name).exists()))
            os.replace(part, kept)
        names = kept.read_text().splitlines()
        for name in _DISKS:
            if (aside / name).exists():
                os.replace(aside / name, folder / name)
            elif name not in names:
                (folder / name).unlink(missing_ok=True)
        shutil.rmtree(aside)

    def drop(self, server_id: str) -> None:
        aside = self._instances.resized_from(server_id)
        gone = aside.with_name(aside.name + ".part")
        if aside.exists():
            shutil.rmtree(gone, ignore_errors=True)
            os.replace(aside, gone)  # never half of one under its name
        shutil.rmtree(gone, ignore_errors=True)

    def _at_rest(self, server_id: str) -> None:
        if self._runs(server_id):
            raise DriverError("guest-running", f"Server {server_id} runs: its disks are not at rest.")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _sync(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
