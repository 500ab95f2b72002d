import pytest


@pytest.fixture(scope="session")
def openstack_emulator_options():
    """What the cloud of these tests is like; without this fixture it has two hosts."""
    return {"hosts": 3}
