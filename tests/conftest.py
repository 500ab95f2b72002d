"""Fixtures of all tests.

``cloud``: a whole cloud in this process, one for the session: tests use names of their own
(`tests.support.cloud.unique`) and clean up. ``own_cloud``: one for a single test that breaks things.
``new_cloud(**options)``: as many as a test likes.

``--database=postgres`` and ``--bus=rabbit`` run the same tests over private servers.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import leftovers
from tests.support.postgres import PostgresServer
from tests.support.rabbit import RabbitServer

pytest_plugins = ["tests.support.seen", "tests.support.budgets"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--database", choices=("sqlite", "postgres"), default="sqlite", help="database of the clouds")
    parser.addoption("--bus", choices=("local", "rabbit"), default="local", help="message bus of the clouds")
    parser.addoption("--fuzz-requests", type=int, default=20, help="requests made up per operation (tests/fuzz)")
    parser.addoption("--fuzz-seed", type=int, default=1, help="which ones")


def pytest_sessionstart() -> None:
    leftovers.sweep()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish() -> None:
    leftovers.forget()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Starting a database or a broker takes seconds: what needs one is not among the fast tests."""
    for item in items:
        if item.get_closest_marker("postgres") or item.get_closest_marker("rabbit"):
            item.add_marker("slow")


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A private PostgreSQL server, started when first asked for."""
    if not PostgresServer.available():
        pytest.fail("PostgreSQL is not installed")
    server = PostgresServer()
    server.start()
    yield server
    server.destroy()


@pytest.fixture(scope="session")
def rabbit() -> Iterator[RabbitServer]:
    """A private RabbitMQ node, started when first asked for."""
    if not RabbitServer.available():
        pytest.fail("RabbitMQ is not installed")
    server = RabbitServer()
    server.start()
    yield server
    server.destroy()


@pytest.fixture(scope="session")
def cloud_backends(request: pytest.FixtureRequest) -> Callable[[], dict[str, Any]]:
    """Makes the ``database_url`` and ``bus_url`` of one more cloud, as the command line wants them."""
    numbers = iter(range(1, 1 << 30))

    def make() -> dict[str, Any]:
        options: dict[str, Any] = {}
        if request.config.getoption("--database") == "postgres":
            options["database_url"] = request.getfixturevalue("postgres").new_database()
        if request.config.getoption("--bus") == "rabbit":
            options["bus_url"] = f"{request.getfixturevalue('rabbit').url}?prefix=cloud{next(numbers)}"
        return options

    return make


@pytest.fixture(scope="session")
def cloud(request: pytest.FixtureRequest, cloud_backends: Callable[[], dict[str, Any]]) -> Iterator[Any]:
    """The session's cloud, with two fake hosts. When all is done, every check of the doctor must find it sound."""
    from tests.support.cloud import Cloud

    directory = _directory()
    started = Cloud(directory, hosts=2, **cloud_backends()).start()
    yield started
    unsound = _unsound(started) if not request.session.testsfailed else []
    started.stop()
    shutil.rmtree(directory, ignore_errors=True)
    assert unsound == [], "what the tests left contradicts itself"


def _unsound(cloud: Any) -> list[str]:
    """What every check of `cumulet doctor` says is wrong, once nothing is under way."""
    cloud.settle()
    found = cloud.control.operator.audit(fix=False)["findings"]
    return [f"{one['code']}: {one['message']}" for one in found if one["severity"] == "error"]


@pytest.fixture
def new_cloud(cloud_backends: Callable[[], dict[str, Any]]) -> Iterator[Callable[..., Any]]:
    """``new_cloud(hosts=3, boot_seconds=0.5, …)``: a started cloud of this test's own."""
    from tests.support.cloud import Cloud

    started: list[tuple[Cloud, Path]] = []

    def make(**options: Any) -> Cloud:
        directory = _directory()
        made = Cloud(directory, **{**cloud_backends(), **options})
        started.append((made, directory))
        return made.start()

    yield make
    for one, directory in started:
        one.stop()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def own_cloud(new_cloud: Callable[..., Any]) -> Any:
    """A cloud with one fake host for this test alone."""
    return new_cloud()


def _directory() -> Path:
    memory = Path("/dev/shm")
    return leftovers.directory("cumulet-cloud-", memory if memory.is_dir() else None)
