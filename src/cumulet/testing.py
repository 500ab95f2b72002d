"""pytest fixtures: an OpenStack for every test, where ``pip install cumulet pytest`` is all there is.

pytest finds this module by itself. ``openstack_cloud`` is a cloud as new (one runs for the session, and is put back
before each test); ``openstack_emulator`` is the one that runs, as the last test left it; ``new_openstack_cloud`` makes
more of them. A project says what its cloud is like by overriding ``openstack_emulator_options``.
Nothing of the cloud is imported before a test asks for one. See docs/emulator.md.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from cumulet.emulator import Emulator

__all__ = [
    "new_openstack_cloud",
    "openstack_cloud",
    "openstack_emulator",
    "openstack_emulator_options",
    "openstack_environment",
]


@pytest.fixture(scope="session")
def openstack_emulator_options() -> dict[str, Any]:
    """What `cumulet.emulator.Emulator` is made with. Override it in a conftest.py."""
    return {}


@pytest.fixture(scope="session")
def openstack_emulator(openstack_emulator_options: dict[str, Any]) -> "Iterator[Emulator]":
    from cumulet.emulator import Emulator

    with Emulator(**openstack_emulator_options) as emulator:
        yield emulator


@pytest.fixture
def openstack_cloud(openstack_emulator: "Emulator") -> "Emulator":
    """A cloud as new: nobody has used it."""
    openstack_emulator.reset()
    return openstack_emulator


@pytest.fixture
def openstack_environment(openstack_cloud: "Emulator", tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Emulator":
    """For code that finds its cloud by itself: a clouds.yaml, and ``OS_CLOUD`` which names demo's entry."""
    import os

    for name in [name for name in os.environ if name.startswith("OS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(openstack_cloud.clouds_yaml(tmp_path / "clouds.yaml")))
    monkeypatch.setenv("OS_CLOUD", "emulator")
    return openstack_cloud


@pytest.fixture
def new_openstack_cloud() -> "Iterator[Callable[..., Emulator]]":
    """``new_openstack_cloud(hosts=3, boot_seconds=5, …)``: a started cloud beside any other."""
    from cumulet.emulator import Emulator

    made: list[Emulator] = []

    def make(**options: Any) -> Emulator:
        made.append(Emulator(**options))
        return made[-1].start()

    yield make
    for emulator in made:
        emulator.stop()
