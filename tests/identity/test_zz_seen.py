"""Last of this folder: what its tests saw succeed."""

import threading
from collections import Counter

import pytest
from tests.identity.conftest import Identity

from cumulet.kernel.ids import new_hex


def test_names_are_unique_under_concurrency(identity: Identity, admin: str) -> None:
    body = {"user": {"name": new_hex()}}
    met: Counter[int] = Counter()
    start = threading.Barrier(6)

    def create() -> None:
        start.wait()
        met[identity.ask("POST", "/users", admin, json=body).status_code] += 1

    threads = [threading.Thread(target=create) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert met == {201: 1, 409: 5}


def test_every_operation_was_seen_to_succeed(identity: Identity, request: pytest.FixtureRequest) -> None:
    collected = {item.path.name for item in request.session.items}
    if not {"test_nouns.py", "test_tokens.py", "test_sdk.py"} <= collected:
        pytest.skip("needs the tests of the whole folder in one run")
    wanted = {(route.method, route.path) for route in identity.api.routes}
    unseen = sorted(f"{method} {path}" for method, path in wanted - identity.succeeded)
    assert not unseen, "\n".join(unseen)
