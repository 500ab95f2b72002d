"""A private RabbitMQ node: own name, ports, directories, cookie and epmd; the system's is never touched."""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

from tests.support import leftovers
from tests.support.certificates import Files
from tests.support.ports import free_ports

_BIN = Path("/usr/lib/rabbitmq/bin")


class RabbitServer:
    def __init__(self, address: str = "127.0.0.1", *, management: bool = False, tls: Files | None = None) -> None:
        """``management``: with the HTTP API that makes accounts. ``tls``: nothing without it."""
        self.address = address
        self.directory = leftovers.directory("cumulet-rabbit-")
        self.port, self._dist_port, self._epmd_port, self._management_port = free_ports(4)
        self._management = management
        self._tls = tls
        self._node = f"cumulet-{self.port}@localhost"
        self._process: subprocess.Popen[bytes] | None = None
        self._epmd: subprocess.Popen[bytes] | None = None
        kind = "tcp" if tls is None else "ssl"
        api = f"management.{kind}.ip = {address}\nmanagement.{kind}.port = {self._management_port}\n"
        listen = f"listeners.tcp.default = {address}:{self.port}\n"
        if tls is not None:
            own = self._own(tls)
            listen = f"listeners.tcp = none\nlisteners.ssl.default = {address}:{self.port}\n"
            listen += "".join(f"ssl_options.{name} = {path}\n" for name, path in own.items())
            api += "".join(f"management.ssl.{name} = {path}\n" for name, path in own.items())
        (self.directory / "rabbitmq.conf").write_text(
            (api if management else "") + listen + "default_user = cumulet\ndefault_pass = cumulet\n"
            "disk_free_limit.absolute = 50MB\nvm_memory_high_watermark.absolute = 400MB\nlog.console = false\n"
        )
        (self.directory / "enabled_plugins").write_text("[rabbitmq_management].\n" if management else "[].\n")
        cookie = self.directory / ".erlang.cookie"
        cookie.write_text(os.urandom(16).hex())
        cookie.chmod(0o400)
        if os.geteuid() == 0:
            self.directory.chmod(0o755)
            for path in (self.directory, *self.directory.iterdir()):
                shutil.chown(path, "rabbitmq", "rabbitmq")

    def _own(self, tls: Files) -> dict[str, Path]:
        names = {"cacertfile": tls.ca, "certfile": tls.certificate, "keyfile": tls.key}
        return {name: Path(shutil.copy(path, self.directory)) for name, path in names.items()}

    @staticmethod
    def available() -> bool:
        return (_BIN / "rabbitmq-server").exists() and shutil.which("epmd") is not None

    @property
    def url(self) -> str:
        return f"amqp{'s' if self._tls else ''}://cumulet:cumulet@{self.address}:{self.port}//"

    @property
    def management_url(self) -> str:
        return f"http{'s' if self._tls else ''}://cumulet:cumulet@{self.address}:{self._management_port}"

    @property
    def pid(self) -> int:
        return int((self.directory / "pid").read_text())

    def _environment(self) -> dict[str, str]:
        here = str(self.directory)
        return {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": here,
            "LANG": "C.UTF-8",
            "RABBITMQ_NODENAME": self._node,
            **(
                {"RABBITMQ_NODE_IP_ADDRESS": self.address, "RABBITMQ_NODE_PORT": str(self.port)}
                if self._tls is None
                else {}
            ),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_MNESIA_BASE": here + "/mnesia",
            "RABBITMQ_LOG_BASE": here + "/log",
            "RABBITMQ_CONFIG_FILE": here + "/rabbitmq",
            "RABBITMQ_CONF_ENV_FILE": here + "/none",
            "RABBITMQ_ENABLED_PLUGINS_FILE": here + "/enabled_plugins",
            "RABBITMQ_PID_FILE": here + "/pid",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none",
            "RABBITMQ_CTL_ERL_ARGS": "+S 1:1",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }

    def _spawn(self, *command: str) -> "subprocess.Popen[bytes]":
        as_user: dict[str, object] = {"user": "rabbitmq", "group": "rabbitmq", "extra_groups": []}
        return subprocess.Popen(
            command,
            env=self._environment(),
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=(self.directory / "out").open("ab"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **(as_user if os.geteuid() == 0 else {}),  # type: ignore[call-overload]
        )

    def start(self) -> None:
        if self._epmd is None:
            self._epmd = self._spawn(shutil.which("epmd") or "epmd", "-port", str(self._epmd_port))
            self._wait_port("127.0.0.1", self._epmd_port, 10)
        self._process = self._spawn(str(_BIN / "rabbitmq-server"))
        self._wait_port(self.address, self.port, 60)
        if self._management:
            self._wait_port(self.address, self._management_port, 60)

    def _wait_port(self, address: str, port: int, seconds: float) -> None:
        end = time.monotonic() + seconds
        while True:
            try:
                socket.create_connection((address, port), timeout=1).close()
                return
            except OSError as error:
                dead = self._process is not None and self._process.poll() is not None
                if dead or time.monotonic() > end:
                    log = (self.directory / "out").read_text(errors="replace")[-3000:]
                    raise RuntimeError(f"RabbitMQ did not start on {port}:\n{log}") from error
                time.sleep(0.05)

    def kill(self) -> None:
        """As if power was lost; `start` brings it back with what was on disk."""
        if self._process is not None:
            pid_file = self.directory / "pid"
            pids = {self._process.pid}
            if pid_file.exists() and pid_file.read_text().strip().isdigit():
                pids.add(int(pid_file.read_text()))
            for pid in pids:
                try:
                    os.kill(pid, 9)
                except ProcessLookupError:
                    continue
            self._process.wait(10)
            self._process = None
            while any(Path(f"/proc/{pid}").exists() for pid in pids):
                time.sleep(0.01)

    def destroy(self) -> None:
        self.kill()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait(10)
            self._epmd = None
        shutil.rmtree(self.directory, ignore_errors=True)
