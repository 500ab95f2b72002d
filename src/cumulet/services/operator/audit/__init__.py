"""What can be wrong with the cloud, each as a check: found, named, and repaired where that can be done."""

from cumulet.services.operator.audit.model import Check, Finding

__all__ = ["Check", "Finding"]
