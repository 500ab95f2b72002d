"""docs/performance.md is what its generator makes of the results that are kept beside it."""

from pathlib import Path

from bench.table import text
from bench.targets import ONE_PROCESS, SCALE, TIMES, Target

from cumulet.bench.results import FORMAT, Figure, Run, save

ROOT = Path(__file__).parents[2]


def test_the_page_is_made_from_the_results() -> None:
    assert (ROOT / "docs" / "performance.md").read_text() == text(ROOT / "docs" / "results")


def test_results_are_of_whole_runs() -> None:
    for name, targets in (("sqlite", ONE_PROCESS), ("servers", TIMES), ("scale", SCALE)):
        found = (ROOT / "docs" / "results" / f"{name}.json").read_text()
        for target in targets:
            assert f'"case": "{target.case}"' in found, f"{name} lacks {target.case}"
        assert str(ROOT) not in found


def row_of(tmp_path: Path, name: str, figure: Figure) -> list[str]:
    machine = {"cpus": 2, "model": "m", "memory_mib": 1024, "system": "s", "python": "3", "load": 0.1}
    for run in ("sqlite", "servers", "scale"):
        figures = [figure] if run == name else []
        save(Run(format=FORMAT, machine=machine, figures=figures), tmp_path / f"{run}.json")
    targets: dict[str, list[Target]] = {"sqlite": ONE_PROCESS, "servers": TIMES, "scale": SCALE}
    what = next(target.what for target in targets[name] if target.case == figure.case)
    section = text(tmp_path).split("\n## ")[1 + list(targets).index(name)]
    line = next(line for line in section.splitlines() if line.startswith(f"| {what} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_verdicts(tmp_path: Path) -> None:
    post = Figure(case="server.post", title="", unit="ms", n=100, median=2.5, p95=4.0, cpu_ms=1.25, statements=20)
    cells = ["POST server at 30/s", "151 ms", "≤ 3 ms", "2.5 ms (4)", "met", "1.25", "20", "60 × upstream"]
    row = row_of(tmp_path, "sqlite", post)
    assert row[:7] == cells[:7]
    assert row[7].startswith(cells[7])  # the reason by hand follows
    post.median = 3.1
    assert row_of(tmp_path, "sqlite", post)[4] == "**missed**"
    post.median = 15.0
    assert row_of(tmp_path, "servers", post)[2:5] == ["≤ 15.1 ms", "15 ms (4)", "met"]
    rate = Figure(case="token.rate", title="", unit="/s", better="more", n=1, median=1499.0)
    assert row_of(tmp_path, "sqlite", rate)[4] == "**missed**"
    upload = Figure(case="image.upload", title="", unit="MiB/s", median=300.0, more={"of md5+sha512 in turn %": 95})
    assert row_of(tmp_path, "sqlite", upload)[4] == "met"
    page = Figure(case="scale.page", title="", unit="ms", median=1.0, more={"time ×": 2.5})
    assert row_of(tmp_path, "scale", page)[4] == "**missed**"
    broken = Figure(case="server.post", title="", unit="", error="no | answer")
    assert row_of(tmp_path, "sqlite", broken)[3:5] == ["not measured", "**missed**"]
    assert row_of(tmp_path, "sqlite", broken)[-1].startswith("no / answer")
