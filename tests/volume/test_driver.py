"""The storage driver on real qcow2 files and a real qemu-storage-daemon."""

import hashlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cumulet.agent import contract as c
from cumulet.agent.errors import DriverError
from cumulet.agent.image.cache import CachedImage, ImageCache
from cumulet.agent.volume import fetch as volume_fetch
from cumulet.agent.volume.driver import FileProvider, StorageDriver
from cumulet.agent.volume.qmp import Qmp
from cumulet.kernel import pki
from cumulet.kernel.ids import new_uuid
from tests.agent.conformance import DriverRig, StorageConformance, StorageRig, VolumeMoveConformance, VolumeMoveRig
from tests.support import leftovers
from tests.support.ports import free_ports

pytestmark = pytest.mark.skipif(
    shutil.which("qemu-storage-daemon") is None or shutil.which("qemu-io") is None, reason="QEMU's tools are missing"
)
MIB = 1 << 20


def alive(fraction: float | None = None) -> None:
    return None


class Host:
    def __init__(self, root: Path, run: Path, **more: Any) -> None:
        self.provider = FileProvider(root / "storage", run, ImageCache(root / "cache"), **more)
        self.provider.start()
        self.operations = self.provider.operations()

    def do(self, operation: c.Operation):
        return self.operations[type(operation)](operation, alive)

    def create(self, **more) -> str:
        volume_id = new_uuid()
        self.do(c.CreateVolume(volume_id=volume_id, size_gb=1, **more))
        return volume_id

    def export(self, volume_id: str, attachment_id: str = "a" * 8, generation: int = 1) -> str:
        made = self.do(
            c.ExportVolume(
                volume_id=volume_id, attachment_id=attachment_id, attachment_generation=generation, host="here"
            )
        )
        return made.connection.uri

    def path(self, volume_id: str) -> str:
        return str(self.provider.volumes.path(volume_id))


def io(target: str, *commands: str, form: str | None = None) -> None:
    form = form or ("raw" if target.startswith("nbd") else "qcow2")
    flags = [flag for command in commands for flag in ("-c", command)]
    done = subprocess.run(["qemu-io", "-f", form, *flags, target], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mismatch" not in done.stdout, done.stdout
    assert "failed" not in done.stdout, done.stdout


@pytest.fixture
def host(tmp_path):
    run = leftovers.directory("vol-", "/tmp")
    made = Host(tmp_path, run)
    yield made
    made.provider.daemon.stop()
    shutil.rmtree(run)


def test_a_volume_is_made_grown_and_removed_any_number_of_times(host):
    volume = host.create()
    for _ in range(2):
        host.do(c.CreateVolume(volume_id=volume, size_gb=1))
        host.do(c.ExtendVolume(volume_id=volume, new_size_gb=2))
    assert host.provider.volumes.size(volume) == 2 << 30
    assert host.provider.inventory().volumes == [volume]
    for _ in range(2):
        host.do(c.DeleteVolume(volume_id=volume))
    assert host.provider.inventory().volumes == []
    with pytest.raises(DriverError, match="no volume"):
        host.do(c.ExtendVolume(volume_id=volume, new_size_gb=3))


def test_exports_are_fenced_by_generation_and_outlive_us(host, tmp_path):
    volume = host.create()
    uri = host.export(volume)
    assert host.export(volume) == uri
    io(uri, "write -P 7 0 1M")
    again = Host(tmp_path, host.provider.daemon.run_dir)  # the agent starts anew: the daemon is the same
    io(uri, "read -P 7 0 1M")
    assert again.provider.inventory().exports == [(volume, "a" * 8)]
    newer = again.export(volume, generation=2)
    io(newer, "read -P 7 0 1M")
    with pytest.raises(AssertionError):
        io(uri, "read 0 1M")
    with pytest.raises(DriverError, match="fenced"):
        again.export(volume, generation=1)
    with pytest.raises(DriverError, match="exported"):
        again.do(c.DeleteVolume(volume_id=volume))
    for _ in range(2):
        again.do(c.UnexportVolume(volume_id=volume, attachment_id="a" * 8))
    with pytest.raises(DriverError, match="fenced"):
        again.export(volume, generation=1)
    again.do(c.DeleteVolume(volume_id=volume))
    assert list((tmp_path / "storage" / "exports").iterdir()) == []


@pytest.mark.parametrize("tended", [False, True])
def test_exports_come_back_after_the_daemon_died(host, tmp_path, tended):
    volume = host.create()
    uri = host.export(volume)
    io(uri, "write -P 3 0 64k")
    pid = int(host.provider.daemon.pid_file.read_text())
    os.kill(pid, signal.SIGKILL)
    while (process := Path(f"/proc/{pid}/cmdline")).exists() and process.read_bytes():
        time.sleep(0.01)
    if tended:
        host.provider.facts()  # with the next heartbeat
    else:
        Host(tmp_path, host.provider.daemon.run_dir)
    io(uri, "read -P 3 0 64k")


def test_a_daemon_that_does_not_answer_is_not_started_twice(host, monkeypatch):
    uri, pid_file = host.export(host.create()), host.provider.daemon.pid_file
    pid = int(pid_file.read_text())
    monkeypatch.setattr("cumulet.agent.volume.daemon.Qmp", partial(Qmp, timeout=0.3))
    os.kill(pid, signal.SIGSTOP)
    try:
        host.provider.facts()
        with pytest.raises(DriverError, match="does not answer"):
            host.export(host.create())
    finally:
        os.kill(pid, signal.SIGCONT)
    assert int(pid_file.read_text()) == pid
    io(uri, "read 0 64k")


@pytest.mark.parametrize("exported", [False, True])
def test_snapshots_keep_what_was(host, exported):
    volume, snapshot = host.create(), new_uuid()
    uri = host.export(volume) if exported else host.path(volume)
    io(uri, "write -P 1 0 1M")
    for _ in range(2):
        host.do(c.CreateVolumeSnapshot(snapshot_id=snapshot, volume_id=volume))
    io(uri, "write -P 2 0 1M")
    made = host.create(source_snapshot_id=snapshot, source_snapshot_volume_id=volume)
    io(host.path(made), "read -P 1 0 1M")
    clone = host.create(source_volume_id=volume)
    io(host.path(clone), "read -P 2 0 1M")
    with pytest.raises(DriverError):
        host.do(c.DeleteVolume(volume_id=volume))
    if not exported:
        host.do(c.RevertVolume(volume_id=volume, snapshot_id=snapshot))
        io(uri, "read -P 1 0 1M")
    for _ in range(2):
        host.do(c.DeleteVolumeSnapshot(snapshot_id=snapshot, volume_id=volume))
    assert host.provider.volumes.snapshots(volume) == []


def test_an_exported_volume_grows(host):
    volume = host.create()
    uri = host.export(volume)
    io(uri, "write -P 5 0 1M")
    for _ in range(2):
        host.do(c.ExtendVolume(volume_id=volume, new_size_gb=2))
    io(uri, "read -P 5 0 1M", "write -P 6 1536M 1M")


def test_a_guest_that_reconnects_keeps_its_data_and_sees_the_new_size(host, tmp_path):
    """Another QEMU stands for the guest's: an NBD node with reconnect-delay, as compute hosts make it."""
    volume = host.create()
    name = host.export(volume).partition("///")[2].partition("?")[0]
    run = host.provider.daemon.run_dir
    node = f"driver=nbd,node-name=n,server.type=unix,server.path={run}/nbd.sock,export={name},reconnect-delay=30"
    guest = subprocess.Popen(
        [
            *("qemu-storage-daemon", "--chardev", f"socket,id=q,path={run}/guest.qmp,server=on,wait=off"),
            *("--monitor", "chardev=q", "--blockdev", node, "--blockdev", "driver=raw,node-name=f,file=n"),
            *("--nbd-server", f"addr.type=unix,addr.path={run}/guest.nbd"),
            *("--export", "nbd,id=e,node-name=f,name=x,writable=on"),
        ]
    )
    try:
        disk = f"nbd+unix:///x?socket={run}/guest.nbd"
        end = time.monotonic() + 10
        while not (run / "guest.nbd").exists():
            assert time.monotonic() < end
            time.sleep(0.01)
        io(disk, "write -P 5 0 1M")
        host.do(c.ExtendVolume(volume_id=volume, new_size_gb=2))
        io(disk, "read -P 5 0 1M", "write -P 6 1M 1M")
        with Qmp(run / "guest.qmp") as qmp:
            qmp.execute("block-export-del", id="e", mode="hard")
            while qmp.execute("query-block-exports"):
                assert time.monotonic() < end
                time.sleep(0.01)
            qmp.execute("block_resize", **{"node-name": "f"}, size=2 << 30)
            nodes = qmp.execute("query-named-block-nodes", flat=True)
        assert {one["image"]["virtual-size"] for one in nodes} == {2 << 30}
    finally:
        guest.kill()
        guest.wait()


def test_a_volume_is_made_from_an_image_and_becomes_one(host, tmp_path):
    data = os.urandom(MIB)
    source = tmp_path / "image"
    source.write_bytes(data)
    digest = hashlib.sha512(data).hexdigest()
    image = c.ImageSource(image_id=new_uuid(), disk_format="raw", size=MIB, sha512=digest, path=str(source))
    volume = host.create(image=image)
    target = tmp_path / "uploaded"
    upload = c.Upload(image_id=new_uuid(), disk_format="qcow2", path=str(target))
    for _ in range(2):
        made = host.do(c.UploadVolume(volume_id=volume, upload=upload))
    stored = target.read_bytes()
    assert (made.size, made.virtual_size_bytes) == (len(stored), 1 << 30)
    assert made.sha512 == hashlib.sha512(stored).hexdigest()
    subprocess.run(["qemu-img", "convert", "-O", "raw", target, tmp_path / "raw"], check=True)
    with open(tmp_path / "raw", "rb") as raw:
        assert raw.read(MIB) == data


def test_an_image_larger_than_the_volume_is_refused(host, tmp_path, monkeypatch):
    (tmp_path / "base").touch()
    big = CachedImage(tmp_path / "base", True, 0, (1 << 30) + 1)
    monkeypatch.setattr(host.provider.cache, "get", lambda source, progress: big)
    with pytest.raises(DriverError, match="does not fit"):
        host.create(image=c.ImageSource(image_id=new_uuid(), disk_format="raw", size=1))


def test_backups_hold_what_was_and_share_chunks(host):
    volume = host.create()
    io(host.path(volume), "write -P 1 0 8M", "write -P 2 512M 4M")
    first, second = new_uuid(), new_uuid()
    made = host.do(c.BackupVolume(volume_id=volume, backup_id=first))
    assert made.object_count == 3
    io(host.path(volume), "write -P 9 512M 4M")
    uri = host.export(volume)
    for _ in range(2):
        host.do(c.BackupVolume(volume_id=volume, backup_id=second, parent_backup_id=first))
    with pytest.raises(DriverError, match="exported"):
        host.do(c.RestoreBackup(volume_id=volume, backup_id=first))
    host.do(c.UnexportVolume(volume_id=volume, attachment_id="a" * 8))
    assert uri
    io(host.path(volume), "write -P 4 0 16M", "write -P 4 512M 16M", "write -P 4 600M 4M")
    host.do(c.RestoreBackup(volume_id=volume, backup_id=first))
    io(host.path(volume), "read -P 1 0 8M", "read -P 2 512M 4M", "read -P 0 600M 4M")
    for _ in range(2):
        host.do(c.DeleteBackup(backup_id=first))
    other = host.create()
    host.do(c.RestoreBackup(volume_id=other, backup_id=second))
    io(host.path(other), "read -P 1 0 8M", "read -P 9 512M 4M")
    with pytest.raises(DriverError, match="no backup"):
        host.do(c.RestoreBackup(volume_id=other, backup_id=first))


def things(host: Host, kind: str) -> list[str]:
    return [thing.id for thing in host.provider.audit().things if thing.kind == kind]


def item(kind: str, id: str) -> c.MendItem:
    return c.MendItem(kind=kind, id=id, problem="unknown", generation=1)


def test_an_audit_lists_all_and_what_holds_data_is_moved_aside(host):
    volume, stranger = host.create(), host.create()
    host.export(volume)
    host.do(c.BackupVolume(volume_id=volume, backup_id="b" * 8))
    assert sorted(things(host, "volume")) == sorted([volume, stranger])
    assert things(host, "export") == [f"{volume}/aaaaaaaa"]
    assert things(host, "backup") == ["b" * 8]
    assert set(host.provider.audit().kinds) == {"volume", "export", "backup"}
    io(host.path(stranger), "write -P 9 0 1M")
    before = Path(host.path(stranger)).read_bytes()
    for _ in range(2):
        assert "aside" in host.provider.mend(item("volume", stranger))
    assert things(host, "volume") == [volume]
    assert things(host, "quarantine") == [f"volume/{stranger}"]
    (kept,) = (host.provider.volumes.root / "aside").iterdir()
    assert kept.read_bytes() == before
    with pytest.raises(DriverError, match="is exported"):
        host.provider.mend(item("volume", volume))
    for _ in range(2):
        assert host.provider.mend(item("export", f"{volume}/aaaaaaaa")) == "the export is removed"
    assert things(host, "export") == []
    for _ in range(2):
        assert "aside" in host.provider.mend(item("backup", "b" * 8))
    assert things(host, "backup") == []
    assert sorted(things(host, "quarantine")) == sorted([f"backup/{'b' * 8}", f"volume/{stranger}"])
    assert host.provider.mend(item("tap", "t")) is None


def test_aside_never_overwrites(host):
    volume = host.create()
    host.provider.mend(item("volume", volume))
    host.do(c.CreateVolume(volume_id=volume, size_gb=2))
    host.provider.mend(item("volume", volume))
    assert things(host, "quarantine") == [f"volume/{volume}", f"volume/{volume}.2"]


def test_a_backup_set_aside_takes_nothing_from_others(host):
    volume = host.create()
    io(host.path(volume), "write -P 4 0 1M")
    host.do(c.BackupVolume(volume_id=volume, backup_id="b" * 8))
    host.do(c.BackupVolume(volume_id=volume, backup_id="c" * 8, parent_backup_id="b" * 8))
    host.provider.mend(item("backup", "b" * 8))
    io(host.path(volume), "write -P 5 0 1M")
    host.do(c.RestoreBackup(volume_id=volume, backup_id="c" * 8))
    io(host.path(volume), "read -P 4 0 1M")


def astray(host) -> list[str]:
    return [f"{one.kind}-{one.problem} {one.id}" for one in host.provider.audit().drift]


def test_what_the_daemon_serves_is_what_is_recorded(host):
    volume, other = host.create(), host.create()
    uri = host.export(volume)
    io(uri, "write -P 6 0 64k")
    assert astray(host) == []
    record = f"e{'a' * 8}.1"
    with host.provider.daemon.qmp() as qmp:
        file = {"driver": "file", "filename": host.path(other)}
        qmp.execute("blockdev-add", driver="qcow2", file=file, **{"node-name": "evil"})
        qmp.execute("block-export-add", type="nbd", id="thief", name="thief", **{"node-name": "evil"})
        node = {"node-name": f"v{volume.replace('-', '')[:30]}"}
        qmp.execute("block-export-add", type="nbd", id=f"e{'a' * 8}.7", name="old", **node)  # of another generation
        qmp.execute("block-export-del", id=record, mode="hard")
    assert astray(host) == [f"export-missing {'a' * 8}.1", f"export-unknown e{'a' * 8}.7", "export-unknown thief"]
    for found in host.provider.audit().drift:
        one = c.MendItem(kind=found.kind, id=found.id, problem=found.problem, generation=1)
        for _ in range(2):
            assert host.provider.mend(one)
    assert astray(host) == []
    io(uri, "read -P 6 0 64k")
    io(host.path(other), "write -P 6 0 64k")  # nobody has it open
    assert host.provider.mend(c.MendItem(kind="export", id=record, problem="unknown", generation=1))
    io(uri, "read -P 6 0 64k")


def folder_with_certificate(folder: Path) -> Callable[[], None]:
    """As `cumulet join` makes it; calling what is returned renews the certificate."""
    authority, authority_key = pki.new_authority("test", time.time())
    key = pki.new_key()
    folder.mkdir()
    (folder / "ca-cert.pem").write_text(authority)
    (folder / "server-key.pem").write_text(key)
    for kind in ("cert", "key"):
        (folder / f"client-{kind}.pem").symlink_to(f"server-{kind}.pem")

    def renew() -> None:
        csr = pki.request(key, "here")
        made = pki.sign(authority, authority_key, csr, name="here", addresses=["127.0.0.1"], days=2, now=time.time())
        (folder / "server-cert.pem").write_text(made.certificate)

    renew()
    return renew


def folders_of_one_authority(directory: Path, *names: str) -> list[Path]:
    """The certificates of several hosts."""
    authority, authority_key = pki.new_authority("test", time.time())
    made = []
    for name in names:
        folder = directory / f"pki-{name}"
        folder.mkdir()
        key = pki.new_key()
        csr = pki.request(key, name)
        signed = pki.sign(authority, authority_key, csr, name=name, addresses=["127.0.0.1"], days=2, now=time.time())
        (folder / "ca-cert.pem").write_text(authority)
        (folder / "server-key.pem").write_text(key)
        (folder / "server-cert.pem").write_text(signed.certificate)
        for kind in ("cert", "key"):
            (folder / f"client-{kind}.pem").symlink_to(f"server-{kind}.pem")
        made.append(folder)
    return made


@pytest.fixture
def hosts(tmp_path):
    """Two storage hosts that serve by TCP and TLS, and a third one's certificate."""
    made = []
    folders = folders_of_one_authority(tmp_path, "one", "two", "three")
    for name, folder, port in zip(("one", "two"), folders, free_ports(2), strict=False):
        run = leftovers.directory("vol-", "/tmp")
        made.append(Host(tmp_path / name, run, listen=f"127.0.0.1:{port}", tls=folder))
    yield (*made, folders[2])
    for one in made:
        one.provider.daemon.stop()
        shutil.rmtree(one.provider.daemon.run_dir)


def exported_to(source: Host, volume: str, host: str) -> c.DiskConnection:
    made = source.do(c.ExportVolume(volume_id=volume, attachment_id=new_uuid(), attachment_generation=1, host=host))
    return made.connection


def fetched(volume: str, connection: c.DiskConnection, move: str = "m1", size_gb: int = 1) -> c.FetchVolume:
    return c.FetchVolume(volume_id=volume, size_gb=size_gb, move_id=move, from_host="one", connection=connection)


class TestFiles(StorageConformance):
    @pytest.fixture
    def rig(self, host, tmp_path):
        made = StorageRig(DriverRig(StorageDriver(host.provider), tmp_path), "here")
        yield made
        assert made.volumes() == made.exports() == set()


class TestFilesMove(VolumeMoveConformance):
    @pytest.fixture
    def rig(self, hosts, tmp_path):
        one, two, _ = hosts
        paths = {"one": one.path, "two": two.path}
        here, there = (
            StorageRig(DriverRig(StorageDriver(each.provider), tmp_path), name)
            for each, name in ((one, "one"), (two, "two"))
        )

        def write(rig: StorageRig, volume: str) -> None:
            io(paths[rig.host](volume), "write -P 5 10M 1M")

        def holds(rig: StorageRig, volume: str) -> bool:
            io(paths[rig.host](volume), "read -P 5 10M 1M")
            return True

        yield VolumeMoveRig(here, there, write, holds)
        assert here.volumes() == there.volumes() == set()


def test_a_volume_comes_from_another_host_and_stays_sparse(hosts):
    one, two, _ = hosts
    volume = one.create()
    one.do(c.ExtendVolume(volume_id=volume, new_size_gb=20))
    io(one.path(volume), "write -P 7 0 3M", "write -P 8 15G 2M")
    connection = exported_to(one, volume, "two")
    assert connection.tls
    heard: list[float] = []
    fetch = two.operations[c.FetchVolume]
    fetch(fetched(volume, connection, size_gb=20), heard.append)
    assert heard == sorted(heard)
    assert two.provider.inventory().volumes == [volume]
    assert two.provider.volumes.size(volume) == 20 << 30
    assert Path(two.path(volume)).stat().st_blocks * 512 < 8 * MIB
    io(two.path(volume), "read -P 7 0 3M", "read -P 8 15G 2M", "read -P 0 3M 64M")
    # the same move again is the same outcome, also when the source is no more
    io(two.path(volume), "write -P 9 0 1M")
    one.provider.daemon.stop()
    two.do(fetched(volume, connection, size_gb=20))
    again = Host(Path(two.provider.root).parent, two.provider.daemon.run_dir)
    again.do(fetched(volume, connection, size_gb=20))
    io(two.path(volume), "read -P 9 0 1M")
    for _ in range(2):
        two.do(c.DeleteVolume(volume_id=volume))
    assert [path.name for path in two.provider.volumes.root.iterdir()] == []


def test_an_old_copy_is_never_taken_for_a_new_one(hosts):
    one, two, _ = hosts
    volume = one.create()
    io(one.path(volume), "write -P 1 0 1M")
    connection = exported_to(one, volume, "two")
    two.do(fetched(volume, connection))
    one.do(c.UnexportVolume(volume_id=volume, attachment_id=one.provider.exports.all()[0].attachment_id))
    io(one.path(volume), "write -P 2 0 1M")
    two.do(fetched(volume, exported_to(one, volume, "two"), move="m2"))
    io(two.path(volume), "read -P 2 0 1M")
    assert things(two, "quarantine") == [f"volume/{volume}"]


def test_only_the_host_it_is_exported_to_fetches_it(hosts):
    one, two, third = hosts
    volume = one.create()
    connection = exported_to(one, volume, "three")
    with pytest.raises(DriverError) as refused:
        two.do(fetched(volume, connection))
    assert refused.value.code == "unreachable"
    two.provider.tls = None
    with pytest.raises(DriverError, match="certificate"):
        two.do(fetched(volume, connection))
    two.provider.tls = third
    two.do(fetched(volume, connection))
    assert two.provider.inventory().volumes == [volume]


def test_what_is_gone_or_does_not_fit_leaves_nothing(hosts, monkeypatch):
    one, two, _ = hosts
    volume = one.create()
    io(one.path(volume), "write -P 7 0 3M")
    connection = exported_to(one, volume, "two")
    monkeypatch.setattr(two.provider.volumes, "space", lambda: (1 << 30, 64 * MIB))
    with pytest.raises(DriverError) as full:
        two.do(fetched(volume, connection))
    assert full.value.code == "no-space"
    monkeypatch.undo()
    one.provider.daemon.stop()
    with pytest.raises(DriverError) as gone:
        two.do(fetched(volume, connection))
    assert gone.value.code == "unreachable"
    assert list(two.provider.volumes.root.iterdir()) == []


def test_a_host_that_falls_silent_is_given_up(hosts, monkeypatch):
    one, two, _ = hosts
    volume = one.create()
    io(one.path(volume), "write -P 7 0 3M")
    connection = exported_to(one, volume, "two")
    monkeypatch.setattr("cumulet.agent.volume.fetch.SILENT_SECONDS", 1.5)
    pid = int(one.provider.daemon.pid_file.read_text())
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(DriverError, match="nothing for"):
            two.do(fetched(volume, connection))
    finally:
        os.kill(pid, signal.SIGCONT)
    two.do(fetched(volume, connection))
    io(two.path(volume), "read -P 7 0 3M")


def test_a_copy_that_differs_is_refused(hosts, monkeypatch):
    """The source's guest would have to write meanwhile, or a disk to lie."""
    one, two, _ = hosts
    volume = one.create()
    io(one.path(volume), "write -P 7 0 3M")
    connection = exported_to(one, volume, "two")
    real = volume_fetch._run

    def lies(arguments: list[str], *ahead: Any) -> bytes:
        if arguments[0] == "compare":
            io(arguments[-1].rpartition("=")[2], "write -P 1 1M 64k")
        return real(arguments, *ahead)

    monkeypatch.setattr(volume_fetch, "_run", lies)
    with pytest.raises(DriverError) as differs:
        two.do(fetched(volume, connection))
    assert differs.value.code == "copy-differs"
    assert two.provider.inventory().volumes == []


def test_copies_left_behind_go_when_named(host):
    volume, used = host.create(), host.create()
    host.export(used)
    absent = c.Absent(volumes=[volume, new_uuid()], exports=[])
    for _ in range(2):
        host.provider.remove_absent(absent)
    assert host.provider.inventory().volumes == [used]
    with pytest.raises(DriverError, match="exported"):
        host.provider.remove_absent(c.Absent(volumes=[used]))


def test_a_renewed_certificate_waits_until_nobody_is_served(tmp_path):
    (port,) = free_ports(1)
    folder = tmp_path / "pki"
    renew = folder_with_certificate(folder)
    run = leftovers.directory("vol-", "/tmp")
    host = Host(tmp_path, run, listen=f"127.0.0.1:{port}", tls=folder)
    daemon = host.provider.daemon
    try:
        volume = host.create()
        host.export(volume)
        pid = daemon.pid_file.read_text()
        assert host.provider.facts().warnings == []
        renew()
        host.export(volume, "b" * 8)
        assert daemon.pid_file.read_text() == pid, "it serves somebody"
        (warning,) = host.provider.facts().warnings  # the one it shows ends in two days
        assert warning["code"] == "volumes-old-certificate"
        for attachment in ("a" * 8, "b" * 8):
            host.do(c.UnexportVolume(volume_id=volume, attachment_id=attachment))
        host.export(volume, "c" * 8)
        assert daemon.pid_file.read_text() != pid
        assert daemon.shown.read_text() == (folder / "server-cert.pem").read_text()
        assert host.provider.facts().warnings == []
        target = f"driver=nbd,host=127.0.0.1,port={port},export={'c' * 8}.1,tls-creds=t"
        words = ["qemu-img", "info", "--object", f"tls-creds-x509,id=t,dir={folder},endpoint=client"]
        done = subprocess.run([*words, "--image-opts", target], capture_output=True, text=True, check=False)
        assert "1 GiB" in done.stdout, done.stderr
    finally:
        daemon.stop()
        shutil.rmtree(run)
