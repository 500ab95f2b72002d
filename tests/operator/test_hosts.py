"""Hosts as a whole over HTTP: tokens, joining, draining, vouching that one is dead, removing."""

import functools
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from click.testing import CliRunner

from cumulet.agent.contract import RenewCertificate
from cumulet.agent.runtime import identity
from cumulet.cli.client import Cloud as Client
from cumulet.cli.host import host
from cumulet.kernel import pki
from cumulet.kernel.errors import BadInput, Forbidden
from cumulet.services.hosts import store as hosts
from cumulet.services.volume import placing
from cumulet.services.volume import store as volumes
from cumulet.settings import BusSettings, Settings
from tests.compute.helpers import Nova
from tests.support import leftovers
from tests.support.at_once import at_once
from tests.support.cloud import Cloud


class Broker:
    """The accounts, without a broker."""

    def __init__(self) -> None:
        self.passwords: dict[str, str] = {}

    def ensure(self, host: str, password: str) -> str:
        self.passwords[host] = password
        return f"account-of-{host}"

    def remove(self, host: str) -> None:
        self.passwords.pop(host, None)

    def hosts(self) -> list[str]:
        return list(self.passwords)


class Operator:
    def __init__(self, cloud: Any) -> None:
        self.cloud = cloud
        self.broker = Broker()
        self.joining = cloud.control.operator.machines.joining
        self.joining.accounts = self.broker
        self.joining.settings = Settings(bus=BusSettings(url="amqps://me:secret@broker:5671/v?prefix=here"))

    def ask(self, method: str, path: str, body: Any = None, user: str = "admin") -> requests.Response:
        headers = {"X-Auth-Token": self.cloud.api(user).token} if user else {}
        return requests.request(method, f"{self.cloud.url}/operator/v1{path}", json=body, headers=headers, timeout=10)

    def token(self, **wanted: Any) -> str:
        made = self.ask("POST", "/host-tokens", wanted)
        assert made.status_code == 201, made.text
        return str(made.json()["token"]["token"])

    def join(self, token: str, host: str, key: str, roles: tuple[str, ...] = ("compute",)) -> requests.Response:
        token_id, secret, _ = token.split(".")
        body = {
            "token_id": token_id,
            "secret": secret,
            "host": host,
            "roles": list(roles),
            "ip": "192.0.2.7",
            "csr": pki.request(key, host),
        }
        return self.ask("POST", "/join", body, user="")


@pytest.fixture(scope="module")
def operator(cloud_backends: Callable[[], dict[str, Any]]) -> Iterator[Operator]:
    directory = leftovers.directory("cumulet-operator-")
    cloud = Cloud(directory, hosts=3, **cloud_backends()).start()
    yield Operator(cloud)
    cloud.stop()
    shutil.rmtree(directory, ignore_errors=True)


def test_joining(operator: Operator) -> None:
    token, key = operator.token(), pki.new_key()
    authority = operator.ask("GET", "/join", user="").text
    assert pki.fingerprint(authority) == token.split(".")[2]
    joined = operator.join(token, "new-1", key)
    assert joined.status_code == 200, joined.text
    given = joined.json()
    assert given["authority"] == authority
    assert pki.certified_key_hash(given["certificate"]) == pki.key_hash(key)
    assert given["bus_url"] == (
        f"amqps://account-of-new-1:{operator.broker.passwords['new-1']}@broker:5671/v?prefix=here&as=new-1"
    )
    again = operator.join(token, "new-1", key)  # the answer was lost
    assert again.status_code == 200
    assert operator.join(token, "new-1", pki.new_key()).status_code == 403, "once"
    assert operator.join(token, "new-2", key).status_code == 403, "for one name"
    (shown,) = [t for t in operator.ask("GET", "/host-tokens").json()["tokens"] if t["id"] == token.split(".")[0]]
    assert shown["used_by"] == "new-1"
    assert token.split(".")[1] not in operator.ask("GET", "/host-tokens").text


def test_a_name_belongs_to_a_machine(operator: Operator) -> None:
    key = pki.new_key()
    assert operator.join(operator.token(), "new-3", key).status_code == 200
    assert operator.join(operator.token(), "new-3", key).status_code == 200, "the same machine, repaired"
    other = pki.new_key()
    assert operator.join(operator.token(), "new-3", other).status_code == 409
    assert operator.join(operator.token(host="new-3"), "new-3", other).status_code == 200, "the operator said so"


def test_tokens_are_refused(operator: Operator) -> None:
    key = pki.new_key()
    token = operator.token(hours=0.0001)
    operator.cloud.wait(lambda: operator.join(token, "late", key).status_code == 403)
    narrow = operator.token(roles=["compute"])
    assert operator.join(narrow, "wide", key, ("compute", "network")).status_code == 403
    assert operator.join(operator.token(host="this"), "that", key).status_code == 403
    deleted = operator.token()
    assert operator.ask("DELETE", f"/host-tokens/{deleted.split('.')[0]}").status_code == 204
    assert operator.join(deleted, "x", key).status_code == 403
    wrong = operator.token().split(".")
    assert operator.join(f"{wrong[0]}.{'x' * 43}.{wrong[2]}", "x", key).status_code == 403
    assert operator.ask("POST", "/host-tokens", {"roles": ["king"]}).status_code == 400
    for user in ("demo", "reader"):
        assert operator.ask("POST", "/host-tokens", {}, user=user).status_code == 403


def test_a_cloud_of_one_process_takes_no_hosts(operator: Operator) -> None:
    operator.joining.accounts = None
    try:
        refused = operator.join(operator.token(), "x", pki.new_key())
        assert refused.status_code == 409
        assert "management_url" in refused.text
    finally:
        operator.joining.accounts = operator.broker


def test_draining(operator: Operator) -> None:
    cloud = operator.cloud
    nova = Nova(cloud)
    server = nova.boot()
    nova.act(server, "suspend")
    nova.wait(server, "SUSPENDED")
    host = cloud.api("admin").get("compute", f"/servers/{server}")["server"]["OS-EXT-SRV-ATTR:host"]
    user = cloud.api("demo")
    network = user.post("network", "/networks", {"network": {"name": "n"}})["network"]["id"]
    subnet = {"network_id": network, "cidr": "10.8.0.0/24", "ip_version": 4}
    subnet = user.post("network", "/subnets", {"subnet": subnet})["subnet"]["id"]
    router = user.post("network", "/routers", {"router": {"name": "r"}})["router"]["id"]
    assert user.put("network", f"/routers/{router}/add_router_interface", {"subnet_id": subnet}).status == 200

    drained = operator.ask("POST", f"/hosts/{host}/drain", {"reason": "new disks"})
    assert drained.status_code == 200, drained.text
    shown = drained.json()["host"]
    assert shown["drain"] == "waiting"
    assert [one["id"] for one in shown["left"]] == [server]
    assert "resume or stop it" in shown["left"][0]["why"]
    assert shown["disabled"]["compute"] == "drained: new disks"
    refused = operator.ask("DELETE", f"/hosts/{host}")
    assert refused.status_code == 409
    assert "1 server(s)" in refused.text
    elsewhere = nova.boot()
    assert cloud.api("admin").get("compute", f"/servers/{elsewhere}")["server"]["OS-EXT-SRV-ATTR:host"] != host
    nova.act(server, "resume")
    nova.wait(server, "ACTIVE")
    operator.ask("POST", f"/hosts/{host}/drain", {})
    cloud.wait(lambda: operator.ask("GET", f"/hosts/{host}").json()["host"]["drain"] == "done")
    assert nova.show(server)["status"] == "ACTIVE"
    nova.remove(server)
    # routers and DHCP go from host to host
    (place,) = [name for name in cloud.hosts if any(_is(operator, name, "router"))]
    assert place != host
    operator.ask("POST", f"/hosts/{place}/drain", {})
    assert not any(_is(operator, place, "router"))
    assert not any(_is(operator, place, "network"))
    (third,) = [name for name in cloud.hosts if any(_is(operator, name, "router"))]
    assert operator.ask("POST", f"/hosts/{third}/drain", {}).json()["host"]["left"], "the last one keeps them"
    for name in cloud.hosts:
        back = operator.ask("POST", f"/hosts/{name}/drain", {"drain": False}).json()["host"]
        assert (back["drain"], back["disabled"]) == (None, {})
    nova.remove(elsewhere)


def _is(operator: Operator, host: str, kind: str) -> list[bool]:
    return [one["kind"] == kind for one in operator.ask("GET", f"/hosts/{host}").json()["host"]["left"]]


def test_down_and_removed(operator: Operator) -> None:
    cloud = operator.cloud
    key = pki.new_key()
    assert operator.join(operator.token(), "fake-9", key).status_code == 200
    cloud.add_host("fake-9", roles=("compute",))

    def listed() -> dict[str, Any]:
        return {one["name"]: one for one in operator.ask("GET", "/hosts").json()["hosts"]}

    cloud.wait(lambda: "fake-9" in listed() and listed()["fake-9"]["up"])
    assert listed()["fake-9"]["joined"]
    assert listed()["fake-9"]["certificate_expires_at"]
    assert not listed()["fake-1"]["joined"]
    assert operator.ask("POST", "/hosts/fake-9/down", {}).json()["host"]["forced_down"]
    assert not listed()["fake-9"]["up"]
    assert operator.ask("POST", "/hosts/fake-9/down", {"down": False}).json()["host"]["up"]
    assert operator.ask("DELETE", "/hosts/fake-1").status_code == 409, "it would come back"
    assert operator.ask("DELETE", "/hosts/fake-9").status_code == 204
    assert "fake-9" not in operator.broker.passwords
    seen = cloud.hosts["fake-9"].agent.heartbeat()
    cloud.bus.call("conductor", seen)
    assert "fake-9" not in listed(), "it is not heard any more"
    providers = cloud.api("admin").get("placement", "/resource_providers")["resource_providers"]
    assert "fake-9" not in [one["name"] for one in providers]
    cloud.hosts.pop("fake-9").lose()
    assert operator.join(operator.token(), "fake-9", pki.new_key()).status_code == 200, "the name is free"
    assert operator.ask("GET", "/hosts/nobody").status_code == 404


def test_accounts_of_hosts_that_left_go(operator: Operator) -> None:
    operator.broker.passwords["stranger"] = "x"
    assert operator.join(operator.token(), "stays", pki.new_key()).status_code == 200
    assert operator.joining.reconcile_accounts() == "1 accounts removed"
    assert "stays" in operator.broker.passwords
    assert operator.joining.reconcile_accounts() is None


@pytest.fixture
def command(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """``cumulet host …`` as the administrator; what it printed."""
    settings = {
        "auth": {**operator.cloud.auth("admin"), "user_domain_name": "Default", "project_domain_name": "Default"}
    }
    monkeypatch.setattr("cumulet.cli.host.operator_cloud", lambda name: Client(settings))

    def run(*words: str) -> str:
        done = CliRunner().invoke(host, list(words), catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    return run


def test_the_command(operator: Operator, command: Callable[..., str]) -> None:
    said = command("token", "--host", "cli-1", "--roles", "compute,storage", "--hours", "2")
    (line,) = [line for line in said.splitlines() if line.startswith("cumulet join ")]
    assert line.endswith("--roles compute,storage")
    assert operator.cloud.url in line
    token = line.split("--token ")[1].split()[0]
    assert operator.join(token, "cli-1", pki.new_key(), ("compute", "storage")).status_code == 200
    operator.cloud.add_host("cli-1")
    operator.cloud.wait(lambda: "cli-1" in command("list"))
    row = next(line for line in command("list").splitlines() if "cli-1" in line)
    assert "up" in row
    assert "certificate" in row
    assert "nothing is left" in command("drain", "cli-1", "--reason", "fans")
    assert "drained" in next(line for line in command("list").splitlines() if "cli-1" in line)
    assert "takes work again" in command("drain", "cli-1", "--undo")
    assert "forced down" in command("down", "cli-1")
    assert "is up" in command("down", "cli-1", "--undo")
    nova = Nova(operator.cloud)
    server = nova.boot()
    place = operator.cloud.api("admin").get("compute", f"/servers/{server}")["server"]["OS-EXT-SRV-ATTR:host"]
    assert server in command("drain", place)
    command("drain", place, "--undo")
    nova.remove(server)
    operator.cloud.hosts.pop("cli-1").lose()
    assert "removed" in command("remove", "cli-1")
    assert "cli-1" not in command("list")


def joined_folder(operator: Operator, folder: Path, host: str) -> str:
    """Its key; the folder is as `cumulet join` leaves it."""
    key = pki.new_key()
    answer = operator.join(operator.token(), host, key)
    assert answer.status_code == 200, answer.text
    (folder / "server-key.pem").write_text(key)
    (folder / "server-cert.pem").write_text(answer.json()["certificate"])
    (folder / "server-cert.pem").chmod(0o640)
    return key


def test_a_certificate_is_renewed_with_its_own_key(operator: Operator, tmp_path: Path) -> None:
    key = joined_folder(operator, tmp_path, "renews")
    file = tmp_path / "server-cert.pem"
    first = file.read_text()
    begun, ends = pki.life(first)
    renew = functools.partial(identity.renew, tmp_path, "renews", operator.joining.renew)
    assert not renew(begun + 0.6 * (ends - begun))
    assert file.read_text() == first
    assert renew(begun + 0.7 * (ends - begun))
    second = file.read_text()
    assert second != first
    assert (pki.certified_key_hash(second), file.stat().st_mode & 0o777) == (pki.key_hash(key), 0o640)
    assert [one.name for one in tmp_path.iterdir() if one.name.startswith(".")] == []
    file.write_text(first)  # as if the answer had been lost
    assert renew(ends)
    operator.joining.renew(
        RenewCertificate(host="renews", certificate=file.read_text(), csr=pki.request(key, "renews"))
    )
    file.write_text(first)
    with pytest.raises(Forbidden, match="revoked"):  # a newer one was in use
        renew(ends)


def test_nobody_else_gets_a_certificate_renewed(operator: Operator, tmp_path: Path) -> None:
    joined_folder(operator, tmp_path, "alone")
    certificate = (tmp_path / "server-cert.pem").read_text()

    def ask(host: str, csr: str, certificate: str = certificate) -> None:
        operator.joining.renew(RenewCertificate(host=host, certificate=certificate, csr=csr))

    with pytest.raises(BadInput, match="not signed with the certificate's key"):
        ask("alone", pki.request(pki.new_key(), "alone"))
    own = pki.request((tmp_path / "server-key.pem").read_text(), "alone")
    with pytest.raises(Forbidden):
        ask("another", own)
    with pytest.raises(BadInput):
        ask("alone", own, "no certificate")
    operator.cloud.db.write(lambda tx: operator.joining.leave(tx, "alone"))
    with pytest.raises(Forbidden, match="joins again"):
        ask("alone", own)


def test_a_token_is_good_for_one_host_of_two_at_once(operator: Operator) -> None:
    token = operator.token()
    keys = {name: pki.new_key() for name in ("once-1", "once-2")}
    answers = at_once(*[functools.partial(operator.join, token, name, key) for name, key in keys.items()])
    assert sorted(answer.status_code for answer in answers) == [200, 403]
    for name in keys:
        operator.cloud.control.db.write(functools.partial(operator.joining.leave, host=name))


def test_roles_are_disabled_at_once(operator: Operator) -> None:
    api = operator.cloud.api("admin")
    body = {"binary": "nova-compute", "host": "fake-2"}
    storage = {"binary": "cinder-volume", "host": "fake-2@file"}
    answers = at_once(
        lambda: api.put("compute", "/os-services/disable", body),
        lambda: api.put("volume", "/os-services/disable", storage),
    )
    assert [answer.status for answer in answers] == [200, 200], [answer.text for answer in answers]
    shown = operator.ask("GET", "/hosts/fake-2").json()["host"]
    assert set(shown["disabled"]) == {"compute", "storage"}
    api.put("compute", "/os-services/enable", body)
    api.put("volume", "/os-services/enable", storage)


def test_a_host_is_removed_while_a_volume_comes_to_it(operator: Operator) -> None:
    """It has joined, so it may be removed while it is up."""
    cloud = operator.cloud
    control, api = cloud.control, cloud.api("admin")
    assert operator.join(operator.token(host="fake-3"), "fake-3", pki.new_key()).status_code == 200
    for name in ("fake-1", "fake-2"):
        api.put("volume", "/os-services/disable", {"binary": "cinder-volume", "host": f"{name}@file"})
    volume = cloud.api("demo").post("volume", "/volumes", {"volume": {"size": 1}})["volume"]["id"]
    assert cloud.settle()
    control.db.write(lambda tx: volumes.VOLUMES.change(tx, volume, host=None))
    chosen, answers = threading.Event(), []

    def place(tx: Any) -> None:
        host = placing.choose(tx, control.hosts, volumes.VOLUMES.get(tx, volume))
        chosen.set()
        time.sleep(0.3)
        volumes.VOLUMES.change(tx, volume, host=host)

    def remove() -> None:
        chosen.wait()
        answers.append(operator.ask("DELETE", "/hosts/fake-3").status_code)

    removing = threading.Thread(target=remove)
    removing.start()
    control.db.write(place)
    removing.join()
    assert answers == [409]
    cloud.api("demo").delete("volume", f"/volumes/{volume}")
    for name in ("fake-1", "fake-2"):
        api.put("volume", "/os-services/enable", {"binary": "cinder-volume", "host": f"{name}@file"})
    assert cloud.settle()
    control.db.write(functools.partial(operator.joining.leave, host="fake-3"))


def test_a_host_goes_while_its_certificate_is_renewed(operator: Operator, tmp_path: Path) -> None:
    key = joined_folder(operator, tmp_path, "leaves")
    certificate = (tmp_path / "server-cert.pem").read_text()
    asked = RenewCertificate(host="leaves", certificate=certificate, csr=pki.request(key, "leaves"))

    def renew() -> bool:
        try:
            operator.joining.renew(asked)
        except Forbidden:
            return False
        return True

    _, left = at_once(renew, lambda: operator.cloud.control.db.write(lambda tx: operator.joining.leave(tx, "leaves")))
    assert left
    assert not operator.cloud.control.db.read(lambda tx: hosts.valid_of(tx, "leaves"))
