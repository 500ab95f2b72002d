"""Resource class and trait names: the standard ones are data of the release, the others begin with CUSTOM_."""

import json
import re
from functools import cache
from pathlib import Path

from cumulet.db import Tx
from cumulet.kernel.errors import BadInput
from cumulet.services.placement import store

_CUSTOM = re.compile(r"CUSTOM_[A-Z0-9_]+\Z")


@cache
def _standard() -> dict[str, frozenset[str]]:
    data = json.loads((Path(__file__).parent / "standard.json").read_text())
    return {key: frozenset(names) for key, names in data.items()}


def standard_classes() -> frozenset[str]:
    return _standard()["resource_classes"]


def standard_traits() -> frozenset[str]:
    return _standard()["traits"]


def is_custom(name: str) -> bool:
    return len(name) <= 255 and _CUSTOM.match(name) is not None


def check_custom(name: str) -> str:
    if not is_custom(name):
        raise BadInput(f"{name!r} does not begin with CUSTOM_, or holds more than A-Z, 0-9 and _, or is too long.")
    return name


def known_classes(tx: Tx) -> set[str]:
    return set(standard_classes()) | store.custom_classes(tx).keys()


def known_traits(tx: Tx) -> set[str]:
    return set(standard_traits()) | store.custom_traits(tx).keys()


def check_classes(tx: Tx, names: set[str]) -> None:
    """Those that are not standard stay until the end of the unit of work."""
    unknown = names - standard_classes()
    for name in sorted(unknown) if tx.writing else ():
        tx.lock("resource_class", name)
    if unknown:
        unknown -= store.custom_classes(tx).keys()
    if unknown:
        raise BadInput(f"No such resource class: {', '.join(sorted(unknown))}.")


def check_traits(tx: Tx, names: set[str]) -> None:
    """Those that are not standard stay until the end of the unit of work."""
    unknown = names - standard_traits()
    for name in sorted(unknown) if tx.writing else ():
        tx.lock("trait", name)
    if unknown:
        unknown -= store.custom_traits(tx).keys()
    if unknown:
        raise BadInput(f"No such trait: {', '.join(sorted(unknown))}.")
