"""The methods there are, and the model families each is tested on. One row a method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dpft.errors import InputError


@dataclass(frozen=True)
class Family:
    """A model family: HF's ``model_type`` and the attention projections that LoRA takes by default."""

    model_type: str
    lora_targets: tuple[str, ...]
    note: str = ""


_DEBERTA = "query_proj and key_proj also run on the shared position table, outside the batch: they are refused"

# Every row is a cell of the support matrix; tests/peft/test_matrix.py runs each against the oracle.
FAMILIES: Mapping[str, Family] = {
    f.model_type: f
    for f in (
        Family("bert", ("query", "value")),
        Family("roberta", ("query", "value")),
        Family("distilbert", ("q_lin", "v_lin")),
        Family("electra", ("query", "value")),
        Family("mpnet", ("q", "v")),
        Family("deberta-v2", ("value_proj",), _DEBERTA),
        Family("modernbert", ("Wqkv",)),
    )
}

METHODS: Mapping[str, str] = {
    "lora": "low-rank pairs beside chosen linear layers, and the head (Hu et al. 2021)",
}


def default_targets(model_type: str) -> tuple[str, ...]:
    """The family's usual LoRA targets; an unknown family raises and says how to name them."""
    if model_type not in FAMILIES:
        raise InputError(
            f"Expected method.targets for the model family {model_type!r}, whose usual targets are not known here. "
            f'Name the linear layers to adapt, e.g. targets = ["query", "value"]; known: {", ".join(FAMILIES)}.'
        )
    return FAMILIES[model_type].lora_targets
