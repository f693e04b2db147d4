"""The statement from plan and ledger alone: partial runs, runs that are not private, figures rounded up."""

from __future__ import annotations

import json
import math
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dpft_accounting import Ledger, certify, mechanism_from_dict, profile

import dpft
from dpft.engine.keystream import InsecureSeededWords
from dpft.engine.plan import Plan
from dpft.errors import InputError, PrivacyError
from dpft.files import write_json
from dpft.report.statement import trained
from dpft.report.write import figure, write_report


def folder_of(path: Path, plan: Plan, charged: int, **facts: Any) -> Path:
    """A run's folder as far as a report needs it."""
    given = {
        "name": "trial",
        "run": "train",
        "plan": plan.to_dict(),
        "dataset": "csv:letters.csv@train",
        "model": "folder:bert",
        "trained_parameters": trained(["b", "a"], 12),
        "noise_source": "AES-256-CTR keyed by the operating system",
        "noise_is_private": True,
        "heldout_public": False,
    }
    write_json(path / "plan.json", given | facts)
    with Ledger.open(path / "ledger.jsonl", "csv:letters.csv@train", plan.unit, plan.budget) as ledger:
        run = ledger.run("train", plan.mechanism)
        if charged:
            run.reserve(charged)
    return path


@pytest.fixture(scope="module")
def plan() -> Plan:
    return dpft.plan(delta=1e-6, examples=1000, expected_batch=20, noise_multiplier=1.0, steps=60, unit="letter")


def test_a_finished_run_states_the_certified_bound(plan: Plan, tmp_path: Path) -> None:
    """F5."""
    made = write_report(folder_of(tmp_path, plan, 60))
    again = certify(plan.mechanism, plan.unit, plan.delta).bound
    assert made["epsilon"] == {"lower": again.lower, "upper": again.upper}
    assert made["epsilon_planned"] == again.upper
    assert made["adjacency"] == "zero_out"
    assert "the number of records is public" in made["adjacency_in_words"]


def test_a_plan_from_before_there_were_kinds_of_clipping_is_flat(plan: Plan) -> None:
    """F5: and every other field is asked for."""
    kept = plan.to_dict()
    assert Plan.from_dict(kept) == plan
    del kept["clipping"]
    assert Plan.from_dict(kept) == plan
    automatic = replace(plan, clipping="auto-s")
    assert Plan.from_dict(automatic.to_dict()) == automatic
    with pytest.raises(InputError, match="auto-s"):
        Plan.from_dict({**kept, "clipping": "none"})


def test_the_statement_says_how_gradients_were_clipped(plan: Plan, tmp_path: Path) -> None:
    """F5."""
    made = write_report(folder_of(tmp_path, replace(plan, clipping="auto-s", clip=0.5), 60))
    assert (made["clip"], made["clipping"]) == (0.5, "auto-s")
    assert "0.5, auto-s" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("charged", [0, 1, 30])
def test_a_run_that_stopped_states_what_was_charged(plan: Plan, tmp_path: Path, charged: int) -> None:
    """E2, E3: less than planned, never less than the lower bound of the steps charged."""
    made = write_report(folder_of(tmp_path, plan, charged))
    assert made["steps_charged"] == charged
    assert made["steps_planned"] == 60
    if charged == 0:
        assert made["epsilon"]["upper"] == 0
        return
    true = certify(plan.mechanism.with_steps(charged), plan.unit, plan.delta).bound
    assert true.lower <= made["epsilon"]["upper"] < plan.epsilon.upper


def test_a_run_with_replayable_noise_is_not_private_everywhere(tmp_path: Path, plan: Plan) -> None:
    """C5, F4: epsilon is infinite in every artefact."""
    source = InsecureSeededWords(0)
    folder = folder_of(tmp_path, plan, 60, noise_source=source.name, noise_is_private=source.private)
    made = write_report(folder)
    assert made["private"] is False
    assert made["epsilon"]["upper"] == "inf"
    assert "NOT PRIVATE" in made["noise_source"]
    assert json.loads((folder / "privacy.json").read_text()) == json.loads(json.dumps(made))
    for name in ("report.md", "report.html"):
        text = (folder / name).read_text()
        assert "NOT PRIVATE" in text
        assert "infinite" in text


def test_the_names_of_what_trains_are_hashed_in_any_order() -> None:
    """F5."""
    assert trained(["b", "a"], 3) == trained(["a", "b"], 3)
    assert trained(["a", "b"], 3) != trained(["a", "c"], 3)


def test_figures_are_rounded_up() -> None:
    """E4: what is printed is never below the bound."""
    for value in (0.0, 1e-9, 0.00004, 1.00001, 2.99999, 12.34567, 3.0):
        assert value <= float(figure(value)) <= value + 1e-4 + 1e-12
    assert figure(math.inf) == figure("inf") == "infinite"


@pytest.mark.parametrize("damage", ["plan", "run", "noise_is_private", "name"])
def test_a_damaged_plan_is_named(tmp_path: Path, plan: Plan, damage: str) -> None:
    """F4."""
    folder = folder_of(tmp_path, plan, 3)
    facts = json.loads((folder / "plan.json").read_text())
    del facts[damage]
    (folder / "plan.json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match=r"plan\.json"):
        write_report(folder)
    (folder / "plan.json").write_text("{")
    with pytest.raises(InputError, match=r"plan\.json"):
        write_report(folder)


def test_a_ledger_of_another_run_is_refused(tmp_path: Path, plan: Plan) -> None:
    """F5."""
    with pytest.raises(InputError, match="holds no run"):
        write_report(folder_of(tmp_path, plan, 3, run="other"))


@pytest.mark.parametrize("field", ["noise_multiplier", "steps", "delta", "epsilon"])
def test_a_plan_that_promises_more_than_the_ledger_is_refused(tmp_path: Path, plan: Plan, field: str) -> None:
    """F5, E2: every figure of the promise is bound to the books."""
    folder = folder_of(tmp_path, plan, 60)
    facts = json.loads((folder / "plan.json").read_text())
    if field == "epsilon":
        facts["plan"]["epsilon"] |= {"lower": 0.0, "upper": 0.001}
    else:
        facts["plan"][field] = type(facts["plan"][field])(facts["plan"][field] * 2)
    (folder / "plan.json").write_text(json.dumps(facts))
    with pytest.raises(PrivacyError):
        write_report(folder)
    assert not (folder / "privacy.json").exists()


@pytest.mark.parametrize("charged", [0, 30, 60])
def test_attack_risk_recomputes_from_the_ledger_alone(plan: Plan, tmp_path: Path, charged: int) -> None:
    """F5: to the last digit, with the accountants' library and no code of the report."""
    made = write_report(folder_of(tmp_path, plan, charged))
    ledger = Ledger.read(tmp_path / "ledger.jsonl")
    mechanism = mechanism_from_dict(ledger.runs()["train"].mech.to_dict()).with_steps(charged)
    again = profile(mechanism, ledger.unit)
    assert json.loads((tmp_path / "privacy.json").read_text())["attack_risk"] == {
        "advantage": again.advantage(),
        "tpr_at_fpr": {"0.01": again.tpr(0.01), "0.001": again.tpr(0.001)},
        "covers": "any membership attack on one letter",
    }
    assert made["attack_risk"]["advantage"] >= 0
    if charged == 0:
        assert made["attack_risk"]["tpr_at_fpr"] == {"0.01": 0.01, "0.001": 0.001}


def test_page_and_text_show_the_attack_risk(plan: Plan, tmp_path: Path) -> None:
    """F5: rounded up, with a sentence, and the curve in the page."""
    made = write_report(folder_of(tmp_path, plan, 60))
    for name in ("report.md", "report.html"):
        text = (tmp_path / name).read_text()
        assert "Attack risk" in text
        assert "any membership attack on one letter" in text
        sentence = re.search(r"finds at most ([\d.]+) % of those that were; guessing finds 1 %", text)
        assert sentence
        tpr = made["attack_risk"]["tpr_at_fpr"]["0.01"] * 100
        assert tpr <= float(sentence.group(1)) <= tpr * 1.01
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg ") == page.count('role="img"') == 2


def test_names_within_the_page_are_unique_between_figures(plan: Plan, tmp_path: Path) -> None:
    """Two figures on one page must not draw with each other's parts."""
    write_report(folder_of(tmp_path, plan, 60))
    page = (tmp_path / "report.html").read_text()
    names = re.findall(r'\bid="([^"]+)"', page)
    assert len(names) == len(set(names)) > 100
    used = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page)
    assert {a or b for a, b in used} <= set(names)


def test_replayable_noise_rules_no_attack_out(plan: Plan, tmp_path: Path) -> None:
    """C5: like epsilon, the risk is all there can be."""
    source = InsecureSeededWords(0)
    folder = folder_of(tmp_path, plan, 60, noise_source=source.name, noise_is_private=source.private)
    risk = write_report(folder)["attack_risk"]
    assert risk["advantage"] == 1
    assert risk["tpr_at_fpr"] == {"0.01": 1, "0.001": 1}
    for name in ("report.md", "report.html"):
        assert "no attack is ruled out" in (folder / name).read_text()
    assert (folder / "report.html").read_text().count("<svg ") == 1


def test_a_report_is_made_within_two_seconds(plan: Plan, tmp_path: Path) -> None:
    """Best of three, so that a busy machine is not measured."""
    folder = folder_of(tmp_path, plan, 60)
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        write_report(folder)
        taken.append(time.perf_counter() - start)
    assert min(taken) < 2
