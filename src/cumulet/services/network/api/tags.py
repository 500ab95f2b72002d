"""Tags of the resources that have them: ``/networks/{id}/tags`` and the like."""

from collections.abc import Callable, Iterable
from typing import Any

from sqlalchemy import bindparam, delete, func, select

from cumulet.db import Tx
from cumulet.http import Call, Reply, Route
from cumulet.kernel.errors import NotFound
from cumulet.services.network import tables as t
from cumulet.services.network.api.crud import Crud
from cumulet.services.network.faults import bad

_OF = select(t.TAGS.c.tag).where(t.TAGS.c.resource_id == bindparam("id"))
_DROP = delete(t.TAGS).where(t.TAGS.c.resource_id == bindparam("id"))
_DROP_ONE = delete(t.TAGS).where(t.TAGS.c.resource_id == bindparam("id"), t.TAGS.c.tag == bindparam("tag"))
_COUNT = select(func.count()).where(t.TAGS.c.resource_id == bindparam("id"))
_MOST = 50


class Tags:
    def __init__(self, crud: Crud) -> None:
        self.crud = crud

    def _run(self, call: Call, action: str, work: Callable[[Tx, str], Any]) -> Any:
        def inside(tx: Tx) -> Any:
            row = self.crud.load(call, tx, f"{action}_{self.crud.resource.name}:tags")
            return work(tx, row.id)

        db = call.service.db
        return db.read(inside) if action == "get" else db.write(inside)

    def _bump(self, tx: Tx, id: str) -> None:
        row = self.crud.noun.get(tx, id)
        self.crud.noun.save(tx, row)

    @staticmethod
    def _all(tx: Tx, id: str) -> dict[str, list[str]]:
        return {"tags": [row[0] for row in tx.rows(_OF, {"id": id})]}

    def index(self, call: Call) -> Any:
        return self._run(call, "get", self._all)

    def replace(self, call: Call) -> Any:
        wanted = _tags(call.body)

        def work(tx: Tx, id: str) -> Any:
            tx.run(_DROP, {"id": id})
            self._add(tx, id, wanted)
            self._bump(tx, id)
            return self._all(tx, id)

        return self._run(call, "update", work)

    def extend(self, call: Call) -> Any:
        wanted = _tags(call.body)

        def work(tx: Tx, id: str) -> Any:
            have = set(self._all(tx, id)["tags"])
            self._add(tx, id, [tag for tag in wanted if tag not in have])
            self._bump(tx, id)
            return self._all(tx, id)

        return self._run(call, "create", work)

    def clear(self, call: Call) -> None:
        def work(tx: Tx, id: str) -> None:
            tx.run(_DROP, {"id": id})
            self._bump(tx, id)

        self._run(call, "delete", work)

    def has(self, call: Call) -> Reply:
        tag = call.params["tag"]

        def work(tx: Tx, id: str) -> None:
            if tag not in self._all(tx, id)["tags"]:
                raise _missing(tag)

        self._run(call, "get", work)
        return Reply(status=204)

    def put(self, call: Call) -> Reply:
        tag = _checked(call.params["tag"])

        def work(tx: Tx, id: str) -> None:
            if tag not in self._all(tx, id)["tags"]:
                self._add(tx, id, [tag])
                self._bump(tx, id)

        self._run(call, "update", work)
        return Reply(status=201)

    def drop(self, call: Call) -> None:
        tag = call.params["tag"]

        def work(tx: Tx, id: str) -> None:
            if not tx.run(_DROP_ONE, {"id": id, "tag": tag}):
                raise _missing(tag)
            self._bump(tx, id)

        self._run(call, "delete", work)

    @staticmethod
    def _add(tx: Tx, id: str, tags: Iterable[str]) -> None:
        tx.insert(t.TAGS, [{"resource_id": id, "tag": tag} for tag in tags])
        if tx.scalar(_COUNT, {"id": id}) > _MOST:
            raise bad(f"A resource may have {_MOST} tags.")

    def routes(self) -> list[Route]:
        path = f"/{self.crud.resource.path}/{{id}}/tags"
        one = f"{path}/{{tag}}"
        name = self.crud.resource.label.lower()
        body = dict[str, Any]
        return [
            Route(method="GET", path=path, handler=self.index, summary=f"List tags of a {name}"),
            Route(method="PUT", path=path, handler=self.replace, body=body, summary=f"Replace tags of a {name}"),
            Route(method="POST", path=path, handler=self.extend, body=body, summary=f"Add tags to a {name}"),
            Route(method="DELETE", path=path, handler=self.clear, success=204, summary=f"Remove tags of a {name}"),
            Route(method="GET", path=one, handler=self.has, success=204, summary=f"Whether a {name} has a tag"),
            Route(method="PUT", path=one, handler=self.put, success=201, summary=f"Add a tag to a {name}"),
            Route(method="DELETE", path=one, handler=self.drop, success=204, summary=f"Remove a tag of a {name}"),
        ]


def _missing(tag: str) -> Exception:
    return NotFound(f"Tag {tag} could not be found.", type_name="TagNotFound")


def _checked(tag: Any) -> str:
    if not isinstance(tag, str) or not 0 < len(tag) <= 255 or "," in tag:
        reason = f"{str(tag)[:80]!r} is not a tag (1 to 255 characters, no comma)."
        raise bad(f"Invalid input for operation: {reason}", "InvalidInput")
    return tag


def _tags(body: Any) -> list[str]:
    tags = body.get("tags") if isinstance(body, dict) else None
    if not isinstance(tags, list):
        raise bad("Invalid input for operation: Invalid tags body.", "InvalidInput")
    found = [_checked(tag) for tag in tags]
    if len(set(found)) != len(found):
        raise bad("Invalid input for operation: the list of tags contains duplicates.", "InvalidInput")
    return found
