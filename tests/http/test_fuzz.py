"""schemathesis over our own OpenAPI documents: no request, however senseless, is answered by a 5xx.

Runs only with ``CUMULET_FUZZ`` set to the number of requests made up per operation (20 for a release; 2 take minutes).
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = os.environ.get("CUMULET_FUZZ", "")
SERVICES = ("identity", "image", "placement", "network", "volume", "compute")


@pytest.mark.clients
@pytest.mark.skipif(not EXAMPLES, reason="set CUMULET_FUZZ to run it")
@pytest.mark.timeout(1800)
def test_nothing_makes_a_service_fail(new_cloud: Callable[..., Any], tmp_path: Path) -> None:
    cloud = new_cloud(hosts=1)
    token = cloud.api("admin").token
    client = Path(sys.executable).with_name("schemathesis")
    failed = []
    for service in SERVICES:
        command = [client, "run", f"{cloud.url}/openapi/{service}.json", "--url", cloud.url]
        command += ["-H", f"X-Auth-Token: {token}", "--checks", "not_a_server_error", "--phases", "fuzzing"]
        command += ["--mode", "all", "--max-examples", EXAMPLES, "--request-timeout", "30", "--no-color"]
        command += ["--exclude-path", "/identity/v3/auth/tokens"]  # it would revoke the token in use
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        if done.returncode != 0 or "Tested:" not in done.stdout:
            failed.append(f"{service}:\n{done.stdout[-4000:]}{done.stderr[-1000:]}")
    assert not failed, "\n".join(failed)
