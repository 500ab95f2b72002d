"""The visible states of a server: the one place that computes and writes vm_state, task_state, power_state, status.

Inputs are intent (``goal``, ``failed``, ``deleting``, ``launched_at``, ``deleted_at``), what hosts report (``vmms``)
and the task of the saga that owns the server. `visible` is pure; a property test recomputes it over stored rows.
"""

from enum import IntEnum
from typing import Any

import msgspec
from sqlalchemy import bindparam, select, update

from cumulet.db import Tx
from cumulet.services.compute.tables import SERVERS, VMMS

NO_STATE = 0


class Power(IntEnum):
    """Power states of hosts' reports and of OS-EXT-STS:power_state."""

    PENDING = 0
    RUNNING = 1
    PAUSED = 3
    SHUTDOWN = 4
    CRASHED = 6
    SUSPENDED = 7


_STATUS: dict[str, tuple[str, dict[str, str]]] = {
    "active": (
        "ACTIVE",
        {
            "rebooting": "REBOOT",
            "reboot_pending": "REBOOT",
            "reboot_started": "REBOOT",
            "rebooting_hard": "HARD_REBOOT",
            "reboot_pending_hard": "HARD_REBOOT",
            "reboot_started_hard": "HARD_REBOOT",
            "updating_password": "PASSWORD",
            "rebuilding": "REBUILD",
            "rebuild_block_device_mapping": "REBUILD",
            "rebuild_spawning": "REBUILD",
            "migrating": "MIGRATING",
            "resize_prep": "RESIZE",
            "resize_migrating": "RESIZE",
            "resize_migrated": "RESIZE",
            "resize_finish": "RESIZE",
            "resize_reverting": "REVERT_RESIZE",  # its last steps: who waits for ACTIVE may go on then
        },
    ),
    "building": ("BUILD", {}),
    "stopped": (
        "SHUTOFF",
        {
            "resize_prep": "RESIZE",
            "resize_migrating": "RESIZE",
            "resize_migrated": "RESIZE",
            "resize_finish": "RESIZE",
            "resize_reverting": "REVERT_RESIZE",
            "rebuilding": "REBUILD",
            "rebuild_block_device_mapping": "REBUILD",
            "rebuild_spawning": "REBUILD",
        },
    ),
    "resized": ("VERIFY_RESIZE", {"resize_reverting": "REVERT_RESIZE"}),
    "paused": ("PAUSED", {"migrating": "MIGRATING"}),
    "suspended": ("SUSPENDED", {}),
    "rescued": ("RESCUE", {}),
    "error": (
        "ERROR",
        {
            "rebuilding": "REBUILD",
            "rebuild_block_device_mapping": "REBUILD",
            "rebuild_spawning": "REBUILD",
        },
    ),
    "deleted": ("DELETED", {}),
    "soft-delete": ("SOFT_DELETED", {}),
    "shelved": ("SHELVED", {}),
    "shelved_offloaded": ("SHELVED_OFFLOADED", {}),
}


def status_of(vm_state: str, task_state: str | None) -> str:
    plain, by_task = _STATUS[vm_state]
    return by_task.get(task_state or "", plain)


def vm_states_of(status: str) -> tuple[set[str], set[str] | None] | None:
    """Which (vm_states, task_states) show as this status; None: no such status. Task states None: any."""
    vm_states: set[str] = set()
    tasks: set[str] | None = None
    for vm_state, (plain, by_task) in _STATUS.items():
        if plain == status:
            vm_states.add(vm_state)
        named = {task for task, shown in by_task.items() if shown == status}
        if named:
            vm_states.add(vm_state)
            tasks = (tasks or set()) | named
    return (vm_states, tasks) if vm_states else None


class Intent(msgspec.Struct, frozen=True):
    """``goal`` is the vm_state the server is to be in when nothing is wrong and nothing is going on."""

    goal: str
    failed: bool
    deleting: bool
    launched_at: int | None
    deleted_at: int | None


class Visible(msgspec.Struct, frozen=True):
    vm_state: str
    task_state: str | None
    power_state: int
    status: str


def visible(intent: Intent, observed: int | None, task: str | None) -> Visible:
    """``observed``: the power state its host reports, None without a report. ``task``: of the owning saga's step."""
    if intent.deleted_at is not None:
        return Visible("deleted", None, NO_STATE, "DELETED")
    if intent.failed:
        vm_state = "error"
    elif intent.launched_at is None:
        vm_state = "building"
    else:
        vm_state = intent.goal
    task_state = "deleting" if intent.deleting else task
    return Visible(vm_state, task_state, observed or NO_STATE, status_of(vm_state, task_state))


_INPUTS = (
    select(
        SERVERS.c.goal,
        SERVERS.c.failed,
        SERVERS.c.deleting,
        SERVERS.c.launched_at,
        SERVERS.c.deleted_at,
        VMMS.c.power_state.label("observed"),
        SERVERS.c.vm_state,
        SERVERS.c.task_state,
        SERVERS.c.power_state,
        SERVERS.c.status,
    )
    .select_from(SERVERS.outerjoin(VMMS, (VMMS.c.server_id == SERVERS.c.id) & (VMMS.c.host == SERVERS.c.host)))
    .where(SERVERS.c.id == bindparam("server_id"))
)
_WRITE = (
    update(SERVERS)
    .where(SERVERS.c.id == bindparam("server_id"))
    .values(
        vm_state=bindparam("v_vm_state"),
        task_state=bindparam("v_task_state"),
        power_state=bindparam("v_power_state"),
        status=bindparam("v_status"),
        updated_at=bindparam("v_updated_at"),
    )
)

KEEP: Any = object()


def settle(tx: Tx, server_id: str, task: str | None = KEEP) -> Visible | None:
    """Write what the server shows now. ``task``: of the owner's step; by default the task it shows stays. Call it in
    every transaction that changes an input. None if there is no such server."""
    tx.lock("server", server_id)  # a report and a step of a saga may come at once
    row = tx.first(_INPUTS, {"server_id": server_id})
    if row is None:
        return None
    before = Visible(*row[6:])
    now = visible(Intent(*row[:5]), row[5], before.task_state if task is KEEP else task)
    if now != before:
        tx.run(
            _WRITE,
            {
                "server_id": server_id,
                "v_vm_state": now.vm_state,
                "v_task_state": now.task_state,
                "v_power_state": now.power_state,
                "v_status": now.status,
                "v_updated_at": tx.now,
            },
        )
    return now
