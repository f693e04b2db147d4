"""``dpft report``: the three report files are a function of plan, ledger and public metrics."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

REPORTS = ("privacy.json", "report.md", "report.html")


@pytest.fixture
def copy(finished: Any, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    shutil.copytree(finished.folder, folder)
    return folder


def test_a_rebuilt_report_is_identical(finished: Any, place: Any, copy: Path) -> None:
    """F5: from what may be published alone, without private/ and adapter/."""
    for name in ("private", "adapter"):
        shutil.rmtree(copy / name)
    for name in REPORTS:
        (copy / name).unlink()
    answer = place.dpft("report", str(copy))
    assert answer.code == 0, answer.err
    for name in REPORTS:
        made, first = ((folder / name).read_bytes() for folder in (copy, finished.folder))
        assert made.splitlines(keepends=True) == first.splitlines(keepends=True), name  # names the line that differs


def test_the_page_stands_alone(finished: Any) -> None:
    """I5, I3: nothing to load, nothing to run."""

    class Loads(HTMLParser):
        found: list[str] = []  # noqa: RUF012
        tags: set[str] = set()  # noqa: RUF012

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.tags.add(tag)
            for name, value in attrs:
                # Addresses of name spaces and of the metadata's vocabulary are names: nothing loads them.
                if name in ("src", "href", "xlink:href", "action", "data", "srcset", "style") and value:
                    self.found.append(value)
                assert not name.startswith("on"), "an event handler"

    text = (finished.folder / "report.html").read_text()
    page = Loads()
    page.feed(text)
    assert "svg" in page.tags
    assert page.tags.isdisjoint({"script", "link", "iframe", "img", "object", "embed", "form", "base"})
    assert not [v for v in page.found if re.search(r"//|url\((?!#)|@import", v)]
    assert not re.search(r"@import|url\(\s*['\"]?(?!#)", text)


def test_the_report_says_what_the_statement_says(finished: Any) -> None:
    """F5, E6: the page and the text carry the epsilon rounded up, delta, unit and relation."""
    made = json.loads((finished.folder / "privacy.json").read_text())
    for name in ("report.md", "report.html"):
        text = (finished.folder / name).read_text()
        shown = float(re.search(r"\((\d+\.\d{4}), ", text).group(1))  # type: ignore[union-attr]
        assert made["epsilon"]["upper"] <= shown <= made["epsilon"]["upper"] + 1e-4
        for part in (str(made["delta"]), "note", "one note added or removed", "not covered"):
            assert part in text


@pytest.mark.parametrize("name", ["plan.json", "ledger.jsonl"])
def test_a_missing_source_is_named(place: Any, copy: Path, name: str) -> None:
    """F4."""
    (copy / name).unlink()
    answer = place.dpft("report", str(copy))
    assert answer.code in (2, 3)
    assert name in answer.err
    assert "Traceback" not in answer.err


def test_a_plan_that_is_not_the_ledgers_is_refused(place: Any, copy: Path) -> None:
    """F5, E2: a statement with less noise, or more budget, than what was charged."""
    (copy / "privacy.json").unlink()
    facts = json.loads((copy / "plan.json").read_text())
    facts["plan"]["noise_multiplier"] = 5.0
    (copy / "plan.json").write_text(json.dumps(facts))
    answer = place.dpft("report", str(copy))
    assert answer.code == 3
    assert "another mechanism" in answer.err
    assert not (copy / "privacy.json").exists()


def test_a_plan_with_a_nicer_epsilon_is_not_believed(place: Any, copy: Path) -> None:
    """F5: the published figure comes from the mechanism in the ledger, not from a number in plan.json."""
    facts = json.loads((copy / "plan.json").read_text())
    facts["plan"]["epsilon"]["upper"] = facts["plan"]["epsilon"]["lower"] = 0.001
    (copy / "plan.json").write_text(json.dumps(facts))
    answer = place.dpft("report", str(copy))
    if answer.code == 0:
        assert json.loads((copy / "privacy.json").read_text())["epsilon"]["upper"] > 0.001
    else:
        assert answer.code == 3


def test_a_tampered_ledger_is_refused(place: Any, copy: Path) -> None:
    """E2: one step less in the books."""
    lines = (copy / "ledger.jsonl").read_text().splitlines(keepends=True)
    (copy / "ledger.jsonl").write_text("".join(lines[:4] + lines[5:]))
    answer = place.dpft("report", str(copy))
    assert answer.code == 3
    assert "line 5" in answer.err
