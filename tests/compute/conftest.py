"""The cloud of compute's tests: the session's, with an image and flavors to boot from."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.compute.helpers import Nova
from tests.compute.places import Places
from tests.support.cloud import Cloud


@pytest.fixture(scope="session")
def nova(cloud: Any) -> Iterator[Nova]:
    return Nova(cloud)


@pytest.fixture(scope="module")
def places(cloud_backends: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    """Three hosts; at the end every check of the doctor must find the cloud sound."""

    def unlimited(settings: Any) -> None:
        settings.quota.instances = settings.quota.cores = settings.quota.volumes = -1

    cloud = Cloud(tmp_path_factory.mktemp("moves"), hosts=3, configure=unlimited, **cloud_backends()).start()
    yield Places(Nova(cloud))
    cloud.settle()
    found = cloud.control.operator.audit(fix=False)["findings"]
    cloud.stop()
    assert [one["message"] for one in found if one["severity"] == "error"] == []
