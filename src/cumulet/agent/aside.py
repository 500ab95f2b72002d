"""Where things go that nobody knows and that hold data: aside, on their host, never deleted."""

import os
from pathlib import Path


def move(path: Path, folder: Path) -> Path:
    """Into ``folder``, under a name of its own; where it is then. Done twice, nothing more happens."""
    target, number = folder / path.name, 1
    if path.exists():
        folder.mkdir(mode=0o700, exist_ok=True)
        while target.exists():
            number += 1
            target = folder / f"{path.stem}.{number}{path.suffix}"
        os.rename(path, target)
    return target
