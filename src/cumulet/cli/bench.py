"""``cumulet bench``: measure a cloud, compare two runs, remove what a killed run left."""

import signal
import sys
import time
from collections.abc import Sequence
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import click
import msgspec

from cumulet.bench.results import COMPARE_HEADER, HEADER, ResultsError, Run, compared, load, row, save
from cumulet.bench.target import BenchError, Target, clean_leftovers
from cumulet.bench.wire import WireError
from cumulet.cli.client import cloud_settings
from cumulet.cli.output import Problem, table


@click.group(invoke_without_command=True, help="Measure this or any OpenStack cloud; compare two runs.")
@click.option("--os-cloud", default=None, help="Entry of clouds.yaml, an administrator's; default: OS_* variables.")
@click.option("--fake", is_flag=True, help="Start a private cloud with the fake agent, measure it, remove it.")
@click.option("--database", default=None, help="With --fake: URL of an empty PostgreSQL database.")
@click.option("--bus", default=None, help="With --fake: URL of a RabbitMQ broker (amqp://…).")
@click.option("--processes", is_flag=True, help="With --fake: api, conductor and agent as separate processes.")
@click.option("--beside", multiple=True, type=int, help="Process of the database or the broker: its memory is told.")
@click.option("--scale", is_flag=True, help="With --fake: what costs the same in a large cloud (fills the database).")
@click.option("--only", default="*", help="Groups of cases, by comma, with wildcards; --list names them.")
@click.option("--quick", is_flag=True, help="Small sizes: about a minute, rougher figures.")
@click.option("--idle", default=None, type=float, help="Seconds of the idle measurement; 0: none.")
@click.option("--json", "json_file", default=None, type=click.Path(path_type=Path), help="Write the results here.")
@click.option("--list", "list_groups", is_flag=True, help="Name the groups of cases.")
@click.option("--cleanup", is_flag=True, help="Only remove what killed runs left in the cloud.")
@click.pass_context
def bench(context: click.Context, **options: Any) -> None:
    if context.invoked_subcommand is not None:
        return
    from cumulet.bench.cases import GROUPS

    if options["list_groups"]:
        click.echo(f"{'start':10} Process start to first answer (--fake).")
        for name, group in GROUPS.items():
            click.echo(f"{name:10} {(group.__doc__ or group.__module__).splitlines()[0]}")
        return
    try:
        if options["cleanup"]:
            left = clean_leftovers(_entry(options["os_cloud"]), click.echo)
            if left:
                raise BenchError(f"could not be removed: {'; '.join(left)}")
            return
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # cleans up as after Ctrl-C
        try:
            run = _measure(options)
        finally:
            signal.signal(signal.SIGTERM, before)
    except (BenchError, WireError) as error:
        raise Problem(str(error)) from error
    table([row(figure) for figure in run.figures], HEADER)
    if options["json_file"]:
        save(run, options["json_file"])
    failed = [figure.title for figure in run.figures if figure.error]
    if failed:
        raise Problem(f"not everything could be measured: {', '.join(failed)}")


@bench.command(help="Ratios of two runs' results.")
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
def compare(first: Path, second: Path) -> None:
    try:
        table(list(compared(load(first), load(second))), COMPARE_HEADER)
    except ResultsError as error:
        raise Problem(str(error)) from error


def _entry(name: str | None) -> dict[str, Any]:
    try:
        return cloud_settings(name)
    except KeyError as error:
        raise BenchError(f"no cloud named {error.args[0]!r} in clouds.yaml: --os-cloud NAME, or --fake") from error


def _measure(options: dict[str, Any]) -> Run:
    from cumulet.bench.cases import GROUPS
    from cumulet.bench.suite import QUICK, Progress, Sizes, new_run

    sizes = QUICK if options["quick"] else Sizes()
    if options["idle"] is not None:
        sizes = msgspec.structs.replace(sizes, idle_seconds=options["idle"])
    wanted = options["only"].split(",")
    groups = [(name, group) for name, group in GROUPS.items() if any(fnmatch(name, one) for one in wanted)]
    known = ["start", *GROUPS]
    if not sizes.idle_seconds:
        groups = [(name, group) for name, group in groups if name != "idle"]
    if not any(fnmatch(name, one) for name in known for one in wanted):
        raise BenchError(f"no group of cases matches {options['only']}: --list names them")
    if options["scale"] and (not options["fake"] or options["database"]):
        raise BenchError("--scale fills the database of a private cloud: --fake, and no --database")
    run = new_run(_command())
    progress = Progress()
    began = time.monotonic()
    if options["fake"]:
        _measure_private(options, run, sizes, groups, progress)
    else:
        if options["database"] or options["bus"] or options["processes"]:
            raise BenchError("--database, --bus and --processes go with --fake")
        _measure_cloud(_entry(options["os_cloud"]), run, sizes, groups, progress, beside=options["beside"])
    run.seconds = round(time.monotonic() - began, 1)
    return run


def _measure_private(options: dict[str, Any], run: Run, sizes: Any, groups: Any, progress: Any) -> None:
    from cumulet.bench.cases.process import starts
    from cumulet.bench.private import PrivateCloud

    cloud = PrivateCloud(database=options["database"], bus=options["bus"], apart=options["processes"])
    try:
        if options["scale"]:
            _measure_scale(options, run, sizes, progress, cloud)
            return
        fresh, again, emulator = [cloud.start()], [], []
        if any(fnmatch("start", one) for one in options["only"].split(",")):
            for _ in range(sizes.starts):
                cloud.end()
                again.append(cloud.start())
            if not options["database"]:
                for _ in range(sizes.starts):
                    cloud.end()
                    emulator.append(cloud.start_emulator())
                for _ in range(sizes.starts):
                    cloud.reset()
                    fresh.append(cloud.start())
        run.figures += starts(fresh, again, emulator)
        for figure in run.figures:
            progress.line(f"  {figure.title}: {figure.median:.4g} {figure.unit}")
        _measure_cloud(cloud.credentials, run, sizes, groups, progress, private=cloud, beside=options["beside"])
    finally:
        cloud.stop()


def _measure_scale(options: dict[str, Any], run: Run, sizes: Any, progress: Any, cloud: Any) -> None:
    """Each group in a cloud that is small to begin with."""
    from cumulet.bench.cases import scale

    counts = scale.QUICK_COUNTS if options["quick"] else scale.Counts()
    for name, group in scale.GROUPS.items():
        cloud.reset()
        cloud.start()
        measure = partial(group, database=cloud.settings.state_dir / "cumulet.db", counts=counts)
        _measure_cloud(cloud.credentials, run, sizes, [(name, measure)], progress, private=cloud)


def _measure_cloud(
    entry: dict[str, Any],
    run: Run,
    sizes: Any,
    groups: Any,
    progress: Any,
    *,
    private: Any = None,
    beside: Sequence[int] = (),
) -> None:
    from cumulet.bench.meter import Meter
    from cumulet.bench.suite import Bench, cleaning, describe, run_cases

    target = Target(entry, say=progress.line)
    target.log_in()
    with cleaning(target, progress.line, needed=private is None):
        told = target.process()
        pids = private.pids if private is not None else local_pids(told, target)
        meter = Meter(target.process_now if told is not None else None, pids)
        bench = Bench(target, sizes, meter, progress, private=private is not None)
        if private is not None:
            bench.launched = private.launched
        bench.beside = list(beside)
        run.cloud = describe(target, meter)
        if private is not None:
            target.wait_for_room()
        target.prepare()
        try:
            run_cases(bench, groups)
        finally:
            run.figures += bench.figures


def local_pids(told: dict[str, Any] | None, target: Target) -> list[int]:
    """The process that answers, when it is one of this machine's."""
    from cumulet.bench.wire import Origin
    from cumulet.kernel.process import started_at

    if told is None or Origin.of(target.admin.endpoint("identity")).host not in ("127.0.0.1", "localhost", "::1"):
        return []
    return [told["pid"]] if told.get("pid") and started_at(told["pid"]) else []


def _command() -> str:
    """As it was typed, without what is this machine's."""
    words = ["cumulet", *sys.argv[1:]]
    for option in ("--json", "--beside"):
        while option in words:
            del words[words.index(option) : words.index(option) + 2]
    for option in ("--database", "--bus"):
        if option in words[:-1]:
            words[words.index(option) + 1] = "URL"
    return " ".join(words)
