"""Sagas: multi-step changes that survive kill -9. `saga.model` says how one is declared, `saga.engine` runs them."""

from cumulet.saga.engine import SagaEngine, SagaHistory, WakeSagas
from cumulet.saga.model import Call, Children, Run, Saga, Start, Step, Transact, Wait, nothing_to_undo

__all__ = [
    "Call",
    "Children",
    "Run",
    "Saga",
    "SagaEngine",
    "SagaHistory",
    "Start",
    "Step",
    "Transact",
    "Wait",
    "WakeSagas",
    "nothing_to_undo",
]
