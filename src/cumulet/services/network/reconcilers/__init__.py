"""What must stay true of networks: somebody serves them, and hosts are told what they are to have."""

from cumulet.services.network.reconcilers.documents import reconcile_documents
from cumulet.services.network.reconcilers.ports import reconcile_ports
from cumulet.services.network.reconcilers.scheduling import reconcile_scheduling

__all__ = ["reconcile_documents", "reconcile_ports", "reconcile_scheduling"]
