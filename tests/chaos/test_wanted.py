"""A run goes on until it has seen what it is to see."""

from cumulet.chaos.disturb import Disturbance, Disturber
from cumulet.chaos.model import Record, now
from cumulet.chaos.run import Wanted
from cumulet.chaos.session import Reply


def disturber() -> Disturber:
    return Disturber([Disturbance("nothing", 1, lambda random: ("nothing", None))], 1, lambda text: None, pause_s=0.01)


def test_it_goes_on_until_it_is_enough() -> None:
    answers = iter([False, True])
    began = now()
    disturber().run(0.1, lambda: True, lambda: next(answers))
    assert now() - began >= 0.1
    assert next(answers, None) is None  # both were asked for


def test_what_never_happens_is_not_waited_for_without_end() -> None:
    began = now()
    disturber().run(0.05, lambda: True, lambda: False)
    assert now() - began >= 0.5


def test_what_is_missing() -> None:
    record, one = Record(), disturber()
    wanted = Wanted(requests=1, names=("evacuate server", "nothing"))
    record.count("evacuate server", Reply(409))  # refused: not seen
    assert wanted.missing(record, one) == ["evacuate server", "nothing", "1 requests acknowledged"]
    record.count("evacuate server", Reply(200))
    one.run(0.02, lambda: True)
    assert wanted.missing(record, one) == []
