"""Keeps the certificate of a host that joined from ending: asks the conductor for another when two thirds are over.

The key stays. The new file takes the place of the old one at once, with the same owner and mode: the bus reads it when
it connects next, QEMU when a volume is attached, the volume daemon while it serves nobody.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cumulet.agent.contract import Certified, RenewCertificate
from cumulet.kernel import pki

_OVER = 2 / 3


def renew(folder: Path, host: str, call: Callable[[RenewCertificate], Any], now: float) -> bool:
    """Look, and renew if it is time; True if it was. ``folder``: as `cumulet join` made it. ``call``: asks a conductor
    (its errors pass through). ``now``: seconds since the epoch. OSError, ValueError: the files are not what they
    should be."""
    file = folder / "server-cert.pem"
    old = file.read_text()
    begun, ends = pki.life(old)
    if now < begun + (ends - begun) * _OVER:
        return False
    key = (folder / "server-key.pem").read_text()
    answer = call(RenewCertificate(host=host, certificate=old, csr=pki.request(key, host)))
    if not isinstance(answer, Certified) or pki.certified_key_hash(answer.certificate) != pki.key_hash(key):
        raise ValueError("the conductor's answer is no certificate for this host's key")
    _replace(file, answer.certificate)
    return True


def _replace(file: Path, text: str) -> None:
    about = file.stat()
    part = file.with_name(f".{file.name}.new")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        os.fchown(out.fileno(), about.st_uid, about.st_gid)
        os.fchmod(out.fileno(), about.st_mode & 0o777)
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    os.replace(part, file)
