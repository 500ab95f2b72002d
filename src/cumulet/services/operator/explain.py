"""The story of one server, told from the saga journal. Pure functions from rows to plain data."""

from collections.abc import Sequence
from typing import Any

from cumulet.kernel.clock import SECOND
from cumulet.saga import SagaHistory

_Children = dict[str | None, list[SagaHistory]]  # by parent saga
_Notes = dict[str, str | None]  # by step name
# what a step of a workflow is about, in the words of the notes: CPU, memory, disk, NIC, XML, image, start
ABOUT = {
    "schedule": "choose a host; claim CPU, memory, disk",
    "networking": "NIC: bind the ports to the host",
    "volumes": "disk: export volumes to the host",
    "image": "image into the host's cache",
    "ports": "NIC: taps, bridge, filters",
    "disks": "disk: root, ephemeral, swap, config drive",
    "define": "libvirt XML: CPU, memory, disks, NICs",
    "start": "start",
    "first_report": "the host reports it running",
    "conclude": "look back",
}


def operations(history: Sequence[SagaHistory], server: Any, *, hosts: bool) -> list[dict[str, Any]]:
    """One entry per operation, newest first; the steps of its child sagas on the same object stand in their place.
    ``server``: its row, for what the steps are about."""
    children: _Children = {}
    for entry in history:
        children.setdefault(entry.saga.parent_id, []).append(entry)
    notes = {
        "schedule": f"{server.vcpus} vCPU, {server.memory_mb} MiB, {server.root_gb} GiB",
        "disks": f"root {server.root_gb} GiB"
        + (f", ephemeral {server.ephemeral_gb} GiB" if server.ephemeral_gb else ""),
        "define": server.instance_name if hosts else None,
    }
    return [_operation(entry, children, notes, hosts) for entry in children.get(None, [])]


def _operation(entry: SagaHistory, children: _Children, notes: _Notes, hosts: bool) -> dict[str, Any]:
    saga = entry.saga
    return {
        "action": entry.action or saga.kind,
        "saga_id": saga.id,
        "request_id": saga.request_id,
        "status": "cancelled" if saga.cancelled else saga.status,
        "error": saga.error,
        "started_at": saga.created_at,
        "seconds": _seconds(saga.created_at, saga.ended_at),
        "steps": list(_steps(entry, children, notes, saga.created_at, hosts)),
    }


def _steps(entry: SagaHistory, children: _Children, notes: _Notes, began: int, hosts: bool) -> Any:
    nested: dict[int | None, list[SagaHistory]] = {}
    for child in children.get(entry.saga.id, []):
        nested.setdefault(child.saga.parent_position, []).append(child)
    for step in entry.steps:
        inside = nested.get(step.position)
        if inside:
            for child in inside:
                yield from _steps(child, children, notes, began, hosts)
            continue
        if step.output == [] and step.host is None:
            continue  # a retry that was not needed
        yield {
            "name": step.name,
            "what": ABOUT.get(step.name, step.name.replace("_", " ")),
            "host": step.host if hosts else None,
            "state": step.state,
            "after": _seconds(began, step.started_at),
            "seconds": _seconds(step.started_at, step.ended_at or None),
            "error": step.error,
            "note": _note(step.name, step.output) or notes.get(step.name),
        }


def _note(name: str, output: Any) -> str | None:
    """What is worth knowing of a step's output, in a few words."""
    if not isinstance(output, dict):
        return None
    if name == "image" and "hit" in output:
        size = f"{output['virtual_size_bytes'] >> 20} MiB virtual" if output.get("virtual_size_bytes") else ""
        return f"{'was there' if output['hit'] else 'fetched'} {size}".strip()
    if name == "networking" and output.get("ports") is not None:
        return f"{len(output['ports'])} port(s)"
    return None


def _seconds(start: int | None, end: int | None) -> float | None:
    return None if start is None or not end else round((end - start) / SECOND, 6)
