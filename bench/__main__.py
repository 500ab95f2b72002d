"""The whole table by one command: private servers, three runs of ``cumulet bench``, docs/performance.md."""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.postgres import PostgresServer
from tests.support.rabbit import RabbitServer

from bench.table import write

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
RUNS = ("sqlite", "servers", "scale")


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench/run")
    parser.add_argument("--quick", action="store_true", help="small sizes; the documents stay as they are")
    parser.add_argument("--table", action="store_true", help="measure nothing, write the table from the results")
    parser.add_argument("--idle", type=int, default=300, help="seconds of the idle measurement")
    parser.add_argument("runs", nargs="*", metavar="|".join(RUNS))
    options = parser.parse_args()
    unknown = set(options.runs) - set(RUNS)
    if unknown:
        parser.error(f"there is no run {', '.join(sorted(unknown))}")
    results = Path(tempfile.mkdtemp(prefix="cumulet-results-")) if options.quick else RESULTS
    status = 0
    for name in () if options.table else options.runs or RUNS:
        print(f"== {name}", flush=True)
        words = ["--fake", "--json", str(results / f"{name}.json"), *(["--quick"] if options.quick else [])]
        if name != "scale" and not options.quick:
            words += ["--idle", str(options.idle)]
        status |= {"sqlite": measure, "servers": with_servers, "scale": scaled}[name](words)
    if options.quick:
        print(f"results are in {results}")
    else:
        write(RESULTS, ROOT / "docs" / "performance.md")
    return status


def measure(words: list[str]) -> int:
    return subprocess.run([sys.executable, "-m", "cumulet", "bench", *words], cwd=ROOT, check=False).returncode


def scaled(words: list[str]) -> int:
    return measure([*words, "--scale"])


def with_servers(words: list[str]) -> int:
    """Durable, as a cloud's are: the tests' own are not."""
    postgres, rabbit = PostgresServer(), RabbitServer()
    try:
        postgres.start(durable=True)
        rabbit.start()
        words = [*words, "--processes", "--database", postgres.new_database(), "--bus", rabbit.url]
        for pid in (postgres.pid, rabbit.pid):
            words += ["--beside", str(pid)]
        return measure(words)
    finally:
        rabbit.destroy()
        postgres.destroy()


if __name__ == "__main__":
    sys.exit(main())
