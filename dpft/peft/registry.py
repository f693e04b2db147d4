"""The methods there are. One row a method; where each may attach is in ``families.py``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from typing import Any

from dpft.config.method_section import with_preset
from dpft.config.presets import PRESETS
from dpft.config.schema import Recipe
from dpft.errors import InputError
from dpft.peft.attempt import Attempt
from dpft.peft.bitfit import BitFit
from dpft.peft.bottleneck import Adapter
from dpft.peft.compacter import Compacter
from dpft.peft.dsee import DSEE
from dpft.peft.families import FAMILIES, Family
from dpft.peft.full import Full
from dpft.peft.head_only import HeadOnly
from dpft.peft.ia3 import IA3
from dpft.peft.ladder import Ladder
from dpft.peft.last_layers import LastLayers
from dpft.peft.lora import LoRA
from dpft.peft.method import Method
from dpft.peft.new_tokens import TokenRows
from dpft.peft.norms import Norms
from dpft.peft.prefix import PrefixTuning
from dpft.peft.prompt import PromptTuning
from dpft.peft.raft import RAFT
from dpft.peft.sparse_adapter import SparseAdapter
from dpft.peft.together import NAME as TOGETHER
from dpft.peft.together import Together

METHODS: Mapping[str, type[Method]] = {
    m.name: m
    for m in (
        LoRA, IA3, BitFit, Norms, LastLayers, Full, TokenRows, HeadOnly, Adapter, Compacter,
        PromptTuning, PrefixTuning, Attempt, DSEE,
        SparseAdapter, RAFT,
        Ladder,
    )
}  # fmt: skip

# What a method may need of a family (its ``needs`` name these fields of the family's row), in words.
_LACKS = {
    "biases": "its layers have no biases",
    "tokens": "its input is not token ids",
    "interface": "its attention takes no keys and values but its own",
}


def method_from(section: Mapping[str, Any]) -> Method:
    """The method that a recipe's ``[method]`` table, or the table kept with a saved adapter, describes.

    Raises :class:`InputError` for an unknown name or field."""
    if section.get("name") == TOGETHER:  # never written in a recipe, where it is [method] and [beside]
        return Together(tuple(method_from(part) for part in section["methods"]))
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in section.items()}
    name = str(fields.pop("name", None))
    if name not in METHODS:
        raise InputError(f"Expected method.name={name!r} to be one of {', '.join(METHODS)}.")
    try:
        return METHODS[name](**fields)
    except TypeError:
        raise InputError(f"The method {name!r} does not take exactly the fields {', '.join(fields)}.") from None


def method_of(recipe: Recipe) -> Method:
    """The method of a recipe: ``[method]``, and ``[beside]`` together with it."""
    first = method_from(recipe.method.model_dump())
    return first if recipe.beside is None else Together((first, method_from(recipe.beside.model_dump())))


def preset(name: str, **fields: Any) -> Method:
    """A published architecture by its name (``dpft methods`` lists them), with ``fields`` in place of the preset's.

    Raises :class:`InputError` for an unknown name or field."""
    if name not in PRESETS:
        near = get_close_matches(name, PRESETS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise InputError(f"Expected one of the presets {', '.join(PRESETS)}, found {name!r}{hint}")
    return method_from(with_preset({"name": name, **fields}))


def section_of(method: Method) -> dict[str, Any]:
    """The reverse: plain values, as a recipe or a saved adapter holds them."""
    if isinstance(method, Together):
        return {"name": TOGETHER, "methods": [section_of(part) for part in method.methods]}
    values = asdict(method)  # type: ignore[call-overload]
    return {"name": method.name, **{k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}}


@dataclass(frozen=True)
class Cell:
    """One method on one model family. ``reason`` says why not, empty where it is supported; ``attaches_to`` are the
    modules that are adapted by default, as names or globs within a transformer block."""

    method: str
    family: str
    supported: bool
    reason: str
    attaches_to: tuple[str, ...]


def cells() -> Iterator[Cell]:
    """The support matrix, method by method; every cell is tested."""
    for name, method in METHODS.items():
        for family in FAMILIES.values():
            lacks = [_LACKS[need] for need in getattr(method, "needs", ()) if not getattr(family, need)]
            reason = "; ".join(lacks)
            yield Cell(name, family.model_type, not lacks, reason, () if lacks else _attaches_to(method, family))


def _attaches_to(method: type[Method], family: Family) -> tuple[str, ...]:
    if method is LoRA:
        return family.lora
    globs = [getattr(family, role) for role in getattr(method, "roles", ())]
    return tuple(dict.fromkeys(globs))  # a fused projection plays several roles
