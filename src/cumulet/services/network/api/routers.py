"""Members' actions on routers: interfaces and atomic routes. And prefixes of subnet pools."""

from typing import Any

from cumulet.db import Tx
from cumulet.http import Call, Route
from cumulet.services.network.api.crud import Crud
from cumulet.services.network.attributes import cidr_list
from cumulet.services.network.faults import bad
from cumulet.services.network.work import Work


class RouterActions:
    def __init__(self, crud: Crud) -> None:
        self.crud = crud

    def _run(self, call: Call, action: str) -> Any:
        def work(tx: Tx) -> Any:
            row = self.crud.load(call, tx, action)
            unit = Work(call.service, tx, call.ctx, sees_all=self.crud.sees_all(call))
            routers = call.service.routers
            if action == "add_router_interface":
                found = routers.add_interface(unit, row, call.body)
            elif action == "remove_router_interface":
                found = routers.remove_interface(unit, row, call.body)
            else:
                routers.change_routes(unit, row, call.body, add=action == "add_extraroutes")
                found = None
            unit.flush()
            return found if found is not None else {"router": self.crud.show(call, tx, self.crud.noun.get(tx, row.id))}

        return call.service.db.write(work)

    def add_interface(self, call: Call) -> Any:
        return self._run(call, "add_router_interface")

    def remove_interface(self, call: Call) -> Any:
        return self._run(call, "remove_router_interface")

    def add_routes(self, call: Call) -> Any:
        return self._run(call, "add_extraroutes")

    def remove_routes(self, call: Call) -> Any:
        return self._run(call, "remove_extraroutes")

    def routes(self) -> list[Route]:
        actions = {
            "add_router_interface": (self.add_interface, "Connect a subnet or port to a router"),
            "remove_router_interface": (self.remove_interface, "Disconnect a subnet or port from a router"),
            "add_extraroutes": (self.add_routes, "Add routes to a router"),
            "remove_extraroutes": (self.remove_routes, "Remove routes from a router"),
        }
        return [
            Route(method="PUT", path=f"/routers/{{id}}/{name}", handler=handler, body=dict[str, Any], summary=summary)
            for name, (handler, summary) in actions.items()
        ]


class PoolActions:
    def __init__(self, crud: Crud) -> None:
        self.crud = crud

    def _run(self, call: Call, action: str) -> Any:
        prefixes = call.body.get("prefixes")
        if set(call.body) != {"prefixes"}:
            raise bad("The body must hold prefixes.")
        checked = cidr_list("prefixes", prefixes)

        def work(tx: Tx) -> Any:
            row = self.crud.load(call, tx, action)
            pools = call.service.subnetpools
            tx.lock("subnetpool", row.id)
            return {"prefixes": pools.change_prefixes(tx, row, checked, add=action == "add_prefixes")}

        return call.service.db.write(work)

    def add(self, call: Call) -> Any:
        return self._run(call, "add_prefixes")

    def remove(self, call: Call) -> Any:
        return self._run(call, "remove_prefixes")

    def routes(self) -> list[Route]:
        return [
            Route(
                method="PUT",
                path=f"/subnetpools/{{id}}/{name}",
                handler=handler,
                body=dict[str, Any],
                summary=f"{name.partition('_')[0].capitalize()} prefixes of a subnet pool",
            )
            for name, handler in (("add_prefixes", self.add), ("remove_prefixes", self.remove))
        ]
