"""The ``cumulet`` command. A subcommand's module is imported only when it runs: ``--help`` stays under 150 ms."""

import importlib
import os
import sys
from typing import Any

import click

# command -> (module, one line of help); the function in the module has the command's name
COMMANDS = {
    "quickstart": ("cumulet.cli.quickstart", "Start a cloud here, seed it, boot a first server and prove SSH."),
    "up": ("cumulet.cli.daemon", "Start the cloud on this machine, adopting what runs."),
    "down": ("cumulet.cli.daemon", "Stop the control plane; servers and their networks go on."),
    "destroy": ("cumulet.cli.daemon", "Remove the cloud, its servers and all it made on this machine."),
    "serve": ("cumulet.cli.daemon", "Run one role in the foreground (api, conductor, agent, all)."),
    "status": ("cumulet.cli.status", "What runs, where, and how much memory it takes."),
    "top": ("cumulet.cli.top", "Live view: processes, queues, sagas, hosts, reconcilers."),
    "warnings": ("cumulet.cli.status", "What degrades the cloud, since when, and the cure."),
    "doctor": ("cumulet.cli.status", "What is wrong, and the cure."),
    "explain": ("cumulet.cli.explain", "What was done to a server, step by step; the course of a request."),
    "join": ("cumulet.cli.join", "Make this machine a host of a cloud."),
    "host": ("cumulet.cli.host", "List hosts, let one join, take one out of use, remove one."),
    "launch": ("cumulet.cli.server", "Create a server and wait until it is reachable."),
    "ssh": ("cumulet.cli.server", "Open a shell in a server."),
    "logs": ("cumulet.cli.server", "Print a server's console log."),
    "bench": ("cumulet.cli.bench", "Measure this or any OpenStack cloud; compare two runs."),
    "emulator": ("cumulet.cli.emulator", "An OpenStack to test against, in memory, ready in half a second."),
    "chaos": ("cumulet.cli.chaos", "Disturb a cloud of its own at work; compare what was acknowledged with what is."),
    "image": ("cumulet.cli.image", "Import cloud images, build the tiny test image."),
}


class LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(COMMANDS[cmd_name][0]), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="cumulet")
def cli() -> None:
    """An OpenStack-compatible cloud in one Python package."""


def main() -> None:
    """Expected failures are one line with a cure; anything else is a defect and keeps its trace."""
    from cumulet.cli.output import Problem

    try:
        status = cli(standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort as abort:
        if isinstance(abort.__context__, KeyboardInterrupt):
            sys.exit(130)
        click.echo("Aborted!", err=True)
        sys.exit(1)
    except Problem as problem:
        click.echo(f"cumulet: {problem}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        known = _known(error)
        if known is None:
            raise
        click.echo(f"cumulet: {known}", err=True)
        sys.exit(1)


def _known(error: Exception) -> Any:
    """One line for what the world, not a defect, did to us; else None."""
    from cumulet.cli.client import ApiError, CannotReach

    if isinstance(error, CannotReach):
        return f"{error}.  Cure: is the cloud up? (cumulet status, cumulet up)"
    if isinstance(error, ApiError):
        return error
    from sqlalchemy.exc import OperationalError

    if isinstance(error, OperationalError):
        said = str(error.orig).splitlines()[0]
        return f"the database does not answer: {said}.  Cure: is it up, and [database] url right?"
    if isinstance(error, TimeoutError):
        return f"{error}.  Cure: cumulet doctor"
    if isinstance(error, KeyError) and error.__traceback__ is not None:
        frames = error.__traceback__
        while frames.tb_next is not None:
            frames = frames.tb_next
        if frames.tb_frame.f_code.co_name == "cloud_settings":
            return f"no cloud named {error.args[0]!r} in clouds.yaml.  Cure: --os-cloud NAME, or run ./quickstart"
    return None
