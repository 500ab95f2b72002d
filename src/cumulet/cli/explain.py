"""``cumulet explain``: what was done to a server, step by step; the course of a request through the processes."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from cumulet.cli import sequence
from cumulet.cli.client import Cloud, cloud_settings
from cumulet.cli.output import Problem, table
from cumulet.cli.server import cloud_option


@click.command(help="Show what was done to a server, or draw the course of a request.")
@click.argument("kind", type=click.Choice(["server", "request"]))
@click.argument("name", required=False)
@click.option("--xml/--no-xml", default=True, help="server: also the domain XML, asked of the host.")
@click.option("--json", "as_json", is_flag=True, help="The whole story as JSON.")
@click.option("--svg", type=click.Path(dir_okay=False, path_type=Path), help="request: draw it into this file.")
@click.option("--limit", default=20, show_default=True, help="request without an id: how many of the last.")
@cloud_option
def explain(
    kind: str, name: str | None, xml: bool, as_json: bool, svg: Path | None, limit: int, cloud_name: str | None
) -> None:
    cloud = operator_cloud(cloud_name)
    if kind == "request":
        if name is None:
            list_requests(cloud, limit, as_json=as_json)
        else:
            explain_request(cloud, name, svg, as_json=as_json)
        return
    if name is None:
        raise Problem("which server?", "cumulet explain server NAME")
    explain_server(cloud, name, xml=xml, as_json=as_json)


def list_requests(cloud: Cloud, limit: int, *, as_json: bool) -> None:
    """The last requests that changed something or failed."""
    found = cloud.get("operator", f"/v1/requests?limit={limit}")["requests"]
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    rows = [
        (_clock(one["at"]), one["request_id"], one["status"], f"{(one['ended_at'] - one['at']) / 1000:.1f}",
         one["user"] or one["user_id"], f"{one['method']} {one['path']}")
        for one in found
    ]  # fmt: skip
    table(rows, ("time", "request", "status", "ms", "user", "what"))


def explain_request(cloud: Cloud, request_id: str, svg: Path | None, *, as_json: bool) -> None:
    story = cloud.get("operator", f"/v1/explain/requests/{request_id}")
    if as_json:
        click.echo(json.dumps(story, indent=2))
        return
    title = request_title(story)
    click.echo(title)
    if story["request"] is None:
        click.echo("  the API call itself was not noted; this is what the saga journal has of it")
    for saga in story["sagas"]:
        why = f": {saga['error']}" if saga["error"] else ""
        click.echo(f"  {saga['kind']} of {saga['object_kind']} {saga['object_id']} {saga['status']}{why}")
    for name, offset in story["clocks"].items():
        way = "behind" if offset > 0 else "ahead"
        click.echo(f"  the clock of {name} is {abs(offset):.1f} ms {way} of the API's; its times were moved")
    click.echo()
    for line in sequence.text(story):
        click.echo(line)
    if svg is not None:
        svg.write_text(sequence.svg(story, title))
        click.echo(f"\ndrawn into {svg}")


def request_title(story: dict[str, Any]) -> str:
    asked = story["request"]
    took = f"{story['seconds'] * 1000:.1f} ms in all"
    if asked is None:
        return f"{story['request_id']}  {_clock(story['started_at'])}  {took}"
    return f"{asked['method']} {asked['path']} → {asked['status']}  {_clock(asked['at'])}  {took}"


def _clock(microseconds: int) -> str:
    return datetime.fromtimestamp(microseconds / 1e6).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def explain_server(cloud: Cloud, name: str, *, xml: bool, as_json: bool) -> None:
    server = cloud.find("compute", "servers/detail", name, key="servers", all_tenants="1")
    if server is None:
        # a deleted server still has its story; nova shows it to nobody, so the id must be given
        server = {"id": name}
    story = cloud.get("operator", f"/v1/explain/servers/{server['id']}")
    if as_json:
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
