"""``dpft export`` and ``dpft prune``: a trained classifier for people without dpft."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console


def export_run(
    folder: Path, to: Path, base: str | None, *, merged: bool, keep_pattern: bool = False, int8: bool = False
) -> None:
    """Write the folder and say what is in it; what is not private is marked here too."""
    from dpft.export import export

    found = export(folder, to, merged=merged, base=base, keep_pattern=keep_pattern, int8=int8)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{'merged model' if merged else 'adapter'} with README.md: {to}", markup=False)
    for change in found.changed:
        console.print(change, markup=False)
    if found.mark:
        console.print(found.mark, markup=False)


def prune_run(folder: Path, to: Path, base: str | None, ratio: float | None, heads: int | None, scope: str) -> None:
    """The same, merged and pruned; says how much."""
    from dpft.export import export
    from dpft.peft.prune import Pruning

    pruning = Pruning(0.2 if ratio is None and heads is None else ratio, heads, scope)  # type: ignore[arg-type]
    found = export(folder, to, base=base, pruning=pruning)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"pruned model with README.md: {to}", markup=False)
    console.print(found.pruned, markup=False)
    if found.mark:
        console.print(found.mark, markup=False)
