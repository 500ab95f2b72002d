"""The network driver inside a pretend host: JSON lines in, JSON lines out. Killed without warning by the tests."""

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec

from cumulet.agent.contract import DOCUMENTS, MendItem, PasswordTaken, PortDoc
from cumulet.agent.errors import DriverError
from cumulet.agent.network.config import NetworkConfig
from cumulet.agent.network.driver import NetworkDriver

# what changes a host, as CPython's audit events call it: each is told before it is done
_STEPS = ("subprocess.Popen", "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.kill")


class NoHooks:
    def __init__(self) -> None:
        self.asked: list[Any] = []

    def server_changed(self, server_id: str, power_state: int, reason: str = "") -> None:
        self.asked.append(("server_changed", server_id))

    def reapply(self, kind: str, ids: Any = None) -> None:
        self.asked.append(("reapply", kind))

    def document(self, kind: str, object_id: str) -> Any | None:
        return None

    def password_posted(self, server_id: str, password: str) -> PasswordTaken:
        """As the control plane: the first stays."""
        known = any(what == "password" and server == server_id for what, server, *_ in self.asked)
        self.asked.append(("password", server_id, password))
        return PasswordTaken(outcome="conflict" if known else "kept")


def main() -> None:
    config = msgspec.json.decode(sys.argv[1], type=NetworkConfig, dec_hook=lambda kind, value: Path(value))
    driver = NetworkDriver(config)
    hooks = NoHooks()
    driver.start(hooks)
    counted: list[list[str]] = []
    import cumulet.agent.network.shell as shell

    original = shell.subprocess.run

    def counting(argv: list[str], **more: Any) -> Any:
        counted.append([*argv, (more.get("input") or "")])
        return original(argv, **more)

    shell.subprocess.run = counting  # type: ignore[assignment]

    left: list[int] = []  # steps until death

    def step(event: str, _: tuple[Any, ...]) -> None:
        if left and event in _STEPS and threading.current_thread().name != "ovs-watch":
            left[0] -= 1
            if left[0] < 0:
                os._exit(9)

    sys.addaudithook(step)

    def call(name: str, *args: Any) -> Any:
        if name == "die_before":
            left[:] = args
            return None
        if name == "apply":
            kind, document = args
            return driver.documents()[kind].apply(msgspec.convert(document, DOCUMENTS[kind]))
        if name == "remove":
            return driver.documents()[args[0]].remove(args[1], args[2])
        if name == "list":
            return list(driver.documents()[args[0]].list())
        if name == "plug":
            return driver.ports.plug(msgspec.convert(args[0], PortDoc))
        if name == "unplug":
            return driver.ports.unplug(args[0])
        if name == "audit":
            documents: dict[str, dict[str, Any]] = {kind: {} for kind in args[0]}
            for kind, some in args[0].items():
                documents[kind] = {one["id"]: msgspec.convert(one, DOCUMENTS[kind]) for one in some}
            return msgspec.to_builtins(driver.audit(documents))
        if name == "mend":
            return driver.mend(msgspec.convert(args[0], MendItem))
        if name == "distrust":
            return driver.distrust(msgspec.convert(args[0], MendItem))
        if name == "facts":
            return msgspec.to_builtins(driver.facts())
        if name == "why":
            return driver.why
        if name == "asked":
            return hooks.asked
        return msgspec.to_builtins(getattr(driver, name)(*args))

    print(json.dumps({"ok": "ready"}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        counted.clear()
        try:
            reply: dict[str, Any] = {"ok": call(*request)}
        except DriverError as error:
            reply = {"error": error.code, "message": error.message}
        reply["commands"] = list(counted)
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
