"""oslo.policy's language compiled to closures.

Owns: parsing of check strings, their compilation, overrides from an operator's ``policy.yaml``.
Refuses: checks that would call out over the network (``http:``, ``https:``) and rules that do not parse, when an
operator wrote them; both say where. Like oslo.policy, a rule nobody defined denies (unless a rule ``default`` exists).
A check is ``check(target, creds) -> bool``; targets and credentials are plain dictionaries.
"""

import ast
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Target = Mapping[str, Any]
Creds = Mapping[str, Any]
Check = Callable[[Target, Creds], bool]
CheckFactory = Callable[["PolicyEngine", str], Check]

_SPACE = re.compile(r"\s+")
_SIMPLE_FORMAT = re.compile(r"%\(([^)]+)\)s\Z")


class PolicyError(ValueError):
    """A rule that cannot be understood or is not offered."""


class PolicyEngine:
    """The rules of one service. ``factories`` adds kinds of checks (``field:…`` of neutron): kind -> factory."""

    def __init__(
        self,
        rules: Mapping[str, str],
        overrides: Mapping[str, str] | None = None,
        *,
        factories: Mapping[str, CheckFactory] | None = None,
    ) -> None:
        self._factories = dict(factories or {})
        self.defaults = dict(rules)
        self.texts: dict[str, str] = {}
        self._checks: dict[str, Check] = {}
        self._compiled: dict[str, Check] = {}  # by text: most rules share a few
        self.load(overrides or {})

    def load(self, overrides: Mapping[str, str]) -> None:
        """Replace the overrides. All or nothing: on `PolicyError` the rules in force stay."""
        texts = {**self.defaults, **overrides}
        checks = {}
        for name, text in texts.items():
            try:
                checks[name] = self.compile(text)
            except PolicyError as error:
                raise PolicyError(f"policy rule {name!r}: {error}") from None
        self.texts, self._checks = texts, checks

    def allows(self, rule: str, target: Target, creds: Creds) -> bool:
        check = self._checks.get(rule) or self._checks.get("default")
        return check is not None and check(target, creds)

    def __contains__(self, rule: str) -> bool:
        return rule in self._checks

    # -- compilation -------------------------------------------------------------------------------------

    def compile(self, text: str) -> Check:
        found = self._compiled.get(text)
        if found is None:
            found = self._compiled[text] = self._compile(text)
        return found

    def _compile(self, text: str) -> Check:
        if not text.strip():
            return _always
        tokens = list(_tokens(text))
        check, rest = self._or(tokens, 0)
        if rest != len(tokens):
            raise PolicyError(f"unexpected {tokens[rest]!r} in {text!r}")
        return check

    def _or(self, tokens: list[str], at: int) -> tuple[Check, int]:
        checks = []
        while True:
            check, at = self._and(tokens, at)
            checks.append(check)
            if at >= len(tokens) or tokens[at].lower() != "or":
                return _any(checks), at
            at += 1

    def _and(self, tokens: list[str], at: int) -> tuple[Check, int]:
        checks = []
        while True:
            check, at = self._not(tokens, at)
            checks.append(check)
            if at >= len(tokens) or tokens[at].lower() != "and":
                return _all(checks), at
            at += 1

    def _not(self, tokens: list[str], at: int) -> tuple[Check, int]:
        if at >= len(tokens):
            raise PolicyError("the rule ends where a check is expected")
        token = tokens[at]
        if token.lower() == "not":
            inner, at = self._not(tokens, at + 1)
            return (lambda target, creds: not inner(target, creds)), at
        if token == "(":
            inner, at = self._or(tokens, at + 1)
            if at >= len(tokens) or tokens[at] != ")":
                raise PolicyError("a closing parenthesis is missing")
            return inner, at + 1
        return self._leaf(token), at + 1

    def _leaf(self, token: str) -> Check:
        if token == "@":
            return _always
        if token == "!":
            return _never
        kind, colon, match = token.partition(":")
        if not colon:
            raise PolicyError(f"{token!r} is not a check (expected kind:match)")
        if kind in ("http", "https"):
            raise PolicyError(f"{token!r}: checks that ask another server are not offered")
        if kind == "rule":
            return self._rule(match)
        if kind == "role":
            return _role(match)
        if kind in self._factories:
            return self._factories[kind](self, match)
        return _generic(kind, match)

    def _rule(self, name: str) -> Check:
        def check(target: Target, creds: Creds) -> bool:
            found = self._checks.get(name) or self._checks.get("default")
            return found is not None and found(target, creds)

        return check


def _tokens(text: str) -> list[str]:
    """Words, with the parentheses at their ends apart; those inside ``%(name)s`` stay."""
    found: list[str] = []
    for word in _SPACE.split(text.strip()):
        bare = word.lstrip("(")
        found += ["("] * (len(word) - len(bare))
        word = bare
        bare = word.rstrip(")")
        if bare:
            found.append(bare)
        found += [")"] * (len(word) - len(bare))
    return found


def _always(target: Target, creds: Creds) -> bool:
    return True


def _never(target: Target, creds: Creds) -> bool:
    return False


def _any(checks: list[Check]) -> Check:
    if len(checks) == 1:
        return checks[0]
    if len(checks) == 2:
        first, second = checks
        return lambda target, creds: first(target, creds) or second(target, creds)
    return lambda target, creds: any(check(target, creds) for check in checks)


def _all(checks: list[Check]) -> Check:
    if len(checks) == 1:
        return checks[0]
    if len(checks) == 2:
        first, second = checks
        return lambda target, creds: first(target, creds) and second(target, creds)
    return lambda target, creds: all(check(target, creds) for check in checks)


def _formatter(match: str) -> Callable[[Target], str | None]:
    """``match % target``, None when the target lacks the key."""
    simple = _SIMPLE_FORMAT.match(match)
    if simple:
        key = simple.group(1)
        missing = object()

        def lookup(target: Target) -> str | None:
            value = target.get(key, missing)
            return None if value is missing else str(value)

        return lookup
    if "%" not in match:
        return lambda target: match
    try:
        match % _AnyKey()
    except (ValueError, TypeError) as error:
        raise PolicyError(f"{match!r}: {error}") from None

    def render(target: Target) -> str | None:
        try:
            return match % target
        except KeyError:
            return None

    return render


class _AnyKey(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return ""


def _role(match: str) -> Check:
    if "%" not in match:
        name = match.lower()
        return lambda target, creds: name in creds.get("roles", ())
    render = _formatter(match)

    def check(target: Target, creds: Creds) -> bool:
        text = render(target)
        return text is not None and text.lower() in creds.get("roles", ())

    return check


def _generic(kind: str, match: str) -> Check:
    render = _formatter(match)
    try:
        literal = str(ast.literal_eval(kind))
    except (ValueError, SyntaxError):
        path = kind.split(".")
        if len(path) == 1:

            def check_one(target: Target, creds: Creds) -> bool:
                text = render(target)
                if text is None or kind not in creds:
                    return False
                value = creds[kind]
                if isinstance(value, list):
                    return any(str(item) == text for item in value)
                return str(value) == text

            return check_one
        return lambda target, creds: (text := render(target)) is not None and _find(creds, path, text)
    return lambda target, creds: render(target) == literal


def _find(value: Any, path: list[str], text: str) -> bool:
    if not path:
        return str(value) == text
    if not isinstance(value, Mapping) or path[0] not in value:
        return False
    value = value[path[0]]
    if isinstance(value, list):
        return any(_find(item, path[1:], text) for item in value)
    return _find(value, path[1:], text)


class PolicyOverrides:
    """An operator's rules: ``policy.yaml`` for all services, and ``policy.d/<service>.yaml`` for one. ``place``: the
    directory, or the common file when it has another name.

    The files are read anew when they change (``changed``). A rule of the common file reaches every service that
    knows its name; unknown names are kept, for rules may refer to them."""

    def __init__(self, place: Path | None = None, rules: Mapping[str, str] | None = None) -> None:
        self._common: Path | None = None
        self._single: Path | None = None
        if place is not None:
            is_file = place.suffix in (".yaml", ".yml")
            self._common = place if is_file else place / "policy.yaml"
            self._single = self._common.parent / "policy.d"
        self._rules = dict(rules or {})
        self._stamp: object = self._stamps()

    def changed(self) -> bool:
        stamp = self._stamps()
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        return True

    def for_service(self, service: str) -> dict[str, str]:
        found = dict(self._rules)
        if self._common is not None and self._single is not None:
            for path in (self._common, self._single / f"{service}.yaml"):
                found.update(_read(path))
        return found

    def _stamps(self) -> object:
        if self._common is None or self._single is None:
            return None
        paths = [self._common, *sorted(self._single.glob("*.yaml"))]
        return [(path, path.stat().st_mtime_ns) for path in paths if path.exists()]


def _read(path: Path) -> dict[str, str]:
    import yaml

    if not path.exists():
        return {}
    try:
        content = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise PolicyError(f"{path}: {error}") from None
    if not isinstance(content, dict):
        raise PolicyError(f"{path}: expected a mapping of rule names to check strings")
    rules = {}
    for name, text in content.items():
        if isinstance(text, list):
            text = _from_lists(text)
        if not isinstance(text, str):
            raise PolicyError(f"{path}: rule {name!r} is not a check string")
        rules[str(name)] = text
    return rules


def _from_lists(rule: list[Any]) -> str:
    """The oldest syntax: a list (or) of lists (and) of checks."""
    if not rule:
        return "@"
    inner = [[item] if isinstance(item, str) else item for item in rule if item]
    if not inner:
        return "!"
    return " or ".join("(" + " and ".join(map(str, checks)) + ")" for checks in inner)
