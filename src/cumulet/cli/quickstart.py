"""``cumulet quickstart``: a running cloud, seeded, with a first server that answers SSH; proof printed at the end.

Every phase looks first, so that running it again is harmless and quick, and a killed run is taken up where it stood.
"""

import json
import os
import secrets
import sys
import threading
import time
from pathlib import Path
from typing import Any

import click

from cumulet.cli import clouds, daemon, process, seed
from cumulet.cli import server as servers
from cumulet.cli.client import Cloud, wait_for
from cumulet.cli.output import Phases, Problem, table
from cumulet.settings import DEFAULT_FILE, Settings

CACHE = Path("/var/cache/cumulet")
SERVER = "demo-1"


@click.command(help="Start a cloud here, seed it, boot a first server and prove SSH.")
@daemon.config_option
def quickstart(config: Path | None) -> None:
    phases = Phases(float(os.environ.get("CUMULET_QUICKSTART_BEGAN", time.time())))
    if os.geteuid() != 0:
        raise Problem("not root", "run it as root, or with sudo")
    config = config or Path(os.environ.get("CUMULET_CONFIG", DEFAULT_FILE))
    if not config.exists():
        write_settings(config)
    settings = daemon.read_settings(config)
    if settings.network.external_cidr is None:
        raise Problem(f"{config} sets no [network] external_cidr", "set it to a free IPv4 range of this machine")

    builder = ImageBuilder()
    live = process.running(settings.run_dir, "all") is not None
    if not live:
        builder.start()
    with phases("starting the cloud"):
        passwords(settings)
        if not live:
            took = daemon.start(settings, config, "all")
            phases.say(f"  the API answers after {took:.1f} s at {settings.public_url}")
        else:
            phases.say(f"  it runs already at {settings.public_url}")
    with phases("users, flavors, keys"):
        entries = users(settings)
        admin, demo = Cloud(entries["cumulet-admin"]), Cloud(entries["cumulet"])
        seed.flavors(admin)
        seed.key_pair(demo)
    with phases("the tiny guest image (built from Debian packages)"):
        seed.image(admin, builder.result)
    with phases("networks: public, private, a router, a security group"):
        external = seed.external_network(admin, settings.network.external_cidr)
        private = seed.private_network(demo, external["id"])
        seed.security_group(demo)
    link_commands()
    with phases("this machine as a host: hypervisor, networks, storage"):
        wait_for("this machine's agent reporting", lambda: host_is_up(admin, settings.host_name), seconds=180)
    with phases(f"server {SERVER}: booting"):
        found = demo.find("compute", "servers/detail", SERVER, key="servers")
        if found is not None and found["status"] == "ERROR":
            raise Problem(f"{SERVER} is in ERROR", f"cumulet explain server {SERVER}; openstack server delete {SERVER}")
        posted = time.monotonic()
        server = found or servers.create(
            demo, SERVER, image=seed.IMAGE, network=private["name"], security_groups=[seed.SECURITY_GROUP]
        )
        if found is not None and found["status"] == "SHUTOFF":
            demo.post("compute", f"/servers/{server['id']}/action", {"os-start": None})
        servers.wait_active(demo, server["id"])
        phases.say(f"  ACTIVE after {time.monotonic() - posted:.1f} s")
        address = servers.ensure_floating_ip(demo, server["id"])
        phases.say(f"  floating IP {address}")
        said = servers.wait_ssh(demo, server["id"], address, seconds=240)
        since = time.monotonic() - posted
    phases.say(f"  SSH to {address} works {since:.1f} s after the request; the guest says: {' '.join(said.split())}")
    report(phases, settings, admin, server["id"])


def host_is_up(admin: Cloud, name: str) -> bool:
    return any(h["name"] == name and h["up"] for h in admin.get("operator", "/v1/status")["hosts"])


def write_settings(path: Path) -> None:
    """The settings of an embedded cloud: defaults, and an external range that this machine does not use."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = (
        "# Cumulet on this machine. Every setting and its default: docs/settings.md\n"
        f'[network]\nexternal_cidr = "{seed.free_external_range()}"\n'
        f"dns_servers = {json.dumps(seed.resolvers())}\n"
    )
    clouds.write_private(path, text)


def passwords(settings: Settings) -> None:
    """Generated once, kept 0600: the administrator's (which the first start reads) and the demo user's."""
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    for path in (settings.admin_password_file, settings.state_dir / "demo-password"):
        if not path.exists():
            clouds.write_private(path, secrets.token_urlsafe(18) + "\n")


def users(settings: Settings) -> dict[str, dict[str, Any]]:
    """Project and user ``demo``; both clouds into clouds.yaml and openrc files."""
    auth_url = settings.public_url + "/identity"
    admin_password = settings.admin_password_file.read_text().strip()
    demo_password = (settings.state_dir / "demo-password").read_text().strip()
    entries = {
        "cumulet": clouds.cloud_entry(auth_url, "demo", demo_password, "demo", settings.api.region),
        "cumulet-admin": clouds.cloud_entry(auth_url, "admin", admin_password, "admin", settings.api.region),
    }
    seed.project_and_user(Cloud(entries["cumulet-admin"]), "demo", "demo", demo_password)
    clouds.merge(entries)
    for name, entry in entries.items():
        path = clouds.config_dir() / f"{name}.openrc"
        text = clouds.openrc(entry)
        if not path.is_file() or path.read_text() != text:
            clouds.write_private(path, text)
    return entries


class ImageBuilder(threading.Thread):
    """Builds the tiny guest while the cloud starts; kept in the cache for the next time."""

    log = CACHE / "build.log"

    def __init__(self) -> None:
        super().__init__(name="image-builder", daemon=True)
        self._error: BaseException | None = None

    def run(self) -> None:
        from cumulet import guest

        try:
            CACHE.mkdir(parents=True, exist_ok=True)
            with open(self.log, "w") as log:
                self._built = guest.build(CACHE, lambda line: print(line, file=log, flush=True))
        except BaseException as error:  # noqa: BLE001 - raised again by result()
            self._error = error

    def result(self) -> Path:
        """The image, built by now. Problem."""
        if self.ident is None:
            self.start()
        self.join()
        if self._error is not None:
            raise Problem(f"the guest image could not be built: {self._error}", "see the log", str(self.log))
        return self._built.disk


def link_commands() -> None:
    """``cumulet`` and ``openstack`` in /usr/local/bin, where those names are free."""
    here = Path(os.path.abspath(sys.executable)).parent
    for name in ("cumulet", "openstack"):
        link = Path("/usr/local/bin") / name
        if not link.exists() and (here / name).exists():
            if link.is_symlink():
                link.unlink()
            link.symlink_to(here / name)


def report(phases: Phases, settings: Settings, admin: Cloud, server_id: str) -> None:
    from cumulet.cli.explain import print_steps
    from cumulet.cli.status import memory_by_part

    click.echo("\nTime by phase")
    table([(name, seconds) for name, seconds in phases.taken], ("phase", "seconds"))
    click.echo("\nSteps of the boot")
    print_steps(admin, server_id, action="create")
    click.echo("\nMemory in use (proportional set size)")
    table([(part, f"{kib / 1024:.0f} MiB") for part, kib in memory_by_part(settings)])
    click.echo(
        f"""
What to type next
  cumulet ssh {SERVER}                              a shell in the server
  cumulet explain server {SERVER}                   each step of each operation on it, and its XML
  openstack --os-cloud cumulet server list          any OpenStack client works
  cumulet status; cumulet doctor                    what runs; what is wrong, and the cure
  cumulet down                                      stop the control plane, servers go on; cumulet up
"""
    )
    phases.say("done")
