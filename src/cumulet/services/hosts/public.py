"""`HostsService`: hosts as a whole: what is on each, taking it out of use, vouching that it is dead, removing it.

Each service says what of its own is on a host and takes it off. `drain` keeps new work away, moves routers and DHCP
servers to other network hosts, has servers and volumes move away, and says what is left and why. Repeating it tries
again.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

from cumulet.conductor import Desired, HostRegistry, drains
from cumulet.db import Database, Tx
from cumulet.kernel.clock import iso
from cumulet.kernel.errors import Conflict, Unavailable
from cumulet.services.hosts import store
from cumulet.services.hosts.joining import Joining

_log = logging.getLogger(__name__)
DRAINED = "drained"
_KEPT = ("server", "volume", "backup")  # what a host that holds it cannot be removed with
_WHY = {
    "backup": "its data is on this host: delete it",
    "router": "there is no other network host that is up",
    "network": "its DHCP server has no other network host that is up",
}


class Tenant(Protocol):
    """A service with things on hosts."""

    def on_host(self, tx: Tx, host: str) -> list[tuple[str, str, str]]:
        """(kind, id, name) of what is there."""
        ...

    def leave_host(self, tx: Tx, host: str) -> None:
        """Take off what can be moved; new things stay away (``return_to_host`` lets them come again)."""
        ...

    def return_to_host(self, tx: Tx, host: str) -> None: ...

    def forget_host(self, tx: Tx, host: Any) -> None:
        """The host is gone for good, and nothing is on it."""
        ...


class HostsService:
    def __init__(
        self,
        *,
        db: Database,
        hosts: HostRegistry,
        desired: Desired,
        joining: Joining,
        tenants: list[Tenant],
        moved: Callable[[], object] = lambda: None,
        why: Mapping[str, Callable[[Tx, str, list[str]], dict[str, str]]] = MappingProxyType({}),
    ) -> None:
        """``moved``: called when something waits for another host. ``why``: by kind, who knows of things that are left
        on a host why they are."""
        self.db = db
        self.hosts = hosts
        self.desired = desired
        self.joining = joining
        self.tenants = tenants
        self._moved = moved
        self._why = why

    # -- looking ------------------------------------------------------------------------------------------------------

    def listing(self) -> list[dict[str, Any]]:
        return self.db.read(lambda tx: [self._view(tx, host, self._on(tx, host.name)) for host in self.hosts.list(tx)])

    def show(self, name: str) -> dict[str, Any]:
        return self.db.read(lambda tx: self._shown(tx, name))

    def _shown(self, tx: Tx, name: str) -> dict[str, Any]:
        host = self.hosts.get(tx, name)
        held = self._on(tx, name)
        why: dict[str, str] = {}
        for asked, knows in self._why.items():
            why |= knows(tx, name, [id for kind, id, _ in held if kind == asked])
        left = [
            {"kind": kind, "id": id, "name": title, "why": why.get(id) or _WHY.get(kind, "")}
            for kind, id, title in held
        ]
        return {**self._view(tx, host, held), "left": left}

    def _on(self, tx: Tx, name: str) -> list[tuple[str, str, str]]:
        return [one for tenant in self.tenants for one in tenant.on_host(tx, name)]

    def _view(self, tx: Tx, host: Any, held: list[tuple[str, str, str]]) -> dict[str, Any]:
        counts = Counter(kind for kind, _, _ in held)
        certificates = store.valid_of(tx, host.name)
        drained = any(_drained(reason) for reason in host.disabled_roles.values())
        return {
            "name": host.name,
            "roles": host.roles,
            "up": host.up,
            "forced_down": host.forced_down,
            "drain": None if not drained else "waiting" if counts else "done",
            "disabled": host.disabled_roles,
            "version": host.version,
            "ip": host.ip,
            "tunnel_ip": host.tunnel_ip,
            "last_seen": iso(host.seen_at),
            "holds": counts,
            "joined": bool(certificates),
            "certificate_expires_at": iso(max((c.expires_at for c in certificates), default=None)),
        }

    # -- changing -----------------------------------------------------------------------------------------------------

    def drain(self, name: str, reason: str | None) -> dict[str, Any]:
        """No new work; what can move moves. Repeating it goes on."""

        def work(tx: Tx) -> None:
            host = self.hosts.get(tx, name, change=True)
            for role in host.roles:
                if role not in host.disabled_roles:
                    self.hosts.set_disabled(tx, name, f"{DRAINED}: {reason}" if reason else DRAINED, role=role)
            drains.ask(tx, name)
            for tenant in self.tenants:
                tenant.leave_host(tx, name)
            tx.after_commit(self._moved)

        self.db.write(work)
        return self.show(name)

    def undrain(self, name: str) -> dict[str, Any]:
        """It takes work again; a role that was disabled for another reason stays so."""

        def work(tx: Tx) -> None:
            host = self.hosts.get(tx, name, change=True)
            for role in [role for role, reason in host.disabled_roles.items() if _drained(reason)]:
                self.hosts.set_disabled(tx, name, disabled=False, role=role)
            drains.forget(tx, name)
            for tenant in self.tenants:
                tenant.return_to_host(tx, name)
            tx.after_commit(self._moved)

        self.db.write(work)
        return self.show(name)

    def set_down(self, name: str, *, down: bool) -> dict[str, Any]:
        """The operator vouches that the host is dead and fenced (or not any more): others may take over."""
        self.db.write(lambda tx: self.hosts.set_forced_down(tx, name, down))
        return self.show(name)

    def remove(self, name: str) -> None:
        """Forget a host that holds nothing; its certificate and its broker account are worth nothing afterwards.
        Routers and DHCP servers that are still on it are given to others by the reconciler of scheduling."""

        def work(tx: Tx) -> bool:
            host = self.hosts.get(tx, name, change=True)  # before looking: nothing comes to it meanwhile
            kinds = [kind for kind, _, _ in self._on(tx, name) if kind in _KEPT]
            if kinds:
                counts = ", ".join(f"{kinds.count(kind)} {kind}(s)" for kind in _KEPT if kind in kinds)
                raise Conflict(f"Host {name} holds {counts}: see `cumulet host drain {name}`.")
            joined = self.joining.leave(tx, name)
            if host.up and not joined:
                raise Conflict(
                    f"Host {name} is up and did not join with a token: stop its agent first, or it comes back."
                )
            for tenant in self.tenants:
                tenant.forget_host(tx, host)
            drains.forget(tx, name)
            self.desired.forget_host(tx, name)
            self.hosts.remove(tx, name)
            tx.after_commit(self._moved)
            return joined

        if self.db.write(work) and self.joining.accounts is not None:
            try:
                self.joining.accounts.remove(name)
            except Unavailable as error:  # the reconciler does it
                _log.warning("the broker account of host %s stays for now: %s", name, error.message)


def _drained(reason: str | None) -> bool:
    return reason is not None and reason.split(":")[0] == DRAINED
