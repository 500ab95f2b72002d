"""/extensions: upstream still lists what once were extensions, for clients that look for their aliases."""

from typing import Any

from cumulet.http import Call, Route
from cumulet.kernel.errors import NotFound

_NAMES = {
    "NMN": "Multinic", "OS-DCF": "DiskConfig", "OS-EXT-AZ": "ExtendedAvailabilityZone",
    "OS-EXT-IMG-SIZE": "ImageSize", "OS-EXT-IPS": "ExtendedIps", "OS-EXT-IPS-MAC": "ExtendedIpsMac",
    "OS-EXT-SRV-ATTR": "ExtendedServerAttributes", "OS-EXT-STS": "ExtendedStatus", "OS-FLV-DISABLED": "FlavorDisabled",
    "OS-FLV-EXT-DATA": "FlavorExtraData", "OS-SCH-HNT": "SchedulerHints", "OS-SRV-USG": "ServerUsage",
    "os-admin-actions": "AdminActions", "os-admin-password": "AdminPassword", "os-aggregates": "Aggregates",
    "os-attach-interfaces": "AttachInterfaces", "os-availability-zone": "AvailabilityZone",
    "os-block-device-mapping-v2-boot": "BlockDeviceMappingV2Boot", "os-config-drive": "ConfigDrive",
    "os-console-output": "ConsoleOutput", "os-consoles": "Consoles", "os-create-backup": "CreateBackup",
    "os-deferred-delete": "DeferredDelete", "os-extended-volumes": "ExtendedVolumes",
    "os-flavor-access": "FlavorAccess", "os-flavor-extra-specs": "FlavorExtraSpecs",
    "os-flavor-manage": "FlavorManage", "os-flavor-rxtx": "FlavorRxtx", "os-flavor-swap": "FlavorSwap",
    "os-hypervisors": "Hypervisors", "os-instance-actions": "InstanceActions", "os-keypairs": "Keypairs",
    "os-lock-server": "LockServer", "os-migrations": "Migrations", "os-multiple-create": "MultipleCreate",
    "os-pause-server": "PauseServer", "os-quota-class-sets": "QuotaClasses", "os-quota-sets": "Quotas",
    "os-rebuild": "Rebuild", "os-security-groups": "SecurityGroups", "os-server-diagnostics": "ServerDiagnostics",
    "os-server-external-events": "ServerExternalEvents", "os-server-groups": "ServerGroups",
    "os-server-password": "ServerPassword", "os-server-start-stop": "ServerStartStop", "os-services": "Services",
    "os-simple-tenant-usage": "SimpleTenantUsage", "os-suspend-server": "SuspendServer",
    "os-used-limits": "UsedLimits", "os-user-data": "UserData", "os-user-quotas": "UserQuotas",
    "os-volume-attachment-update": "VolumeAttachmentUpdate", "os-volumes": "Volumes",
}  # fmt: skip


def _view(alias: str) -> dict[str, Any]:
    return {
        "alias": alias,
        "name": _NAMES[alias],
        "description": "",
        "links": [],
        "namespace": "http://docs.openstack.org/compute/ext/fake_xml",
        "updated": "2014-12-03T00:00:00Z",
    }


def index(call: Call) -> dict[str, Any]:
    return {"extensions": [_view(alias) for alias in sorted(_NAMES)]}


def show(call: Call) -> dict[str, Any]:
    alias = call.params["alias"]
    if alias not in _NAMES:
        raise NotFound("The resource could not be found.")
    return {"extension": _view(alias)}


_RULE = "os_compute_api:extensions"
ROUTES = [
    Route(method="GET", path="/extensions", handler=index, policy=_RULE),
    Route(method="GET", path="/extensions/{alias}", handler=show, policy=_RULE),
]
