"""What a run leaves behind: the contract's files, their modes, and nothing private among the public ones."""

from __future__ import annotations

import json
import re
import stat
import tempfile
from pathlib import Path
from typing import Any

import pytest
from dpft_accounting import Ledger, certify, mechanism_from_dict, verify
from safetensors import safe_open

CONTRACT = {
    "run.toml", "plan.json", "ledger.jsonl", "privacy.json", "report.html", "report.md", "metrics.jsonl", "adapter",
    "private",
}  # fmt: skip


def test_the_run_succeeds_without_a_connection(finished: Any) -> None:
    """I3: every socket raised."""
    assert finished.answer.code == 0, finished.answer.err
    assert finished.answer.err == ""


def test_the_folder_is_what_the_contract_says(finished: Any) -> None:
    """F5: all of it, and no half-written file."""
    assert {p.name for p in finished.folder.iterdir()} == CONTRACT
    assert {p.name for p in (finished.folder / "adapter").iterdir()} == {
        "adapter_model.safetensors", "adapter_config.json", "head.safetensors", "dpft.json",
    }  # fmt: skip


@pytest.mark.parametrize("which", ["finished", "discreet"])
def test_private_things_are_readable_by_their_owner_alone(which: str, request: pytest.FixtureRequest) -> None:
    """I4."""
    private = request.getfixturevalue(which).folder / "private"
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    files = [p for p in private.rglob("*") if p.is_file()]
    assert {p.name for p in files} >= {"steps.jsonl", "fingerprint.json", "checkpoint-0.safetensors"}
    assert {stat.S_IMODE(p.stat().st_mode) for p in files} == {0o600}


def test_no_record_leaves_a_trace_outside_private(finished: Any) -> None:
    """F2, F3, I4, I5: no word of a record in any file, the terminal, the home, caches or temporary folder."""
    places = [*finished.public_files(), *(p for p in finished.home.rglob("*") if p.is_file())]
    for path in places:
        assert b"zyxprivate" not in path.read_bytes(), path
    assert "zyxprivate" not in finished.answer.out + finished.answer.err


def test_no_record_is_quoted_under_private_either(finished: Any) -> None:
    """F2: diaries and checkpoints need no text."""
    for path in (finished.folder / "private").rglob("*"):
        assert b"zyxprivate" not in path.read_bytes(), path


def test_losses_norms_and_batch_sizes_stay_private(finished: Any) -> None:
    """F2: every figure of the private diary is absent from what is public."""
    diary = [json.loads(line) for line in (finished.folder / "private" / "steps.jsonl").read_text().splitlines()]
    assert len(diary) == 8
    shown = finished.answer.out + "".join(p.read_text(errors="replace") for p in finished.public_files())
    figures = [v for step in diary for k, v in step.items() if k in ("loss", "norm_median") and v]
    assert len(figures) >= 8
    for value in figures:
        # Four digits behind the point: a loss of 0.6931 would be found, and so would a rounded norm.
        assert f"{value:.4f}" not in shown.replace(",", ""), value
    public_lines = (finished.folder / "metrics.jsonl").read_text().splitlines()
    assert [set(json.loads(line)) for line in public_lines] == [{"name", "value"}] * len(public_lines)
    # The ledger's lines of different steps are alike but for their place in the chain.
    lines = [json.loads(line) for line in (finished.folder / "ledger.jsonl").read_text().splitlines()]
    kinds = {json.dumps({k: v for k, v in r.items() if k not in ("seq", "prev_sha256", "t")}) for r in lines[2:]}
    assert {json.loads(k)["kind"] for k in kinds} == {"reserve", "commit"}
    assert len([k for k in kinds if json.loads(k)["kind"] == "reserve"]) == 1


def test_no_file_names_a_folder_of_this_machine(finished: Any) -> None:
    """F3: no absolute path in anything that may leave."""
    secret = [str(finished.place.folder.parent), str(finished.home), str(Path.home()), tempfile.gettempdir()]
    for path in finished.public_files():
        content = path.read_bytes()
        for name in secret:
            assert name.encode() not in content, (path, name)


def test_nothing_is_pickled(finished: Any) -> None:
    """I1: no file is a pickle, a zip of pickles, or named like one."""
    for path in finished.folder.rglob("*"):
        if path.is_file():
            head = path.read_bytes()[:4]
            assert head[:2] not in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK"), path
            assert path.suffix in {".json", ".jsonl", ".toml", ".md", ".html", ".safetensors"}


def test_the_adapter_holds_the_trained_tensors_and_no_others(finished: Any) -> None:
    """F3, A11: names and shapes that the method makes; nothing is batch-shaped."""
    with safe_open(finished.folder / "adapter" / "adapter_model.safetensors", "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        assert file.metadata() == {"format": "pt"}
    prefix = "base_model.model.encoder.layer.0.attention.self."
    assert shapes == {
        f"{prefix}{m}.lora_{f}.weight": (2, 16) if f == "A" else (16, 2) for m in ("query", "value") for f in "AB"
    }
    with safe_open(finished.folder / "adapter" / "head.safetensors", "pt") as file:
        assert set(file.keys()) == {"weight", "bias"}
        assert not file.metadata()


def test_checkpoints_hold_parameters_and_optimizer_state_only(finished: Any) -> None:
    """C5, F3: no random state, no gradient, no batch."""
    for path in (finished.folder / "private").glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            assert all(re.match(r"(param\.|state\.\d+\.(step|exp_avg|exp_avg_sq)$)", name) for name in file.keys())  # noqa: SIM118


def test_the_statement_has_every_field(finished: Any) -> None:
    """F5, E6."""
    made = json.loads((finished.folder / "privacy.json").read_text())
    assert made.keys() >= {
        "unit", "adjacency", "epsilon", "delta", "noise_multiplier", "clip", "sampler", "sample_rate",
        "expected_batch_size", "steps_planned", "steps_charged", "trained_parameters", "accountant", "noise_source",
        "released", "not_covered", "dpft_version",
    }  # fmt: skip
    assert made["private"] is True
    assert made["unit"] == "note"
    assert made["adjacency"] == "add_remove"
    assert made["sampler"] == "poisson"
    assert (made["steps_planned"], made["steps_charged"]) == (8, 8)
    assert made["trained_parameters"]["count"] == 4 * 32 + 34
    assert len(made["trained_parameters"]["names_sha256"]) == 64
    assert 0 <= made["epsilon"]["lower"] <= made["epsilon"]["upper"]
    assert made["accountant"]["name"]
    assert made["accountant"]["versions"]
    assert "operating system" in made["noise_source"]
    assert any("tuning" in item for item in made["not_covered"])


def test_the_figures_recompute_from_the_ledger_alone(finished: Any) -> None:
    """F5: with the accountants' library, and no code of the report."""
    made = json.loads((finished.folder / "privacy.json").read_text())
    lines = [json.loads(line) for line in (finished.folder / "ledger.jsonl").read_text().splitlines()]
    mechanism = mechanism_from_dict(next(r["mech"] for r in lines if r["kind"] == "open"))
    steps = sum(r["steps"] for r in lines if r["kind"] == "reserve")
    ledger = Ledger.read(finished.folder / "ledger.jsonl")
    again = certify(mechanism.with_steps(steps), ledger.unit, made["delta"])
    assert made["epsilon"] == {"lower": again.bound.lower, "upper": again.bound.upper}
    assert made["steps_charged"] == steps == verify(finished.folder / "ledger.jsonl").committed
    assert (made["sample_rate"], made["noise_multiplier"]) == (mechanism.q, mechanism.sigma)


def test_the_terminal_shows_the_result_and_its_price(finished: Any) -> None:
    """F5, E6: the number never stands alone."""
    made = json.loads((finished.folder / "privacy.json").read_text())
    assert "private accuracy" in finished.answer.out
    assert f"at delta {made['delta']:g}" in finished.answer.out
    assert "add_remove" in finished.answer.out


def test_accuracy_on_records_that_are_not_public_stays_private(discreet: Any) -> None:
    """E5, F2: neither shown nor written, by default."""
    assert discreet.answer.code == 0, discreet.answer.err
    kept = discreet.folder / "private" / "evaluation.json"
    value = json.loads(kept.read_text())
    assert set(value) == {"accuracy", "records"}
    assert "accuracy" not in discreet.answer.out
    assert (
        not (discreet.folder / "metrics.jsonl").exists()
        or "accuracy" not in (discreet.folder / "metrics.jsonl").read_text()
    )
    text = (discreet.folder / "report.md").read_text() + (discreet.folder / "report.html").read_text()
    assert "accuracy on held-out" not in text
    assert "stays under private/" in text
