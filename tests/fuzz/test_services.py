"""schemathesis over every service's own OpenAPI document, and bodies that nearly make sense.

No request is answered by a 5xx or logged as a defect; every fault has its service's shape and its request id; what
was refused left no new row. ``--fuzz-requests N`` per operation (as admin and, every fourth, as a plain member),
``--fuzz-seed N`` to see other ones: one seed sends the same requests again.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from cumulet.http.openapi import document as openapi
from tests.fuzz import rows
from tests.fuzz.asgi import InProcess, Sent
from tests.fuzz.cases import cases, operations
from tests.fuzz.conftest import Defects
from tests.fuzz.judge import complaints
from tests.fuzz.values import Bodies
from tests.fuzz.world import EXAMPLES, JSON_PATCH, QUERY_NAMES, QUERY_VALUES, World

SERVICES = ("identity", "image", "placement", "network", "volume", "compute", "operator")
PARAMETER = re.compile(r"\{(\w+)\}")
READING = ("GET", "HEAD")


class Fuzzer:
    """Makes requests of one service's cases, sends and judges them."""

    def __init__(self, service: str, world: World, client: InProcess, defects: Defects, seed: int) -> None:
        self.service, self.world, self.client, self.defects = service, world, client, defects
        self.api = world.cloud.control.http.apis[service]
        self.document = openapi(self.api)
        self.dice = random.Random(f"{seed}/{service}")
        self.seed = seed
        self.bodies = Bodies(self.document, world.pools, self.dice)
        self.statuses: Counter[int] = Counter()
        self.came_through: set[str] = set()
        self.problems: list[str] = []
        self.rows = rows.at_rest(world.cloud.db)

    def run(self, count: int) -> int:
        self._refill()
        found = operations(self.document)
        for operation in found:
            if operation.method.upper() == "DELETE" and self.dice.random() < 0.2:
                self._refill()
            for turn, (_, case) in enumerate(cases(operation, count, self.seed)):
                self._try(operation, self._body(case.body), case.media_type, case, turn)
            template = self._template(operation)
            if template is not None:
                for turn in range(count // 2):
                    body = template()
                    if turn % 3:
                        body = self.bodies.broken(body)
                    self._try(operation, self._encode(body), None, None, turn)
        print("refused whatever was sent:", *sorted({one.label for one in found} - self.came_through), sep="\n    ")
        return len(found)

    def _refill(self) -> None:
        self.world.refill()
        self.rows = rows.at_rest(self.world.cloud.db)

    # -- one request -----------------------------------------------------------------------------------------

    def _try(self, operation: Any, body: bytes | None, media_type: str | None, case: Any, turn: int) -> None:
        method = operation.method.upper()
        user = "demo" if turn % 4 == 3 else "admin"
        headers = {"accept": "application/json", "x-auth-token": self.world.cloud.api(user).token}
        if case is not None:
            for name, value in (case.headers or {}).items():
                text = str(value)
                foreign = name.lower() == "x-auth-token" and self.dice.random() < 0.95  # schemathesis makes up tokens
                if text.isprintable() and not foreign:
                    headers[name.lower()] = text
        self._version(headers)
        if body is not None:
            headers["content-type"] = media_type or (JSON_PATCH if method == "PATCH" and self.service == "image" else
                                                     "application/json")  # fmt: skip
        target = self._target(operation.path, case)
        sent = self.client.send(method, target, headers, body or b"")
        self.statuses[sent.status] += 1
        if sent.status < 400:
            self.came_through.add(operation.label)
        self._judge(sent, user, lambda: self.client.send(method, target, headers, body or b""))

    def _judge(self, sent: Sent, user: str, again: Callable[[], Sent]) -> None:
        wrong = complaints(self.service, sent)
        wrong += ["logged as a defect: " + text[-1500:] for text in self.defects.take()]
        if sent.method not in READING:
            if sent.status < 400:
                self.rows = rows.at_rest(self.world.cloud.db)
            elif left := self._left():
                # or a reconciler did its work meanwhile, which it does not do twice
                self.rows = rows.at_rest(self.world.cloud.db)
                if again().status != sent.status or self._left():
                    wrong.append(f"refused, and left rows: {left}")
        if wrong:
            self.problems.append(f"as {user}: {sent}\n    " + "\n    ".join(wrong))

    def _left(self) -> dict[str, int]:
        """By how much tables have grown since this was asked, or rows were counted."""
        before, self.rows = self.rows, rows.counts(self.world.cloud.db)
        grown = {name: self.rows[name] - number for name, number in before.items() if self.rows[name] > number}
        return {name: n for name, n in grown.items() if self.service == "placement" or name not in rows.OF_HOSTS}

    def _version(self, headers: dict[str, str]) -> None:
        known = self.api.microversions
        if known is None or self.dice.random() < 0.5:
            return
        minor = self.dice.choice((known.minimum[1], known.maximum[1], self.dice.randint(0, known.maximum[1])))
        headers["openstack-api-version"] = f"{known.service_type} {known.maximum[0]}.{minor}"

    def _target(self, path: str, case: Any) -> str:
        """Mostly ids that exist; else schemathesis' own, or something of another kind."""
        made: dict[str, Any] = {} if case is None else (case.path_parameters or {})
        before = ""

        def fill(found: re.Match[str]) -> str:
            name = found.group(1)
            collection = path[: found.start()].rstrip("/").rpartition("/")[2]
            what = self.dice.random()
            own = self.world.pools.pick(collection) or self.world.pools.named(name)
            if own is not None and what < 0.7:
                return quote(own, safe="")
            if what < 0.8:
                return quote(self.world.pools.anything(), safe="")
            return quote(str(made.get(name, "nowhere")), safe="%")

        target = before + PARAMETER.sub(fill, path)
        if self.dice.random() < 0.5:
            names = self.dice.sample(QUERY_NAMES[self.service], 2)
            pairs = [(name, self._query_value(name)) for name in names[: self.dice.randint(1, 2)]]
            target += "?" + urlencode(pairs)
        return target

    def _query_value(self, name: str) -> str:
        what = self.dice.random()
        if what < 0.15:
            return self.world.pools.anything()
        if what < 0.25:
            return self.world.pools.named(name) or "x"
        return self.dice.choice(QUERY_VALUES)

    # -- bodies ----------------------------------------------------------------------------------------------

    def _template(self, operation: Any) -> Any:
        key = (operation.method.upper(), operation.path)
        if key in EXAMPLES:
            return lambda: json.loads(json.dumps(EXAMPLES[key]))
        spec = self.document["paths"][operation.path][operation.method.lower()].get("requestBody")
        if spec is None:
            return None
        schema = next(iter(spec["content"].values()))["schema"]
        if schema.get("format") == "binary":
            return None
        return lambda: self.bodies.plausible(schema)

    def _body(self, body: Any) -> bytes | None:
        if type(body).__name__ == "NotSet":
            return None
        return body if isinstance(body, bytes) else self._encode(body)

    @staticmethod
    def _encode(body: Any) -> bytes:
        return json.dumps(body, default=str).encode()


@pytest.mark.fuzz
@pytest.mark.timeout(900)
@pytest.mark.parametrize("service", SERVICES)
def test_no_request_makes_a_service_fail(
    service: str, world: World, client: InProcess, defects: Defects, fuzz_seed: int, request: pytest.FixtureRequest
) -> None:
    count = request.config.getoption("--fuzz-requests")
    fuzzer = Fuzzer(service, world, client, defects, fuzz_seed)
    number = fuzzer.run(count)
    if service == "placement":
        world.give_back_claims()
    statuses = dict(sorted(fuzzer.statuses.items()))
    print(f"{service}: seed {fuzz_seed}, {number} operations, {sum(statuses.values())} requests, {statuses}")
    assert number == sum(len(methods) for methods in fuzzer.document["paths"].values())
    assert len(fuzzer.came_through) > number / 3, "hardly anything came through: the objects are missing"
    problems = fuzzer.problems
    assert not problems, f"{len(problems)} of {sum(statuses.values())}:\n" + "\n".join(problems[:40])
