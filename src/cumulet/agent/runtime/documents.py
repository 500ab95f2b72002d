"""Desired documents: pulled, applied, kept on disk, removed when the control plane says they are absent.

A hint (``LookAgain``) names documents to pull at once; every so often the whole index is compared, which also finds
what hints missed. What the last life of the agent kept on disk is applied at start, before any conductor answers, so
DHCP, metadata and filters work without one. Nothing is removed because it is unknown: the control plane is asked, and
removes by naming it absent. Hints are gathered while a pull is digested, for twice as long as it took: a document of
thousands of entries that changes with each of them costs a third of the time, not all of it. A document that fails is
tried again, ever more slowly, and its error reported.
"""

import logging
import threading
import time
from collections.abc import Iterable
from typing import Any

import msgspec

from cumulet.agent.contract import DOCUMENTS, Applied, Documents, Index, Pull, PullIndex
from cumulet.agent.driver import DocumentApplier
from cumulet.agent.errors import DriverError
from cumulet.agent.runtime.keyed import KeyedExecutor
from cumulet.agent.runtime.link import Link
from cumulet.agent.runtime.store import AgentStore
from cumulet.bus import RemoteFault
from cumulet.kernel.errors import Unavailable

_log = logging.getLogger(__name__)
Key = tuple[str, str]  # kind, id
_PULL_AT_ONCE = 200
_REMOVAL_SECONDS = 10.0  # how long an operation waits for the removal of what it makes anew
_LONGEST_REST_SECONDS = 0.5
_FIRST_RETRY_SECONDS, _LAST_RETRY_SECONDS = 2.0, 60.0


class _Held:
    """What this host has of one document."""

    __slots__ = ("applied", "body", "error", "failures", "generation", "retry_at")

    def __init__(self, generation: int, body: bytes) -> None:
        self.generation = generation
        self.body = body
        self.applied = 0  # generation that stands on the host since this life of the agent
        self.error: str | None = None
        self.failures = 0
        self.retry_at = 0.0


class DocumentSync:
    def __init__(
        self,
        host: str,
        store: AgentStore,
        link: Link,
        appliers: dict[str, DocumentApplier],
        *,
        threads: int = 4,
        compare_seconds: float = 30.0,
    ) -> None:
        self._host = host
        self._store = store
        self._link = link
        self._appliers = appliers
        self._compare_seconds = compare_seconds
        self._workers = KeyedExecutor("document", threads)
        self._state = threading.Condition()
        self._held: dict[Key, _Held] = {}
        self._expected: dict[Key, int] = {}  # generations that come with operations under way
        self._dirty: set[Key] = set()
        self._unreported: dict[Key, tuple[int, str | None]] = {}
        self._compare_at = 0.0
        self._try_at = 0.0  # no conductor: nothing is asked before
        self._pull_at = 0.0  # hints are gathered until then
        self._turning = False  # the thread is at what it took from the sets above
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="documents", daemon=True)

    def start(self) -> None:
        """Take up what is on disk, apply it, and begin to look."""
        for kind, object_id, generation, body in self._store.documents():
            if kind in self._appliers:
                self._held[kind, object_id] = _Held(generation, body)
        for key in list(self._held):
            self._submit(key)
        self._thread.start()

    def stop(self, seconds: float) -> None:
        with self._state:
            self._stopping = True
            self._state.notify_all()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(seconds)
        self._workers.close(seconds)

    def look_again(self, keys: Iterable[Key]) -> None:
        wanted = {(kind, object_id) for kind, object_id in keys if kind in self._appliers}
        with self._state:
            if wanted:
                self._dirty |= wanted
            else:
                self._compare_at = 0.0
            self._state.notify_all()

    def expect(self, documents: Iterable[Any]) -> None:
        """These come with an operation that is about to make what they say: a removal of older ones, under way or
        late, must not take that away."""
        removals = []
        with self._state:
            for doc in documents:
                key = (doc.kind, doc.id)
                self._expected[key] = max(doc.generation, self._expected.get(key, 0))
                if key in self._held:
                    removals.append(key)
        for key in removals:
            over = threading.Event()
            self._workers.submit(key, over.set)
            over.wait(_REMOVAL_SECONDS)

    def carried(self, documents: Iterable[Any]) -> None:
        """These came with an operation, and stand on the host."""
        with self._state:
            for doc in documents:
                key = (doc.kind, doc.id)
                self._expected.pop(key, None)
                held = self._held.get(key)
                if doc.kind not in self._appliers or (held is not None and held.generation >= doc.generation):
                    continue
                body = msgspec.json.encode(doc)
                self._store.save_document(doc.kind, doc.id, doc.generation, body)
                held = self._held[key] = _Held(doc.generation, body)
                held.applied = doc.generation
                self._unreported[key] = (doc.generation, None)

    def reapply(self, kind: str, ids: Iterable[str] | None = None) -> None:
        chosen = None if ids is None else set(ids)
        with self._state:
            keys = [key for key in self._held if key[0] == kind and (chosen is None or key[1] in chosen)]
            for key in keys:
                self._held[key].applied = 0
        for key in keys:
            self._submit(key)

    def document(self, kind: str, object_id: str) -> Any | None:
        with self._state:
            held = self._held.get((kind, object_id))
        return None if held is None else msgspec.json.decode(held.body, type=DOCUMENTS[kind])

    def busy(self) -> int:
        return self._workers.busy()

    def waits(self) -> bool:
        """Is a document to be asked for or reported, or is one just now?"""
        now = time.monotonic()
        with self._state:
            compares = self._compare_at <= now and self._try_at <= now
            return bool(self._turning or self._dirty or self._unreported or compares)

    def held(self) -> dict[str, dict[str, Any]]:
        """kind -> id -> document: what this host is to have."""
        with self._state:
            bodies = [(kind, object_id, held.body) for (kind, object_id), held in self._held.items()]
        found: dict[str, dict[str, Any]] = {kind: {} for kind in self._appliers}
        for kind, object_id, body in bodies:
            found[kind][object_id] = msgspec.json.decode(body, type=DOCUMENTS[kind])
        return found

    def apply_now(self, kind: str, object_id: str, seconds: float = 30.0) -> str | None:
        """Apply a document once more and wait for it; what went wrong, or None. KeyError: there is no such document."""
        key = (kind, object_id)
        with self._state:
            self._held[key].applied = 0
            self._held[key].error = None
        self._submit(key)
        with self._state:
            self._state.wait_for(lambda: self._ended(key), seconds)
            held = self._held.get(key)
        if held is None:
            return None
        return held.error or (None if held.applied == held.generation else "It is still being applied.")

    def _ended(self, key: Key) -> bool:
        held = self._held.get(key)
        return held is None or held.error is not None or held.applied == held.generation

    def settled(self, seconds: float) -> bool:
        """Wait until nothing is being applied or waits to be (tests, start-up)."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with self._state:
                quiet = not self._turning and not self._dirty and not self._unreported
                quiet = quiet and self._compare_at > time.monotonic()
            if quiet and self._workers.idle(0.05):
                return True
            time.sleep(0.005)
        return False

    # -- asking the conductor ------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._state:
                self._turning = False
                while not self._stopping and not self._due():
                    self._state.wait(self._rest())
                if self._stopping:
                    return
                compare = self._compare_at <= time.monotonic()
                dirty = list(self._dirty)
                self._dirty.clear()
                self._turning = True
            began = time.monotonic()
            try:
                if compare:
                    dirty = list({*dirty, *self._compare()})
                for start in range(0, len(dirty), _PULL_AT_ONCE):
                    self._pull(dirty[start : start + _PULL_AT_ONCE])
                self._report()
                self._retry()
                ended = time.monotonic()
                self._pull_at = ended + min(2 * (ended - began), _LONGEST_REST_SECONDS)
            except Exception as error:  # noqa: BLE001 - whatever it was is tried again
                if isinstance(error, RemoteFault):
                    _log.warning("the conductor failed at documents: %s", error)
                elif not isinstance(error, Unavailable):
                    _log.exception("looking after documents failed")
                with self._state:
                    self._dirty.update(dirty)
                    self._try_at = time.monotonic() + 1.0
                    if compare:
                        self._compare_at = 0.0

    def _due(self) -> bool:
        now = time.monotonic()
        if now < self._try_at:
            return False
        gathered = now >= self._pull_at and (self._dirty or self._unreported)
        return bool(gathered or self._compare_at <= now or self._next_retry() <= now)

    def _rest(self) -> float:
        now = time.monotonic()
        if now < self._try_at:
            return self._try_at - now
        at = min(self._compare_at, self._next_retry())
        if self._dirty or self._unreported:
            at = min(at, self._pull_at)
        return max(at - now, 0.001)

    def _next_retry(self) -> float:
        return min((held.retry_at for held in self._held.values() if held.retry_at), default=float("inf"))

    def _compare(self) -> list[Key]:
        """Which documents to pull: newer or unknown ones, and ours that the control plane does not name."""
        index = self._link.call(PullIndex(host=self._host))
        assert isinstance(index, Index)
        named = {(kind, object_id): generation for kind, object_id, generation in index.entries}
        existing: set[Key] = set()
        for kind, applier in self._appliers.items():
            try:
                existing |= {(kind, object_id) for object_id in applier.list()}
            except DriverError as error:
                _log.warning("cannot list what exists of %s: %s", kind, error.message)
        with self._state:
            ours = {key: held.generation for key, held in self._held.items()}
            self._compare_at = time.monotonic() + self._compare_seconds
        wanted = [
            key for key, generation in named.items() if key[0] in self._appliers and ours.get(key, -1) < generation
        ]
        unnamed = (set(ours) | existing) - set(named)
        if existing - set(named) - set(ours):
            _log.info("on this host and not named by the control plane: %s", sorted(existing - set(named) - set(ours)))
        return [*wanted, *unnamed]

    def _pull(self, keys: list[Key]) -> None:
        answer = self._link.call(Pull(host=self._host, keys=keys))
        assert isinstance(answer, Documents)
        for kind, data in answer.documents:
            if kind in self._appliers:
                self._take(kind, data)
        for kind, object_id, generation in answer.absent:
            if kind in self._appliers:
                self._submit_removal((kind, object_id), generation)

    def _take(self, kind: str, data: dict[str, Any]) -> None:
        doc: Any = msgspec.convert(data, DOCUMENTS[kind])
        key = (kind, doc.id)
        body = msgspec.json.encode(doc)
        with self._state:
            held = self._held.get(key)
            if held is not None and held.generation >= doc.generation:
                # told again: report again, the conductor may not know
                if held.applied == held.generation or held.error is not None:
                    self._unreported[key] = (held.generation, held.error)
                return
            self._store.save_document(kind, doc.id, doc.generation, body)
            if held is None:
                self._held[key] = _Held(doc.generation, body)
            else:
                held.generation, held.body, held.failures, held.retry_at = doc.generation, body, 0, 0.0
        self._submit(key)

    def _report(self) -> None:
        with self._state:
            entries, self._unreported = self._unreported, {}
        if not entries:
            return
        try:
            self._link.call(
                Applied(
                    host=self._host,
                    entries=[(kind, object_id, *what) for (kind, object_id), what in entries.items()],
                )
            )
        except (Unavailable, RemoteFault):
            with self._state:
                self._unreported = {**entries, **self._unreported}
            raise

    def _retry(self) -> None:
        now = time.monotonic()
        with self._state:
            keys = [key for key, held in self._held.items() if held.retry_at and held.retry_at <= now]
            for key in keys:
                self._held[key].retry_at = 0.0
        for key in keys:
            self._submit(key)

    # -- on worker threads ------------------------------------------------------------

    def _submit(self, key: Key) -> None:
        self._workers.submit(key, lambda: self._apply(key))

    def _submit_removal(self, key: Key, generation: int) -> None:
        self._workers.submit(key, lambda: self._remove(key, generation))

    def _apply(self, key: Key) -> None:
        with self._state:
            held = self._held.get(key)
            if held is None or held.applied == held.generation:
                return
            generation, body = held.generation, held.body
        error = _attempt(key, lambda: self._appliers[key[0]].apply(msgspec.json.decode(body, type=DOCUMENTS[key[0]])))
        self._note(key, held, generation, error)

    def _remove(self, key: Key, generation: int) -> None:
        with self._state:
            held = self._held.get(key)
            if (held is not None and held.generation > generation) or self._expected.get(key, 0) > generation:
                return
        error = _attempt(key, lambda: self._appliers[key[0]].remove(key[1], generation))
        if error is None:
            with self._state:
                self._held.pop(key, None)
                self._store.forget_document(*key)
        with self._state:
            self._unreported[key] = (generation, error)
            if error is not None:  # the next comparison asks again
                self._compare_at = min(self._compare_at, time.monotonic() + _FIRST_RETRY_SECONDS)
            self._state.notify_all()

    def _note(self, key: Key, held: _Held, generation: int, error: str | None) -> None:
        with self._state:
            held.error = error
            if error is None:
                held.applied, held.failures, held.retry_at = generation, 0, 0.0
            else:
                held.failures += 1
                pause = min(_FIRST_RETRY_SECONDS * 2 ** (held.failures - 1), _LAST_RETRY_SECONDS)
                held.retry_at = time.monotonic() + pause
            self._unreported[key] = (generation, error)
            self._state.notify_all()


def _attempt(key: Key, work: Any) -> str | None:
    """None, or why it failed."""
    try:
        work()
    except DriverError as error:
        _log.warning("document %s %s: %s: %s", *key, error.code, error.message)
        return error.message
    except Exception as error:  # noqa: BLE001 - reported and logged
        _log.exception("document %s %s", *key)
        return f"{type(error).__name__}: {error}"
    return None
