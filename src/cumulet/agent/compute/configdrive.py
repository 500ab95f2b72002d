"""A server's config drive: the metadata service's answers as files of an ISO 9660 image labelled ``config-2``."""

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import msgspec

from cumulet.agent.contract import MetadataDoc
from cumulet.agent.errors import DriverError
from cumulet.agent.network.metadata_tree import OPENSTACK, answer, user_data

_EC2 = ("2009-04-04", "latest")
_FILES = ("meta_data.json", "network_data.json", "vendor_data.json", "vendor_data2.json", "user_data")


def contents(doc: MetadataDoc, admin_password: str | None = None) -> dict[str, bytes]:
    """Path on the drive -> bytes. Here, unlike over HTTP, the password for the administrator may be told."""
    if admin_password is not None:
        doc = msgspec.structs.replace(doc, meta_data={**doc.meta_data, "admin_pass": admin_password})
    files = {}
    for version in (*OPENSTACK, "latest"):
        for name in _FILES:
            found = answer(doc, f"openstack/{version}/{name}")
            if found is not None:
                files[f"openstack/{version}/{name}"] = found[1]
    tree = doc.ec2.get("meta-data", doc.ec2)
    for version in _EC2:
        files[f"ec2/{version}/meta-data.json"] = json.dumps(tree).encode()
        data = user_data(doc)
        if data is not None:
            files[f"ec2/{version}/user-data"] = data
    return files


def write_iso(files: dict[str, bytes], target: Path) -> None:
    """The image at ``target``, whole or not at all."""
    program = next((p for p in ("genisoimage", "mkisofs", "xorrisofs") if shutil.which(p)), None)
    if program is None:
        raise DriverError("unsupported", "a config drive needs genisoimage on the host: apt-get install genisoimage")
    part = target.with_name(target.name + ".part")
    with tempfile.TemporaryDirectory(prefix="cumulet-drive-") as folder:
        for name, data in files.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        done = subprocess.run(
            [program, "-quiet", "-V", "config-2", "-J", "-r", "-l", "-ldots", "-allow-lowercase", "-allow-multidot",
             "-o", str(part), folder],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    if done.returncode:
        part.unlink(missing_ok=True)
        raise DriverError("internal", f"the config drive could not be made: {done.stderr.strip()[-300:]}")
    part.chmod(0o600)
    part.replace(target)
