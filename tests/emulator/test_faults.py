"""Faults of hosts and of requests, in Python and by URL."""

import time
from typing import Any

import pytest
import requests

from tests.emulator.conftest import Emulated


def ask(emulated: Emulated, method: str, service: str, path: str, **more: Any) -> Any:
    """Without the client's own patience."""
    api = emulated.api()
    with requests.Session() as session:
        session.trust_env = False
        return session.request(
            method, api.endpoint(service) + path, headers={"X-Auth-Token": api.token}, timeout=20, **more
        )


def volume(emulated: Emulated) -> str:
    made = emulated.api().post("volume", "/volumes", {"volume": {"size": 1}})
    assert emulated.emulator.settle()
    status: str = emulated.api().get("volume", f"/volumes/{made['volume']['id']}")["volume"]["status"]
    return status


def test_the_next_boot_fails_on_every_host(emulated: Emulated) -> None:
    emulated.emulator.faults.fail("boot", message="no bootable device")
    first, second = emulated.boot("first"), emulated.boot("second")
    assert (emulated.status(first), emulated.status(second)) == ("ERROR", "ACTIVE")
    fault = emulated.server(first, "admin")["fault"]
    assert "no bootable device" in fault["details"]
    (told,) = emulated.emulator.faults.list().values()
    assert told == {"fail": "boot", "times": 1, "met": 1}


def test_a_host_whose_boots_fail_is_avoided(emulated: Emulated) -> None:
    emulated.emulator.faults.fail("boot", host="host-1", times=None)
    servers = [emulated.boot(f"s{n}") for n in range(3)]
    assert {emulated.status(server) for server in servers} == {"ACTIVE"}
    hosts = {emulated.server(server, "admin")["OS-EXT-SRV-ATTR:host"] for server in servers}
    assert hosts == {"host-2"}


def test_a_started_server_is_another_boot(emulated: Emulated) -> None:
    server = emulated.boot()
    emulated.emulator.faults.fail("stop")
    assert emulated.api().post("compute", f"/servers/{server}/action", {"os-stop": None}).status == 202
    assert emulated.emulator.settle()
    assert emulated.status(server) == "ACTIVE"
    assert emulated.api().post("compute", f"/servers/{server}/action", {"os-stop": None}).status == 202
    assert emulated.emulator.settle()
    assert emulated.status(server) == "SHUTOFF"


def test_volumes_are_refused(emulated: Emulated) -> None:
    emulated.emulator.faults.fail("volume", times=2)
    assert [volume(emulated) for _ in range(3)] == ["error", "error", "available"]


def test_a_fault_is_taken_back(emulated: Emulated) -> None:
    faults = emulated.emulator.faults
    hang, fail = faults.hang("boot", times=None), faults.fail("volume", times=None)
    server = emulated.boot()
    assert emulated.status(server) == "BUILD"
    assert faults.remove(hang)
    assert not faults.remove(hang)
    emulated.emulator.wait(lambda: emulated.status(server) == "ACTIVE")
    assert volume(emulated) == "error"
    assert faults.remove(fail)
    assert volume(emulated) == "available"


def test_taking_one_back_leaves_the_others_holding(emulated: Emulated) -> None:
    faults = emulated.emulator.faults
    faults.hang("boot", times=None)
    faults.delay("volume-delete", 3600, times=None)
    another = faults.hang("volume", times=None)
    server = emulated.boot()
    made = emulated.api().post("volume", "/volumes", {"volume": {"size": 1}})["volume"]["id"]
    assert faults.remove(another)

    def status() -> str:
        return str(emulated.api().get("volume", f"/volumes/{made}")["volume"]["status"])

    emulated.emulator.wait(lambda: status() == "available")
    assert emulated.status(server) == "BUILD"
    more = faults.fail("backup")
    assert emulated.api().delete("volume", f"/volumes/{made}").status == 202
    emulated.emulator.wait(lambda: any(host.fake.faults.asleep for host in emulated.emulator.hosts.values()))
    assert faults.remove(more)
    time.sleep(0.2)
    assert (status(), emulated.status(server)) == ("deleting", "BUILD")
    faults.clear()
    emulated.emulator.wait(lambda: emulated.status(server) == "ACTIVE")


def test_a_host_that_comes_later_has_the_faults_too(emulated: Emulated) -> None:
    emulator = emulated.emulator
    emulator.faults.fail("boot", times=None)
    emulator.add_host("host-7")
    emulator.hosts["host-1"].lose()
    emulator.hosts["host-2"].lose()
    emulator.clock.advance(60)
    assert emulated.status(emulated.boot()) == "ERROR"


@pytest.mark.parametrize(
    "service, path, text",
    [
        ("compute", "/servers", "message"),
        ("identity", "/users", "error"),
        ("image", "/images", "503"),
        ("network", "/networks", "NeutronError"),
        ("placement", "/resource_providers", "errors"),
        ("volume", "/volumes", "message"),
    ],
)
def test_a_service_is_away(emulated: Emulated, service: str, path: str, text: str) -> None:
    """As often as asked for, in that service's form, and no other is."""
    emulated.emulator.faults.answer(503, service=service, times=2, retry_after=7)
    other = "image" if service != "image" else "network"
    assert ask(emulated, "GET", other, "/images" if other == "image" else "/networks").status_code == 200
    for _ in range(2):
        refused = ask(emulated, "GET", service, path)
        assert refused.status_code == 503
        assert text in refused.text
        assert refused.headers["retry-after"] == "7"
    assert ask(emulated, "GET", service, path).status_code != 503


def test_which_requests_are_meant(emulated: Emulated) -> None:
    faults = emulated.emulator.faults
    faults.answer(500, service="block-storage", method="post", path="/volumes", times=None)
    assert ask(emulated, "GET", "volume", "/volumes").status_code == 200
    for _ in range(3):
        assert ask(emulated, "POST", "volume", "/volumes", json={"volume": {"size": 1}}).status_code == 500
    faults.clear()
    assert ask(emulated, "POST", "volume", "/volumes", json={"volume": {"size": 1}}).status_code == 202
    faults.answer(429, path="/compute/v2.1/flavors*")
    assert ask(emulated, "GET", "compute", "/servers").status_code == 200
    assert ask(emulated, "GET", "compute", "/flavors/detail").status_code == 429
    assert ask(emulated, "GET", "compute", "/flavors/detail").status_code == 200


def test_slow_answers_and_cut_connections(emulated: Emulated) -> None:
    faults = emulated.emulator.faults
    faults.slow(0.2, service="compute")
    begun = time.monotonic()
    assert ask(emulated, "GET", "compute", "/servers").status_code == 200
    assert time.monotonic() - begun >= 0.2
    faults.drop(service="network", times=2)
    for method in ("GET", "POST"):
        with pytest.raises(requests.ConnectionError):
            ask(emulated, method, "network", "/networks", json={"network": {}} if method == "POST" else None)
    assert ask(emulated, "GET", "network", "/networks").status_code == 200


def test_words_that_mean_nothing_are_refused(emulated: Emulated) -> None:
    faults = emulated.emulator.faults
    with pytest.raises(ValueError, match="boot"):
        faults.fail("bot")
    with pytest.raises(ValueError, match="times"):
        faults.fail("boot", times=0)
    with pytest.raises(ValueError, match="400 to 599"):
        faults.answer(200)
    faults.fail("compute.create_disks")
    assert emulated.status(emulated.boot()) == "ERROR"


# -- by URL --------------------------------------------------------------------------------------------------------


def test_all_of_it_by_url(emulated: Emulated) -> None:
    control = emulated.control
    seen = control("GET").json()
    assert [account["name"] for account in seen["accounts"]] == ["admin", "demo", "alt_demo", "reader"]
    assert control("GET", "/").json()["url"] == emulated.url

    made = control("POST", "/faults", {"fail": "boot", "message": "dead"})
    assert (made.status_code, made.json()["fault"]["fail"]) == (201, "boot")
    assert emulated.status(emulated.boot()) == "ERROR"
    for body in (
        {"delay": "boot", "seconds": 9},
        {"hang": "volume"},
        {"slow": 0.1, "path": "/x"},
        {"drop": True, "path": "/x"},
    ):
        assert control("POST", "/faults", body).status_code == 201
    number = control("POST", "/faults", {"status": 503, "service": "compute"}).json()["fault"]["number"]
    assert len(control("GET", "/faults").json()["faults"]) == 6
    assert ask(emulated, "GET", "compute", "/servers").status_code == 503
    assert control("DELETE", f"/faults/{number}").status_code == 204
    assert control("DELETE", f"/faults/{number}").status_code == 404
    assert control("DELETE", "/faults").status_code == 204
    assert control("GET", "/faults").json()["faults"] == []

    moved = control("POST", "/clock", {"advance": 3600, "frozen": True}).json()
    assert moved["frozen"]
    assert 3540 < moved["ahead_seconds"] <= 3600
    assert control("POST", "/clock", {"frozen": False}).json()["frozen"] is False
    assert control("GET", "/clock").json()["now"].endswith("Z")

    assert control("POST", "/hosts", {"name": "big", "vcpus": 99, "roles": ["compute"]}).status_code == 201
    hypervisors = emulated.api("admin").get("compute", "/os-hypervisors/detail")["hypervisors"]
    assert {h["vcpus"] for h in hypervisors if h["hypervisor_hostname"] == "big"} == {99}
    lost = control("PUT", "/hosts/big", {"lost": True}).json()["hosts"]
    assert {"name": "big", "lost": True} in lost
    assert {"name": "big", "lost": False} in control("PUT", "/hosts/big", {"lost": False}).json()["hosts"]
    assert len(control("GET", "/hosts").json()["hosts"]) == 3

    assert {"method": "GET", "path": "/compute/v2.1/servers"} in control("GET", "/requests").json()["requests"]
    assert control("GET", "/clouds.yaml").json()["clouds"]["emulator-admin"]["auth"]["username"] == "admin"
    assert f"export OS_AUTH_URL={emulated.url}/identity/v3" in control("GET", "/openrc?user=admin").text
    assert control("POST", "/settle").status_code == 204
    assert control("POST", "/reset").status_code == 204
    assert len(control("GET", "/hosts").json()["hosts"]) == 2


@pytest.mark.parametrize(
    "method, path, body, status, text",
    [
        ("POST", "/faults", {}, 400, "exactly one"),
        ("POST", "/faults", {"fail": "boot", "drop": True}, 400, "exactly one"),
        ("POST", "/faults", {"fail": "nothing"}, 400, "there is no operation"),
        ("POST", "/faults", {"fail": "boot", "host": "nobody"}, 400, "nobody"),
        ("POST", "/faults", {"failed": "boot"}, 400, "failed"),
        ("POST", "/faults", {"status": 200}, 400, "400 to 599"),
        ("POST", "/clock", {"advance": -5}, 400, "never back"),
        ("POST", "/clock", {"advance": "much"}, 400, "float"),
        ("POST", "/hosts", {"name": "host-1"}, 400, "there is a host"),
        ("POST", "/hosts", {"name": "x", "roles": ["king"]}, 400, "king"),
        ("PUT", "/hosts/nobody", {"lost": True}, 404, "nobody"),
        ("GET", "/openrc?user=nobody", None, 404, "nobody"),
        ("GET", "/nothing", None, 404, "docs/emulator.md"),
        ("DELETE", "/reset", None, 404, "docs/emulator.md"),
    ],
)
def test_what_the_endpoint_refuses(
    emulated: Emulated, method: str, path: str, body: Any, status: int, text: str
) -> None:
    answer = emulated.control(method, path, body)
    assert answer.status_code == status
    assert text in answer.json()["message"]
