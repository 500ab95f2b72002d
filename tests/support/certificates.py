"""A site's own certificate authority: for brokers, databases and APIs of tests."""

import time
from pathlib import Path
from typing import NamedTuple

from cumulet.kernel import pki


class Files(NamedTuple):
    ca: Path
    certificate: Path
    key: Path


class Site:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._certificate, self._key = pki.new_authority("Site", time.time())
        self.ca = directory / "site-ca.pem"
        self.ca.write_text(self._certificate)

    def issue(self, name: str, *addresses: str) -> Files:
        """A certificate of a server or a client, with its key: files that everybody may read, as tests run servers
        under their own users."""
        key = pki.new_key()
        request = pki.request(key, name)
        made = pki.sign(self._certificate, self._key, request, name=name, addresses=addresses, days=2, now=time.time())
        files = Files(self.ca, self.directory / f"{name}.pem", self.directory / f"{name}.key")
        files.certificate.write_text(made.certificate)
        files.key.write_text(key)
        return files
