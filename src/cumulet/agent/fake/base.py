"""What the three fake drivers share: every effect meets the faults first."""

from collections.abc import Callable
from typing import Any

from cumulet.agent.contract import Operation, Query, Result
from cumulet.agent.driver import Driver, OperationBody, Progress, QueryBody
from cumulet.agent.fake.faults import Faults
from cumulet.agent.fake.world import World


class FakeDriver(Driver):
    def __init__(self, world: World, faults: Faults) -> None:
        self.world = world
        self.faults = faults

    def bodies(self) -> dict[type[Operation], Callable[[Any, Progress], Result | None]]:
        return {}

    def answers(self) -> dict[type[Query], Callable[[Any], str | dict[str, Any]]]:
        return {}

    def operations(self) -> dict[type[Operation], OperationBody]:
        return {kind: self._with_faults(body) for kind, body in self.bodies().items()}

    def queries(self) -> dict[type[Query], QueryBody]:
        return {kind: self._query_with_faults(body) for kind, body in self.answers().items()}

    def _with_faults(self, body: OperationBody) -> OperationBody:
        def run(operation: Any, progress: Progress) -> Result | None:
            self.faults.meet(operation, "before", progress)
            result = body(operation, progress)
            self.faults.meet(operation, "after", progress)
            return result

        return run

    def _query_with_faults(self, body: QueryBody) -> QueryBody:
        def run(query: Any) -> str | dict[str, Any]:
            self.faults.meet(query, "before")
            return body(query)

        return run
