"""Our policy engine against oslo.policy itself, on every rule of every service and on made-up ones."""

import importlib
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oslo_config import cfg
from oslo_policy import policy as oslo

import cumulet.services
from cumulet.http import PolicyEngine, PolicyError, PolicyOverrides

VALUES = ["a", "b", "None", "all", "member", "True", None, True, 1]
ROLES = ["admin", "manager", "member", "reader", "service"]
KEY = re.compile(r"%\(([^)]+)\)s")
UNKNOWN_KIND = re.compile(r"(?:^|[\s(])(field|rbac\w*|tenant_id):")


def services() -> dict[str, dict[str, str]]:
    found = {}
    for path in Path(next(iter(cumulet.services.__path__))).glob("*/policy.py"):
        module = importlib.import_module(f"cumulet.services.{path.parent.name}.policy")
        found[path.parent.name] = dict(module.RULES)
    return found


SERVICES = services()


def enforcer(rules: dict[str, str]) -> Any:
    made = oslo.Enforcer(cfg.ConfigOpts(), use_conf=False)
    made.set_rules(oslo.Rules.from_dict(rules), overwrite=True, use_conf=False)
    return made


def theirs(real: Any, rule: str, target: dict[str, Any], creds: dict[str, Any]) -> bool:
    return bool(real.enforce(rule, target, {**creds, "roles": sorted(creds["roles"])}))


def a_case(rules: dict[str, str], chance: random.Random) -> tuple[dict[str, Any], dict[str, Any]]:
    keys = sorted({key for text in rules.values() for key in KEY.findall(text)})
    target = {key: chance.choice(VALUES) for key in keys if chance.random() < 0.8}
    creds: dict[str, Any] = {
        name: chance.choice(VALUES)
        for name in ("user_id", "project_id", "domain_id", "system_scope", "is_admin", "user_domain_id")
        if chance.random() < 0.9
    }
    creds["roles"] = frozenset(chance.sample(ROLES, chance.randint(0, 3)))
    creds["token"] = {"domain": {"id": chance.choice(VALUES)}, "project": {"domain": {"id": chance.choice(VALUES)}}}
    return target, creds


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_all_rules_decide_like_oslo_policy(service: str) -> None:
    rules = {name: text for name, text in SERVICES[service].items() if not UNKNOWN_KIND.search(text)}
    real, ours = enforcer(rules), PolicyEngine(rules)
    chance = random.Random(service)
    outcomes = set()
    for name in rules:
        for _ in range(12):
            target, creds = a_case({name: rules[name], **{k: v for k, v in rules.items() if ":" not in k}}, chance)
            expected = theirs(real, name, target, creds)
            assert ours.allows(name, target, creds) == expected, (name, rules[name], target, creds)
            outcomes.add(expected)
    assert outcomes == {True, False}


LEAVES = st.sampled_from(
    [
        "@",
        "!",
        "role:admin",
        "role:Member",
        "role:%(name)s",
        "rule:one",
        "rule:nowhere",
        "is_admin:True",
        "is_admin:1",
        "project_id:%(project_id)s",
        "user_id:%(a.b)s",
        "'x':%(name)s",
        "None:%(project_id)s",
        "True:%(flag)s",
        "token.domain.id:%(project_id)s",
        "list.id:%(project_id)s",
        "missing:%(project_id)s",
        "domain_id:None",
        "name:pre-%(name)s",
    ]
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(" and ".join),
        st.tuples(inner, inner).map(" or ".join),
        inner.map("({})".format),
        st.one_of(LEAVES, inner.map("({})".format)).map("not {}".format),
        inner.map("( {} )".format),
    ),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(tree=TREES, seed=st.integers(0, 1 << 30))
def test_made_up_rules_decide_like_oslo_policy(tree: str, seed: int) -> None:
    chance = random.Random(seed)
    rules = {"one": "role:reader or user_id:%(a.b)s", "it": tree}
    value = lambda: chance.choice(["p", "q", "x", None, True])  # noqa: E731
    target = {key: value() for key in ("project_id", "a.b", "name", "flag") if chance.random() < 0.8}
    creds = {
        "roles": frozenset(chance.sample(ROLES, chance.randint(0, 3))),
        "project_id": value(),
        "user_id": value(),
        "is_admin": chance.choice([True, False]),
        "domain_id": chance.choice([None, "d"]),
        "token": {"domain": {"id": value()}},
        "list": [{"id": value()}, {"id": value()}],
        "name": "pre-x",
    }
    assert PolicyEngine(rules).allows("it", target, creds) == theirs(enforcer(rules), "it", target, creds)


@pytest.mark.parametrize(
    "text", ["http://example.org/x", "role:a and", "(role:a", "role:a)", "admin", "a:b c:d", "x:%(y"]
)
def test_bad_rules_are_refused(text: str) -> None:
    with pytest.raises(PolicyError):
        PolicyEngine({"it": text})


def test_an_operators_files(tmp_path: Path) -> None:
    (tmp_path / "policy.d").mkdir()
    (tmp_path / "policy.yaml").write_text("one: role:reader\ntwo:\n- [role:a, role:b]\n- [role:c]\n")
    (tmp_path / "policy.d" / "compute.yaml").write_text('"one": "!"\n')
    overrides = PolicyOverrides(tmp_path)
    assert overrides.for_service("image") == {"one": "role:reader", "two": "(role:a and role:b) or (role:c)"}
    assert overrides.for_service("compute")["one"] == "!"
    assert PolicyOverrides(tmp_path / "policy.yaml").for_service("compute")["one"] == "!"
    assert not overrides.changed()
    engine = PolicyEngine({"one": "@"}, overrides.for_service("compute"))
    assert not engine.allows("one", {}, {"roles": ["reader"]})
    (tmp_path / "policy.yaml").write_text("one: ''\n# longer\n")
    assert overrides.changed()
    (tmp_path / "policy.yaml").write_text("- x\n")
    with pytest.raises(PolicyError):
        overrides.for_service("image")
    with pytest.raises(PolicyError):
        engine.load({"one": "and"})
    assert not engine.allows("one", {}, {"roles": []})
