"""What an uploaded file really is: the one seam to the confined inspector that hosts use too.

Image files are untrusted: `agent.image.inspect` reads them in a child with limits and refuses what lies about itself or
reaches outside the file. Its verdict becomes the image's virtual size, or a refusal.
"""

from collections.abc import Callable

from cumulet.agent.image.formats import ImageRefused
from cumulet.agent.image.inspect import inspect

# path, disk_format, container_format -> virtual size in bytes (None: not known). Raises Rejected.
Inspect = Callable[[str, str, str], int | None]

# In these containers the disk is inside something else, which nobody opens here; hosts do not boot from them.
_OPAQUE = ("docker", "ova", "ovf", "compressed")


class Rejected(Exception):
    """The file is not what it claims to be, or asks for something no image may ask for."""


def inspect_file(path: str, disk_format: str, container_format: str) -> int | None:
    if container_format in _OPAQUE or disk_format == "ploop":
        return None
    try:
        return inspect(path, disk_format).virtual_size_bytes
    except ImageRefused as error:
        raise Rejected(str(error)) from None
