"""The five operations every resource has, made from its noun and attribute map."""

from collections.abc import Mapping, Sequence
from typing import Any

from cumulet.db import Tx
from cumulet.http import Call, Route
from cumulet.kernel.errors import StaleRevision
from cumulet.services.network import intake, query
from cumulet.services.network.faults import bad, forbidden, missing
from cumulet.services.network.intake import Given
from cumulet.services.network.noun import Noun
from cumulet.services.network.policy import looks_at
from cumulet.services.network.work import Work

_VALUE = dict[str, Any]


class Crud:
    """``noun`` is an attribute of the service, so that one API object serves any service instance."""

    def __init__(self, noun: Noun[Any]) -> None:
        self.noun = noun
        self.resource = noun.resource

    # -- visibility -----------------------------------------------------------------------------------------------

    def sees_all(self, call: Call) -> bool:
        return call.allowed("context_is_admin", {})

    def visible(self, call: Call, tx: Tx, rows: Sequence[Any]) -> list[dict[str, Any]]:
        """Views of those rows that the caller may see, without attributes that it may not."""
        views = self.noun.views(tx, rows)
        targets = self.noun.targets(tx, views)
        rule = f"get_{self.resource.name}"
        engine, creds = call.api.engine, call.ctx.credentials()
        guarded = [(name, sub) for name in self.resource.attributes if (sub := f"{rule}:{name}") in engine]
        names = looks_at(engine, [rule, *(sub for _, sub in guarded)])
        decided: dict[tuple[Any, ...], tuple[bool, list[str]]] = {}  # each kind of target is judged once
        found = []
        for view, target in zip(views, targets, strict=True):
            key = tuple([target.get(name) for name in names])
            decision = decided.get(key)
            if decision is None:
                hidden = [name for name, sub in guarded if not engine.allows(sub, target, creds)]
                decision = decided[key] = (engine.allows(rule, target, creds), hidden)
            if not decision[0]:
                continue
            for name in decision[1]:
                view.pop(name, None)
            found.append(view)
        return found

    def show(self, call: Call, tx: Tx, row: Any) -> dict[str, Any]:
        """The view of an object just made or changed by the caller, who may therefore see it."""
        views = self.visible(call, tx, [row])
        if not views:
            raise self.noun.not_found(row.id)
        return views[0]

    def load(self, call: Call, tx: Tx, rule: str, id: str | None = None) -> Any:
        """The row of ``{id}`` for a change: not found if the caller may not even see it, else forbidden."""
        id = call.params["id"] if id is None else id
        row = self.noun.get(tx, id, change=True)
        target = self.target(tx, row)
        if not call.allowed(f"get_{self.resource.name}", target):
            raise self.noun.not_found(id)
        if rule in call.api.engine and not call.allowed(rule, target):
            raise forbidden(rule)
        return row

    def target(self, tx: Tx, row: Any) -> Mapping[str, Any]:
        return self.noun.targets(tx, self.noun.views(tx, [row]))[0]

    def check_attributes(self, call: Call, action: str, given: Given, target: Mapping[str, Any], *, put: bool) -> None:
        """Rules of attributes, and of parts of attributes, that the caller gave another value than the default."""
        rule = f"{action}_{self.resource.name}"
        for name in given.explicit:
            attribute = self.resource.attributes[name]
            if not attribute.policy or (not put and given.get(name) == attribute.default):
                continue
            self._check(call, f"{rule}:{name}", target)
            value = given.get(name)
            parts = value if isinstance(value, list) else [value]
            for key in {key for part in parts if isinstance(part, dict) for key in part}:
                self._check(call, f"{rule}:{name}:{key}", target)

    @staticmethod
    def _check(call: Call, rule: str, target: Mapping[str, Any]) -> None:
        if rule in call.api.engine and not call.allowed(rule, target):
            raise forbidden(rule)

    @staticmethod
    def _check_parent(call: Call, given: Given, target: Mapping[str, Any]) -> None:
        """A network or group that the caller may not see is not there."""
        if "network:project_id" in target:
            owner = target["network:project_id"]
            parent = {
                "project_id": owner,
                "tenant_id": owner,
                "shared": target["shared"],
                "router:external": target["router:external"],
            }
            if not call.allowed("get_network", parent):
                raise missing("NetworkNotFound", "Network", given["network_id"])
        if "security_group:project_id" in target:
            owner = target["security_group:project_id"]
            if not call.allowed("get_security_group", {"project_id": owner, "tenant_id": owner, "shared": False}):
                raise missing("SecurityGroupNotFound", "Security group", given["security_group_id"])

    # -- handlers ----------------------------------------------------------------------------------------------------

    def index(self, call: Call) -> Any:
        asked = query.parse(self.resource, call)

        def work(tx: Tx) -> list[dict[str, Any]]:
            where = query.conditions(
                self.resource, asked.filters, lambda name, values: self.noun.special_filter(tx, name, values)
            )
            scope = [] if self.sees_all(call) else self.noun.scope(tx, call.ctx)
            rows = [self.noun.row(*row) for row in query.page(tx, self.resource, asked, where, scope)]
            return self.visible(call, tx, rows)

        views = call.service.db.read(work)
        ids = [view[self.resource.key] for view in views]
        if asked.fields:
            views = [{k: v for k, v in view.items() if k in asked.fields} for view in views]
        body: dict[str, Any] = {self.resource.collection: views}
        links = query.links(call, self.resource, asked, ids)
        if links:
            body[f"{self.resource.collection}_links"] = links
        return body

    def get(self, call: Call) -> Any:
        fields = query.fields_of(call)

        def work(tx: Tx) -> dict[str, Any]:
            return self.show(call, tx, self.noun.get(tx, call.params["id"]))

        view = call.service.db.read(work)
        if fields:
            view = {k: v for k, v in view.items() if k in fields}
        return {self.resource.name: view}

    def create(self, call: Call) -> Any:
        items, bulk = intake.items_of(self.resource, call.body)

        def may_act_for_others() -> bool:
            return self.sees_all(call) or call.allowed("service_api", {})

        givens = [intake.for_create(self.resource, item, call.ctx, may_act_for_others) for item in items]

        def work(tx: Tx) -> list[dict[str, Any]]:
            for given, target in zip(givens, self.noun.create_targets(tx, givens), strict=True):
                self._check_parent(call, given, target)
                self._check(call, f"create_{self.resource.name}", target)
                self.check_attributes(call, "create", given, target, put=False)
            unit = Work(call.service, tx, call.ctx, sees_all=self.sees_all(call))
            rows = self.noun.create(unit, givens)
            unit.flush()
            return self.visible(call, tx, rows)

        views = call.service.db.write(work)
        return {self.resource.collection: views} if bulk else {self.resource.name: views[0]}

    def update(self, call: Call) -> Any:
        given = intake.for_update(self.resource, call.body)

        def work(tx: Tx) -> dict[str, Any]:
            row = self.load(call, tx, f"update_{self.resource.name}")
            self.check_attributes(call, "update", given, {**self.target(tx, row), **_own(given)}, put=True)
            check_revision(call, row)
            unit = Work(call.service, tx, call.ctx, sees_all=self.sees_all(call))
            row = self.noun.update(unit, row, given)
            unit.flush()
            return self.show(call, tx, self.noun.get(tx, row.id))

        return {self.resource.name: call.service.db.write(work)}

    def delete(self, call: Call) -> None:
        def work(tx: Tx) -> None:
            row = self.load(call, tx, f"delete_{self.resource.name}")
            check_revision(call, row)
            unit = Work(call.service, tx, call.ctx, sees_all=self.sees_all(call))
            self.noun.delete(unit, row)
            unit.flush()

        call.service.db.write(work)

    def routes(self, *, update: bool = True) -> list[Route]:
        path, name = f"/{self.resource.path}", self.resource.label.lower()
        one = f"{path}/{{id}}"
        found = [
            Route(method="GET", path=path, handler=self.index, summary=f"List {name}s"),
            Route(
                method="POST",
                path=path,
                handler=self.create,
                body=_VALUE,
                success=201,
                summary=f"Create a {name}, or several",
                max_body_bytes=8_000_000,
            ),
            Route(method="GET", path=one, handler=self.get, summary=f"Show a {name}"),
            Route(method="DELETE", path=one, handler=self.delete, success=204, summary=f"Delete a {name}"),
        ]
        if update:
            found.append(
                Route(
                    method="PUT",
                    path=one,
                    handler=self.update,
                    body=_VALUE,
                    summary=f"Change a {name}",
                )
            )
        return found


def _own(given: Given) -> dict[str, Any]:
    """What a change may say of the object that its rule looks at (the new device_owner, say)."""
    return {name: value for name, value in given.items() if name in ("device_owner",)}


def check_revision(call: Call, row: Any) -> None:
    """``If-Match: revision_number=N``."""
    header = call.headers.get("if-match")
    if header is None:
        return
    name, _, number = header.partition("=")
    if name.strip() != "revision_number" or not number.strip().isdigit():
        raise bad("If-Match must be of the form revision_number=N.")
    if int(number) != row.revision:
        raise StaleRevision(
            f"Revision {int(number)} is not the present one, {row.revision}.",
            type_name="RevisionNumberConstraintFailed",
        )
