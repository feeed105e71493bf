"""What the documents show is true: examples compile, settings exist, links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from parallax.agents.clis.catalogue import Catalogue
from parallax.config import Settings
from parallax.config import load as load_settings
from parallax.patterns.engine import load
from parallax.patterns.plan import plan_of
from tests.conformance import table

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")] + sorted(
    ROOT.glob("docs/**/*.md")
)


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), re.DOTALL)


@pytest.mark.parametrize(
    ("document", "text"),
    [(path.name, text) for path in DOCUMENTS for text in blocks(path, "yaml") if "steps:" in text],
)
def test_every_pattern_in_the_documents_compiles(document: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "example.yaml"
    path.write_text(text)
    assert plan_of(load(path), {"goal": "x"}).steps, document


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_inside_the_repository_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_every_setting_is_in_the_example_file_and_nothing_else() -> None:
    text = (ROOT / ".env.example").read_text()
    listed = set(re.findall(r"^# ?([A-Z_]+)=", text, re.MULTILINE))
    names = set()
    for name, field in Settings.model_fields.items():
        names.add(str(field.validation_alias or f"PARALLAX_{name.upper()}"))
    assert listed == names


def test_the_table_of_conformance_has_every_cli_and_no_failure() -> None:
    head, *rows = table.read(ROOT / "docs" / "agents.md")
    named = [line.strip("| ").split(" | ")[:2] for line in table.render({}).splitlines()[2:]]
    assert head == ["CLI", "version", *table.COLUMNS.values()]
    assert [row[:2] for row in rows] == named
    assert not {"FAILED", table.UNTRIED, ""} & {cell for row in rows for cell in row}


@pytest.mark.parametrize("text", blocks(ROOT / "docs" / "agents.md", "json"))
def test_every_agent_in_the_documents_can_be_configured(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARALLAX_LOCAL_AGENTS", text)
    (agent,) = load_settings().local_agents
    assert agent.id in Catalogue(local=[agent]).types()


def test_architecture_is_two_pages() -> None:
    assert len((ROOT / "ARCHITECTURE.md").read_text().splitlines()) <= 120
