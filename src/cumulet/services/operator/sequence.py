"""The course of one request as a sequence diagram: pure functions from notes and journal rows to plain data.

The saga journal says what was done; the notes of processes (`kernel.trace`) add which process did it, the way of
messages, and what happened on the host, by the host's own clock. Where notes are missing the journal alone is drawn.

Clocks of machines differ. Every message gives a bound (it was not received before it was sent), so each process's
clock has an interval of possible offsets to the API's. An offset of zero is taken when it is possible, else the middle
of the interval, and said (``clocks``); what still contradicts its cause (a clock that was set meanwhile) is drawn at
its cause. So no arrow points back in time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cumulet.saga.journal import SagaRow, StepRow

Told = tuple[str, int, str, dict[str, Any]]  # process, at, kind, data
Story = tuple[SagaRow, list[StepRow]]
API, DATABASE, QUEUE = "api", "database", "queue"


@dataclass
class _Row:
    at: int
    source: str
    target: str
    text: str
    kind: str  # request, answer, transaction, message, step, failed, undo
    after: "_Row | None" = None  # its cause


@dataclass
class _Clocks:
    """Offsets (microseconds to add) of processes' clocks, found from what must have come before what."""

    bounds: list[tuple[str, int, str, int]] = field(default_factory=list)  # (this, its time) came before (that, …)
    offsets: dict[str, int] = field(default_factory=dict)

    def before(self, first: str, at: int | None, then: str, later: int | None) -> None:
        if at is not None and later is not None and first != then:
            self.bounds.append((first, at, then, later))

    def solve(self, order: Sequence[str]) -> None:
        for name in order:
            low: int | None = None
            high: int | None = None
            for first, at, then, later in self.bounds:
                if then == name and first in self.offsets:
                    bound = at + self.offsets[first] - later
                    low = bound if low is None else max(low, bound)
                elif first == name and then in self.offsets:
                    bound = later + self.offsets[then] - at
                    high = bound if high is None else min(high, bound)
            self.offsets[name] = _between(low, high)

    def fit(self, process: str, at: int) -> int:
        return at + self.offsets.get(process, 0)


def _between(low: int | None, high: int | None) -> int:
    if (low is None or low <= 0) and (high is None or high >= 0):
        return 0
    if low is None or high is None:
        return low if high is None and low is not None else high or 0
    return (low + high) // 2


class _Sequence:
    def __init__(self, told: Sequence[Told], stories: Sequence[Story]) -> None:
        self.told = sorted(told, key=lambda one: one[1])
        self.stories = sorted(stories, key=lambda story: (story[0].created_at, story[0].parent_id or "", story[0].id))
        self.by_id = {saga.id: saga for saga, _ in self.stories}
        self.rows: list[_Row] = []
        self.active: list[tuple[str, int, int | None]] = []  # lifeline, from, to
        self.clocks = _Clocks()
        self.request = next((one for one in self.told if one[2] == "request"), None)
        self.api = self.request[0] if self.request else "api"
        self.taken = [(process, at, data) for process, at, kind, data in self.told if kind == "taken"]
        self.moved: dict[tuple[str, int], tuple[str, int]] = {}  # (saga, transaction's begin) -> who, its end
        self.calls: dict[str, list[tuple[str, int, dict[str, Any]]]] = {}
        self.outcomes: dict[str, tuple[str, int, dict[str, Any]]] = {}
        self.wakes = []
        for process, at, kind, data in self.told:
            if kind == "moved":
                self.moved.setdefault((data["saga"], data["began"]), (process, at))
            elif kind == "call":
                self.calls.setdefault(data["op"], []).append((process, at, data))
            elif kind == "message" and data.get("op"):
                self.outcomes.setdefault(data["op"], (process, at, data))
            elif kind == "message":
                self.wakes.append((process, at, data))
        self._read_clocks()

    # -- whose clock ----------------------------------------------------------------------------------------------

    def _read_clocks(self) -> None:
        clocks = self.clocks
        for process, at, data in self.taken:
            saga = self.by_id.get(data["saga"])
            if saga is not None and saga.parent_id is None:
                clocks.before(self.api, saga.created_at, _conductor(process), at)
        for process, at, data in self.wakes:
            clocks.before(_conductor(data["sender"] or process), data["sent_at"], _conductor(process), at)
            if data["sender"] == self.api:
                clocks.before(self.api, data["sent_at"], _conductor(process), at)
        for op, calls in self.calls.items():
            outcome = self.outcomes.get(op)
            for process, at, data in calls:
                if outcome is not None and data["answer"] == "Accepted":
                    agent = _agent(data["host"])
                    clocks.before(_conductor(process), at, agent, outcome[2]["accepted_at"])
                    if len(calls) == 1:
                        clocks.before(agent, outcome[2]["accepted_at"], _conductor(process), data["answered_at"])
        for process, at, data in self.outcomes.values():
            clocks.before(_agent(data["host"]), data["worked_until"], _conductor(process), at)
        named = [name for bound in clocks.bounds for name in (bound[0], bound[2])]
        conductors = sorted({_conductor(process) for process, _, _ in self.taken} | {n for n in named if _is(n)})
        clocks.offsets[self.api] = 0
        if _conductor(self.api) in conductors:  # one process is both
            clocks.offsets[_conductor(self.api)] = 0
            conductors.remove(_conductor(self.api))
        clocks.solve([*conductors, *sorted({n for n in named if n.startswith("agent@")})])

    def _driver(self, saga: SagaRow, at: int) -> str:
        """The conductor that drove the saga then, as far as is known."""
        known = self.moved.get((saga.id, at))
        if known is not None:
            return _conductor(known[0])
        found = None
        for process, when, data in self.taken:
            if data["saga"] == saga.id and (found is None or when <= at):
                found = _conductor(process)
        if found is None and saga.parent_id in self.by_id:
            return self._driver(self.by_id[saga.parent_id], at)
        return found or next((_conductor(process) for process, _, _ in self.taken), "conductor")

    def _add(
        self, process: str, at: int, source: str, target: str, text: str, kind: str, after: _Row | None = None
    ) -> _Row:
        row = _Row(self.clocks.fit(process, at), source, target, text, kind, after)
        self.rows.append(row)
        return row

    # -- what is drawn --------------------------------------------------------------------------------------------

    def draw(self) -> None:
        started: dict[str, _Row] = {}
        if self.request is not None:
            started = self._draw_request(*self.request)
        for process, at, data in self.wakes:
            if data["name"] == "WakeSagas":
                self._draw_wake(process, at, data, started)
        seen: dict[str, str] = {}
        for process, at, data in self.taken:
            if data["saga"] in self.by_id:
                self._draw_taken(process, at, data, started, before=seen.get(data["saga"]))
                seen[data["saga"]] = process
        for saga, steps in self.stories:
            self._draw_saga(saga, steps)
        for row in self.rows:
            if row.after is not None and row.at < row.after.at:
                row.at = row.after.at
        self.rows = [row for _, row in sorted(enumerate(self.rows), key=lambda one: (one[1].at, one[0]))]

    def _draw_request(self, process: str, at: int, _kind: str, data: dict[str, Any]) -> dict[str, _Row]:
        who = data.get("user") or data.get("user_id") or "somebody"
        first = last = self._add(process, at, "", API, f"{data['method']} {data['path']} by {who}", "request")
        started: dict[str, _Row] = {}
        for began, committed, statements in data["transactions"]:
            sagas = [saga for saga, _ in self.stories if saga.created_at == began and saga.parent_id is None]
            text = f"transaction of {statements} statements, {_ms(committed - began)}"
            text += "".join(f"; begins {saga.kind}" for saga in sagas)
            last = self._add(process, began, API, DATABASE, text, "transaction", last)
            for saga in sagas:
                started[saga.id] = last
        ended = data["ended_at"]
        text = f"{data['status']} after {_ms(ended - at)}"
        self._add(process, ended, API, "", text, "answer" if data["status"] < 400 else "failed", first)
        self.active.append((API, at, ended))
        return started

    def _draw_wake(self, process: str, at: int, data: dict[str, Any], started: dict[str, _Row]) -> None:
        kinds = ", ".join(self.by_id[one].kind for one in data["sagas"] if one in self.by_id)
        if not kinds:
            return
        sender = data["sender"]
        source = API if sender == self.api else _conductor(sender)
        cause = next((started[one] for one in data["sagas"] if one in started), None)
        sent = self._add(sender, data["sent_at"], source, QUEUE, f"wake {kinds}", "message", cause)
        text = f"woken after {_ms(self.clocks.fit(_conductor(process), at) - sent.at)} in the queue"
        self._add(_conductor(process), at, QUEUE, _conductor(process), text, "message", sent)

    def _draw_taken(
        self, process: str, at: int, data: dict[str, Any], started: dict[str, _Row], *, before: str | None
    ) -> None:
        saga, me = self.by_id[data["saga"]], _conductor(process)
        waited = at - data["queued_at"]
        woken = any(data["saga"] in wake["sagas"] for _, _, wake in self.wakes)
        if before is not None:
            does = "goes on with" if before == process else "takes over"
            text = f"{does} {saga.kind} at step {data['position'] + 1}, after {_ms(waited)} in its own queue"
            self._add(me, at, me, me, text, "message")
        elif saga.parent_id is None and not woken and process != self.api:
            self._add(me, at, DATABASE, me, f"finds {saga.kind} in the journal", "message", started.get(saga.id))
        elif saga.parent_id is None and not woken:
            cause = started.get(saga.id)
            sent = self._add(me, data["queued_at"], API, QUEUE, f"wake {saga.kind}", "message", cause)
            self._add(me, at, QUEUE, me, f"{saga.kind} taken after {_ms(waited)} in the queue", "message", sent)
        else:
            self._add(me, at, me, me, f"takes {saga.kind} after {_ms(waited)} in its own queue", "message")

    def _took(self, saga: SagaRow, began: int) -> str:
        """How long the transaction took that began then."""
        known = self.moved.get((saga.id, began))
        return "" if known is None else f"; transaction {_ms(known[1] - began)}"

    def _draw_saga(self, saga: SagaRow, steps: list[StepRow]) -> None:
        ended = [step for step in steps if step.ended_at]
        for step in steps:
            if step.state == "done" and step.output == [] and step.host is None:
                continue  # a retry that was not needed
            me = self._driver(saga, step.ended_at or step.started_at)
            self._draw_calls(saga, step, me)
            if not step.ended_at:
                self._add(me, saga.updated_at, me, me, f"{saga.kind}: {step.name} is under way", "step")
                continue
            # an undo replaced the state; it was the last step that failed
            failed = step.state == "failed" or (bool(step.undone_at) and step is ended[-1] and not saga.cancelled)
            was = "failed" if failed else "done" if step.undone_at else step.state
            text = f"{saga.kind}: {step.name} {was}, {_ms(max(step.ended_at - step.started_at, 0))}"
            if step.error and (failed or not step.undone_at):
                text += f" ({step.error})"
            if step is ended[-1] and saga.status == "finished":
                text += f"; {saga.kind} finished"
            text += self._took(saga, step.ended_at)
            self._add(me, step.ended_at, me, DATABASE, text, "failed" if failed else "step")
            if step.undone_at:
                bad = step.state != "undone"
                text = f"{saga.kind}: {step.name} {step.state.replace('_', ' ')}"
                text += f" ({step.error})" if step.error and bad else ""
                self._add(me, step.undone_at, me, DATABASE, text, "failed" if bad else "undo")
        if saga.status == "failed" and saga.ended_at:
            me = self._driver(saga, saga.ended_at)
            self._add(me, saga.ended_at, me, DATABASE, f"{saga.kind} failed: {saga.error}", "failed")

    def _draw_calls(self, saga: SagaRow, step: StepRow, me: str) -> None:
        prefix = f"{saga.id}:{step.name}:"
        ops = [op for op in {**self.calls, **self.outcomes} if op.startswith(prefix)]
        if not ops and step.host is not None:  # nobody noted it: what the journal knows
            agent = _agent(step.host)
            row = self._add(me, step.started_at, me, agent, f"{step.name} (as the journal has it)", "message")
            if step.ended_at:
                self._add(me, step.ended_at, agent, me, step.state, "message", row)
        for op in ops:
            self._draw_operation(op, step)

    def _draw_operation(self, op: str, step: StepRow) -> None:
        undo = "undo " if op.split(":")[2] == "undo" else ""
        outcome = self.outcomes.get(op)
        sent: _Row | None = None
        what = step.name
        host = step.host or ""
        for process, at, data in self.calls.get(op, ()):
            what, host, me = data["what"], data["host"], _conductor(process)
            sent = self._add(me, at, me, QUEUE, f"{undo}{what}", "message")
            if data["answer"] == "Refused":
                self._add(me, data["answered_at"], _agent(host), me, f"{what} refused", "failed", sent)
            elif data["answer"] != "Accepted":
                self._add(me, data["answered_at"], QUEUE, me, f"no answer to {what}", "failed", sent)
        if outcome is None:
            return
        receiver, received_at, said = outcome
        me, agent = _conductor(receiver), _agent(said["host"])
        taken: _Row | None = sent
        if said["accepted_at"]:
            fitted = self.clocks.fit(agent, said["accepted_at"])
            way = f", {_ms(max(fitted - sent.at, 0))} in the queue" if sent else ""
            taken = self._add(agent, said["accepted_at"], QUEUE, agent, f"{undo}{what} accepted{way}", "message", sent)
        begun, until = said["started_at"], said["worked_until"]
        if begun and until:
            waited = begun - (said["accepted_at"] or begun)
            first = begun if waited > 1000 or taken is None else begun - waited
            self.active.append((agent, self.clocks.fit(agent, first), self.clocks.fit(agent, until)))
            if waited > 1000:
                text = f"begins after {_ms(waited)} behind others"
                taken = self._add(agent, begun, agent, agent, text, "message", taken)
            text = f"{undo}{what} {said['state']} after {_ms(until - begun)}"
            text += f" ({said['error']})" if said["error"] else ""
            kind = "failed" if said["state"] == "failed" else "message"
            taken = self._add(agent, until, agent, QUEUE, text, kind, taken)
            way = _ms(max(self.clocks.fit(me, received_at) - taken.at, 0))
            self._add(me, received_at, QUEUE, me, f"outcome of {what}, {way} in the queue", "message", taken)


def sequence(request_id: str, told: Sequence[Told], stories: Sequence[Story]) -> dict[str, Any]:
    """``request`` (None: not noted), ``lifelines``, ``rows`` (at_ms from the first), ``active``, ``clocks``."""
    drawn = _Sequence(told, stories)
    drawn.draw()
    used = [name for row in drawn.rows for name in (row.source, row.target)]
    conductors = list(dict.fromkeys(name for name in used if _is(name))) or ["conductor"]
    agents = list(dict.fromkeys(name for name in used if name.startswith("agent@")))
    lifelines = [API, DATABASE, QUEUE, *conductors, *agents]
    number = {name: index for index, name in enumerate(lifelines)}
    start = drawn.rows[0].at if drawn.rows else 0
    request = None
    if drawn.request is not None:
        process, at, _, data = drawn.request
        request = {"process": process, "at": at, "transactions": len(data["transactions"]), **data}
        request["transactions"] = len(data["transactions"])
    return {
        "request_id": request_id,
        "request": request,
        "started_at": start,
        "seconds": (drawn.rows[-1].at - start) / 1e6 if drawn.rows else 0.0,
        "sagas": [
            {"id": s.id, "kind": s.kind, "object_kind": s.object_kind, "object_id": s.object_id, "status": s.status,
             "error": s.error}
            for s, _ in drawn.stories
        ],
        "lifelines": [
            {"name": "conductor" if _is(name) and len(conductors) == 1 else name, "process": _process(name, drawn.api)}
            for name in lifelines
        ],
        "rows": [
            {"at_ms": (row.at - start) / 1000, "from": number.get(row.source), "to": number.get(row.target),
             "text": row.text, "kind": row.kind}
            for row in drawn.rows
        ],
        "active": [
            {"lifeline": number[name], "from_ms": (begin - start) / 1000, "to_ms": ((end or begin) - start) / 1000}
            for name, begin, end in drawn.active if name in number
        ],
        "clocks": {
            name: offset / 1000 for name, offset in drawn.clocks.offsets.items() if offset
        },
    }  # fmt: skip


def _conductor(process: str) -> str:
    return process if _is(process) else f"conductor {process}"


def _is(name: str) -> bool:
    return name.startswith("conductor")


def _agent(host: str) -> str:
    return f"agent@{host}"


def _process(name: str, api: str) -> str:
    if name == API:
        return api
    return name.removeprefix("conductor ") if _is(name) else ""


def _ms(microseconds: float) -> str:
    return f"{microseconds / 1000:.1f} ms"
