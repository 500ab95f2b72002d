"""The last of the end-to-end tests: the cloud goes, and leaves nothing."""

import pytest

from tests.e2e.conftest import CloudHost

pytestmark = [pytest.mark.host, pytest.mark.timeout(900)]


def test_destroy_leaves_nothing(cloud_host: CloudHost, quickstart: str) -> None:
    cloud_host.close()
    cloud_host.cumulet("destroy", "--yes")
    left = cloud_host.sh(
        "ip netns list; ip -br link | grep -v -e '^lo' -e '^eth'; nft list tables;"
        "ls -d /etc/cumulet /var/lib/cumulet /var/log/cumulet /run/cumulet /root/.config/openstack/* "
        "/root/.ssh/cumulet* /run/libvirt /usr/local/bin/cumulet 2>/dev/null;"
        "pgrep -af 'cumulet|qemu|libvirtd|dnsmasq' | grep -v pgrep; true"
    )
    assert left == ""
