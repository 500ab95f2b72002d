"""``cumulet chaos``: random work against a cloud of its own that is disturbed, then a reckoning."""

import secrets
import signal
import sys
from typing import TYPE_CHECKING

import click
import msgspec

from cumulet.cli.output import Problem

if TYPE_CHECKING:
    from cumulet.chaos.field import EmulatedField
    from cumulet.chaos.processes import ProcessField
    from cumulet.chaos.run import Result


@click.command(
    help="Bring chaos upon a cloud made for it: clients work at random while hosts, conductors and messages are lost; "
    "afterwards what was acknowledged is compared with what there is. Exit status 1: something is not as promised, "
    "or what was to be seen never happened."
)
@click.option("--seed", type=int, default=None, help="Repeat the choices of a run; default: a new one, printed.")
@click.option("--seconds", type=click.FloatRange(1), default=30.0, show_default=True, help="How long it is disturbed.")
@click.option("--clients", type=click.IntRange(1, 50), default=4, show_default=True, help="How many work at once.")
@click.option("--hosts", type=click.IntRange(1, 20), default=3, show_default=True, help="How many hosts there are.")
@click.option(
    "--processes", is_flag=True, help="Processes, killed and stopped: one, or with servers api, conductors, agents."
)
@click.option("--database", default=None, help="With --processes: URL of an empty PostgreSQL database.")
@click.option("--bus", default=None, help="With --processes: URL of a RabbitMQ broker (amqp://…).")
@click.option("--requests", type=click.IntRange(0), default=0, help="Go on until so many were acknowledged.")
@click.option("--see", multiple=True, help="Go on until this operation was acknowledged, or this disturbance happened.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON; progress goes to standard error.")
def chaos(
    seed: int | None, seconds: float, clients: int, hosts: int, processes: bool, database: str | None,
    bus: str | None, requests: int, see: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    from cumulet import logs
    from cumulet.bench.target import BenchError
    from cumulet.chaos.run import Wanted, run

    logs.configure(None, level="CRITICAL")  # what is disturbed complains
    signal.signal(signal.SIGTERM, _told_to_end)
    seed = secrets.randbelow(1 << 31) if seed is None else seed
    click.echo(f"seed {seed}", err=as_json)
    try:
        form, field = _field(hosts, seed, database, bus, processes=processes)
    except BenchError as error:
        raise Problem(str(error)) from error
    try:
        result = run(
            field, form=form, seed=seed, seconds=seconds, clients=clients, hosts=hosts,
            wanted=Wanted(requests, see), say=lambda text: click.echo(text, err=as_json),
        )  # fmt: skip
    except BenchError as error:
        raise Problem(str(error)) from error
    finally:
        field.stop()
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(result)).decode())
    else:
        for line in told(result):
            click.echo(line)
    sys.exit(1 if result.violations or result.never else 0)


def _told_to_end(number: int, frame: object) -> None:
    """Whoever waits for the result is told why there is none."""
    raise Problem("SIGTERM ended the run before its reckoning")


def _field(
    hosts: int, seed: int, database: str | None, bus: str | None, *, processes: bool
) -> tuple[str, "EmulatedField | ProcessField"]:
    if not processes:
        if database or bus:
            raise Problem("--database and --bus go with --processes")
        from cumulet.chaos.field import EmulatedField

        return "in-process", EmulatedField(hosts, seed)
    from cumulet.chaos.processes import ProcessField

    return "processes" if bus else "one process", ProcessField(hosts, seed, database=database, bus=bus)


def told(result: "Result") -> list[str]:
    requests = ", ".join(f"{count} {what}" for what, count in result.requests.items())
    disturbed = ", ".join(f"{what} {count}" for what, count in result.disturbances.items())
    moved = ", ".join(f"{what} {count}" for what, count in result.moves.items()) or "none"
    lines = [f"requests: {requests}", f"moves: {moved}", f"disturbances: {disturbed}", f"objects: {result.objects}"]
    for violation in result.violations:
        lines.append(f"{violation['what']}: {violation['about']}: {violation['message']}")
        lines += [f"    {line}" for line in violation["story"]]
    lines += [f"never happened: {name}" for name in result.never]
    lines.append(f"{len(result.violations)} violations (seed {result.seed})")
    return lines
