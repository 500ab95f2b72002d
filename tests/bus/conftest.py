"""``bus_pair``: two ends of one bus, as two processes have them. The same tests run over both transports."""

from collections.abc import Callable, Iterator

import pytest

from cumulet.bus import Bus, LocalBus
from tests.support.rabbit import RabbitServer


@pytest.fixture(scope="session")
def own_rabbit() -> Iterator[RabbitServer]:
    """A broker for tests that kill it."""
    server = RabbitServer()
    server.start()
    yield server
    server.destroy()


@pytest.fixture(params=["local", pytest.param("amqp", marks=pytest.mark.rabbit)])
def new_bus(request: pytest.FixtureRequest) -> Iterator[Callable[[], Bus]]:
    opened: list[Bus] = []
    if request.param == "local":
        shared = LocalBus()
        opened.append(shared)
        yield lambda: shared
    else:
        from cumulet.bus.amqp import AmqpBus

        url = request.getfixturevalue("own_rabbit").url

        def connect() -> Bus:
            opened.append(AmqpBus(url))
            return opened[-1]

        yield connect
    for bus in opened:
        bus.close()
