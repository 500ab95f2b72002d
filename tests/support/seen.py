"""Which operations of the cloud the tests saw answer a success, over all of pytest's processes.

A plugin (`tests.conftest` loads it). With ``--every-operation`` the run fails when an operation of any route table was
never seen to succeed: an operation counts as done only when a test saw it.
"""

from typing import Any

import pytest

from cumulet.http.app import HttpApp
from cumulet.http.route import Route

Key = tuple[str, str, str, str, str]  # service, method, path, action, versions
_known: set[Key] = set()
_seen: set[Key] = set()


def _key(service: str, route: Route) -> Key:
    versions = f"{route.min_version or ''}-{route.max_version or ''}"
    return service, route.method, route.path, route.action or "", versions.strip("-")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-operation", action="store_true", help="fail when an operation was not seen to succeed")


def pytest_configure(config: pytest.Config) -> None:
    make, finish = HttpApp.__init__, HttpApp._finish

    def noted_make(self: HttpApp, apis: Any, **more: Any) -> None:
        make(self, apis, **more)
        if any(api.name == "operator" for api in apis):  # a whole cloud, not one service or a toy
            _known.update(_key(api.name, route) for api in apis for route in api.routes)

    def noted_finish(self: HttpApp, request: Any, reply: Any, operation: Any, **more: Any) -> Any:
        answer = finish(self, request, reply, operation, **more)
        if operation is not None and answer.status < 400:
            _seen.add(_key(request.mounted.api.name, operation.route))
        return answer

    HttpApp.__init__ = noted_make  # type: ignore[method-assign]
    HttpApp._finish = noted_finish  # type: ignore[method-assign]


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    if hasattr(config, "workeroutput"):
        config.workeroutput["operations"] = [sorted(_known), sorted(_seen)]
    elif config.getoption("--every-operation") and session.exitstatus == pytest.ExitCode.OK and _unseen():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: Any) -> None:
    known, seen = getattr(node, "workeroutput", {}).get("operations", ([], []))
    _known.update(tuple(key) for key in known)
    _seen.update(tuple(key) for key in seen)


def _unseen() -> list[Key]:
    return sorted(_known - _seen)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if config.getoption("--every-operation"):
        unseen = _unseen()
        terminalreporter.write_line(f"operations seen to succeed: {len(_known) - len(unseen)} of {len(_known)}")
        for key in unseen:
            terminalreporter.write_line("    never: " + " ".join(filter(None, key)))
