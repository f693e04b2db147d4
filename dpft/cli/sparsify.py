"""``dpft sparsify``: a sparse copy of a pretrained model, made on public text without any privacy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console


def sparsify_model(model: str, to: Path, text: Path, *, public: bool, distil: bool, **options: Any) -> None:
    """Prune, say what was made, and that it is not private."""
    from dpft.sparsify import Pruning, sparsify

    console = Console(highlight=False, soft_wrap=True)
    console.print("NOT PRIVATE: no clipping, no noise, no ledger; the text is declared public", markup=False)
    pruning = Pruning(**{name: value for name, value in options.items() if value is not None})
    say = lambda line: console.print(f"· {line}", markup=False)  # noqa: E731
    made = sparsify(model, to, text, pruning, public=public, distil=distil, say=say)
    console.print(f"{to}: {made['sparsity']:.1%} of the blocks' Linear weights are zero (sparsity.json)", markup=False)
