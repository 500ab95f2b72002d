"""The connection's patience and words, on libvirt's own test driver."""

import threading

import libvirt
import pytest

from cumulet.agent.compute.hypervisor import Hypervisor
from cumulet.agent.errors import DriverError


@pytest.fixture
def hypervisor():
    made = Hypervisor("test:///default")
    made.start()
    yield made
    made.stop()


def test_calls(hypervisor: Hypervisor) -> None:
    assert hypervisor.call("list", lambda connection: len(connection.listAllDomains())) == 1


def test_a_silent_daemon_costs_patience_only(hypervisor: Hypervisor) -> None:
    release = threading.Event()
    with pytest.raises(DriverError) as caught:
        hypervisor.call("hang", lambda connection: release.wait(10), seconds=0.05)
    assert caught.value.code == "timeout"
    assert hypervisor.call("version", lambda connection: connection.getLibVersion()) > 0
    release.set()


def test_errors_have_codes(hypervisor: Hypervisor) -> None:
    unknown = "00000000-1111-2222-3333-444444444444"
    with pytest.raises(DriverError) as caught:
        hypervisor.call("look", lambda connection: hypervisor.domain(connection, unknown))
    assert caught.value.code == "not-found"
    with pytest.raises(DriverError) as caught:
        hypervisor.call("define", lambda connection: connection.defineXML("<domain"))
    assert caught.value.code in ("unsupported", "hypervisor")


def test_events_reach_the_worker() -> None:
    seen, told = [], threading.Event()

    def on_event(event: object) -> None:
        seen.append((event, threading.current_thread().name))
        told.set()

    connected = threading.Event()
    hypervisor = Hypervisor("test:///default", on_event=on_event, on_connected=connected.set)
    hypervisor.start()
    assert connected.wait(30)
    hypervisor.call("stop it", lambda connection: connection.lookupByName("test").destroy())
    assert told.wait(30)
    event, thread = seen[0]
    assert event.kind == "lifecycle"
    assert thread == "libvirt-work", "never on libvirt's own thread"
    hypervisor.stop()


def test_a_broken_connection_is_made_anew() -> None:
    connections, prepared = [], []
    made = threading.Semaphore(0)

    def on_connected() -> None:
        made.release()

    hypervisor = Hypervisor("test:///default", on_connected=on_connected, prepare=lambda: prepared.append(1))
    hypervisor.start()
    assert made.acquire(timeout=30)
    hypervisor.call("keep", connections.append)
    hypervisor._drop(connections[0])  # what libvirt's close callback does
    assert made.acquire(timeout=30), "without anyone calling"
    hypervisor.call("keep", connections.append)
    assert connections[0] is not connections[1]
    assert len(prepared) == 2
    hypervisor.stop()
    with pytest.raises(DriverError, match="stopping"):
        hypervisor.call("late", lambda connection: None)


def test_what_libvirt_cannot_reach() -> None:
    hypervisor = Hypervisor("qemu+unix:///system?socket=/nonexistent/socket")
    with pytest.raises(DriverError) as caught:
        hypervisor.call("connect", lambda connection: None)
    assert caught.value.code == "hypervisor"
    assert isinstance(caught.value.__cause__, libvirt.libvirtError)
    hypervisor.stop()
