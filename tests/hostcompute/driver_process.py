"""The compute driver in a process of its own, in a pretend host: it can be killed. Takes one JSON object a line on its
standard input, ``{"n": 1, "do": {...operation}}``, ``"ask"`` or ``"absent"``, and answers ``{"n": 1, ...}`` when it is
done; tells reports as ``{"report": [server, power state, reason]}``. Ends with its input."""

import json
import os
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from cumulet.agent import contract as c
from cumulet.agent.compute.driver import ComputeConfig, ComputeDriver
from cumulet.agent.errors import DriverError
from tests.hostcompute.conftest import Taps

_out = threading.Lock()


def say(**words: Any) -> None:
    with _out:
        print(json.dumps(words), flush=True)


class Hooks:
    def server_changed(self, server_id: str, power_state: int, reason: str = "") -> None:
        say(report=[server_id, power_state, reason])

    def reapply(self, kind: str, ids: Iterable[str] | None = None) -> None:
        """There are no documents."""

    def document(self, kind: str, object_id: str) -> Any | None:
        return None

    def password_posted(self, server_id: str, password: str) -> c.PasswordTaken:
        raise AssertionError("the compute driver serves no metadata")


def work(driver: ComputeDriver, line: dict[str, Any]) -> None:
    n = line["n"]
    try:
        if "do" in line:
            operation = msgspec.convert(line["do"], c.OperationBody)
            result = driver.operations()[type(operation)](operation, lambda fraction=None: say(n=n, progress=fraction))
            say(n=n, done=None if result is None else msgspec.to_builtins(result))
        elif "absent" in line:
            driver.remove_absent(msgspec.convert(line["absent"], c.Absent))
            say(n=n, done=None)
        elif "ask" in line:
            query = msgspec.convert(line["ask"], c.QueryBody)
            say(n=n, done=driver.queries()[type(query)](query))
        else:
            result = getattr(driver, line["call"])(*line.get("with", []))
            say(n=n, done=msgspec.to_builtins(result))
    except DriverError as error:
        say(n=n, error=error.message, code=error.code)
    except Exception as error:
        say(n=n, error=repr(error), code="internal")
        raise


def main() -> None:
    config = msgspec.json.decode(sys.argv[1], type=ComputeConfig, dec_hook=lambda kind, value: Path(value))
    driver = ComputeDriver(config, Taps())
    driver.start(Hooks())
    say(ready=os.getpid())
    for line in sys.stdin:
        threading.Thread(target=work, args=(driver, json.loads(line)), daemon=True).start()


if __name__ == "__main__":
    main()
