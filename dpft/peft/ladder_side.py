"""The side network itself: a model of the backbone's own class, narrower, which is fed vectors in place of tokens."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from dpft.errors import InputError
from dpft.peft.families import Family

# The fields of a configuration that say how wide its layers are, how many it has, and how many heads.
_WIDTHS = {"distilbert": ("dim", "hidden_dim"), "gpt2": ("n_embd", "n_inner"), "t5": ("d_model", "d_kv", "d_ff")}
_USUAL_WIDTHS = ("hidden_size", "intermediate_size", "head_dim", "attention_head_size")
_LAYERS = {"distilbert": "n_layers", "gpt2": "n_layer", "t5": "num_layers"}
_HEADS = {"distilbert": "n_heads", "gpt2": "n_head", "t5": "num_heads"}


class Stack:
    """A module that embeds its inputs and runs blocks on them, one after the other. ``d`` numbers a token."""

    def __init__(self, host: nn.Module, family: Family) -> None:
        self.host, self.family = host, family
        lists = [name for name, m in host.named_modules() if isinstance(m, nn.ModuleList)]
        ends = [name for name in lists if any(f".{b}".endswith(f".{name}") for b in family.blocks)]
        if not ends:
            raise InputError(f"Expected a {family.model_type} model with blocks under {family.blocks[-1]!r}.")
        self.list = ends[0]
        config: Any = host.config
        self.config = config
        self.heads = int(getattr(config, _HEADS.get(family.model_type, "num_attention_heads")))
        self.kv_heads = int(getattr(config, "num_key_value_heads", None) or self.heads)
        self.width = int(getattr(config, self.widths[0]))
        self.turns = hasattr(host, "rotary_emb")
        """Whether queries and keys are turned by their positions, in pairs."""

    @property
    def widths(self) -> tuple[str, ...]:
        return _WIDTHS.get(self.family.model_type, _USUAL_WIDTHS)

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.host.get_submodule(self.list).children())

    @property
    def embedded(self) -> str:
        """The module whose output, before any dropout, the first block gets."""
        return self.family.embedded or "embed_tokens"


def build_side(stack: Stack, reduction: int, kept: tuple[int, ...], generator: torch.Generator) -> nn.Module:
    """A new side network with a block for each in ``kept``, where and of the type that the backbone is.

    It starts as its class does; the draws come from ``generator`` and leave torch's own as it was."""
    config = _config(stack, reduction, kept)
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        side: nn.Module = type(stack.host)(config)
    _feed_vectors(side)
    like = next(stack.host.parameters())
    for module in side.modules():
        for key, p in module._parameters.items():
            if p is not None:
                module._parameters[key] = nn.Parameter(p.detach().to(like.device, like.dtype))
        for key, buffer in module._buffers.items():
            if buffer is not None:
                # Frequencies stay in float32, whatever the weights are in; an empty buffer is there for its type.
                module._buffers[key] = buffer.to(like.device, None if buffer.numel() else like.dtype)
    return side


def fed(side: nn.Module, family: Family, z: Tensor, arguments: dict[str, Any]) -> Tensor:
    """The side network's last hidden state [B, T, d/r] for the vectors ``z`` [B, T, d/r]."""
    given = {"inputs_embeds" if family.tokens else "pixel_values": z}
    out: Tensor = side(**given, **arguments)[0]
    return out


def _config(stack: Stack, reduction: int, kept: tuple[int, ...]) -> Any:
    config, name = copy.deepcopy(stack.config), stack.family.model_type
    for field in stack.widths:
        width = getattr(stack.config, field, None)
        if width is None:
            continue
        if width % reduction:
            raise _indivisible(reduction, width, field)
        setattr(config, field, width // reduction)
    head = head_width(stack)
    if head % reduction or (stack.turns and head // reduction % 2):
        even = ", to an even number" if stack.turns else ""
        raise _indivisible(reduction, head, "width of a head" + even)
    setattr(config, _LAYERS.get(name, "num_hidden_layers"), len(kept))
    if isinstance(getattr(config, "layer_types", None), list):
        config.layer_types = [stack.config.layer_types[i] for i in kept]
    if name == "electra":
        config.embedding_size = config.hidden_size
    if stack.family.tokens:  # its tables are dropped at once
        config.vocab_size, config.pad_token_id = 2, 0
    if hasattr(config, "use_cache"):
        config.use_cache = False
    config.output_hidden_states = config.output_attentions = False
    return config


def head_width(stack: Stack) -> int:
    """Numbers of one head."""
    own = getattr(stack.config, "d_kv" if stack.family.model_type == "t5" else "head_dim", None)
    return int(own or stack.width // stack.heads)


def _indivisible(reduction: int, width: int, what: str) -> InputError:
    return InputError(
        f"Expected method.reduction={reduction} to divide {width}, this model's {what}; choose another, such as 2."
    )


def _feed_vectors(side: Any) -> None:
    """Replace what embeds by modules that hand on the vectors they are given; drop a pooler."""
    for name, stand_in in (("embeddings", _HandOn()), ("wpe", _Nothing())):
        if hasattr(side, name):
            setattr(side, name, stand_in)
    for name in ("wte", "embed_tokens"):
        if hasattr(side, name):
            delattr(side, name)
    if getattr(side, "pooler", None) is not None:
        del side.pooler
        side.pooler = None  # a plain attribute: as in a model that never had one


class _HandOn(nn.Module):
    """In place of embeddings. ViT asks its own for the type of their weights."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(0), persistent=False)

    @property
    def patch_embeddings(self) -> _HandOn:
        return self

    @property
    def projection(self) -> _HandOn:
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return next(t for t in (*args, *kwargs.values()) if isinstance(t, Tensor) and t.dim() == 3)


class _Nothing(nn.Module):
    """In place of a table of positions, which the backbone has added already."""

    def forward(self, positions: Tensor) -> Tensor:
        return torch.zeros((), device=positions.device)
