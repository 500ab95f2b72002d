"""Names under concurrent requests."""

import threading
from collections import Counter

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
