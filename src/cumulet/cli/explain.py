"""``cumulet explain server NAME``: what was done to a server, step by step, where, how long, and its libvirt XML."""

from datetime import datetime
from typing import Any

import click

from cumulet.cli.client import Cloud, cloud_settings
from cumulet.cli.output import Problem, table
from cumulet.cli.server import cloud_option


@click.command(help="Show each step of each operation on a server, and its libvirt XML.")
@click.argument("kind", type=click.Choice(["server"]))
@click.argument("name")
@click.option("--xml/--no-xml", default=True, help="Also the domain XML, asked of the host.")
@click.option("--json", "as_json", is_flag=True, help="The whole story as JSON.")
@cloud_option
def explain(kind: str, name: str, xml: bool, as_json: bool, cloud_name: str | None) -> None:
    cloud = operator_cloud(cloud_name)
    server = cloud.find("compute", "servers/detail", name, key="servers", all_tenants="1")
    if server is None:
        # a deleted server still has its story; nova shows it to nobody, so the id must be given
        server = {"id": name}
    story = cloud.get("operator", f"/v1/explain/{kind}s/{server['id']}")
    if as_json:
        import json

        click.echo(json.dumps(story, indent=2))
        return
    about = story["server"]
    click.echo(f"{about['name']}  {about['id']}")
    facts = [(key.replace("_", " "), value) for key, value in about.items() if key not in ("id", "name")]
    table([(key, value) for key, value in facts if value not in (None, "", [])])
    for operation in story["operations"]:
        print_operation(operation)
    if xml:
        click.echo(f"\nlibvirt XML on {about.get('host') or '-'}")
        click.echo(story["xml"] or f"  (none: {story.get('xml_error') or 'not on a host'})")


def print_operation(operation: dict[str, Any]) -> None:
    when = datetime.fromtimestamp(operation["started_at"] / 1e6).strftime("%Y-%m-%d %H:%M:%S")
    took = f"{operation['seconds']:.3f} s" if operation["seconds"] is not None else "runs"
    click.echo(f"\n{operation['action']}  {operation['status']}  {when}  {took}  {operation['request_id']}")
    if operation["error"]:
        click.echo(f"  why: {operation['error']}")
    rows = [
        (s["name"], s["what"], s["host"], s["state"], s["after"], s["seconds"], s["error"] or s["note"])
        for s in operation["steps"]
    ]
    if rows:
        table(rows, ("step", "what", "host", "outcome", "at", "seconds", "note"))


def print_steps(cloud: Cloud, server_id: str, action: str) -> None:
    """The steps of the newest operation of this kind (quickstart's report)."""
    story = cloud.get("operator", f"/v1/explain/servers/{server_id}?xml=0")
    for operation in story["operations"]:
        if operation["action"] == action:
            rows = [(s["name"], s["what"], s["after"], s["seconds"], s["note"]) for s in operation["steps"]]
            table(rows, ("step", "what", "at", "seconds", "note"))
            return


def operator_cloud(name: str | None) -> Cloud:
    """The administrator's cloud entry: the one named, else ``cumulet-admin``."""
    if name is None:
        try:
            return Cloud(cloud_settings("cumulet-admin"))
        except KeyError:
            raise Problem("no cloud cumulet-admin in clouds.yaml", "--os-cloud NAME, or run ./quickstart") from None
    return Cloud.named(name)
