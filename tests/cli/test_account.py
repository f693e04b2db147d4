"""``dpft account`` beyond one number: attack risk, figures, shuffled batches, and the claims of a paper."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from dpft_accounting import Gaussian, PoissonGaussian, Select, ShuffledGaussian, Unit, UserELS, certify, profile
from dpft_accounting.paper import PaperRow, rows
from dpft_accounting.plots import allowed, percent

UNIT, MECHANISM = Unit("example"), PoissonGaussian(0.02, 1.1, 50)
OPTIONS = ("--noise-multiplier", "1.1", "--sample-rate", "0.02", "--steps", "50", "--delta", "1e-6")
FIGURES = {"epsilon-steps.svg", "epsilon-noise.svg", "delta-epsilon.svg", "trade-off.svg"}


def refused(answer: Any, *parts: str) -> None:
    assert answer.code == 2, answer
    assert answer.out == ""
    assert answer.err.startswith("error: ")
    assert answer.err.count("\n") == 1
    for part in parts:
        assert part in answer.err


def test_attack_risk_is_the_profiles(dpft: Any) -> None:
    """E4, E6: beside the certificate, with what the pair alone would allow."""
    value = json.loads(dpft("account", *OPTIONS, "--json").out)
    risk = value.pop("risk")
    found = certify(MECHANISM, UNIT, 1e-6)
    assert value == json.loads(json.dumps(found.to_dict()))
    made = profile(MECHANISM, UNIT)
    assert risk["advantage"] == made.advantage()
    assert risk["balanced_accuracy"] == (1 + made.advantage()) / 2
    assert risk["tpr_at_fpr"] == {"0.01": made.tpr(0.01), "0.001": made.tpr(0.001), "1e-05": made.tpr(1e-5)}
    alone = risk["epsilon_delta_alone"]
    assert alone["tpr_at_fpr"]["0.01"] == allowed(0.01, found.bound.upper, 1e-6)
    assert alone["advantage"] == pytest.approx(
        max(allowed(k / 10_000, found.bound.upper, 1e-6) - k / 10_000 for k in range(10_000)), rel=1e-3
    )
    for key in ("advantage", "balanced_accuracy"):
        assert risk[key] <= alone[key]


def test_the_table_shows_the_risk_below_the_accountants(dpft: Any) -> None:
    text = dpft("account", *OPTIONS).out
    assert text.index("publish") < text.index("advantage") < text.index("TPR at FPR 0.001 %")
    assert percent(profile(MECHANISM, UNIT).tpr(0.01)) in text
    assert "(epsilon, delta) alone" in text


def test_without_noise_nothing_is_ruled_out(dpft: Any) -> None:
    value = json.loads(dpft("account", "--noise-multiplier", "0", "--delta", "1e-6", "--json").out)
    assert value["bound"]["upper"] == "inf"
    assert value["risk"]["advantage"] == value["risk"]["tpr_at_fpr"]["1e-05"] == 1


def test_plot_writes_four_figures_the_same_every_time(dpft: Any, tmp_path: Path) -> None:
    for folder in ("new/plots", "again"):
        answer = dpft("account", *OPTIONS, "--plot", folder)
        assert answer.code == 0, answer.err
        assert {path.name for path in (tmp_path / folder).iterdir()} == FIGURES
        assert all(f"{folder}/{name}" in answer.out for name in FIGURES)
    for name in FIGURES:
        text = (tmp_path / "again" / name).read_text()
        assert text == (tmp_path / "new" / "plots" / name).read_text()
        assert text.startswith("<svg")
        assert str(tmp_path) not in text
    assert json.loads(dpft("account", *OPTIONS, "--plot", "again", "--json").out)["bound"]["upper"] > 0


def test_plot_into_a_file_is_refused(dpft: Any, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    refused(dpft("account", *OPTIONS, "--plot", "taken"), "taken", "folder")
    refused(dpft("account", *OPTIONS, "--plot", "x.svg"), "x.svg", "folder")
    refused(dpft("account", *OPTIONS, "--plot", "taken/below"), "taken")
    assert (tmp_path / "taken").read_text() == "mine"


def test_shuffled_batches_cost_their_epochs_and_say_so(dpft: Any) -> None:
    """D6: no amplification."""
    options = ("--noise-multiplier", "1.1", "--delta", "1e-6", "--sampler", "shuffled", "--epochs", "3")
    answer = dpft("account", *options, "--examples", "5000", "--json")
    assert answer.code == 0, answer.err
    value = json.loads(answer.out)
    expected = certify(ShuffledGaussian(3, 1.1), Unit("example", "zero_out", 5000), 1e-6)
    assert value["bound"] == expected.bound.to_dict()
    assert "no amplification" in value["remarks"][0]
    text = " ".join(dpft("account", *options, "--examples", "5000").out.split())
    assert "no amplification" in text
    refused(dpft("account", *options), "--examples", "public")
    refused(dpft("account", *options, "--examples", "5000", "--steps", "3"), "--epochs", "--steps")
    refused(dpft("account", *options, "--examples", "5000", "--sample-rate", "0.1"), "--sample-rate")
    refused(dpft("account", *options, "--examples", "5000", "--adjacency", "add_remove"), "n_public")
    refused(dpft("account", *options[:-2], "--examples", "5000"), "--epochs")


def test_samplers_by_name(dpft: Any) -> None:
    """Poisson and the full batch are what they were without a name."""
    named = dpft("account", *OPTIONS, "--sampler", "poisson", "--json")
    assert named.out == dpft("account", *OPTIONS, "--json").out
    full = ("--noise-multiplier", "2", "--delta", "1e-6")
    for more in ((), ("--sampler", "full"), ("--sample-rate", "1"), ("--sampler", "poisson", "--sample-rate", "1")):
        value = json.loads(dpft("account", *full, *more, "--json").out)
        assert value["mechanism"] == Gaussian(2.0, 1).to_dict()
    refused(dpft("account", *full, "--sampler", "shufled"), '"shuffled"', "poisson, shuffled, full")
    refused(dpft("account", *full, "--sampler", "poisson"), "--sample-rate")
    refused(dpft("account", *full, "--sampler", "full", "--sample-rate", "0.5"), "--sample-rate")
    refused(dpft("account", *full, "--epochs", "2"), "--epochs", "--steps")


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> list[PaperRow]:
    """A claim that holds, one whose δ is one over n, one that does not hold: a second each, in this process."""
    from dpft.cli import paper

    found = [rows()[number] for number in (0, 18, 19)]
    monkeypatch.setattr(paper, "rows", lambda _: found)
    return found


def test_a_papers_claims_as_json(dpft: Any, three: list[PaperRow]) -> None:
    answer = dpft("account", "--paper", "yu2022", "--json")
    assert answer.code == 0, answer.err
    assert answer.err == ""
    value = json.loads(answer.out)
    assert "2110.06500" in value["source"]
    assert [row["holds_with_poisson"] for row in value["rows"]] == [True, None, False]
    assert [row["setting"] for row in value["rows"]] == [row.setting for row in three]
    mechanism = PoissonGaussian(three[0].q, three[0].noise_multiplier, three[0].steps)
    assert value["rows"][0]["certificate"] == json.loads(json.dumps(certify(mechanism, UNIT, 1e-5).to_dict()))


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize("width", [80, 120])
def test_a_papers_claims_as_a_table(dpft: Any, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """No number is cut or wrapped, and the footnotes name what is not verified."""
    monkeypatch.setenv("COLUMNS", str(width))
    text = dpft("account", "--paper", "yu2022").out
    assert max(map(len, text.splitlines())) <= width
    lines = [line.split() for line in text.splitlines() if "0.92*" in line or "0.6 " in line]
    assert [line[-1] for line in lines] == ["yes", "-", "NO"]
    assert all(len(line[-2].split(".")[1]) == 2 for line in lines)
    flat = " ".join(text.split())
    for part in ("SST-2 paper, 20 epochs", "2.38e-05!", "unverified", "published whole", "1 of 2 claims", "0 of 2"):
        assert part in flat


def test_a_paper_stands_alone(dpft: Any) -> None:
    """F4: nothing given beside it is ignored in silence."""
    refused(dpft("account", "--paper", "yu2022", "--noise-multiplier", "1"), "--paper", "--noise-multiplier", "both")
    refused(dpft("account", "--paper", "yu2022", "--plot", "x"), "--plot", "both")
    refused(dpft("account", "ledger.jsonl", "--paper", "yu2022"), "a ledger", "--paper", "both")
    refused(dpft("account", "ledger.jsonl", "--steps", "3"), "--steps", "both")
    refused(dpft("account", "--paper", "yu2020"), "yu2020", '"yu2022"')
    refused(dpft("account", "--paper", "abadi"), "yu2022")


def test_any_mechanism_can_be_accounted_from_a_file(dpft: Any, tmp_path: Path) -> None:
    """E4: what a ledger or a plan holds, whatever its kind."""
    mechanism = Select(UserELS(0.01, 2.0, 100, 4), 5.0)
    path = tmp_path / "mechanism.json"
    path.write_text(json.dumps(mechanism.to_dict()))
    answer = dpft("account", "--mechanism", path, "--delta", "1e-6", "--plot", tmp_path / "figures", "--json")
    assert answer.code == 0, answer.err
    value = json.loads(answer.out)
    assert value["bound"]["upper"] == certify(mechanism, Unit("example"), 1e-6).bound.upper
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {"delta-epsilon.svg", "trade-off.svg"}


@pytest.mark.parametrize(
    ("content", "options", "part"),
    [
        ("{", (), "JSON"),
        ("[" * 5000, (), "JSON"),
        ("{}", (), "kind"),
        (None, (), "No such file"),
        ('{"kind": "gaussian", "v": 1, "sigma": 1.0, "steps": 1}', ("--steps", "3"), "--steps"),
    ],
)
def test_a_file_that_holds_no_mechanism_is_refused(
    dpft: Any, tmp_path: Path, content: str | None, options: tuple[str, ...], part: str
) -> None:
    """F4."""
    path = tmp_path / "mechanism.json"
    if content is not None:
        path.write_text(content)
    answer = dpft("account", "--mechanism", path, "--delta", "1e-6", *options)
    assert answer.code == 2
    assert part in answer.err
    assert answer.err.count("\n") == 1
