"""How many SQL statements each operation may take: `tests/budgets.txt`, enforced wherever a test sees it succeed.

A plugin beside `tests.support.seen`. Counted is what the request's own thread executes once its token is checked (that
costs the same for all, and less when it was checked before); what sagas and hosts do afterwards is theirs. In a run
with ``--every-operation`` an operation without a budget, or a budget without its operation, fails too.
``--write-budgets`` writes the file anew from what such a run saw.
Budgets are those of SQLite: PostgreSQL takes locks as statements. They are exceeded by more than a few: what is looked
at once a second, or made when first needed, falls on one request or another. That lists cost the same whatever is in
them is tested to the statement (tests/http/test_costs.py).
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cumulet.db import Database
from cumulet.http.app import HttpApp
from tests.support import seen

FILE = Path(__file__).parents[1] / "budgets.txt"
_FEW = 5
_HEAD = """\
# SQL statements that a request of each operation takes, as tests/support/budgets.py counts them: the most that any test
# saw. After a change: ./run-tests --stage fast --every-operation --write-budgets, and look at what grew, and why.
"""
_here = threading.local()
_most: dict[seen.Key, int] = {}


class Meter:
    """Statements of one request, for tests that look closer."""

    def __init__(self, cloud: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counts: list[int] = []
        app, database = cloud.control.http, cloud.control.db
        work = app._work

        def counted(request: Any) -> Any:
            with database.counting() as count:
                answer = work(request)
            self.counts.append(count[0])
            return answer

        monkeypatch.setattr(app, "_work", counted)

    def of(self, answer: Any) -> int:
        assert answer.status < 300, answer.text
        return self.counts[-1]

    def cheapest(self, ask: Callable[[], Any]) -> int:
        """Of two in a row: what is looked at once a second (the backlog, new hosts) is asked by the first."""
        return min(self.of(ask()) for _ in range(2))


def read() -> dict[str, int]:
    lines = FILE.read_text().splitlines() if FILE.exists() else []
    words = [line.split(None, 1) for line in lines if line and not line.startswith("#")]
    return {name: int(number) for number, name in words}


def write(found: dict[str, int]) -> None:
    lines = [f"{number:4} {name}" for name, number in sorted(found.items(), key=lambda item: _order(item[0]))]
    FILE.write_text(_HEAD + "\n".join(lines) + "\n")


def _order(name: str) -> tuple[str, str, str]:
    service, method, *path = name.split()
    return service, " ".join(path), method


def name_of(key: seen.Key) -> str:
    service, method, path, action, versions = key
    return " ".join(filter(None, (service, method, path or "/", action, versions)))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-budgets", action="store_true", help="with --every-operation: keep what was seen")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--database") != "sqlite" or config.option.markexpr == "fuzz":
        return  # made-up requests meet clouds of any size, and what moves all of a host's networks grows with them
    count, authenticate, work, finish = Database.count_statement, HttpApp._context, HttpApp._work, HttpApp._finish

    def counted(self: Database) -> None:
        _here.count = getattr(_here, "count", 0) + 1
        count(self)

    def begun(self: HttpApp, request: Any) -> Any:
        _here.count = 0
        return work(self, request)

    def known(self: HttpApp, request: Any) -> Any:
        found = authenticate(self, request)
        _here.count = 0
        return found

    def ended(self: HttpApp, request: Any, reply: Any, operation: Any, **more: Any) -> Any:
        answer = finish(self, request, reply, operation, **more)
        if operation is not None and answer.status < 400:
            key = seen.key_of(request.mounted.api.name, operation.route)
            _most[key] = max(_most.get(key, 0), getattr(_here, "count", 0))
        return answer

    Database.count_statement = counted  # type: ignore[method-assign]
    HttpApp._work = begun  # type: ignore[method-assign]
    HttpApp._context = known  # type: ignore[method-assign]
    HttpApp._finish = ended  # type: ignore[method-assign]


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    if hasattr(config, "workeroutput"):
        config.workeroutput["statements"] = sorted(_most.items())
        return
    if config.getoption("--write-budgets") and config.getoption("--every-operation"):
        write({name_of(key): number for key, number in _most.items() if key in seen.known()})
    if session.exitstatus == pytest.ExitCode.OK and _problems(config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: Any) -> None:
    for key, number in getattr(node, "workeroutput", {}).get("statements", []):
        _most[tuple(key)] = max(_most.get(tuple(key), 0), number)


def _problems(config: pytest.Config) -> list[str]:
    budgets = read()
    found = {name_of(key): number for key, number in _most.items() if key in seen.known()}
    problems = [
        f"{name}: {number} SQL statements, its budget is {budgets[name]}"
        for name, number in sorted(found.items())
        if number > (budget := budgets.get(name, number)) + max(_FEW, budget // 4)
    ]
    if config.getoption("--every-operation") and config.getoption("--database") == "sqlite":
        problems += [f"{name}: no budget" for name in sorted(found.keys() - budgets.keys())]
        known = {name_of(key) for key in seen.known()}
        problems += [f"{name}: a budget, but no such operation" for name in sorted(budgets.keys() - known)]
    return problems


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for problem in _problems(config):
        terminalreporter.write_line(f"over budget: {problem}")
