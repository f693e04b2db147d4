"""``dpft source-prompt``: a prompt for ATTEMPT, trained on a public task without any privacy."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from dpft.config import load_recipe


def train_source_prompt(path: Path, overrides: list[str], to: Path, name: str | None, *, public: bool) -> None:
    """Train, say what was made, and that it is not private."""
    recipe = load_recipe(path, overrides)  # before torch is imported: a typing mistake answers at once
    from dpft.source_prompts import source_prompt

    console = Console()
    console.print("NOT PRIVATE: no clipping, no noise, no ledger; the recipe's records are declared public")
    name = name or recipe.name
    made = source_prompt(recipe, to, name=name, public=public, say=lambda t: console.print(f"· {t}", highlight=False))
    count, length, width = made.prompts.shape
    console.print(f"{to}: {count} prompts of {length} x {width} ({', '.join(made.names)})", highlight=False)
    console.print(f"sha256 {made.sha256}", highlight=False)
