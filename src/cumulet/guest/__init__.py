"""Guests that the project makes itself: a tiny Linux from Debian packages (`build`), and a boot sector (`boot_sector`)
for whatever only needs a QEMU process. Fails with `GuestBuildError`, whose text says what to install or to run."""

from cumulet.guest.bootsector import boot_sector, boot_sector_qcow2, speed_sector
from cumulet.guest.builder import BUILD_PACKAGES, GuestBuildError, GuestImage, build

__all__ = [
    "BUILD_PACKAGES",
    "GuestBuildError",
    "GuestImage",
    "boot_sector",
    "boot_sector_qcow2",
    "build",
    "speed_sector",
]
