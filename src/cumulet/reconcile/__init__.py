"""Reconcilers: what must stay true is made true again, by period and by signal."""

from cumulet.reconcile.engine import ReconcilerRow, Reconcilers, SignalReconciler

__all__ = ["ReconcilerRow", "Reconcilers", "SignalReconciler"]
