"""What a fake host wires for its documents, as data: the same kinds of things a real one has.

A pure function from documents, so that an audit can say what is missing, different or nobody's.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from cumulet.agent.contract import Drift, NetworkDoc, PortDoc, RouterDoc

_MADE_OF = "document"  # beside the wires: the generation of what they were made of
Wires = dict[str, dict[str, Any]]  # "kind/id" -> what stands there; ``document`` says whose it is


def of(doc: Any) -> Wires:
    mine = {"document": [getattr(type(doc), "kind", ""), doc.id]}
    if isinstance(doc, PortDoc):
        found: Wires = {f"chain/{doc.id}": {**mine, "mac": doc.mac_address, "rules": len(doc.rules)}}
        if doc.segment.network_type in ("vxlan", "gre"):
            found[f"forwarding/{doc.id}"] = {**mine, "peers": sorted(doc.segment.peers)}
        return found
    if isinstance(doc, NetworkDoc):
        found = {f"namespace/qdhcp-{doc.id}": mine}
        if any(subnet.enable_dhcp for subnet in doc.subnets):
            found[f"dnsmasq/{doc.id}"] = mine
        for host in doc.hosts:
            addresses = [fixed.ip_address for fixed in host.fixed_ips]
            found[f"dhcp-host/{doc.id}/{host.port_id}"] = {**mine, "mac": host.mac_address, "addresses": addresses}
        return found
    if isinstance(doc, RouterDoc):
        return {f"namespace/qrouter-{doc.id}": mine}
    return {}


def stand(standing: dict[str, Wires], doc: Any) -> None:
    """Wire what the document asks for, unless a newer one of it stands."""
    owner, wanted = f"{doc.kind}/{doc.id}", of(doc)
    before = standing.get(owner)
    if before is not None and before.get(_MADE_OF, {}).get("generation", 0) > doc.generation:
        return
    if wanted:
        standing[owner] = {_MADE_OF: {"generation": doc.generation}, **wanted}


def drift(
    documents: Mapping[str, Mapping[str, Any]],
    standing: Mapping[str, Wires],
    leases: Wires,
    now_s: float,
    kinds: Iterable[str],
) -> list[Drift]:
    """``standing``: by document, as the world keeps it."""
    wires: Wires = {key: wire for some in standing.values() for key, wire in some.items() if key != _MADE_OF}
    wanted: Wires = {}
    for kind in kinds:
        for doc in documents.get(kind, {}).values():
            wanted.update(of(doc))
    found = []
    for key in sorted({*wanted, *wires}):
        kind, _, name = key.partition("/")
        if key not in wires:
            found.append(_drift(kind, name, "missing", "is not there", wanted[key]))
        elif key not in wanted:
            message = f"{kind} {name} is there and no document asks for it"
            found.append(Drift(kind=kind, id=name, problem="unknown", message=message))
        elif wires[key] != wanted[key]:
            found.append(_drift(kind, name, "different", "is not as its document says", wanted[key]))
    networks = documents.get("network", {})
    for key in sorted(leases):
        network, _, mac = key.partition("/")
        doc = networks.get(network)
        known = doc is not None and any(host.mac_address == mac for host in doc.hosts)
        if leases[key]["expires"] < now_s or not known:
            message = f"the lease of {leases[key]['address']} to {mac} is over"
            found.append(Drift(kind="lease", id=key, problem="expired", message=message))
    return found


def _drift(kind: str, name: str, problem: Any, words: str, wanted: dict[str, Any]) -> Drift:
    document_kind, document_id = wanted["document"]
    return Drift(
        kind=kind, id=name, problem=problem, message=f"{kind} {name} {words}", document=(document_kind, document_id)
    )  # fmt: skip
