"""The cases, by noun. Each function measures and keeps figures. They run in this order: what needs a small cloud comes
before what fills it."""

from cumulet.bench.cases import identity, image, network, process, server, volume
from cumulet.bench.suite import Group

GROUPS: dict[str, Group] = {
    "first": server.first,
    "memory": process.memory_fresh,
    "token": identity.tokens,
    "network": network.made,
    "server": server.one_by_one,
    "crowd": server.crowd,
    "volume": volume.volumes,
    "image": image.data,
    "ports": network.many_ports,
    "thousand": server.thousand,
    "overload": process.overload,
    "used": process.memory_used,
    "idle": process.idle,
}
