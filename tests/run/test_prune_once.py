"""benchmarks/prune_once.py runs from end to end, on a model and records as small as can be."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import prune_once

    yield prune_once
    for name, module in list(sys.modules.items()):  # other benchmarks' tests load modules of the same names
        if str(getattr(module, "__file__", "")).startswith(str(BENCHMARKS)):
            del sys.modules[name]


def test_every_row_of_the_table(
    script: Any, place: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Locked zeros are all kept, and what is trained in their place is fewer numbers."""
    monkeypatch.chdir(place.folder)
    text = script.public_text()
    assert len(text) > 100_000
    monkeypatch.setattr(script, "public_text", lambda: text[:3000])
    sizes = "--steps 4 --windows 2 --length 16 --sparsity 0.5 --epochs 0 --batch 0 --threads 1"
    script.main(["--recipe", "tiny.toml", *sizes.split()])
    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line.startswith("|")]
    found = {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[2:]}
    assert found.keys() == script.ROWS.keys()
    assert {name: row["zeros kept (%)"] for name, row in found.items()} == {
        name: "100.00" if sparse else "" for name, (sparse, _) in script.ROWS.items()
    }
    assert all(0 <= float(row["accuracy in 8 bits (%)"]) <= 100 for row in found.values())
    trained = [int(row["trained numbers"].replace(",", "")) for row in found.values()]
    assert trained[0] == trained[1]
    assert trained[2] - trained[3] == sum(p for p in (4 * 16 * 16, 2 * 16 * 32)) // 2
    assert "50.0% of the blocks' Linear weights zero" in out
