"""The calling user's OpenStack client files: clouds.yaml (merged, never harming other entries) and openrc files.

The file is edited with its comments and order kept, written 0600 under a temporary name and renamed.
"""

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cumulet.cli.output import Problem


def config_dir() -> Path:
    return Path("~/.config/openstack").expanduser()


def write_private(path: Path, text: str) -> None:
    """Replace a file atomically; only its owner may read it."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def merge(entries: Mapping[str, dict[str, Any] | None], path: Path | None = None) -> bool:
    """Set (or with None remove) these clouds; True if the file changed. A file that cannot be read is left alone."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    path = path or config_dir() / "clouds.yaml"
    yaml = YAML()
    yaml.preserve_quotes = True
    old = path.read_text() if path.is_file() else ""
    try:
        document = yaml.load(old) or {}
        clouds = document.setdefault("clouds", {})
        if clouds is None:
            clouds = document["clouds"] = {}
        for name, entry in entries.items():
            if entry is None:
                clouds.pop(name, None)
            elif clouds.get(name) != entry:
                clouds[name] = entry
    except (YAMLError, AttributeError, TypeError) as error:
        raise Problem(f"{path} is not a clouds.yaml", "mend or move it, then run this again") from error
    buffer = io.StringIO()
    yaml.dump(document, buffer)
    new = buffer.getvalue()
    if new == old:
        return False
    if not clouds and not [key for key in document if key != "clouds"]:
        path.unlink(missing_ok=True)  # it held nothing but ours
    else:
        write_private(path, new)
    return True


def cloud_entry(auth_url: str, username: str, password: str, project: str, region: str) -> dict[str, Any]:
    return {
        "auth": {
            "auth_url": auth_url,
            "username": username,
            "password": password,
            "project_name": project,
            "user_domain_name": "Default",
            "project_domain_name": "Default",
        },
        "region_name": region,
        "identity_api_version": 3,
    }


def openrc(entry: dict[str, Any]) -> str:
    lines = [f"export OS_{key.upper()}='{value}'" for key, value in entry["auth"].items()]
    lines += [f"export OS_REGION_NAME='{entry['region_name']}'", "export OS_IDENTITY_API_VERSION=3"]
    return "\n".join(lines) + "\n"
