"""Long runs: ``./run-tests --long chaos``. What they found is kept in docs/results, and shown where the documents say.

Each name is a function below, which answers what is to be kept; a run that found violations is kept too, and fails.
"""

import argparse
import json
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.postgres import PostgresServer
from tests.support.rabbit import RabbitServer

ROOT = Path(__file__).parents[2]
MARK = "<!-- results -->"


def chaos(seconds: float) -> dict[str, Any]:
    """Each form from a new seed: the three hosts for so long, each of the others for a tenth of it."""
    with _servers() as (postgres, rabbit):
        apart = ["--processes", f"--database={postgres.new_database()}", f"--bus={rabbit.url}?prefix=chaos"]
        runs = [
            _run("cumulet", "chaos", "--json", *_share(seconds, 0.1), *form)
            for form in (["--clients=6"], ["--processes"], ["--clients=6", *apart])
        ]
    return {"runs": [*runs, _run("tests.hosts.chaos", *_share(seconds, 1.0))]}


def _share(seconds: float, share: float) -> list[str]:
    return [f"--seconds={seconds * share:g}", f"--seed={secrets.randbelow(1 << 31)}"]


def chaos_table(result: dict[str, Any]) -> str:
    lines = [
        "| form | seed | seconds | requests | of them acknowledged | disturbances | objects | violations |",
        "|---|---|---|---|---|---|---|---|",
    ]
    more = []
    for run in result["runs"]:
        cells = (
            run["form"], run["seed"], f"{run['seconds']:.0f}", sum(run["requests"].values()),
            run["requests"]["acknowledged"], sum(run["disturbances"].values()), run["objects"], len(run["violations"]),
        )  # fmt: skip
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
        if seen := run.get("witnesses"):
            more.append(
                f"\nOf {seen['pings']} pings between the witnesses {seen['lost']} were lost;"
                f" {seen['lost_to_switch']} more while an ovs-vswitchd was dead, {seen['lost_to_links']} as devices"
                f" changed. {seen['stopped']} witnesses were stopped.\n"
            )
    return f"Revision {result['revision'][:12]}:\n\n" + "\n".join(lines) + "\n" + "".join(more)


LONG: dict[str, tuple[Callable[[float], dict[str, Any]], Callable[[dict[str, Any]], str]]] = {
    "chaos": (chaos, chaos_table),
}


def shown(name: str, result: dict[str, Any]) -> str:
    """docs/NAME.md with these results between its marks."""
    before, _, after = (ROOT / "docs" / f"{name}.md").read_text().split(MARK)
    return f"{before}{MARK}\n{LONG[name][1](result)}{MARK}{after}"


def _run(*words: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-m", *words], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, 1) or not done.stdout:
        raise SystemExit(f"{' '.join(words[:2])} ended with {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@contextmanager
def _servers() -> Iterator[tuple[PostgresServer, RabbitServer]]:
    postgres, rabbit = PostgresServer(), RabbitServer()
    try:
        postgres.start()
        rabbit.start()
        yield postgres, rabbit
    finally:
        rabbit.destroy()
        postgres.destroy()


def main() -> None:
    parser = argparse.ArgumentParser(prog="./run-tests --long")
    parser.add_argument("name", choices=sorted(LONG))
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--nothing-kept", action="store_true", help="write nothing to docs")
    given = parser.parse_args()
    revision = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    result = {"revision": revision.stdout.strip(), **LONG[given.name][0](given.seconds)}
    if not given.nothing_kept:
        (ROOT / "docs" / "results" / f"{given.name}.json").write_text(json.dumps(result, indent=1) + "\n")
        (ROOT / "docs" / f"{given.name}.md").write_text(shown(given.name, result))
    violations = [one for run in result["runs"] for one in run["violations"]]
    for one in violations:
        print(f"{one['what']}: {one['about']}: {one['message']}")
    sys.exit(1 if violations else 0)


if __name__ == "__main__":
    main()
