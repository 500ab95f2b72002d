"""How a driver says that an operation failed."""


class DriverError(Exception):
    """``code`` is for programs (``Outcome.error_code``: no-space, image-invalid, detach-refused, not-found, timeout,
    unsupported, hypervisor, ...), ``message`` for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
