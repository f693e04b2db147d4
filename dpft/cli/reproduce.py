"""``dpft reproduce``: published experiments again, or with ``--dry-run`` all of it but the training."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dpft.cost import CPU, GPU
from dpft.files import write_atomic
from dpft.reproduce.dry import Dry, dry_run
from dpft.reproduce.find import find
from dpft.reproduce.results import Result
from dpft.reproduce.tables import DRY, NOTE, RUN, dry_rows, markdown, run_rows


def reproduce_dry(pattern: str | None, overrides: list[str], out: Path, *, as_json: bool) -> None:
    """Plan, count and estimate every recipe; exit code 1 if anything is wrong or differs from what was published."""
    found: list[Dry] = []
    paths = find(pattern)
    for one in dry_run(paths, overrides):
        found.append(one)
        _progress(len(found), len(paths), one.name)
    costs = f"Time (training alone) and memory are estimates from shapes, for {CPU.name} and for {GPU.name}."
    _write(out, "dry-run.md", markdown(DRY, dry_rows(found)), NOTE, costs)
    wrong = sum(bool(one.faults) for one in found)
    if as_json:
        print(json.dumps([one.to_dict() for one in found], indent=2, allow_nan=False))
    else:
        kept = ("recipe", "claimed", "certified", "PLD, reference", "parameters", "CPU", "H100", "GB")
        _show(DRY, dry_rows(found), kept, f"{len(found)} recipes, {wrong} with errors; {out / 'dry-run.md'}")
        for one in found:
            for fault in one.faults:
                print(f"error: {one.name}: {fault}", file=sys.stderr)
    if wrong:
        sys.exit(1)


def reproduce(pattern: str | None, overrides: list[str], out: Path, *, twins: bool, as_json: bool) -> None:
    """Run every recipe and its twin without privacy into ``out``; exit code 1 if any run failed."""
    paths = find(pattern)
    from dpft.cli.run import _stop_signal
    from dpft.reproduce.picture import draw
    from dpft.reproduce.runs import run_all

    console = Console(stderr=as_json)
    found: list[Result] = []
    with _stop_signal() as stopped:
        runs = run_all(
            paths, overrides, out, _runner(console, lambda: bool(stopped)), twins=twins, device=_device,
            stopped=lambda: bool(stopped),
        )  # fmt: skip
        for one in runs:
            found.append(one)
            # Written again after each, since the next may take days.
            _write(out, "reproduce.md", markdown(RUN, run_rows(found)), NOTE)
            draw(found, out / "reproduce")
    if as_json:
        print(json.dumps([one.to_dict() for one in found], indent=2, allow_nan=False))
    else:
        _show(RUN, run_rows(found), RUN[:10], str(out / "reproduce.md"))
    faults = [f"{one.name}: {s.fault}" for one in found for s in (one.private, one.twin) if s is not None and s.fault]
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    if faults or len(found) < len(paths):
        sys.exit(1)


def _runner(console: Console, stop: Any) -> Any:
    from dpft.run import Watch, run

    def runner(recipe: Any, folder: Path, resume: bool) -> None:
        console.print(f"{'going on with' if resume else 'running'} {folder}", highlight=False)
        tenth = [0]

        def step(done: int, of: int) -> None:
            if 10 * done // of > tenth[0] or done == 1:
                tenth[0] = 10 * done // of
                console.print(f"· step {done} of {of}", highlight=False)

        watch = Watch(say=lambda text: console.print(f"· {text}", highlight=False), step=step, stop=stop)
        run(recipe, folder, resume=resume, watch=watch)

    return runner


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads"


def _progress(done: int, of: int, name: str) -> None:
    if sys.stderr.isatty():
        end = "\n" if done == of else ""
        print(f"\r{done} of {of}: {name:<60.60}", end=end, file=sys.stderr, flush=True)


def _write(out: Path, name: str, *parts: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / name, "\n".join(parts).rstrip("\n").encode() + b"\n")


def _show(head: Sequence[str], rows: Sequence[Sequence[str]], kept: Sequence[str], last: str) -> None:
    """The columns that fit a terminal; names without what all of them begin with."""
    console = Console()
    starts = {row[0].partition("-")[0] for row in rows}
    shared = f"{min(starts)}-" if len(starts) == 1 and len(rows) > 1 else ""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    places = [head.index(name) for name in kept]
    for place in places:
        table.add_column(head[place], overflow="fold", justify="left" if place == 0 else "right")
    for row in rows:
        table.add_row(row[0].removeprefix(shared), *(row[place] for place in places[1:]))
    console.print(table)
    console.print(NOTE, last, sep="\n", highlight=False, soft_wrap=True)
