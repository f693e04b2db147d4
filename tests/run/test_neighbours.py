"""D5 from end to end: one record less changes nothing that is public but the weights."""

from __future__ import annotations

import json
from typing import Any


def _inventory(place: Any) -> dict[str, Any]:
    public = {p.relative_to(place.run): p for p in place.run.rglob("*") if p.is_file()}
    ledger = [json.loads(line) for line in (place.run / "ledger.jsonl").read_text().splitlines()]
    return {
        "names": sorted(str(p) for p in public),
        "same bytes": {
            name: (place.run / name).read_bytes() for name in ("run.toml", "plan.json", "privacy.json", "report.md")
        },
        "ledger": ledger,
        "sizes of what leaves": {
            str(name): path.stat().st_size for name, path in public.items() if name.parts[0] != "private"
        },
    }


def test_one_record_less_gives_the_same_public_files(make_place: Any, tmp_path: Any) -> None:
    """D5, F2, E1: plan, divisor, T, sigma, schedule, file and line counts, and the terminal's output."""
    found, shown = [], []
    for number, count in enumerate((40, 39)):
        place = make_place(tmp_path / str(number))
        place.records(count)
        answer = place.dpft("run", "tiny.toml", "--set", "data.heldout=0.0")
        assert answer.code == 0, answer.err
        found.append(_inventory(place))
        # Elapsed times are the machine's; timing is declared outside of the guarantee.
        shown.append([line for line in answer.out.splitlines() if "elapsed" not in line])
    assert found[0] == found[1]
    assert shown[0] == shown[1]


def test_micro_batches_and_precision_do_not_touch_the_promise(make_place: Any, tmp_path: Any) -> None:
    """E1: epsilon depends on the logical plan only."""
    made = []
    for number, budget in enumerate((16, 4096)):
        place = make_place(tmp_path / str(number))
        answer = place.dpft("run", "tiny.toml", "--set", f"train.token_budget={budget}")
        assert answer.code == 0, answer.err
        made.append((place.run / "privacy.json").read_bytes())
    assert made[0] == made[1]


def test_a_public_number_of_records_must_be_true(make_place: Any, tmp_path: Any) -> None:
    """D4, D5: under zero-out the run stops before it charges a step; where it is secret no message names it."""
    place = make_place(tmp_path / "public")
    place.records(40)
    zero_out = ["--set", "privacy.sample_rate=", "--set", "privacy.examples=41", "--set", "data.heldout=0.0"]
    answer = place.dpft("run", "tiny.toml", *zero_out)
    assert answer.code == 2
    assert "examples=41" in answer.err
    zero_out[3] = "privacy.examples=40"
    answer = place.dpft("run", "tiny.toml", *zero_out, "--out", "right")
    assert answer.code == 0, answer.err
    made = json.loads((place.folder / "right" / "privacy.json").read_text())
    assert made["adjacency"] == "zero_out"
    assert made["sample_rate"] == 10 / 40
