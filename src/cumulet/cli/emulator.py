"""``cumulet emulator``: an OpenStack to test against, in the foreground or around one command."""

import gc
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cumulet.cli.output import Problem

if TYPE_CHECKING:
    from cumulet.emulator import Emulator


@click.command(
    help="An OpenStack to test against: the same services over hosts that exist only in memory.\n\n"
    "With a COMMAND (after --) it runs that against the cloud and exits with its status:  "
    "cumulet emulator -- pytest tests/",
    context_settings={"allow_interspersed_args": False},
)
@click.option("--bind", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=int, default=None, help="Port (default: 8774; any free one with a COMMAND). 0: any.")
@click.option("--hosts", type=click.IntRange(0, 100), default=2, show_default=True, help="How many hosts it has.")
@click.option("--boot-seconds", type=click.FloatRange(0), default=0.0, help="How long a server takes to start.")
@click.option("--realistic", is_flag=True, help="Everything takes its usual time; else it is done at once.")
@click.option("--file", type=click.Path(path_type=Path, dir_okay=False), help="Keep the cloud in this SQLite file.")
@click.option("--clouds-yaml", type=click.Path(path_type=Path, dir_okay=False), help="Write a clouds.yaml here.")
@click.option("--ready-file", type=click.Path(path_type=Path, dir_okay=False), help="Write the URL here when ready.")
@click.option("--quiet", is_flag=True, help="Print only the URL.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def emulator(
    bind: str,
    port: int | None,
    hosts: int,
    boot_seconds: float,
    realistic: bool,
    file: Path | None,
    clouds_yaml: Path | None,
    ready_file: Path | None,
    quiet: bool,
    command: tuple[str, ...],
) -> None:
    gc.disable()  # until it answers: what a start makes is no garbage
    from cumulet import logs
    from cumulet.emulator import Emulator

    logs.configure(None, level="ERROR")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    if port is None:
        port = 0 if command else 8774
    try:
        cloud = Emulator(bind=bind, port=port, hosts=hosts, boot_seconds=boot_seconds, realistic=realistic, file=file)
    except BlockingIOError as error:
        raise Problem(f"another emulator has {file} open", "end it, or use another file") from error
    except OSError as error:
        raise Problem(f"cannot listen on {bind}:{port}: {error.strerror}", "--port 0, or another port") from error
    status = 0
    entries = cloud.clouds_yaml(clouds_yaml or cloud.directory / "clouds.yaml")
    try:
        cloud.start()
        gc.freeze()
        gc.enable()
        if ready_file is not None:
            ready_file.write_text(cloud.url + "\n")
        if command:
            status = _run(command, cloud, entries, stop)
        else:
            _tell(cloud, entries, quiet)
            while not stop.wait(1.0) and cloud.server.alive():
                pass
    finally:
        if ready_file is not None:
            ready_file.unlink(missing_ok=True)
        cloud.stop()
    sys.exit(status)


def _run(command: tuple[str, ...], cloud: "Emulator", entries: Path, stop: threading.Event) -> int:
    """The command's exit status; a signal to us is passed on to it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OS_")}
    environment = {
        **kept,
        "OS_CLIENT_CONFIG_FILE": str(entries),
        "OS_CLOUD": "emulator",
        "CUMULET_EMULATOR_URL": cloud.url,
    }
    try:
        process = subprocess.Popen(command, env=environment)
    except OSError as error:
        raise Problem(f"cannot run {command[0]}: {error.strerror}", "give the command after --") from error
    while True:
        try:
            status = process.wait(0.05)
        except subprocess.TimeoutExpired:
            if stop.is_set():
                stop.clear()
                process.terminate()
            continue
        return status if status >= 0 else 128 - status


def _tell(cloud: "Emulator", entries: Path, quiet: bool) -> None:
    click.echo(cloud.url)
    if quiet:
        return
    click.echo(f"  export OS_CLIENT_CONFIG_FILE={entries} OS_CLOUD=emulator   # or emulator-admin")
    click.echo(f"  openrc: eval \"$(curl -s '{cloud.url}/emulator/openrc?user=demo')\"")
    accounts = ", ".join(account.name for account in cloud.accounts.values())
    click.echo(f'  accounts: {accounts}; every password is "secret"')
    click.echo(f"  faults, clock, hosts, reset: {cloud.url}/emulator")
    click.echo("  Ctrl-C ends it.")
