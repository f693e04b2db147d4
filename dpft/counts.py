"""How many numbers the common methods train, in closed form: for estimates, without torch.

The exact number, of any method, is counted on the model itself (``dpft/reproduce/real_shape.py``); a test compares.
"""

from __future__ import annotations

from dpft.config import LoRASection, Recipe
from dpft.config.method_section import AdapterSection, CompacterSection, MethodSection
from dpft.config.task_fields import LANGUAGE_TASKS
from dpft.shapes import Shape

_SHARE = 0.01
"""Of the blocks' weights: what is supposed of a method without a closed form here, about a large plug-in's size."""


def trained_numbers(recipe: Recipe, shape: Shape) -> int:
    """Trained numbers of a recipe on a model of this shape, its head included; about 1 % of the blocks' weights for
    methods that are not known here."""
    head = 0 if recipe.data.task in LANGUAGE_TASKS else recipe.data.outputs * (shape.width + 1)
    return head + _of_method(recipe.method, shape)


def _of_method(method: MethodSection, shape: Shape) -> int:
    if method.name == "head":
        return 0
    if method.name == "full":
        return shape.block_weights if method.targets else shape.weights
    if isinstance(method, LoRASection):
        return _lora(method, shape)
    if isinstance(method, AdapterSection):
        return _places(method, shape) * _adapter(method, shape.width)
    if isinstance(method, CompacterSection):
        return _compacter(method, shape)
    return round(_SHARE * shape.block_weights)


def _lora(method: LoRASection, shape: Shape) -> int:
    d, f, r = shape.width, shape.ffn, method.rank
    if method.targets == ("all-linear",):
        pairs = (4 if method.fuse_qkv else 6) * d + 2 * d + (3 if shape.gated else 2) * (d + f)
        return _blocks(method, shape) * r * pairs
    return _blocks(method, shape) * r * 2 * d * (len(method.targets) or 2)


def _blocks(method: LoRASection | AdapterSection | CompacterSection, shape: Shape) -> int:
    return min(method.blocks or shape.layers, shape.layers)


def _places(method: AdapterSection | CompacterSection, shape: Shape) -> int:
    return _blocks(method, shape) * (2 if method.placement == "both" else 1)


def _inside(method: AdapterSection | CompacterSection, width: int, usual: int) -> int:
    return method.bottleneck or width // (method.reduction or usual)


def _adapter(method: AdapterSection, d: int) -> int:
    m = _inside(method, d, 16)
    return 2 * d * m + (d + m if method.bias else 0)


def _compacter(method: CompacterSection, shape: Shape) -> int:
    d, places = shape.width, _places(method, shape)
    m = _inside(method, d, 32)
    rules = method.n**3 * (1 if method.shared_rule else 2 * places)
    return rules + places * (2 * (d + m) + (d + m if method.bias else 0))
