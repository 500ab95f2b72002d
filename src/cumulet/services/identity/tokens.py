"""Fernet tokens and the keys they are sealed with.

Keys live in the database, so every process reads what any process wrote; the newest key seals. A process that meets
a token it cannot open looks for new keys, at most once a second. `rotate` is safe to call at any time, by anyone.
"""

import base64
import threading
from itertools import pairwise
from typing import Any

import msgspec
from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from cumulet.db import Database, Tx
from cumulet.kernel.clock import SECOND
from cumulet.kernel.ids import new_hex
from cumulet.services.identity import store
from cumulet.services.identity.store import KeyRow

_pack = msgspec.msgpack.Encoder().encode
MAX_TOKEN_CHARS = 4096


class Payload(msgspec.Struct, array_like=True, frozen=True):
    """What a token says. ``scope``: ("project" | "domain" | "system" | "", id). ``audit_ids``: its own id, and that
    of the first token of its chain. Times in microseconds."""

    user_id: str
    methods: tuple[str, ...]
    scope: tuple[str, str]
    issued_at: int
    expires_at: int
    audit_ids: tuple[str, ...]
    application_credential_id: str | None = None
    trust_id: str | None = None


_unpack = msgspec.msgpack.Decoder(Payload).decode


def new_audit_id() -> str:
    return base64.urlsafe_b64encode(bytes.fromhex(new_hex())).rstrip(b"=").decode()


class KeyRing:
    """The keys of one kind: ``token`` or ``credential``."""

    def __init__(self, db: Database, kind: str) -> None:
        self._db = db
        self._kind = kind
        self._lock = threading.Lock()
        self._fernet: MultiFernet | None = None
        self._looked_at = 0.0

    def seal(self, content: bytes) -> str:
        return self._keys().encrypt(content).rstrip(b"=").decode()

    def open(self, sealed: str) -> bytes:
        """Raises ValueError for what these keys did not seal."""
        content = sealed.encode("ascii", "replace")
        content += b"=" * (-len(content) % 4)
        try:
            return self._keys().decrypt(content)
        except InvalidToken:
            if not self._reload():
                raise ValueError("not sealed with a known key") from None
        try:
            return self._keys().decrypt(content)
        except InvalidToken:
            raise ValueError("not sealed with a known key") from None

    def _keys(self) -> MultiFernet:
        found = self._fernet
        if found is None:
            with self._lock:
                if self._fernet is None:
                    self._fernet = self._load()
                found = self._fernet
        return found

    def _reload(self) -> bool:
        with self._lock:
            now = self._db.clock.monotonic()
            if now - self._looked_at < 1.0:
                return False
            self._looked_at = now
            self._fernet = self._load()
            return True

    def _load(self) -> MultiFernet:
        rows = self._db.read(lambda tx: store.keys.list(tx, kind=self._kind))
        if not rows:
            rows = self._db.write(lambda tx: _first_key(tx, self._kind))
        rows.sort(key=lambda row: row.created_at, reverse=True)
        return MultiFernet([Fernet(row.secret) for row in rows])

    def rotate(self, tx: Tx, *, period: int, keep: int) -> bool:
        """Add a key when the newest is older than ``period``, and drop those replaced more than ``keep`` ago
        (microseconds). True when something changed."""
        tx.lock("identity-keys", self._kind)
        rows = sorted(store.keys.list(tx, kind=self._kind), key=lambda row: row.created_at, reverse=True)
        changed = False
        if not rows or tx.now - rows[0].created_at >= period:
            rows.insert(0, _add_key(tx, self._kind))
            changed = True
        for newer, row in pairwise(rows):
            if tx.now - newer.created_at > keep:
                store.keys.remove(tx, row.id)
                changed = True
        if changed:
            tx.after_commit(self.forget)
        return changed

    def forget(self) -> None:
        """Read the keys anew when one is needed."""
        self._fernet = None


def _first_key(tx: Tx, kind: str) -> list[KeyRow]:
    tx.lock("identity-keys", kind)
    return store.keys.list(tx, kind=kind) or [_add_key(tx, kind)]


def _add_key(tx: Tx, kind: str) -> KeyRow:
    row = KeyRow(id=new_hex(), kind=kind, secret=Fernet.generate_key().decode(), created_at=tx.now)
    return store.keys.add(tx, row)


class TokenCodec:
    def __init__(self, keys: KeyRing) -> None:
        self._keys = keys

    def encode(self, payload: Payload) -> str:
        return self._keys.seal(_pack(payload))

    def decode(self, token: str) -> Payload:
        """Raises ValueError when it is not one of ours. Says nothing of expiry or revocation."""
        if len(token) > MAX_TOKEN_CHARS:
            raise ValueError("too long")
        try:
            return _unpack(self._keys.open(token))
        except msgspec.DecodeError:
            raise ValueError("not a token") from None


TOKEN_KEY_PERIOD = 24 * 3600 * SECOND


def token_payload(
    user_id: str, methods: tuple[str, ...], scope: tuple[str, str], issued_at: int, expires_at: int, **more: Any
) -> Payload:
    chain = more.pop("chain", None)
    audit_ids = (new_audit_id(), chain) if chain else (new_audit_id(),)
    return Payload(user_id, methods, scope, issued_at, expires_at, audit_ids, **more)
