"""``cumulet top``: the state of the cloud, drawn anew every other second."""

import json
import shutil
import time
from datetime import datetime
from typing import Any

import click

from cumulet.cli.client import Cloud
from cumulet.cli.explain import operator_cloud
from cumulet.cli.server import cloud_option

_HOME, _CLEAR_LINE, _CLEAR_REST = "\x1b[H", "\x1b[K", "\x1b[J"


@click.command(help="Live view: processes, queues, sagas, hosts, reconcilers, last errors.")
@click.option("--once", is_flag=True, help="One frame of plain text.")
@click.option("--json", "as_json", is_flag=True, help="One frame as JSON.")
@click.option("--interval", default=2.0, show_default=True, type=click.FloatRange(0.5, 3600), help="Seconds.")
@cloud_option
def top(once: bool, as_json: bool, interval: float, cloud_name: str | None) -> None:
    cloud = operator_cloud(cloud_name)
    if once or as_json:
        look(cloud)
        time.sleep(1.0)  # rates need two looks
        found = look(cloud)
        click.echo(json.dumps(found, indent=2) if as_json else "\n".join(frame(found)))
        return
    click.echo("\x1b[2J", nl=False)
    while True:
        lines = frame(look(cloud))
        size = shutil.get_terminal_size()
        shown = [line[: size.columns] for line in lines[: size.lines - 1]]
        click.echo(_HOME + "\n".join(line + _CLEAR_LINE for line in shown) + _CLEAR_REST, nl=False)
        time.sleep(interval)


def look(cloud: Cloud) -> dict[str, Any]:
    found: dict[str, Any] = cloud.get("operator", "/v1/top")
    return found


def frame(top: dict[str, Any]) -> list[str]:
    """One picture, the most urgent first."""
    processes = top["processes"]
    rate = sum(one["requests_per_second"] for one in processes)
    flight = sum(one["requests_in_flight"] for one in processes)
    messages = sum(one["messages_in_per_second"] for one in processes)
    sagas = sum(one["total"] for one in top["sagas"])
    lines = [
        f"cumulet {top['version']}  {_clock(top['at'])}  {top['database']}, {top['bus']} bus  "
        f"API {rate:.1f} requests/s, {flight} in flight  {messages:.1f} messages/s  {sagas} sagas"
    ]
    waiting = [f"{count} {what}" for what, count in top["queues"].items() if count]
    lines.append("waiting: " + (", ".join(waiting) if waiting else "nothing"))
    lines += _table(
        "process",
        ("cpu %", "MiB", "threads", "requests/s", "in flight", "messages in/s", "out/s", "told"),
        [
            (one["process"], f"{one['cpu_percent']:.1f}", f"{one['rss_mb']:.0f}", one["threads"],
             f"{one['requests_per_second']:.1f}", one["requests_in_flight"], f"{one['messages_in_per_second']:.1f}",
             f"{one['messages_out_per_second']:.1f}", _ago(one["age_seconds"]))
            for one in processes
        ],
    )  # fmt: skip
    lines += _table(
        "host",
        ("state", "beat", "operations", "servers", "memory", "disk", "agent MiB", "warnings"),
        [
            (one["name"], "up" if one["up"] else "DOWN", _ago(one["beat_age_seconds"]), one["operations"],
             one["servers"], _share(one["memory_mb_used"], one["memory_mb"]),
             _share(one["local_gb_used"], one["local_gb"]), f"{one['agent']['rss_mb']:.0f}", one["warnings"])
            for one in top["hosts"]
        ],
    )  # fmt: skip
    lines += _table(
        "sagas",
        ("all", "ready", "at a host", "parked", "unwinding", "queued", "oldest", "deadline", "overdue"),
        [
            (one["kind"], one["total"], one["ready"] + one["retrying"], one["called"], one["parked"],
             one["unwinding"], one["queued"], _span(one["oldest_seconds"]), _span(one["deadline_in_seconds"]),
             one["overdue"] or "-")
            for one in top["sagas"]
        ],
    )  # fmt: skip
    lines += _table(
        "reconciler",
        ("last run", "took", "next", "runs", "failed", "result"),
        [
            (one["name"], _ago(one["ago_seconds"]), _span(one["seconds"]), _span(one["next_in_seconds"]),
             one["runs"], one["failures"] or "-", one["outcome"])
            for one in top["reconcilers"]
        ],
    )  # fmt: skip
    if top["errors"]:
        lines += ["", "last errors"]
        lines += [
            f"  {_clock(one['at'])}  {one['status']}  {one['method']} {one['path']}  {one['request_id']}"
            for one in top["errors"][:5]
        ]
    return lines


def _table(title: str, header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> list[str]:
    if not rows:
        return []
    every = [(title, *header), *[tuple(str(cell) for cell in row) for row in rows]]
    widths = [max(len(row[column]) for row in every) for column in range(len(every[0]))]
    lines = [""]
    for row in every:
        cells = [
            cell.ljust(width) if column in (0, len(row) - 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def _clock(microseconds: int) -> str:
    return datetime.fromtimestamp(microseconds / 1e6).strftime("%H:%M:%S")


def _share(used: float, total: float) -> str:
    return f"{100 * used / total:.0f} %" if total else "-"


def _ago(seconds: float | None) -> str:
    return "-" if seconds is None else "now" if seconds < 0.5 else f"{_span(seconds)} ago"


def _span(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if abs(seconds) < 10:
        return f"{seconds:.1f} s" if abs(seconds) >= 0.1 or seconds == 0 else f"{seconds * 1000:.0f} ms"
    if abs(seconds) < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if abs(seconds) < 36000 else f"{seconds / 3600:.0f} h"
