"""Which operations of the cloud the tests saw answer a success, over all of pytest's processes.

A plugin (`tests.conftest` loads it). With ``--every-operation`` the run fails when an operation of any route table was
never seen to succeed: an operation counts as done only when a test saw it. Of the few whose route says that they always
refuse (``Route.refusal``) that refusal must be seen, from the handler itself; one of them that succeeds is an error.
"""

from typing import Any

import pytest

from cumulet.http.app import HttpApp
from cumulet.http.route import Route
from cumulet.kernel.errors import CloudError

Key = tuple[str, str, str, str, str]  # service, method, path, action, versions
_known: set[Key] = set()
_seen: set[Key] = set()
_refusing: set[Key] = set()  # of the known ones, those that say they always refuse


def key_of(service: str, route: Route) -> Key:
    versions = f"{route.min_version or ''}-{route.max_version or ''}"
    return service, route.method, route.path, route.action or "", versions.strip("-")


def known() -> set[Key]:
    """The operations of every whole cloud that the run has made."""
    return _known


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-operation", action="store_true", help="fail when an operation was not seen to succeed")


def pytest_configure(config: pytest.Config) -> None:
    make, finish, call = HttpApp.__init__, HttpApp._finish, HttpApp._call

    def noted_make(self: HttpApp, apis: Any, **more: Any) -> None:
        make(self, apis, **more)
        if any(api.name == "operator" for api in apis):  # a whole cloud, not one service or a toy
            routes = {key_of(api.name, route): route for api in apis for route in api.routes}
            _known.update(routes)
            _refusing.update(key for key, route in routes.items() if route.refusal is not None)

    def noted_finish(self: HttpApp, request: Any, reply: Any, operation: Any, **more: Any) -> Any:
        answer = finish(self, request, reply, operation, **more)
        if operation is not None and answer.status < 400:
            route = operation.route
            assert route.refusal is None, f"{route.method} {route.path} is declared to refuse, and answered {answer}"
            _seen.add(key_of(request.mounted.api.name, route))
        return answer

    def noted_call(self: HttpApp, request: Any, operation: Any, *arguments: Any) -> Any:
        try:
            return call(self, request, operation, *arguments)
        except CloudError as error:
            route, api = operation.route, request.mounted.api
            if route.refusal == api.faults.status(error) and _raised_in(route.handler, error):
                _seen.add(key_of(api.name, route))
            raise

    HttpApp.__init__ = noted_make  # type: ignore[method-assign]
    HttpApp._finish = noted_finish  # type: ignore[method-assign]
    HttpApp._call = noted_call  # type: ignore[method-assign]


def _raised_in(handler: Any, error: BaseException) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code is not handler.__code__:
        trace = trace.tb_next
    return trace is not None


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    if hasattr(config, "workeroutput"):
        config.workeroutput["operations"] = [sorted(_known), sorted(_seen), sorted(_refusing)]
    elif config.getoption("--every-operation") and session.exitstatus == pytest.ExitCode.OK and _unseen():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: Any) -> None:
    found = getattr(node, "workeroutput", {}).get("operations", ([], [], []))
    for whole, part in zip((_known, _seen, _refusing), found, strict=True):
        whole.update(tuple(key) for key in part)


def _unseen() -> list[Key]:
    return sorted(_known - _seen)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if config.getoption("--every-operation"):
        unseen = _unseen()
        refused, succeeded = len(_seen & _refusing), len((_seen & _known) - _refusing)
        terminalreporter.write_line(f"operations seen to succeed: {succeeded} of {len(_known) - len(_refusing)}")
        terminalreporter.write_line(f"seen to refuse, as they always do: {refused} of {len(_refusing)}")
        for key in unseen:
            terminalreporter.write_line("    never: " + " ".join(filter(None, key)))
