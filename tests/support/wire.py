"""A TCP proxy that can be cut: to see what a network's failure does to what talks through it."""

import contextlib
import socket
import threading


class Wire:
    """``cut`` closes what is open and refuses; ``silence`` keeps connections and lets nothing through, as a network
    that drops packets; ``mend`` lets everything through again (what was silenced stays lost)."""

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._silent: set[socket.socket] = set()
        self._mute = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._closed = False
        threading.Thread(target=self._accept, name="wire", daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                if self._closed:
                    return
                threading.Event().wait(0.01)  # cut: the listener is another by the next time
                continue
            if self._mute:
                with self._lock:
                    self._open.append(near)  # taken by the kernel, answered by nobody
                continue
            try:
                far = socket.create_connection(self._target, timeout=30)
            except OSError:
                near.close()
                continue
            with self._lock:
                self._open += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    def _pump(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                if one not in self._silent:
                    other.sendall(data)
        for end in (one, other):
            with contextlib.suppress(OSError):
                if one not in self._silent:
                    end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        self._listener.close()
        with self._lock:
            for one in self._open:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
                one.close()
            self._open.clear()

    def silence(self) -> None:
        self._mute = True
        with self._lock:
            self._silent.update(self._open)

    def mend(self) -> None:
        self._mute = False
        if self._listener.fileno() < 0:
            self._listener = socket.create_server(("127.0.0.1", self.port))

    def close(self) -> None:
        self._closed = True
        self.cut()
