"""``cumulet join``: make this machine a host of a cloud.

Owns, beside the settings file it is told to write: the trust, certificate and key in ``pki`` next to it, laid out as
QEMU wants them. The key never leaves the machine. Running it again repairs: the key is kept, the certificate and the
broker account are renewed, the agent starts again with them; settings that are not about joining stay as they are.
Refuses: a cloud whose authority is not the one the token names; to send the token unencrypted to another machine,
unless told to; a settings file that knows a database, for hosts know none.
"""

import ipaddress
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from cumulet.cli import daemon, process, units
from cumulet.cli.clouds import write_private
from cumulet.cli.output import Phases, Problem
from cumulet.cli.removal import PKI, QEMU_PKI
from cumulet.settings import DEFAULT_FILE, Settings, SettingsError, load, to_toml

_ROLES = ("compute", "network", "storage")


@click.command(help="Make this machine a host of a cloud.")
@click.argument("url")
@click.option("--token", required=True, help="From `cumulet host token` on a control node.")
@click.option("--roles", default="compute", show_default=True, help="compute, network, storage: by commas.")
@click.option("--name", default=socket.gethostname, help="Of the host.  [default: this machine's]")
@click.option("--ip", help="Where other hosts reach it.  [default: what this machine speaks to the cloud with]")
@click.option("--tunnel-ip", help="Where tunnels of networks end.  [default: the same]")
@click.option("--config", type=click.Path(path_type=Path), default=DEFAULT_FILE, show_default=True)
@click.option("--ca", type=click.Path(exists=True, path_type=Path), help="Whom to believe that the API is the API.")
@click.option("--insecure", is_flag=True, help="Take the cloud's answer over plain HTTP, readable on the way.")
@click.option("--install/--no-install", default=True, help="Packages that a host needs.")
@click.option("--start/--no-start", default=True, help="The agent.")
def join(
    url: str,
    token: str,
    roles: str,
    name: str,
    ip: str | None,
    tunnel_ip: str | None,
    config: Path,
    ca: Path | None,
    insecure: bool,
    install: bool,
    start: bool,
) -> None:
    if os.geteuid() != 0:
        raise Problem("an agent needs root, and so does joining", f"sudo cumulet join {url} …")
    wanted = [role.strip() for role in roles.split(",") if role.strip()]
    unknown = [role for role in wanted if role not in _ROLES]
    if unknown or not wanted:
        raise Problem(f"there is no role {', '.join(unknown) or 'given'}", f"--roles {','.join(_ROLES)}")
    old = _read(config)
    phases = Phases()
    if install:
        with phases("what a host needs"):
            _install()
    cloud = Cloud(url, token, ca=ca, insecure=insecure)
    with phases(f"joining {cloud.url}"):
        authority = cloud.authority()
        pki = config.parent / PKI
        key = _key(pki)
        given = cloud.join(name, wanted, ip or cloud.own_address(), tunnel_ip, key)
    phases.say(f"  host {name}, {', '.join(given['roles'])}; the cloud runs version {given['version']}")
    _keep(pki, authority, given)
    if config == DEFAULT_FILE and not os.path.lexists(QEMU_PKI):
        QEMU_PKI.parent.mkdir(parents=True, exist_ok=True)
        QEMU_PKI.symlink_to(pki)
    host = {"name": name, "roles": given["roles"], "ip": given["ip"], **({"tunnel_ip": tunnel_ip} if tunnel_ip else {})}
    new = _merged(old, config, pki, host, given["bus_url"])
    write_private(config, "# Written by `cumulet join`, which keeps what else stands here.\n" + to_toml(new))
    settings = load(config)
    if start:
        with phases("the agent"):
            phases.say(f"  {_start(settings, config)}")
    phases.say("done; on a control node: cumulet host list")


class Cloud:
    """The cloud to join, known by the fingerprint in the token."""

    def __init__(self, url: str, token: str, *, ca: Path | None, insecure: bool) -> None:
        parts = urlsplit(url if "://" in url else f"https://{url}")
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self._host, self._port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        try:
            self._token_id, self._secret, self._fingerprint = token.split(".")
        except ValueError:
            raise Problem("that is no token of a cloud", "cumulet host token, on a control node") from None
        if parts.scheme == "http" and not insecure and not _loopback(self._host):
            raise Problem(
                "the answer holds this host's password, and plain HTTP shows it to all on the way",
                "serve the API over HTTPS ([api] certificate, key), or say --insecure",
            )
        self._ca = ca
        self._trusted: ssl.SSLContext | None = None

    def authority(self) -> str:
        """The certificate of the cloud's authority: whoever gives it, its fingerprint tells whether it is the one."""
        from cumulet.kernel import pki

        anyone = ssl.create_default_context()
        anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
        text = self._ask("GET", None, anyone).decode()
        try:
            found = pki.fingerprint(text)
        except ValueError:
            found = ""
        if found != self._fingerprint:
            raise Problem(f"what answers at {self.url} is not the cloud that made the token", "check the address")
        self._trusted = ssl.create_default_context(cafile=self._ca)
        self._trusted.load_verify_locations(cadata=text)
        return text

    def join(self, name: str, roles: list[str], ip: str, tunnel_ip: str | None, key: str) -> dict[str, Any]:
        from cumulet.kernel import pki

        body = {
            "token_id": self._token_id,
            "secret": self._secret,
            "host": name,
            "roles": roles,
            "ip": ip,
            "tunnel_ip": tunnel_ip,
            "csr": pki.request(key, name),
        }
        return {**json.loads(self._ask("POST", body, self._trusted)), "ip": ip}

    def own_address(self) -> str:
        """What this machine speaks to the cloud with."""
        with socket.create_connection((self._host, self._port), timeout=10) as connection:
            return str(connection.getsockname()[0])

    def _ask(self, method: str, body: Any, context: ssl.SSLContext | None) -> bytes:
        request = urllib.request.Request(
            f"{self.url}/operator/v1/join",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        try:
            with opener.open(request, timeout=60) as answer:
                said: bytes = answer.read()
                return said
        except urllib.error.HTTPError as error:
            raise Problem(f"the cloud answers: {_message(error.read()) or error.reason}") from error
        except OSError as error:
            reason = getattr(error, "reason", error)
            cure = "--ca FILE of who signed the API's certificate" if isinstance(reason, ssl.SSLError) else "is it up?"
            raise Problem(f"{self.url} cannot be reached: {reason}", cure) from error


def _message(body: bytes) -> str:
    try:
        return str(next(iter(json.loads(body).values()))["message"])
    except (ValueError, StopIteration, KeyError, TypeError, AttributeError):
        return ""


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _read(config: Path) -> dict[str, Any]:
    if not config.exists():
        return {}
    try:
        raw = tomllib.loads(config.read_text())
        load(config, {})
    except (tomllib.TOMLDecodeError, SettingsError) as error:
        raise Problem(f"{config} cannot be used: {error}", "mend or move it") from error
    if "url" in raw.get("database", {}):
        raise Problem(
            f"{config} is a control node's: it knows the database",
            f"--config {config.with_name('agent.toml')}, and that file for the agent",
        )
    return raw


def _install() -> None:
    script = Path(__file__).parents[3] / "setup" / "install"
    if not script.exists():
        return  # not a checkout: whoever packaged it brought what it needs
    done = subprocess.run([str(script), "--quiet"], check=False)
    if done.returncode:
        raise Problem("what a host needs could not be installed", "see above, then run this again")


def _key(pki_directory: Path) -> str:
    """This machine's, made once."""
    from cumulet.kernel import pki

    path = pki_directory / "server-key.pem"
    if path.exists():
        return path.read_text()
    made = pki.new_key()
    write_private(path, made)
    return made


def _keep(directory: Path, authority: str, given: dict[str, Any]) -> None:
    """As QEMU and libvirt want it: one folder, fixed names. ``trust.pem`` is for what is not another host."""
    write_private(directory / "trust.pem", given["trust"])
    write_private(directory / "ca-cert.pem", authority)
    write_private(directory / "server-cert.pem", given["certificate"])
    for kind in ("cert", "key"):
        link = directory / f"client-{kind}.pem"
        if not link.is_symlink():
            link.unlink(missing_ok=True)
            link.symlink_to(f"server-{kind}.pem")
    _admit_qemu(directory)


def _admit_qemu(directory: Path) -> None:
    """QEMU's own user is to speak for this host to others' storage: it may read, nobody else may."""
    from cumulet.agent.compute.libvirtd import qemu_group

    group = qemu_group()
    if group is None:
        return
    for path in (directory, *(directory / f"{name}.pem" for name in ("ca-cert", "server-cert", "server-key"))):
        shutil.chown(path, group=group)
        path.chmod(0o750 if path == directory else 0o640)


def _merged(old: dict[str, Any], config: Path, pki: Path, host: dict[str, Any], bus_url: str) -> dict[str, Any]:
    new = {section: dict(values) for section, values in old.items()}
    new.setdefault("host", {}).update(host)
    new.setdefault("bus", {}).update(url=bus_url)
    new.setdefault("tls", {}).update(
        ca=str(pki / "trust.pem"), certificate=str(pki / "server-cert.pem"), key=str(pki / "server-key.pem")
    )
    return new


def _start(settings: Settings, config: Path) -> str:
    """By systemd where it runs, else as a process; one that runs starts again with the new settings."""
    if units.systemd():
        units.install("agent", config)
        return f"systemd runs {units.name('agent')}"
    process.stop(settings.run_dir, "agent")
    seconds = daemon.start(settings, config, "agent")
    return f"it works after {seconds:.1f} s ({sys.executable} -m cumulet serve --role agent)"
