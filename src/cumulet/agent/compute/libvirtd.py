"""A private libvirtd for a host where no system one answers (no systemd, or none installed as a service).

Owns: its own /etc/libvirt, /run/libvirt, /var/lib/libvirt, /var/cache/libvirt and /var/log/libvirt, bound over the
system's in a mount namespace, so that a system daemon started later is not disturbed. It is nobody's child: it and its
guests go on when our process ends, and the next start finds it by its socket. Its capability cache is kept, since
probing QEMU takes 10 to 18 seconds.
Refuses: to weaken QEMU's confinement where it need not. A /dev/kvm that QEMU's own user cannot open makes libvirt
throw its capability cache away at every call (8 s each): if KVM is not used, the device is hidden from the daemon; if
it is, or if that user cannot reach our files, QEMU runs as root, with a warning that names the cure.
Fails with `DriverError` (``hypervisor``).
"""

import contextlib
import fcntl
import grp
import os
import pwd
import select
import shutil
import signal
import socket
import subprocess
import time
import uuid
from pathlib import Path

from cumulet.agent.errors import DriverError
from cumulet.agent.outlive import outliving

_START_SECONDS = 120.0
_BOUND = {
    "etc": "/etc/libvirt",
    "run": "/run/libvirt",
    "lib": "/var/lib/libvirt",
    "cache": "/var/cache/libvirt",
    "log": "/var/log/libvirt",
}
QEMU_USER = "libvirt-qemu"  # Debian's; made by its libvirt packages
_AS_ROOT = """\
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = [ ]
cgroup_controllers = [ ]
"""
# in a mount namespace of its own, whose later mounts come from the host and never go back to it
_APART = ("setsid", "--fork", "unshare", "--mount", "--propagation", "slave")
_LAUNCH = """
set -e
for pair; do
  mkdir -p "${pair#*:}"
  mount --bind "${pair%%:*}" "${pair#*:}"
done
[ -z "$HIDDEN_KVM" ] || mount --bind "$HIDDEN_KVM" /dev/kvm
exec "$LIBVIRTD" -f /etc/libvirt/libvirtd.conf -p /run/libvirt/libvirtd.pid
"""


def kvm_for_root_only(device: Path = Path("/dev/kvm"), user: str = QEMU_USER) -> bool:
    """True if the device is there and the user that QEMU is to run as cannot open it."""
    if not device.exists():
        return False
    try:
        return not _may(device.stat(), pwd.getpwnam(user), os.R_OK | os.W_OK)
    except KeyError:
        return True


def impassable(path: Path, user: str = QEMU_USER) -> Path | None:
    """The folder on the way to ``path`` that the user may not pass through, if there is one."""
    account = pwd.getpwnam(user)
    for folder in (*reversed(path.absolute().parents), path.absolute()):
        if folder.exists() and not _may(folder.stat(), account, os.X_OK):
            return folder
    return None


def _mounted_somewhere(place: str) -> bool:
    """In the mount namespace of any process."""
    for mounts in Path("/proc").glob("[0-9]*/mountinfo"):
        with contextlib.suppress(OSError):  # it has ended
            if f" {place} " in mounts.read_text():
                return True
    return False


def _may(about: os.stat_result, account: pwd.struct_passwd, wanted: int) -> bool:
    groups = {account.pw_gid} | {g.gr_gid for g in grp.getgrall() if account.pw_name in g.gr_mem}
    if about.st_uid == account.pw_uid:
        mode = about.st_mode >> 6
    elif about.st_gid in groups:
        mode = about.st_mode >> 3
    else:
        mode = about.st_mode
    return mode & wanted == wanted


def qemu_group() -> str | None:
    """The group that sockets for QEMU must admit."""
    try:
        return grp.getgrnam(QEMU_USER).gr_name
    except KeyError:
        return None


class PrivateLibvirtd:
    """``use_kvm``: whether guests are to run in KVM. ``cache``: where what it learned of QEMU is kept, if elsewhere.
    ``tls``: the folder of this host's certificate, which guests' QEMU shows to other hosts' storage."""

    def __init__(
        self, state: Path, run: Path, *, use_kvm: bool = True, cache: Path | None = None, tls: Path | None = None
    ) -> None:
        self.state, self.run = state, run
        self._cache = cache or state / "cache"
        self.socket = run / "libvirt-sock"
        self.uri = f"qemu+unix:///system?socket={self.socket}"
        self._root_only = kvm_for_root_only()
        self._use_kvm = use_kvm
        self._tls = tls

    def why_as_root(self) -> tuple[str, str] | None:
        """(reason, cure) if QEMU cannot run as its own user here."""
        if self._use_kvm and self._root_only:
            return f"/dev/kvm cannot be opened by the user {QEMU_USER}", "chgrp kvm /dev/kvm && chmod 660 /dev/kvm"
        try:
            pwd.getpwnam(QEMU_USER)
        except KeyError:
            return f"there is no user {QEMU_USER}", "apt-get install libvirt-daemon-system"
        barred = impassable(self.state) or impassable(self.run)
        if barred is not None:
            return f"the user {QEMU_USER} cannot pass through {barred}", f"chmod o+x {barred}"
        return None

    def warnings(self) -> list[dict[str, str]]:
        why = self.why_as_root()
        if why is None:
            return []
        message = f"guests' QEMU processes run as root: {why[0]}"
        return [{"code": "qemu-as-root", "message": message, "cure": f"{why[1]}, then `cumulet destroy` and up again"}]

    def running(self) -> bool:
        """True if the daemon lives and takes connections."""
        if self.pid() is None:
            return False
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(2)
            try:
                probe.connect(str(self.socket))
            except OSError:
                return False
            return True

    def start(self) -> None:
        """Start it if it does not run, and wait until it answers."""
        if len(str(self.run / "qemu-monitor")) > 90:
            raise DriverError("hypervisor", f"{self.run} is too long a path for sockets: set a shorter run_dir")
        self.state.mkdir(parents=True, exist_ok=True)
        with (self.state / "lock").open("w") as lock:  # two agents starting: one daemon
            os.set_inheritable(lock.fileno(), False)
            fcntl.flock(lock, fcntl.LOCK_EX)
            running = self.running()
            if running and self._as_wanted():
                return
            if running:
                self.stop()  # its guests go on
            self._await_socket(self._launch())

    def stop(self) -> None:
        """End the daemon (its guests, if any, go on). Nothing to do if it does not run."""
        pid = self.pid()
        if pid is None:
            return
        os.kill(pid, signal.SIGTERM)
        for deadline, then in ((20, signal.SIGKILL), (5, None)):
            end = time.monotonic() + deadline
            while time.monotonic() < end:
                if self.pid() is None:
                    return
                time.sleep(0.05)
            if then is not None:
                os.kill(pid, then)
        raise DriverError("hypervisor", f"the private libvirtd (process {pid}) does not end")

    def pid(self) -> int | None:
        """Its process, if it lives and is what the pid file means."""
        try:
            pid = int((self.run / "libvirtd.pid").read_text())
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            mounts = Path(f"/proc/{pid}/mountinfo").read_text()
        except (OSError, ValueError):
            return None
        ours = words[:1] and words[0].endswith(b"libvirtd") and " /run/libvirt " in mounts
        return pid if ours else None

    def remove_mount_point(self) -> None:
        """The only one that Debian's packages do not bring; a system daemon's holds its sockets and stays.

        While another private daemon or its guests have their own mounted there it stays: the kernel would unmount it.
        """
        end = time.monotonic() + 2  # ours may be on its last lines
        while _mounted_somewhere(_BOUND["run"]):
            if time.monotonic() > end:
                return
            time.sleep(0.05)
        with contextlib.suppress(OSError):
            Path(_BOUND["run"]).rmdir()

    def _launch(self) -> int:
        """The reading end of a pipe that the daemon holds: it ends with the daemon."""
        program = shutil.which("libvirtd", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        if program is None:
            raise DriverError("hypervisor", "libvirtd is missing: apt-get install libvirt-daemon-system")
        for name in _BOUND:
            self._directory(name).mkdir(parents=True, exist_ok=True)
        for path in (self.state, self.run):
            path.chmod(0o755)  # QEMU's own user passes through
        for name in ("qemu", "images", "boot"):
            (self._directory("lib") / name).mkdir(exist_ok=True)
        as_root = self.why_as_root() is not None
        hidden = self.state / "no-kvm"
        hidden.touch(mode=0)
        hide = self._root_only and not as_root
        self._configure(as_root=as_root, hide=hide)
        pairs = [f"{self._directory(name)}:{place}" for name, place in _BOUND.items()]
        log = self._directory("log") / "start.log"
        alive, held = os.pipe()
        with log.open("ab") as output, os.fdopen(held):
            subprocess.run(
                outliving([*_APART, "sh", "-c", _LAUNCH, "sh", *pairs]),
                env={
                    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                    "LIBVIRTD": program,
                    "HIDDEN_KVM": str(hidden) if hide else "",
                },
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(held,),
                check=True,
            )
        return alive

    def _directory(self, name: str) -> Path:
        return {"run": self.run, "cache": self._cache}.get(name, self.state / name)

    def _configure(self, *, as_root: bool, hide: bool) -> None:
        etc = self._directory("etc")
        identity = self.state / "host-uuid"
        if not identity.exists():
            identity.with_suffix(".new").write_text(str(uuid.uuid4()))
            os.replace(identity.with_suffix(".new"), identity)
        (etc / "libvirtd.conf").write_text(
            'listen_tls = 0\nauth_unix_ro = "none"\nauth_unix_rw = "none"\nunix_sock_rw_perms = "0700"\n'
            'unix_sock_ro_perms = "0700"\nmax_clients = 200\nmax_workers = 40\n'
            f'host_uuid = "{identity.read_text().strip()}"\n'
            'log_outputs = "3:file:/var/log/libvirt/libvirtd.log"\n'
        )
        # no virtlogd here: QEMU writes its own logs; its /dev cannot be private where a mount hides a device
        more = _AS_ROOT if as_root else "namespaces = [ ]\n" if hide else ""
        (etc / "qemu.conf").write_text('stdio_handler = "file"\n' + more + self._identity())

    def _identity(self) -> str:
        return f'nbd_tls_x509_cert_dir = "{self._tls}"\n' if self._tls is not None else ""

    def _as_wanted(self) -> bool:
        """Does the daemon that runs know this host's certificate?"""
        try:
            text = (self._directory("etc") / "qemu.conf").read_text()
        except OSError:
            return True
        return self._identity() in text if self._tls is not None else "nbd_tls_x509_cert_dir" not in text

    def _await_socket(self, alive: int) -> None:
        end = time.monotonic() + _START_SECONDS
        with os.fdopen(alive, "rb") as pipe:
            while not self.running():
                ended = bool(select.select([pipe], [], [], 0.05)[0])
                if time.monotonic() > end or (ended and self.pid() is None):
                    log = self._directory("log") / "start.log"
                    said = log.read_text(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
                    raise DriverError("hypervisor", f"the private libvirtd did not start: {said[0]} (see {log})")
