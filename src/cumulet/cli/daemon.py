"""The life of the cloud on this machine: up, down, destroy, serve.

``down`` stops our processes only; guests, libvirtd, dnsmasq and the volume daemon go on, and ``up`` adopts them.
"""

import faulthandler
import gc
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import click

from cumulet.cli import process, units
from cumulet.cli.output import Problem
from cumulet.settings import Settings, SettingsError, load

ROLES = ("all", "api", "conductor", "agent")
config_option = click.option("--config", type=click.Path(path_type=Path), default=None, help="Settings file (TOML).")


def read_settings(config: Path | None) -> Settings:
    try:
        return load(config)
    except SettingsError as error:
        raise Problem(f"the settings cannot be used: {error}", "mend the file") from error


@click.command(help="Start the cloud on this machine, adopting what runs.")
@config_option
@click.option("--role", type=click.Choice(ROLES), default="all", show_default=True)
def up(config: Path | None, role: str) -> None:
    settings = read_settings(config)
    pid = process.running(settings.run_dir, role)
    if pid is not None:
        click.echo(f"role {role} runs already (process {pid}); API at {settings.public_url}")
        return
    seconds = start(settings, config, role)
    click.echo(f"role {role} is up after {seconds:.1f} s; API at {settings.public_url}")


@click.command(help="Stop the control plane; servers and their networks go on.")
@config_option
def down(config: Path | None) -> None:
    settings = read_settings(config)
    stopped = [role for role in ROLES if units.stop(role) or process.stop(settings.run_dir, role)]
    click.echo(f"stopped: {', '.join(stopped)}" if stopped else "nothing was running")


@click.command(help="Run one role in the foreground (api, conductor, agent, all).")
@config_option
@click.option("--role", type=click.Choice(ROLES), default="all", show_default=True)
def serve(config: Path | None, role: str) -> None:
    settings = read_settings(config)
    lock = process.hold(settings.run_dir, role)
    gc.disable()  # until it works: what a start makes is no garbage
    faulthandler.enable()  # a process that dies in foreign code says where
    from cumulet import app

    try:
        app.serve(role, settings)
    finally:
        lock.close()


@click.command(help="Remove the cloud, its servers and all it made on this machine.")
@config_option
@click.option("--yes", is_flag=True, help="Do it without asking.")
@click.option("--purge", is_flag=True, help="Also the built guest image in /var/cache/cumulet.")
def destroy(config: Path | None, yes: bool, purge: bool) -> None:
    from cumulet.cli import removal

    settings = read_settings(config)
    if not yes:
        click.confirm("This deletes every server, volume, image and network of the cloud. Go on?", abort=True)
    for role in ROLES:
        if units.stop(role) or process.stop(settings.run_dir, role):
            click.echo(f"  stopped role {role}")
        units.remove(role)
    left = removal.remove_everything(settings, click.echo, config=config, purge=purge)
    if left:
        raise Problem(f"could not remove: {'; '.join(left)}", "cumulet doctor, then run this again")
    click.echo("nothing of the cloud is left on this machine")


def start(settings: Settings, config: Path | None, role: str) -> float:
    """Start a role as a process of its own and wait until it works; seconds it took. Problem with the log's place."""
    settings.log_dir.mkdir(parents=True, exist_ok=True)
    log = settings.log_dir / f"{role}.log"
    argv = [sys.executable, "-m", "cumulet", "serve", "--role", role]
    if config is not None:
        argv += ["--config", str(config)]
    began = time.monotonic()
    with open(log, "ab") as output:
        child = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, cwd="/"
        )
    while not _works(settings, role):
        if child.poll() is not None:
            last = _last_line(log)
            raise Problem(f"role {role} did not start: {last}", "see the log", str(log))
        if time.monotonic() - began > 60:
            raise Problem(f"role {role} does not answer after 60 s", "see the log", str(log))
        time.sleep(0.02)
    return time.monotonic() - began


def _works(settings: Settings, role: str) -> bool:
    if role in ("all", "api"):
        try:
            with urllib.request.urlopen(f"{settings.public_url}/identity/v3", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False
    return (settings.run_dir / f"{role}.ready").exists() and process.running(settings.run_dir, role) is not None


def _last_line(log: Path) -> str:
    with open(log, "rb") as file:
        file.seek(max(0, os.path.getsize(log) - 4096))
        lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
