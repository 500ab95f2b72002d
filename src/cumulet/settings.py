"""The settings of one process: a TOML file, then ``CUMULET_<SECTION>_<NAME>`` from the environment, over defaults.

About forty, typed, all with good defaults; everything else is API data. Unknown names and wrong types are refused with
the file and the name. Paths are derived from ``state_dir``, ``run_dir``, ``log_dir`` unless given.
"""

import json
import os
import socket
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlencode

import msgspec

DEFAULT_FILE = Path("/etc/cumulet/cumulet.toml")


class SettingsError(Exception):
    """A setting that cannot be used: which, where, why."""


class _Section(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    pass


class Paths(_Section):
    state_dir: str = "/var/lib/cumulet"
    run_dir: str = "/run/cumulet"
    log_dir: str = "/var/log/cumulet"


class Api(_Section):
    bind: str = "127.0.0.1"
    port: int = 8774
    public_url: str | None = None  # default: http(s)://<bind>:<port>
    region: str = "RegionOne"
    workers: int = 8  # handler threads
    max_body_bytes: int = 1_000_000
    max_pending: int = 256  # requests waiting for a thread; more are refused with 503
    certificate: str | None = None  # PEM file, with its chain: the API speaks HTTPS
    key: str | None = None


class DatabaseSettings(_Section):
    url: str | None = None  # default: sqlite in state_dir
    durable: bool = True  # SQLite synchronous=FULL


class BusSettings(_Section):
    url: str = "local"  # or amqp(s)://user:password@host:port,other:port/vhost
    management_url: str | None = None  # http(s)://user:password@host:port of RabbitMQ: makes accounts for hosts


class Tls(_Section):
    """This process's identity in the cloud: to the database, the broker (amqps) and other hosts. PEM files."""

    ca: str | None = None  # whom to believe; with it the database must use TLS, unless its url has an sslmode
    certificate: str | None = None
    key: str | None = None
    host_certificate_days: float = 365  # of hosts that join; they renew theirs when two thirds are over


class Identity(_Section):
    admin_password_file: str | None = None  # default: <state_dir>/admin-password; bootstraps the first administrator
    token_hours: float = 24
    policy_file: str | None = None  # oslo.policy overrides, e.g. /etc/cumulet/policy.yaml


class Conductor(_Section):
    threads: int = 4
    max_sagas: int = 2000  # waiting sagas; more are refused with 503
    lease_seconds: float = 15
    host_timeout_seconds: float = 30


class Host(_Section):
    name: str = ""  # default: the machine's host name
    roles: list[str] = msgspec.field(default_factory=lambda: ["compute", "network", "storage"])
    ip: str = "127.0.0.1"
    tunnel_ip: str | None = None
    availability_zone: str = "nova"
    heartbeat_seconds: float = 5
    compare_seconds: float = 30  # how often a host compares its documents with the control plane's, asked or not
    inventory_seconds: float = 300  # how often it says all that it has, and is told what is nobody's


class Compute(_Section):
    driver: Literal["libvirt", "fake"] = "libvirt"
    virt_type: Literal["auto", "kvm", "qemu"] = "auto"
    libvirt_uri: str | None = None  # default: the system's libvirtd if it answers, else a private one
    door_port: int = 10810  # TCP, on host.ip: open for other hosts while servers come from them, or go to them
    cpu_allocation_ratio: float = 16.0
    ram_allocation_ratio: float = 1.5
    disk_allocation_ratio: float = 1.0
    reserved_memory_mb: int = 512
    allow_resize_to_same_host: bool = True
    resize_confirm_seconds: float = 0  # a resize is confirmed by itself after so long; 0: never
    live_migration_seconds_per_gb: int = 800  # of memory and disk, at least two; 0: it may take for ever
    live_migration_on_timeout: Literal["abort", "force_complete"] = "abort"  # or "force_complete"
    fake_boot_seconds: float = 0  # driver = "fake": how long its servers take to start


class Network(_Section):
    driver: Literal["real", "fake"] = "real"
    mechanism: Literal["auto", "openvswitch", "linuxbridge"] = "auto"
    bridge_mappings: dict[str, str] = msgspec.field(default_factory=lambda: {"public": "br-ex"})
    tenant_network_types: list[str] = msgspec.field(default_factory=lambda: ["vxlan"])
    vlan_ranges: dict[str, str] = msgspec.field(default_factory=dict)  # physical network -> "100:199"
    vni_range: str = "1:65535"
    physical_mtu: int = 1500
    external_cidr: str | None = None  # the embedded cloud makes br-ex with this range's gateway and masquerades it
    dns_servers: list[str] = msgspec.field(default_factory=list)
    tunnel_nic: str | None = None  # a user-space Open vSwitch takes this NIC over for tunnels


class Storage(_Section):
    driver: Literal["file", "fake"] = "file"
    directory: str | None = None  # default: <state_dir>/volumes
    image_directory: str | None = None  # default: <state_dir>/images


class Quota(_Section):
    """Default quotas of a project; -1 is unlimited."""

    instances: int = 10
    cores: int = 20
    ram_mb: int = 51200
    volumes: int = 10
    gigabytes: int = 1000
    snapshots: int = 10
    networks: int = 100
    ports: int = 500
    routers: int = 10
    floating_ips: int = 50
    security_groups: int = 10
    security_group_rules: int = 100


class Settings(_Section):
    paths: Paths = msgspec.field(default_factory=Paths)
    api: Api = msgspec.field(default_factory=Api)
    database: DatabaseSettings = msgspec.field(default_factory=DatabaseSettings)
    bus: BusSettings = msgspec.field(default_factory=BusSettings)
    tls: Tls = msgspec.field(default_factory=Tls)
    identity: Identity = msgspec.field(default_factory=Identity)
    conductor: Conductor = msgspec.field(default_factory=Conductor)
    host: Host = msgspec.field(default_factory=Host)
    compute: Compute = msgspec.field(default_factory=Compute)
    network: Network = msgspec.field(default_factory=Network)
    storage: Storage = msgspec.field(default_factory=Storage)
    quota: Quota = msgspec.field(default_factory=Quota)

    @property
    def state_dir(self) -> Path:
        return Path(self.paths.state_dir)

    @property
    def run_dir(self) -> Path:
        return Path(self.paths.run_dir)

    @property
    def log_dir(self) -> Path:
        return Path(self.paths.log_dir)

    @property
    def database_url(self) -> str:
        url = self.database.url or f"sqlite:///{self.state_dir / 'cumulet.db'}"
        if not url.startswith("postgresql") or self.tls.ca is None or "sslmode=" in url:
            return url
        options = {"sslmode": "verify-full", "sslrootcert": self.tls.ca}
        if self.tls.certificate and self.tls.key:
            options |= {"sslcert": self.tls.certificate, "sslkey": self.tls.key}
        return f"{url}{'&' if '?' in url else '?'}{urlencode(options)}"

    @property
    def public_url(self) -> str:
        scheme = "https" if self.api.certificate else "http"
        return (self.api.public_url or f"{scheme}://{self.api.bind}:{self.api.port}").rstrip("/")

    @property
    def host_name(self) -> str:
        return self.host.name or socket.gethostname()

    @property
    def image_dir(self) -> Path:
        return Path(self.storage.image_directory or self.state_dir / "images")

    @property
    def volume_dir(self) -> Path:
        return Path(self.storage.directory or self.state_dir / "volumes")

    @property
    def admin_password_file(self) -> Path:
        return Path(self.identity.admin_password_file or self.state_dir / "admin-password")


def default_file(environ: Mapping[str, str] = os.environ) -> Path:
    """The settings file where none is named."""
    return Path(environ.get("CUMULET_CONFIG", DEFAULT_FILE))


def load(path: Path | None = None, environ: dict[str, str] | None = None) -> Settings:
    """Read ``path`` (default /etc/cumulet/cumulet.toml, if it is there), then the environment. SettingsError."""
    environ = dict(os.environ) if environ is None else environ
    if path is None:
        path = default_file(environ)
        raw: dict[str, Any] = tomllib.loads(path.read_text()) if path.is_file() else {}
    else:
        try:
            raw = tomllib.loads(path.read_text())
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise SettingsError(f"{path}: {error}") from error
    for section in msgspec.structs.fields(Settings):
        for option in msgspec.structs.fields(section.type):
            text = environ.get(f"CUMULET_{section.name}_{option.name}".upper())
            if text is not None:
                raw.setdefault(section.name, {})[option.name] = _from_text(text)
    try:
        return msgspec.convert(raw, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{path}: {error}") from error


def _from_text(text: str) -> Any:
    """Lists and tables are JSON in the environment; everything else is taken as it stands."""
    return msgspec.json.decode(text.encode()) if text[:1] in ("[", "{") else text


def to_toml(settings: Settings | dict[str, Any]) -> str:
    """The file that makes these settings; what is None is left out."""
    lines = []
    for section, options in msgspec.to_builtins(settings).items():
        lines.append(f"[{section}]")
        for name, value in options.items():
            if isinstance(value, dict):
                inside = ", ".join(f"{json.dumps(key)} = {json.dumps(one)}" for key, one in value.items())
                lines.append(f"{name} = {{{inside}}}")
            elif value is not None:
                lines.append(f"{name} = {json.dumps(value)}")
    return "\n".join(lines) + "\n"
