"""SIGKILL at random moments: the ledger never holds less than what was executed."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from dpft_accounting import Ledger, verify
from torch import nn

import dpft
from dpft.engine.checkpoint import Checkpoints
from dpft.files import write_json

WORKER = Path(__file__).parent / "train_until_killed.py"
EVERY = 7
D = 40  # coordinates, as in the worker


def start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(WORKER), str(folder), str(EVERY)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def books(folder: Path) -> tuple[int, int, int]:
    """(charged, committed, executed) as the disk has them."""
    path = folder / "ledger.jsonl"
    verify(path)
    run = Ledger.read(path).runs().get("train")
    executed = folder / "executed"
    drawn = executed.stat().st_size if executed.exists() else 0
    return (run.reserved, run.committed, drawn) if run else (0, 0, drawn)


def check(folder: Path, steps: int) -> int:
    charged, committed, executed = books(folder)
    assert committed <= executed <= charged <= steps
    return charged


def survive(folder: Path, kills: int, steps: int) -> None:
    chance = random.Random()  # every run of the test tries other moments
    plan = dpft.plan(delta=1e-5, sample_rate=0.4, expected_batch=6, noise_multiplier=2.0, steps=steps)
    write_json(folder / "plan.json", plan.to_dict())
    charged = 0
    for number in range(10 * kills):
        if number >= kills and charged:  # on a busy machine all may come before the first step
            break
        worker = start(folder)
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
        time.sleep(chance.uniform(0, 0.1))
        worker.send_signal(signal.SIGKILL)
        worker.communicate()
        assert worker.returncode == -signal.SIGKILL
        now = check(folder, steps)
        assert now >= charged  # nothing charged is ever forgotten
        charged = now
    assert 0 < charged < steps
    worker = start(folder)
    out, errors = worker.communicate(timeout=120)
    assert (out, errors, worker.returncode) == ("ready\ndone\n", "", 0)
    final, committed, executed = books(folder)
    assert final == steps  # what was lost to kills stays charged: never more than planned, in all sessions
    assert committed <= executed <= steps
    model = nn.Linear(D, 1, bias=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    assert Checkpoints(folder / "private").restore(model, optimizer) == (steps, None)
    assert model.weight.isfinite().all()
    assert Ledger.read(folder / "ledger.jsonl").spent(1e-5).upper <= plan.epsilon.upper * (1 + 1e-9)


def test_killed_at_random_moments_the_ledger_covers_what_was_executed(tmp_path: Path) -> None:
    """E2, E3, E5, G4, with 4 kills."""
    survive(tmp_path, 4, 1000)


@pytest.mark.slow
def test_killed_twenty_times(tmp_path: Path) -> None:
    """E2, E3, E5, G4, with 20 kills."""
    survive(tmp_path, 20, 5000)


def test_the_instrument_fires(tmp_path: Path) -> None:
    """A ledger below what was executed is noticed."""
    plan = dpft.plan(delta=1e-5, sample_rate=0.4, expected_batch=6, noise_multiplier=2.0, steps=9)
    with Ledger.open(tmp_path / "ledger.jsonl", "private data", plan.unit, plan.budget) as ledger:
        ledger.run("train", plan.mechanism).reserve(3)
    (tmp_path / "executed").write_bytes(b"....")
    with pytest.raises(AssertionError):
        check(tmp_path, 9)
