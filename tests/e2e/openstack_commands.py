"""OpenStack's own command line, imported once: every command is the unmodified client's, in a fork of this process.

Starting the client anew for each command costs seconds of imports; here it costs none. A line on standard input is
the arguments as JSON; the answer is a line of JSON with the exit status, standard output and standard error.
"""

import contextlib
import json
import os
import sys
import tempfile
from importlib.metadata import entry_points

from openstackclient import shell


def run(argv: list[str]) -> tuple[int, str, str]:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                try:
                    code = shell.main(argv)
                except SystemExit as ended:
                    code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        out.seek(0)
        err.seek(0)
        return code, out.read().decode(), err.read().decode()


def main() -> None:
    for group in entry_points().groups:
        if group.startswith("openstack."):
            for point in entry_points(group=group):
                with contextlib.suppress(ImportError):
                    point.load()
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
