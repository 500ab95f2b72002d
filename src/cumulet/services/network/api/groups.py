"""Security groups: as other resources, but looking at them makes the project's default group."""

from typing import Any

from cumulet.http import Call
from cumulet.services.network.api.crud import Crud


class GroupCrud(Crud):
    def index(self, call: Call) -> Any:
        project = call.query.get("project_id") or call.query.get("tenant_id") or call.ctx.project_id
        if project and (project == call.ctx.project_id or self.sees_all(call)):
            service = call.service
            if not service.db.read(lambda tx: service.groups.defaults(tx, [project])):
                service.db.write(lambda tx: service.groups.ensure_default(service.work(tx, call.ctx), project))
        return super().index(call)
