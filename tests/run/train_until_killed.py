"""A small training that another process kills: run as a script by test_kill.py.

Arguments: folder, steps, kind. It resumes if the folder holds a ledger, writes one byte to ``executed`` for
every noise that is really drawn, and prints one line when the engine is open."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from torch import nn

import dpft
from dpft.engine.checkpoint import Checkpoints
from dpft.engine.keystream import Keystream
from dpft.engine.plan import Plan
from dpft.files import read_json

D, RECORDS = 40, 15


class LoggedWords(Keystream):
    """Notes each draw of noise before it is handed out, in a way that survives SIGKILL (the page cache does)."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def words(self, n: int) -> torch.Tensor:
        if n == D:  # noise for D coordinates; drawing a batch never asks for more than RECORDS words
            os.write(self._log, b".")
        return super().words(n)


def main(folder: Path, every: int) -> None:
    torch.manual_seed(0)
    model = nn.Linear(D, 1, bias=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    plan = Plan.from_dict(read_json(folder / "plan.json"))
    data = [{"x": torch.full((D,), i / RECORDS)} for i in range(RECORDS)]
    ledger = folder / "ledger.jsonl"
    # A kill between the making of the file and its first run leaves a ledger without one.
    resume = ledger.exists()
    checkpoints = Checkpoints(folder / "private")
    with dpft.PrivateEngine(
        model,
        optimizer,
        plan,
        loss=lambda m, b: m(b["x"]).squeeze(1),
        ledger=ledger,
        resume=resume,
        words=LoggedWords(folder / "executed"),
    ) as engine:
        checkpoints.restore(model, optimizer)
        print("ready", flush=True)
        if engine.steps_charged < plan.steps:
            for batch in engine.batches(data, lambda e: {"x": torch.stack([one["x"] for one in e])}):
                engine.step(batch)
                if engine.steps_charged % every == 0 or engine.steps_charged == plan.steps:
                    checkpoints.save(model, optimizer, engine.steps_charged)
                    engine.commit()
        engine.finish()
    print("done", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
