"""The README's library example runs as it stands."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).parents[1] / "README.md"


def _example(name: str) -> str:
    found = re.search(rf"<!-- example: {name} -->\n```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert found, f"README has no example called {name}"
    return found.group(1)


def test_library_example_runs_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(_example("library"), "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "torch.Size([8, 2, 64])" in printed
    lines = [json.loads(line) for line in (tmp_path / "run/ledger.jsonl").read_text().splitlines()]
    assert sum(line["steps"] for line in lines if line["kind"] == "reserve") == 20
    assert (tmp_path / "run/adapter/adapter_model.safetensors").is_file()


def test_several_tasks_share_one_budget_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {}
    exec(compile(_example("tasks"), "README.md", "exec"), space)
    assert 7 < float(capsys.readouterr().out) <= 8
    (prompt,) = (p for name, p in space["model"].named_parameters() if name.endswith("soft_prompt.prompt"))
    assert prompt.shape == (2 * 4, 32)  # a prompt of 4 vectors for each of the two
    lines = [json.loads(line) for line in (tmp_path / "tasks/ledger.jsonl").read_text().splitlines()]
    assert sum(line["steps"] for line in lines if line["kind"] == "reserve") == 4


def test_every_file_that_the_readme_names_exists() -> None:
    """The file map is a promise too."""
    root = README.parent
    block = README.read_text().split("## File map")[1]
    for line in re.findall(r"^([\w./]+) {2,}", block, re.MULTILINE):
        assert (root / line).exists(), line


def test_counts_of_third_party_methods_are_those_of_the_table() -> None:
    """The table itself is held to what the engine does by tests/peft/test_third_party.py."""
    outcomes: dict[str, set[str]] = {}
    for line in (README.parent / "docs" / "third-party-peft.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and cells[0].isupper():
            outcomes.setdefault(cells[0], set()).update(re.sub(r" \(.*", "", cell) for cell in cells[2:7])
    whole = sum("one pass" in found for found in outcomes.values())
    alone = sum("one at a time" in found for found in outcomes.values())
    refused = sum(found <= {"refused", "–"} for found in outcomes.values())
    text = " ".join(README.read_text().split())
    assert f"Of peft 0.21's {len(outcomes)} types, {whole} go through in one vectorised pass" in text
    assert f"{alone} one example at a time" in text
    assert f"and {refused} is refused" in text
