"""``cumulet chaos``: random work against a cloud of its own that is disturbed, then a reckoning."""

import secrets
import sys

import click
import msgspec


@click.command(
    help="Bring chaos upon a cloud made for it: clients work at random while hosts, conductors and messages are lost; "
    "afterwards what was acknowledged is compared with what there is. Exit status 1: something is not as promised."
)
@click.option("--seed", type=int, default=None, help="Repeat the choices of a run; default: a new one, printed.")
@click.option("--seconds", type=click.FloatRange(1), default=30.0, show_default=True, help="How long it is disturbed.")
@click.option("--clients", type=click.IntRange(1, 50), default=4, show_default=True, help="How many work at once.")
@click.option("--hosts", type=click.IntRange(1, 20), default=3, show_default=True, help="How many hosts there are.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON; progress goes to standard error.")
def chaos(seed: int | None, seconds: float, clients: int, hosts: int, as_json: bool) -> None:
    from cumulet import logs
    from cumulet.chaos.field import EmulatedField
    from cumulet.chaos.run import run

    logs.configure(None, level="CRITICAL")  # what is disturbed complains
    seed = secrets.randbelow(1 << 31) if seed is None else seed
    click.echo(f"seed {seed}", err=as_json)
    field = EmulatedField(hosts, seed)
    try:
        result = run(
            field, form="in-process", seed=seed, seconds=seconds, clients=clients, hosts=hosts,
            say=lambda text: click.echo(text, err=as_json),
        )  # fmt: skip
    finally:
        field.stop()
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(result)).decode())
    else:
        for line in told(result):
            click.echo(line)
    sys.exit(1 if result.violations else 0)


def told(result: "msgspec.Struct") -> list[str]:
    from cumulet.chaos.run import Result

    assert isinstance(result, Result)
    requests = ", ".join(f"{count} {what}" for what, count in result.requests.items())
    disturbed = ", ".join(f"{what} {count}" for what, count in result.disturbances.items())
    lines = [f"requests: {requests}", f"disturbances: {disturbed}", f"objects: {result.objects}"]
    for violation in result.violations:
        lines.append(f"{violation['what']}: {violation['about']}: {violation['message']}")
        lines += [f"    {line}" for line in violation["story"]]
    lines.append(f"{len(result.violations)} violations (seed {result.seed})")
    return lines
