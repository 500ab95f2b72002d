"""What the documents say of the code is checked here."""

import json
import re
from pathlib import Path

import msgspec

from cumulet.settings import Settings
from tests.long.__main__ import LONG, shown

ROOT = Path(__file__).parents[1]


def test_every_setting_is_documented_and_nothing_else() -> None:
    documented = set(re.findall(r"^\| `(\w+\.\w+)` \|", (ROOT / "docs" / "settings.md").read_text(), re.MULTILINE))
    real = {f"{s.name}.{o.name}" for s in msgspec.structs.fields(Settings) for o in msgspec.structs.fields(s.type)}
    assert documented == real


def test_readmes_have_the_same_sections_and_commands() -> None:
    def outline(name: str) -> tuple[int, list[str]]:
        text = (ROOT / name).read_text()
        commands = re.findall(r"^(?:\./|cumulet |openstack )[^#\n]*", text, re.MULTILINE)
        return len(re.findall(r"^## ", text, re.MULTILINE)), [c.strip() for c in commands]

    assert outline("README.md") == outline("README.zh-CN.md")


def test_documents_link_to_what_exists() -> None:
    broken = []
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for link in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            if "://" not in link and not (path.parent / link).exists():
                broken.append(f"{path.relative_to(ROOT)}: {link}")
    assert broken == []


def test_results_of_long_runs_are_shown_as_they_are_kept() -> None:
    for name in LONG:
        kept = ROOT / "docs" / "results" / f"{name}.json"
        assert (ROOT / "docs" / f"{name}.md").read_text() == shown(name, json.loads(kept.read_text()))
