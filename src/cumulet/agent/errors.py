"""How a driver says that it could not do what was asked."""


class DriverError(Exception):
    """``code`` is for programs (no-space, image-invalid, detach-refused, not-found, busy, timeout, unsupported,
    conflict, internal); ``message`` is for people, names no secret, and says what to do if there is something."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def not_found(what: str) -> DriverError:
    return DriverError("not-found", f"There is no {what} on this host.")
