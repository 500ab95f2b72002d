"""The network side of a host: what Neutron's L2, DHCP, L3 and metadata agents do, from documents.

`driver.NetworkDriver` is what others use; its `ports` is the compute driver's PortPlugger. Inside:

| noun | pure text | what touches the host |
|---|---|---|
| ports, security groups | `rules` | `ports`, `firewall` |
| networks | `dhcp_files` | `dhcp`, `daemons` |
| routers | `nat` | `router`, `announce` |
| metadata | `metadata_tree` | `metadata_server` |
| wiring | `names`, `ovs_flows` | `mechanism` (the seam), `linuxbridge`, `openvswitch`, `select` |
| the single machine | `external.ruleset` | `external` |

Below them: `shell` (programs, namespaces), `links` and `inside` (devices outside and inside namespaces), `offload`.
Shared by the appliers: `wiring`; the documents last applied: `store`.

Nothing is torn down at start. What exists is found in the kernel by marks of ours: aliases of devices
(``cumulet:<noun>:<id>``), a digest in a comment of nftables chains, tags in OVSDB, command lines of daemons.
"""
