"""What the cloud spends for a case is told without what the looking itself costs it."""

from itertools import accumulate, chain, repeat

from cumulet.bench.meter import Meter


def test_a_look_that_met_other_work_is_not_taken_off_every_figure() -> None:
    """Something else ran during the first looks; a case that cost three times a look is still seen."""
    costs = chain([0.0, 0.05, 0.002], repeat(0.001))
    seconds, statements = accumulate(costs), accumulate(chain([0, 40], repeat(2)))
    meter = Meter(lambda _: {"cpu_seconds": next(seconds), "statements": next(statements)})
    start = meter.start()
    for _ in range(3):
        next(seconds), next(statements)
    spent = meter.since(start)
    assert spent.cpu_seconds is not None
    assert round(spent.cpu_seconds, 6) == 0.003
    assert spent.statements == 6


def test_of_a_cloud_that_tells_nothing_nothing_is_said() -> None:
    meter = Meter(lambda _: {})
    spent = meter.since(meter.start())
    assert (spent.cpu_seconds, spent.statements) == (None, None)
