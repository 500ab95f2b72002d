"""``cumulet destroy``: nothing of the cloud stays on this machine but packages, the checkout and the image cache."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from cumulet.cli import clouds
from cumulet.settings import DEFAULT_FILE, Settings, default_file

PKI = "pki"  # beside the settings file: certificate and key of a host that joined
QEMU_PKI = Path("/etc/pki/qemu")  # where the QEMU of the distribution's libvirtd looks for them
CACHE = Path("/var/cache/cumulet")


def remove_everything(settings: Settings, say: Callable[[str], None], *, config: Path | None, purge: bool) -> list[str]:
    """Remove servers, networks, volumes, files and client entries; what could not be removed, for the user.
    ``config``: the settings file, if one was named."""
    left: list[str] = []
    if settings.state_dir.exists():
        from cumulet.compose import build_drivers

        for driver in reversed(build_drivers(settings)):  # servers first: QEMU spins without its tap
            name = type(driver).__name__
            try:
                driver.cleanup_all()
                undo = getattr(driver, "remove_host_changes", None)  # the network driver's book of changes
                for change in undo() if undo is not None else []:
                    say(f"  {change}")
                say(f"  {name}: removed what it made")
            except Exception as error:  # noqa: BLE001 - each part is tried; what failed is told
                left.append(f"{name}: {error}")
    if left:
        return left  # the files are what a second try needs
    auth_url = settings.public_url + "/identity"
    if _entries_are_ours(auth_url):
        clouds.merge({"cumulet": None, "cumulet-admin": None})
        for name in ("cumulet", "cumulet-admin"):
            (clouds.config_dir() / f"{name}.openrc").unlink(missing_ok=True)
        say("  clouds.yaml: our two entries")
        _remove_key(say)
    here = Path(os.path.abspath(sys.executable)).parent
    for name in ("cumulet", "openstack"):
        link = Path("/usr/local/bin") / name
        if link.is_symlink() and Path(os.readlink(link)) == here / name:
            link.unlink()
            say(f"  {link}")
    file = config or default_file()
    paths = [settings.run_dir, settings.state_dir, settings.log_dir]
    # what `cumulet join` made lies beside the settings
    paths.append(file.parent if file == DEFAULT_FILE else file.parent / PKI)
    if QEMU_PKI.is_symlink() and Path(os.readlink(QEMU_PKI)) == file.parent / PKI:
        QEMU_PKI.unlink()
        say(f"  {QEMU_PKI}")
    if purge:
        paths.append(CACHE)
    for path in paths:
        if path.exists():
            shutil.rmtree(path)
            say(f"  {path}")
    return left


def _remove_key(say: Callable[[str], None]) -> None:
    """The key pair that the quickstart made, told by its comment."""
    from cumulet.cli.server import KEY

    private = KEY.expanduser()
    public = private.with_suffix(".pub")
    if public.exists() and public.read_text().split()[2:] == ["cumulet"]:
        private.unlink(missing_ok=True)
        public.unlink()
        say(f"  {private}")


def _entries_are_ours(auth_url: str) -> bool:
    from cumulet.cli.client import cloud_settings

    try:
        return bool(cloud_settings("cumulet-admin")["auth"]["auth_url"] == auth_url)
    except KeyError:
        return False
