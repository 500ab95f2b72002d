"""`pip install cumulet pytest openstacksdk`, then `pytest`: no imports of the emulator, no server to start."""

import time

import fleet
import openstack.exceptions
import pytest


def test_servers_are_made(openstack_cloud):
    cloud = openstack_cloud.connect("demo")
    assert fleet.ensure(cloud, "web", 2) == ["web-1", "web-2"]
    assert [server.status for server in cloud.compute.servers()] == ["ACTIVE", "ACTIVE"]


def test_each_test_has_a_cloud_as_new(openstack_cloud):
    assert list(openstack_cloud.connect("demo").compute.servers()) == []


def test_a_boot_that_fails_is_tried_again(openstack_cloud):
    openstack_cloud.faults.fail("boot", message="no bootable device")
    assert fleet.ensure(openstack_cloud.connect("demo"), "web", 1) == ["web-1"]


def test_a_service_that_is_away_for_a_moment(openstack_cloud):
    openstack_cloud.faults.answer(503, service="compute", method="GET", path="/servers*", times=2)
    assert fleet.ensure(openstack_cloud.connect("demo"), "web", 1) == ["web-1"]


def test_a_volume_that_is_refused(openstack_cloud):
    openstack_cloud.faults.fail("volume")
    cloud = openstack_cloud.connect("demo")
    volume = cloud.block_storage.create_volume(size=1)
    with pytest.raises(openstack.exceptions.ResourceFailure):
        cloud.block_storage.wait_for_status(volume, failures=["error"], interval=0.05, wait=30)


def test_slow_boots_cost_no_time(openstack_cloud):
    """The cloud's clock is moved; nobody waits."""
    openstack_cloud.faults.delay("boot", 300)
    cloud = openstack_cloud.connect("demo")
    server = cloud.create_server("slow", image="cirros", flavor="m1.tiny", network="private")
    openstack_cloud.settle()
    assert cloud.compute.get_server(server.id).status == "BUILD"
    begun = time.monotonic()
    openstack_cloud.clock.advance(minutes=5)
    assert cloud.compute.get_server(server.id).status == "ACTIVE"
    assert time.monotonic() - begun < 30


def test_tokens_expire(openstack_cloud):
    cloud = openstack_cloud.connect("demo")
    old = cloud.auth_token
    openstack_cloud.clock.advance(days=2)
    answer = cloud.session.get(
        f"{openstack_cloud.url}/identity/v3/auth/tokens",
        authenticated=False,
        headers={"X-Auth-Token": old, "X-Subject-Token": old},
        raise_exc=False,
    )
    assert answer.status_code == 401
    assert list(cloud.compute.servers()) == []  # keystoneauth fetches another by itself


def test_a_host_that_is_lost(openstack_cloud):
    admin = openstack_cloud.connect("admin")
    openstack_cloud.hosts["host-2"].lose()
    openstack_cloud.clock.advance(minutes=1)
    down = [service.host for service in admin.compute.services(binary="nova-compute") if service.state == "down"]
    assert down == ["host-2"]


def test_code_that_finds_its_cloud_by_itself(openstack_environment):
    """``OS_CLOUD`` and a clouds.yaml are set for the test."""
    import openstack

    with openstack.connect() as cloud:
        assert [network.name for network in cloud.network.networks(is_router_external=True)] == ["public"]
