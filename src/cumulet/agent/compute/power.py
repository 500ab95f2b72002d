"""Starting and stopping. Every action looks at what is and does what is missing, so that doing it twice is nothing;
only the reboots are done again when repeated (the agent's journal keeps them from it)."""

import socket
import time
from typing import Any
from xml.etree import ElementTree

import libvirt

from cumulet.agent.compute.hypervisor import Hypervisor
from cumulet.agent.compute.states import PAUSED, RUNNING, SHUTDOWN, power_state
from cumulet.agent.contract import PowerServer
from cumulet.agent.driver import Progress
from cumulet.agent.errors import DriverError

_START_SECONDS = 120
_SAVE_SECONDS = 600
_POLL_SECONDS = 0.1
_PRESS_AGAIN_SECONDS = 10.0


class Power:
    def __init__(self, hypervisor: Hypervisor) -> None:
        self._hv = hypervisor

    def apply(self, operation: PowerServer, progress: Progress) -> None:
        server_id = operation.server_id
        match operation.action:
            case "start" | "resume":
                self.start(server_id)
            case "stop":
                if not self._ask_to_stop(server_id, operation.grace_seconds, progress):
                    self.force_off(server_id)
            case "soft_reboot":
                if not self._ask_to_stop(server_id, operation.grace_seconds, progress):
                    self.force_off(server_id)
                self.start(server_id)
            case "hard_reboot":
                self.force_off(server_id)
                self.forget_saved(server_id)
                self.start(server_id)
            case "pause":
                self._pause(server_id)
            case "unpause":
                self._unpause(server_id)
            case "suspend":
                self._save(server_id, progress)

    def state(self, server_id: str) -> tuple[int, str]:
        return self._hv.call("look", lambda c: power_state(self._hv.domain(c, server_id)))

    def start(self, server_id: str) -> None:
        """Run it, from its saved memory if there is one."""

        def start(connection: Any) -> None:
            domain = self._hv.domain(connection, server_id)
            state, _ = power_state(domain)
            if state == PAUSED:
                domain.resume()
            elif state == SHUTDOWN:
                missing = _missing_taps(domain)
                if missing:
                    raise DriverError("no-tap", f"Ports are not plugged: {', '.join(missing)}.")
                domain.create()

        self._hv.call("start", start, _START_SECONDS)

    def force_off(self, server_id: str) -> None:
        def destroy(connection: Any) -> None:
            domain = self._hv.domain(connection, server_id)
            if domain.isActive():
                unless_off(domain, domain.destroy)

        self._hv.call("force off", destroy, _START_SECONDS)

    def forget_saved(self, server_id: str) -> None:
        def forget(connection: Any) -> None:
            domain = self._hv.domain(connection, server_id)
            if domain.hasManagedSaveImage():
                domain.managedSaveRemove()

        self._hv.call("forget the saved memory", forget)

    def _ask_to_stop(self, server_id: str, grace_seconds: float, progress: Progress) -> bool:
        """Press the power button and wait; True if it is off."""
        end = time.monotonic() + grace_seconds
        press_at = 0.0
        while True:
            state, _ = self.state(server_id)
            if state == SHUTDOWN:
                return True
            now = time.monotonic()
            if now >= end or state != RUNNING:  # a paused guest does not hear the button
                return False
            if now >= press_at:
                self._hv.call("press the power button", lambda c: self._press(c, server_id))
                press_at = now + _PRESS_AGAIN_SECONDS
            progress()
            time.sleep(_POLL_SECONDS)

    def _press(self, connection: Any, server_id: str) -> None:
        domain = self._hv.domain(connection, server_id)
        unless_off(domain, lambda: domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN))

    def _pause(self, server_id: str) -> None:
        def pause(connection: Any) -> None:
            domain = self._hv.domain(connection, server_id)
            state, _ = power_state(domain)
            if state == SHUTDOWN:
                raise DriverError("not-running", "The server is not running: pause is not possible.")
            if state != PAUSED:
                domain.suspend()

        self._hv.call("pause", pause)

    def _unpause(self, server_id: str) -> None:
        def unpause(connection: Any) -> None:
            domain = self._hv.domain(connection, server_id)
            state, _ = power_state(domain)
            if state == SHUTDOWN:
                raise DriverError("not-running", "The server is not running: unpause is not possible.")
            if state == PAUSED:
                domain.resume()

        self._hv.call("unpause", unpause)

    def _save(self, server_id: str, progress: Progress) -> None:
        def save(connection: Any) -> None:
            domain = self._hv.domain(connection, server_id)
            if domain.isActive():
                unless_off(domain, domain.managedSave)

        progress()
        self._hv.call("save the memory", save, _SAVE_SECONDS)


def unless_off(domain: Any, action: Any) -> None:
    """Do it; that the domain went off meanwhile is no error."""
    try:
        action()
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID or domain.isActive():
            raise


def _missing_taps(domain: Any) -> list[str]:
    """Taps of the definition that do not exist: libvirt would say it less clearly."""
    tree = ElementTree.fromstring(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    taps = [t.get("dev", "") for t in tree.iterfind("./devices/interface[@type='ethernet']/target")]
    there = {name for _, name in socket.if_nameindex()}
    return [tap for tap in taps if tap not in there]
