"""Prompts and sparse backbones that were made without privacy, and the refusal to train privately on their records.

``dpft source-prompt`` and ``dpft sparsify`` run on what the user declares public. What they make says in its metadata
on which records, and a run that names the same ones as private stops before it plans anything: of records that a prompt
or a backbone gives away already, no epsilon is true.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpft.config import Recipe
from dpft.data.origin import Origin, origin_of
from dpft.errors import InputError, PrivacyError
from dpft.files import read_json
from dpft.peft.prompt_file import read_prompts

SPARSITY = "sparsity.json"
ORIGINS = "declared_public"


def check_not_declared(recipe: Recipe) -> None:
    """Raise :class:`PrivacyError` where what the recipe starts from was made, as if they were public, of its private
    records. Files of [data] are hashed only where there is something to compare with."""
    made = [*_of_prompts(recipe), *_of_model(recipe.model.source)]
    private = origin_of(recipe.data).parts if made else frozenset()
    for what, origin in made:
        if origin.parts & private:
            raise PrivacyError(
                f"{what} was made without privacy from {origin.name}, declared public, and [data] names the same "
                "records as private: no promise about them would hold. Make it anew from other records, or do without."
            )


def origins_of_model(folder: Path) -> list[Origin]:
    """The texts that the model in ``folder`` was pruned on, and those of the model that it was made of; none where no
    sparsity.json is there to say so."""
    if not (folder / SPARSITY).is_file():
        return []
    try:
        return [Origin.from_dict(values) for values in read_json(folder / SPARSITY).get(ORIGINS, [])]
    except (AttributeError, KeyError, TypeError):
        raise InputError(f"{SPARSITY} in {folder.name} is damaged: expected it as dpft sparsify writes it.") from None


def _of_model(source: str) -> Iterator[tuple[str, Origin]]:
    folder = Path(source).expanduser()
    for origin in origins_of_model(folder):
        yield f"The sparse model folder:{folder.resolve().name} (model.source)", origin


def _of_prompts(recipe: Recipe) -> Iterator[tuple[str, Origin]]:
    method: Any = recipe.method
    path = getattr(method, "sources", "")
    if method.name != "attempt" or not path:
        return
    found = read_prompts(path)
    for name, origin in zip(found.names, found.origins, strict=True):
        if origin is not None:
            yield f"The source prompt {name!r} (method.sources)", origin
