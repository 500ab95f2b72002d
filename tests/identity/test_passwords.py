"""What hashing passwords leaves behind in a process of ours."""

import subprocess
import sys

import pytest

_LOGINS = """
import threading
from cumulet.app import _keep_little
from cumulet.services.identity.passwords import Passwords
_keep_little()
passwords = Passwords()
kept = passwords.hash("secret")

def anonymous():
    return sum(int(line.split()[1]) for line in open("/proc/self/smaps_rollup") if line.startswith("Anonymous:"))

before = anonymous()
for _ in range(3):
    thread = threading.Thread(target=passwords.matches, args=(kept, "wrong"))
    thread.start()
    thread.join()
print(anonymous() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_memory_of_a_hash_is_given_back() -> None:
    """Each takes 19 MiB for a moment."""
    done = subprocess.run([sys.executable, "-c", _LOGINS], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 4096  # KiB
