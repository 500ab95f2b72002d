"""Neutron: networks, addresses, ports, routers, floating IPs, security groups, and the documents hosts make of them."""
