"""``cumulet bench``: the suite runs, tells, cleans up after itself and fails clearly. Nothing here is timed."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cumulet.bench import suite
from cumulet.bench.cases import GROUPS
from cumulet.bench.meter import Meter
from cumulet.bench.results import FORMAT, Figure, Run, load, save
from cumulet.bench.suite import Bench, Progress, Sizes, cleaning, run_cases
from cumulet.bench.target import PREFIX, BenchError, Target, clean_leftovers
from cumulet.cli.main import cli

TINY = Sizes(
    samples=2,
    slow_samples=2,
    seconds=0.05,
    clients=2,
    pace=1000,
    crowd=3,
    servers=3,
    ports=5,
    volumes=2,
    image_mib=1,
    idle_seconds=0.05,
    starts=1,
    overload=4,
    patience=30,
)


def entry(cloud: Any, user: str = "admin") -> dict[str, Any]:
    auth = {"auth_url": cloud.url + "/identity", "username": user, "password": f"secret-{user}", "project_name": user}
    return {"auth": auth, "region_name": "RegionOne"}


@pytest.fixture
def clouds_yaml(cloud: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    entries = {"benched": entry(cloud), "poor": entry(cloud, "demo"), "closed": entry(cloud)}
    entries["closed"]["auth"]["auth_url"] = "http://127.0.0.1:1/identity"
    (tmp_path / "clouds.yaml").write_text(json.dumps({"clouds": entries}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(suite, "QUICK", TINY)
    return tmp_path


def command(*words: str) -> Result:
    return CliRunner().invoke(cli, ["bench", *words])


def leftovers(cloud: Any) -> list[str]:
    """Names with the prefix, of every kind, whoever owns them."""
    api = cloud.api("admin")
    lists = [
        ("compute", "/servers?all_tenants=1", "servers"),
        ("compute", "/flavors?is_public=None", "flavors"),
        ("image", "/images?limit=500", "images"),
        ("volume", "/volumes?all_tenants=1", "volumes"),
        *(("network", f"/{kind.replace('_', '-')}", kind) for kind in ("networks", "ports", "security_groups")),
        *(("identity", f"/{kind}", kind) for kind in ("users", "projects")),
    ]
    found = []
    for service, path, key in lists:
        answer = api.get(service, path)
        assert answer.status == 200, answer.text
        found += [item["name"] for item in answer[key] if (item["name"] or "").startswith(PREFIX)]
    return found


def test_the_whole_suite_measures_and_leaves_nothing(cloud: Any, clouds_yaml: Path) -> None:
    done = command("--os-cloud", "benched", "--quick", "--idle", "0.05", "--json", "found.json")
    assert done.exit_code == 0, done.output
    run = load(clouds_yaml / "found.json")
    assert run.cloud["kind"] == "Cumulet"
    assert run.machine["cpus"] > 0
    figures = {figure.case: figure for figure in run.figures}
    assert [one for one in figures.values() if one.error] == []
    assert {name for name, one in figures.items() if one.skipped} == {"overload"}
    for name, figure in figures.items():
        assert figure.title in done.output
        if not figure.skipped:
            assert figure.median is not None, name
            assert figure.median > 0 or name == "idle.cpu", name
    assert figures["server.post"].n == TINY.samples
    assert figures["servers.detail.3"].statements > 0  # type: ignore[operator]
    assert figures["image.upload"].unit == "MiB/s"
    assert "127.0.0.1" not in (clouds_yaml / "found.json").read_text()
    assert leftovers(cloud) == []


def test_credentials_of_no_administrator(cloud: Any, clouds_yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The project's own quota is kept: what it does not allow is skipped, and the rest is measured in it."""
    monkeypatch.setattr(suite, "QUICK", Sizes(**{**{f: getattr(TINY, f) for f in TINY.__struct_fields__}, "crowd": 50}))
    before = cloud.api("demo").get("compute", "/servers")["servers"]
    flavor = {"name": "tiny-of-all", "vcpus": 1, "ram": 16, "disk": 1}
    made = cloud.api("admin").post("compute", "/flavors", {"flavor": flavor})["flavor"]["id"]
    done = command("--os-cloud", "poor", "--quick", "--only", "token,server,crowd", "--json", "poor.json")
    cloud.api("admin").delete("compute", f"/flavors/{made}")
    assert done.exit_code == 0, done.output
    figures = {figure.case: figure for figure in load(clouds_yaml / "poor.json").figures}
    assert re.search(r"quota leaves \d+ servers, 50 are needed", figures["crowd.active"].skipped or "")
    assert figures["server.active"].median
    assert cloud.api("demo").get("compute", "/servers")["servers"] == before
    assert leftovers(cloud) == []


def test_what_cannot_be_measured_is_said(clouds_yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(bench: Bench) -> None:
        bench.user.do("GET", "compute", "/servers/no-such-server")

    monkeypatch.setitem(GROUPS, "memory", broken)
    done = command("--os-cloud", "benched", "--quick", "--only", "memory,token", "--json", "found.json")
    assert done.exit_code == 1
    assert "GET /servers/no-such-server: HTTP 404" in done.output
    assert "not everything could be measured: memory" in str(done.exception)
    assert load(clouds_yaml / "found.json").find("token.check")

    for words, said in (
        (["--os-cloud", "closed"], "nothing answers at 127.0.0.1:1"),
        (["--os-cloud", "unheard-of"], "no cloud named 'unheard-of'"),
        (["--os-cloud", "benched", "--only", "nonsense"], "no group of cases matches nonsense"),
        (["--os-cloud", "benched", "--database", "sqlite://"], "go with --fake"),
        (["--fake", "--processes"], "need a database server and a broker"),
        (["compare", "found.json", "clouds.yaml"], "holds no results"),
    ):
        done = command(*words)
        assert done.exit_code == 1
        assert said in str(done.exception), done.output


def test_an_interrupt_leaves_nothing(cloud: Any) -> None:
    target = Target(entry(cloud))
    target.log_in()

    def interrupted(bench: Bench) -> None:
        body = {"server": {"name": bench.name(), "imageRef": target.image, "flavorRef": target.flavor}}
        body["server"]["networks"] = [{"uuid": target.network}]  # type: ignore[assignment]
        bench.user.do("POST", "compute", "/servers", body)
        raise KeyboardInterrupt

    def run() -> None:
        with cleaning(target, lambda text: None):
            target.prepare()
            run_cases(Bench(target, TINY, Meter(), Progress()), [("interrupted", interrupted)])

    with pytest.raises(KeyboardInterrupt):
        run()
    assert leftovers(cloud) == []


def test_cleanup_after_a_kill(cloud: Any, clouds_yaml: Path) -> None:
    target = Target(entry(cloud))
    target.log_in()
    target.prepare()
    target.user.do("POST", "block-storage", "/volumes", {"volume": {"name": target.name("x"), "size": 1}})
    target.close()  # and nobody cleans
    assert leftovers(cloud)
    done = command("--os-cloud", "benched", "--cleanup")
    assert done.exit_code == 0, done.output
    assert target.prefix in done.output
    assert leftovers(cloud) == []
    assert clean_leftovers(entry(cloud), lambda text: None) == []


def test_compare_says_which_is_better(tmp_path: Path) -> None:
    def run(post: float, rate: float | None, statements: float) -> Run:
        figures = [Figure(case="server.post", title="POST server", unit="ms", median=post, statements=statements)]
        if rate is not None:
            figures.append(Figure(case="token.rate", title="tokens", unit="/s", better="more", median=rate))
        return Run(format=FORMAT, figures=figures)

    save(run(4.0, 1000, 20), tmp_path / "a.json")
    save(run(2.0, 500, 20), tmp_path / "b.json")
    save(run(2.0, None, 20), tmp_path / "c.json")
    done = command("compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"))
    assert done.exit_code == 0, done.output
    lines = {line.split("  ")[1]: line for line in done.output.splitlines()}
    assert re.search(r"4\s+2\s+ms\s+0\.50 better\s+-\s+1\.00", lines["POST server"])
    assert re.search(r"1000\s+500\s+/s\s+0\.50 worse", lines["tokens"])
    missing = command("compare", str(tmp_path / "c.json"), str(tmp_path / "a.json"))
    assert re.search(r"tokens\s+-\s+1000\s+/s\s+-", missing.output)


def test_no_administrator_no_password() -> None:
    with pytest.raises(BenchError, match="has no password"):
        Target({"auth": {"auth_url": "http://127.0.0.1:1", "username": "x", "project_name": "x"}})
