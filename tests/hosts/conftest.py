"""Three pretend hosts for the tests of this folder, made once."""

import fcntl
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cumulet import guest
from tests.hostcompute.conftest import learned
from tests.hosts.machines import Machines


@pytest.fixture(scope="package")
def built(pytestconfig: pytest.Config) -> guest.GuestImage:
    assert pytestconfig.cache is not None
    return guest.build(pytestconfig.cache.mkdir("hostcompute-guest"))


@pytest.fixture(scope="package")
def machines(pytestconfig: pytest.Config, built: guest.GuestImage) -> Iterator[Machines]:
    with open(Path(tempfile.gettempdir()) / "guest.lock", "w") as lock:  # one set of guests at a time on a machine
        fcntl.flock(lock, fcntl.LOCK_EX)
        with Machines(learned(pytestconfig)).running() as running:
            yield running
