"""The libvirt driver keeps what every compute driver must (`tests.agent.conformance`)."""

from collections.abc import Iterator

import pytest

from cumulet.agent import contract as c
from cumulet.kernel.ids import new_uuid
from tests.agent.conformance import ComputeConformance, ComputeRig, DriverRig

from .conftest import Host, port

pytestmark = pytest.mark.host


class TestLibvirt(ComputeConformance):
    @pytest.fixture
    def rig(self, host: Host) -> Iterator[ComputeRig]:
        host.driver.stop()
        host.driver = host.new_driver()
        rig = DriverRig(host.driver, host.directory)

        def volume() -> c.VolumeAttachment:
            path = host.directory / f"volume-{new_uuid()}"
            with path.open("wb") as file:
                file.truncate(1 << 20)
            connection = c.DiskConnection(driver="file", path=str(path))
            return c.VolumeAttachment(
                attachment_id=new_uuid(), volume_id=new_uuid(), device="/dev/vdb", connection=connection
            )

        yield ComputeRig(rig=rig, bootable=host.image, port=port, volume=volume, memory_mb=32)
        assert host.driver.inventory().servers == []
        assert host.taps.plugged() == []
        host.restart()
