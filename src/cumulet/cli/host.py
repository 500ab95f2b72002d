"""``cumulet host``: the machines of the cloud, and what an operator does with one as a whole."""

from typing import Any

import click

from cumulet.cli.client import Cloud
from cumulet.cli.explain import operator_cloud
from cumulet.cli.output import table
from cumulet.cli.server import cloud_option


@click.group(help="List hosts, let one join, take one out of use, remove one.")
def host() -> None:
    """Subcommands follow."""


@host.command("list", help="Roles, state, version, and what each holds.")
@cloud_option
def list_hosts(cloud_name: str | None) -> None:
    found = operator_cloud(cloud_name).get("operator", "/v1/hosts")["hosts"]
    rows = [
        (one["name"], ",".join(one["roles"]), state_of(one), one["version"], one["ip"], holds(one["holds"]),
         "certificate" if one["joined"] else "by hand", (one["certificate_expires_at"] or "-")[:10])
        for one in found
    ]  # fmt: skip
    table(rows, ("host", "roles", "state", "version", "address", "holds", "joined", "certificate until"))


@host.command(help="A one-time token for a machine that is to join.")
@click.option("--host", "name", help="Good for this name only, even where another machine has it now.")
@click.option("--roles", help="At most these, separated by commas.")
@click.option("--hours", default=1.0, show_default=True, help="How long it is good.")
@cloud_option
def token(name: str | None, roles: str | None, hours: float, cloud_name: str | None) -> None:
    cloud = operator_cloud(cloud_name)
    wanted: dict[str, Any] = {"hours": hours}
    if name:
        wanted["host"] = name
    if roles:
        wanted["roles"] = [role.strip() for role in roles.split(",")]
    made = cloud.post("operator", "/v1/host-tokens", wanted)["token"]
    click.echo(f"Good once, until {made['expires_at']}. On the machine, as root:\n")
    extra = f" --roles {','.join(made['roles'])}" if made["roles"] else " --roles compute"
    click.echo(f"cumulet join {cloud.endpoint('operator').removesuffix('/operator')} --token {made['token']}{extra}")


@host.command(help="No new work for a host; what can move moves; what is left is shown, and why.")
@click.argument("name")
@click.option("--undo", is_flag=True, help="It takes work again.")
@click.option("--reason", help="For those who wonder.")
@cloud_option
def drain(name: str, undo: bool, reason: str | None, cloud_name: str | None) -> None:
    body = {"drain": not undo, "reason": reason}
    shown = _change(operator_cloud(cloud_name), f"/v1/hosts/{name}/drain", body)
    if undo:
        click.echo(f"host {name} takes work again")
    elif not shown["left"]:
        click.echo(f"host {name} is drained: nothing is left on it")
    else:
        click.echo(f"host {name} takes no new work; left on it:")
        table([(one["kind"], one["name"], one["id"], one["why"]) for one in shown["left"]])


@host.command(help="Vouch that a host is dead and cut off, so that others may take over.")
@click.argument("name")
@click.option("--undo", is_flag=True, help="It is not.")
@cloud_option
def down(name: str, undo: bool, cloud_name: str | None) -> None:
    shown = _change(operator_cloud(cloud_name), f"/v1/hosts/{name}/down", {"down": not undo})
    click.echo(f"host {name} is {state_of(shown)}")


@host.command(help="Forget a host that holds nothing; its certificate and account are worth nothing then.")
@click.argument("name")
@cloud_option
def remove(name: str, cloud_name: str | None) -> None:
    operator_cloud(cloud_name).delete("operator", f"/v1/hosts/{name}")
    click.echo(f"host {name} is removed")


def _change(cloud: Cloud, path: str, body: dict[str, Any]) -> Any:
    return cloud.post("operator", path, body)["host"]


def state_of(one: dict[str, Any]) -> str:
    words = ["forced down" if one["forced_down"] else "up" if one["up"] else "DOWN"]
    if one["drain"]:
        words.append("drained" if one["drain"] == "done" else "draining")
    elif one["disabled"]:
        words.append("disabled: " + ",".join(sorted(one["disabled"])))
    return ", ".join(words)


def holds(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {kind}{'s' if number > 1 else ''}" for kind, number in counts.items()) or "nothing"
