"""The little languages of placement's query strings: resources, traits, aggregates."""

from collections.abc import Iterable

import msgspec

from cumulet.kernel.errors import BadInput
from cumulet.kernel.ids import is_uuid

BAD_VALUE = "placement.query.bad_value"
MAX_AMOUNT = 2_147_483_647


class Traits(msgspec.Struct):
    """``any_of``: each set must be met by at least one of its traits."""

    any_of: list[set[str]] = []
    forbidden: set[str] = set()

    @property
    def empty(self) -> bool:
        return not self.any_of and not self.forbidden

    def all_names(self) -> set[str]:
        return set().union(self.forbidden, *self.any_of)

    def met_by(self, traits: set[str]) -> bool:
        return not (traits & self.forbidden) and all(traits & wanted for wanted in self.any_of)


class Aggregates(msgspec.Struct):
    """Each set of ``any_of`` must be met by one of the provider's aggregates; none may be in ``forbidden``."""

    any_of: list[set[str]] = []
    forbidden: set[str] = set()

    def met_by(self, aggregates: set[str]) -> bool:
        return not (aggregates & self.forbidden) and all(aggregates & wanted for wanted in self.any_of)


def resources(text: str) -> dict[str, int]:
    """``VCPU:1,MEMORY_MB:512``"""
    found: dict[str, int] = {}
    for part in text.split(","):
        name, _, amount = part.partition(":")
        if not name or not amount.isascii() or not amount.isdigit() or not 1 <= int(amount) <= MAX_AMOUNT:
            raise BadInput(
                f"Badly formed resources parameter. Expected resources=CLASS:AMOUNT,…; got {text!r}.", code=BAD_VALUE
            )
        if name in found:
            raise BadInput(f"Resource class {name} is given twice.", code=BAD_VALUE)
        found[name] = int(amount)
    return found


def traits(values: Iterable[str], *, forbid: bool, any_of: bool) -> Traits:
    """``A,B``; ``!C`` when ``forbid``; ``in:D,E`` when ``any_of`` (a value of its own)."""
    result = Traits([], set())
    for value in values:
        if any_of and value.startswith("in:"):
            names = value[3:].split(",")
            if not all(names) or any(name.startswith("!") for name in names):
                raise BadInput(f"Invalid query string parameters: required={value!r}.", code=BAD_VALUE)
            result.any_of.append(set(names))
            continue
        for name in value.split(","):
            if forbid and name.startswith("!"):
                name = name[1:]
                result.forbidden.add(name)
            else:
                result.any_of.append({name})
            if not name or name.startswith("!") or ":" in name:
                raise BadInput(f"Invalid query string parameters: a trait in {value!r} is malformed.", code=BAD_VALUE)
    both = result.forbidden & {name for wanted in result.any_of if len(wanted) == 1 for name in wanted}
    if both:
        raise BadInput(f"Traits both required and forbidden: {', '.join(sorted(both))}.", code=BAD_VALUE)
    return result


def member_of(values: Iterable[str], *, forbid: bool) -> Aggregates:
    """``UUID`` or ``in:UUID,UUID``; ``!UUID`` and ``!in:…`` when ``forbid``."""
    result = Aggregates([], set())
    for value in values:
        forbidden = forbid and value.startswith("!")
        text = value[1:] if forbidden else value
        several = text.startswith("in:")
        uuids = text[3:].split(",") if several else [text]
        if not all(is_uuid(uuid) for uuid in uuids):
            raise BadInput(
                f"Expected 'member_of' parameter to be a uuid or in: a list of them; got {value!r}.", code=BAD_VALUE
            )
        if forbidden:
            result.forbidden |= set(uuids)
        else:
            result.any_of.append(set(uuids))
    return result
