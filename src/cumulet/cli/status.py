"""``cumulet status`` and ``cumulet doctor``: what runs here and in the cloud, what is wrong, and the cure."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from cumulet.cli import daemon, process
from cumulet.cli.client import ApiError, CannotReach, Cloud, cloud_settings
from cumulet.cli.explain import operator_cloud
from cumulet.cli.output import table
from cumulet.cli.server import cloud_option
from cumulet.kernel.process import pss_kib
from cumulet.settings import Settings


@click.command(help="What runs, where, and how much memory it takes.")
@daemon.config_option
@click.option("--json", "as_json", is_flag=True)
def status(config: Path | None, as_json: bool) -> None:
    settings = daemon.read_settings(config)
    roles = {role: process.running(settings.run_dir, role) for role in daemon.ROLES}
    memory = memory_by_part(settings)
    problem = agent_problem(settings)
    cloud = _cloud_status()
    if as_json:
        whole = {"roles": roles, "agent_problem": problem, "memory_kib": dict(memory), "cloud": cloud}
        click.echo(json.dumps(whole, indent=2))
        return
    click.echo("Processes of this machine")
    table([(role, pid or "not running") for role, pid in roles.items() if pid or role == "all"], ("role", "process"))
    if problem:
        click.echo(f"\nThe agent of this host does not start: {problem}")
    click.echo("\nMemory (proportional set size)")
    table([(part, f"{kib / 1024:.0f} MiB") for part, kib in memory])
    if isinstance(cloud, str):
        click.echo(f"\nThe cloud: {cloud}")
        return
    click.echo(f"\nThe cloud (version {cloud['version']}, database {cloud['database']}, bus {cloud['bus']})")
    rows = [
        (h["name"], ",".join(h["roles"]), "up" if h["up"] else "DOWN", h["virt_type"], h["mechanism"], h["servers"])
        for h in cloud["hosts"]
    ]
    table(rows, ("host", "roles", "state", "guests run by", "network", "servers"))
    if cloud["conditions"]:
        click.echo("\nWarnings (cumulet warnings)")
        table([(one["severity"], one["message"]) for one in cloud["conditions"]])
    click.echo("\nSagas")
    table(sorted(cloud["sagas"].items()) or [("none", 0)])
    click.echo("\nReconcilers")
    table(
        [(r["name"], r["last_run"], r["seconds"], r["runs"], r["outcome"]) for r in cloud["reconcilers"]],
        ("name", "last run", "seconds", "runs", "outcome"),
    )


@click.command(help="What degrades the cloud, since when, how often, and the cure; each goes by itself.")
@click.option("--all", "resolved", is_flag=True, help="Also what is over (kept for 30 days).")
@click.option("--json", "as_json", is_flag=True)
@cloud_option
def warnings(resolved: bool, as_json: bool, cloud_name: str | None) -> None:
    found = operator_cloud(cloud_name).get("operator", "/v1/conditions" + ("?all=1" if resolved else ""))["conditions"]
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    if not found:
        click.echo("no warnings")
    for one in found:
        over = f", over since {one['resolved_at']}" if one["resolved_at"] else ""
        times = f", {one['count']} times" if one["count"] > 1 else ""
        click.echo(f"{one['severity']:8} {one['message']}")
        click.echo(f"         {one['code']}  since {one['first_seen']}, last {one['last_seen']}{times}{over}")
        if not one["resolved_at"]:
            click.echo(f"         cure: {one['cure']}")


@click.command(help="What is wrong on this machine and in the cloud, and the cure; --fix repairs what can be.")
@daemon.config_option
@click.option("--fix", is_flag=True, help="Repair what can be repaired: your explicit word.")
@click.option("--only", multiple=True, metavar="CODE", help="With --fix: only findings of this kind, or with this id.")
@click.option("--json", "as_json", is_flag=True)
def doctor(config: Path | None, fix: bool, only: tuple[str, ...], as_json: bool) -> None:
    settings = daemon.read_settings(config)
    found = [
        {"severity": severity, "message": what, "cure": cure, "repaired": None}
        for severity, what, cure in diagnose(settings)
    ]
    checks = None
    if any(process.running(settings.run_dir, role) for role in daemon.ROLES):
        said = _audit(fix, only)
        if isinstance(said, str):
            cure = f"see {settings.log_dir}; cumulet down; cumulet up"
            found.append({"severity": "error", "message": f"the cloud: {said}", "cure": cure, "repaired": None})
        else:
            checks = said["checks"]
            found += said["findings"]
    if as_json:
        click.echo(json.dumps({"checks": checks, "findings": found}, indent=2))
    else:
        for line in told(found, checks):
            click.echo(line)
    sys.exit(1 if any(one["severity"] == "error" and not one["repaired"] for one in found) else 0)


def told(found: list[dict[str, Any]], checks: int | None) -> Iterator[str]:
    for one in found:
        code = f"  [{one['code']}]" if one.get("code") else ""
        yield f"{one['severity']:8} {one['message']}{code}"
        if one["repaired"]:
            yield f"         repaired: {one['repaired']}"
            continue
        if one.get("repair_error"):
            yield f"         could not be repaired: {one['repair_error']}"
        yield f"         cure: {one['cure']}"
    ran = f" ({checks} checks of the cloud)" if checks else ""
    if not found:
        yield f"nothing is wrong{ran}"
    else:
        repaired = sum(bool(one["repaired"]) for one in found)
        yield f"{len(found)} found, {repaired} repaired{ran}"


def _audit(fix: bool, only: tuple[str, ...]) -> Any:
    """The operator API's answer, or a line that says why there is none."""
    body = {"audit": {"fix": fix, "only": list(only) or None}}
    return _ask(lambda cloud: cloud.post("operator", "/v1/audit", body), seconds=120)


def diagnose(settings: Settings) -> Iterator[tuple[str, str, str]]:
    """(severity, what, cure) of everything found wrong with this machine."""
    if os.geteuid() != 0:
        yield "warning", "not run as root: processes and files of the cloud may be invisible", "sudo cumulet doctor"
    for tool in ("qemu-system-x86_64", "qemu-img", "dnsmasq", "nft", "ip"):
        if shutil.which(tool) is None:
            yield "error", f"{tool} is not installed", "setup/install"
    for path in (settings.state_dir, settings.log_dir):
        if path.exists():
            free = shutil.disk_usage(path).free
            if free < 2 << 30:
                yield "error", f"only {free >> 20} MiB are free where {path} is", "make room on that disk"
    if not any(process.running(settings.run_dir, role) for role in daemon.ROLES):
        yield "error", "no role of the cloud runs on this machine", "cumulet up"
        return
    problem = agent_problem(settings)
    if problem:
        yield "error", f"the agent of this host does not start: {problem}", "mend that: it is tried again by itself"


def agent_problem(settings: Settings) -> str | None:
    """Why the agent of this machine does not work, if a process of ours tries to start one."""
    if not any(process.running(settings.run_dir, role) for role in ("all", "agent")):
        return None  # what it wrote may be left of one that was killed
    try:
        return (settings.run_dir / "agent.problem").read_text().strip() or None
    except OSError:
        return None


def _cloud_status() -> Any:
    """The operator API's answer, or a line that says why there is none."""
    return _ask(lambda cloud: cloud.get("operator", "/v1/status"), seconds=10)


def _ask(question: Callable[[Cloud], Any], *, seconds: float) -> Any:
    try:
        return question(Cloud(cloud_settings("cumulet-admin"), timeout=seconds))
    except KeyError:
        return "no cloud cumulet-admin in clouds.yaml (run ./quickstart)"
    except (ApiError, CannotReach) as error:
        return str(error)


def memory_by_part(settings: Settings) -> list[tuple[str, int]]:
    """(part, KiB) for every part of the cloud on this machine; shared pages are split among their users."""
    ours = {process.running(settings.run_dir, role): f"cumulet {role}" for role in daemon.ROLES}
    state = str(settings.state_dir)
    parts: dict[str, int] = {}
    for pid, command in process.processes():
        part = ours.get(pid) or _part_of(command, state, str(settings.run_dir))
        if part:
            parts[part] = parts.get(part, 0) + pss_kib(pid)
    return sorted(parts.items(), key=lambda item: (not item[0].startswith("cumulet"), -item[1]))


def _part_of(command: str, state: str, run: str) -> str | None:
    program = command.split(" ", 1)[0].rsplit("/", 1)[-1]
    mine = state in command or run in command
    if program in ("libvirtd", "virtlogd", "virtqemud"):
        return "libvirt"
    if program.startswith("qemu-system") and mine:
        return "guests"
    if program == "qemu-storage-daemon" and mine:
        return "volumes"
    if program in ("dnsmasq", "haproxy", "radvd", "keepalived") and mine:
        return "network daemons"
    if program in ("ovs-vswitchd", "ovsdb-server"):
        return "Open vSwitch"
    return None
