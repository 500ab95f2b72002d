"""``cumulet image``: well-known cloud images by URL, checked; and the tiny guest of the project."""

import hashlib
import tempfile
import urllib.parse
import urllib.request
from pathlib import Path

import click

from cumulet.cli.client import Cloud, wait_for
from cumulet.cli.output import Problem
from cumulet.cli.server import cloud_option

SUFFIXES = {".qcow2": "qcow2", ".img": "qcow2", ".raw": "raw", ".iso": "iso", ".vmdk": "vmdk", ".vdi": "vdi"}


@click.group(help="Import cloud images, build the tiny test image.")
def image() -> None:
    pass


@image.command("import", help="Fetch an image from URL (or a file), check it, and upload it.")
@click.argument("url")
@click.option("--name", default=None, help="Default: the file's name.")
@click.option("--sha256", default=None, help="Expected digest in hex; the import is refused when it differs.")
@click.option("--sha512", default=None)
@click.option("--disk-format", default=None, help="Default: by the file's ending.")
@click.option("--public/--private", default=True)
@cloud_option
def import_(
    url: str,
    name: str | None,
    sha256: str | None,
    sha512: str | None,
    disk_format: str | None,
    public: bool,
    cloud_name: str | None,
) -> None:
    filename = Path(urllib.parse.urlsplit(url).path).name
    disk_format = disk_format or SUFFIXES.get(Path(filename).suffix)
    if disk_format is None:
        raise Problem(f"the disk format of {filename} is not known", "--disk-format qcow2 (or raw, iso, vmdk, vdi)")
    cloud = Cloud.named(cloud_name or "cumulet-admin")
    with tempfile.NamedTemporaryFile(prefix="cumulet-image-") as file:
        digests = {"sha256": hashlib.sha256(), "sha512": hashlib.sha512()}
        source = url if "://" in url else Path(url).absolute().as_uri()
        try:
            with urllib.request.urlopen(source, timeout=60) as answer:
                while chunk := answer.read(1 << 20):
                    file.write(chunk)
                    for digest in digests.values():
                        digest.update(chunk)
        except OSError as error:
            raise Problem(f"{url} cannot be fetched: {error}", "check the address and the connection") from error
        file.flush()
        for kind, expected in (("sha256", sha256), ("sha512", sha512)):
            if expected and digests[kind].hexdigest() != expected.lower():
                raise Problem(f"{filename} is not what was expected: its {kind} is {digests[kind].hexdigest()}")
        size = file.tell()
        body = {
            "name": name or Path(filename).stem,
            "disk_format": disk_format,
            "container_format": "bare",
            "visibility": "public" if public else "private",
        }
        made = cloud.post("image", "/images", body)
        with open(file.name, "rb") as data:
            headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
            cloud.put("image", f"/images/{made['id']}/file", data, headers=headers)
    wait_for(
        "the image becoming active",
        lambda: cloud.get("image", f"/images/{made['id']}")["status"] == "active",
        seconds=60,
    )
    click.echo(f"{made['name']}: {made['id']} is active; sha256 {digests['sha256'].hexdigest()}")


@image.command("build", help="Build the tiny Linux guest from Debian packages into DIRECTORY.")
@click.argument("directory", type=click.Path(path_type=Path))
def build(directory: Path) -> None:
    from cumulet import guest

    try:
        built = guest.build(directory, lambda line: click.echo(f"  {line}"))
    except guest.GuestBuildError as error:
        raise Problem(str(error)) from error
    click.echo(f"{built.disk}")
